"""What stays in full precision is named, by whoever compresses, and by whoever reads the file."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

from ilwp_plugin import compress, load
from ilwp_plugin.cli.main import app
from ilwp_plugin.errors import IlwpWarning

VECTOR, TABLE, KEPT = "a vector, which no recipe takes", "a buffer or a mask, no parameter", "kept: weight_step is null"


class Everything(nn.Module):
    """Of each kind of weight one."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.lstm, self.gru = nn.LSTM(32, 32), nn.GRU(8, 8, bidirectional=True)
        self.lines, self.volumes, self.up = nn.Conv1d(8, 8, 3), nn.Conv3d(4, 4, 3), nn.ConvTranspose2d(4, 4, 3)
        self.words, self.attention = nn.Embedding(50, 8), nn.MultiheadAttention(8, 2)
        self.normed = nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 4, 3))
        self.norm, self.layer_norm = nn.SyncBatchNorm(8), nn.LayerNorm(8)
        nn.init.normal_(self.layer_norm.weight), nn.init.normal_(self.layer_norm.bias)
        self.own = nn.Parameter(torch.randn(5, 5))
        self.register_buffer("waves", torch.randn(4, 4, dtype=torch.complex64))
        self.register_buffer("table", torch.tensor([[0.0, -torch.inf], [0.0, 0.0]]))
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        raise NotImplementedError


def test_every_weight_is_quantized_and_every_other_tensor_named(tmp_path: Path) -> None:
    model = Everything()
    model.waves = torch.randn(32, 32, dtype=torch.complex64)
    with pytest.warns(IlwpWarning, match=r"of [0-9,]+ bytes are tensors in full precision: '.*`left` has the reasons"):
        compressed = compress(model)
    weights = {name for name, parameter in model.named_parameters() if sum(size > 1 for size in parameter.shape) > 1}
    assert weights <= set(compressed.quantized)
    assert {"lstm.bias_ih_l0", "gru.bias_hh_l0_reverse", "attention.in_proj_bias"} <= set(compressed.quantized)
    scales = "normed.parametrizations.weight.original0"
    assert compressed.left == {scales: VECTOR, "waves": "its dtype is complex64", "table": TABLE}
    before, after = model.state_dict(), compressed.state_dict()
    for key in ("layer_norm.weight", "layer_norm.bias", "lstm.bias_ih_l0"):
        assert (after[key] - before[key]).abs().max() <= 2**-8 * before[key].abs().max()

    compressed.save(tmp_path / "x.ilwp")
    read = load(tmp_path / "x.ilwp")
    assert read.left == dict.fromkeys(compressed.left, "stored in its own dtype")
    shown = CliRunner().invoke(app, ["inspect", str(tmp_path / "x.ilwp")])
    assert "stored in its own dtype: " in shown.stdout and "original0" in shown.stdout
    as_json = json.loads(CliRunner().invoke(app, ["inspect", str(tmp_path / "x.ilwp"), "--json"]).stdout)
    assert as_json["left"].keys() == compressed.left.keys()


def test_what_the_configuration_keeps_is_named_without_a_warning(recwarn: pytest.WarningsRecorder) -> None:
    model = Everything()
    left = compress(model, "lossless").left
    assert left["lines"] == left["words"] == left["lstm.weight_ih_l0"] == KEPT
    assert left["norm"] == "kept: batch_norm is 'exact'" and "norm.weight" not in left and "lines.bias" not in left
    scoped = compress(
        model, {"preset": "paper", "bits": None, "weight_step": 0.01, "ignored_scopes": ["lstm", "words"]}
    )
    assert scoped.left["words"] == "named by `ignored_scopes`" and "words.weight" not in scoped.quantized
    assert not [warning for warning in recwarn if issubclass(warning.category, IlwpWarning)]


def test_a_model_without_chains_need_not_be_traced() -> None:
    """Its order does not matter."""
    assert "volumes.weight" in compress(Everything()).quantized


def test_vectors_are_kept_where_the_configuration_says_so() -> None:
    model = Everything()
    for config in ("lossless", {"biases": False}):
        left = compress(model, config).left
        assert left["layer_norm.weight"] == left["layer_norm.bias"] == VECTOR
    left = compress(model, {"ignored_scopes": ["layer_norm"]}).left
    assert left["layer_norm.weight"] == left["layer_norm.bias"] == "named by `ignored_scopes`"
    by_name = compress({key: tensor for key, tensor in model.state_dict().items() if key != "table"})
    assert not {"layer_norm.weight", "lstm.bias_hh_l0"} & by_name.left.keys()


@pytest.mark.parametrize("kind", [nn.Conv1d, nn.Conv3d, nn.ConvTranspose1d])
def test_other_dimensions(kind: type[nn.Module]) -> None:
    model = nn.Sequential(*(kind(8, 8, 3) for _ in range(3)))
    for compressed in (compress(model), compress(model.state_dict()), compress(model, {"scope": "conv"})):
        coded = {layer.name for layer in compressed.layers if layer.kind in ("chain", "grid")}
        assert {"0.weight", "1.weight", "2.weight"} <= coded and not compressed.left
        for name, tensor in compressed.state_dict().items():
            assert float((tensor - model.state_dict()[name]).abs().max()) < 0.01
