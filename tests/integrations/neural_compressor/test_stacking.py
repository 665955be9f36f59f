"""ilwp, export, INT8: what the graph computes with, and what its file restores."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ilwp_integrations.neural_compressor import IlwpConfig, attached, compress_exported, load, save, stack
from ilwp_integrations.neural_compressor.exported import activations, integer_weights
from neural_compressor.torch.quantization import (
    DynamicQuantConfig,
    INT8StaticQuantConfig,
    MixedPrecisionConfig,
    RTNConfig,
)
from torch import Tensor, nn

from ilwp_plugin import load as core_load
from ilwp_plugin.errors import ConfigError, FormatError, IlwpWarning, TensorError, TrainingError
from ilwp_plugin.testing import settle


class Network(nn.Module):
    """Every kind of layer that matters here, and few of each: an export of a whole MobileNet takes ten seconds."""

    def __init__(self, blocks: int = 3) -> None:
        super().__init__()

        def conv(c_in: int, c_out: int, size: int, groups: int = 1) -> nn.Sequential:
            return nn.Sequential(
                nn.Conv2d(c_in, c_out, size, padding=size // 2, groups=groups, bias=False),
                nn.BatchNorm2d(c_out),
                nn.ReLU6(),
            )

        self.stem = conv(1, 48, 3)
        self.blocks = nn.ModuleList(nn.Sequential(conv(48, 48, 3, 48), conv(48, 48, 1)) for _ in range(blocks))
        self.classifier = nn.Linear(48, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for number, block in enumerate(self.blocks):
            x = block(x) + x if number else block(x)
        logits: Tensor = self.classifier(x.mean(dim=(2, 3)))
        return logits


GRID = {"preset": "paper", "bits": None, "weight_step": 0.02}


@pytest.fixture(scope="module")
def examples() -> Tensor:
    return torch.randn(8, 1, 16, 16, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def network(examples: Tensor) -> nn.Module:
    torch.manual_seed(0)
    model = settle(Network(), examples)
    with torch.no_grad():  # gains of batch norms, of either sign
        for norm in (module for module in model.modules() if isinstance(module, nn.BatchNorm2d)):
            norm.weight.copy_(torch.randn(len(norm.weight)))
    return settle(model, examples)


STACKS: dict[str, Any] = {
    "static": lambda: [INT8StaticQuantConfig()],
    "dynamic": lambda: [DynamicQuantConfig()],
    "chain, static": lambda: [IlwpConfig(preset="paper", bits=5), INT8StaticQuantConfig()],
    "grid, static": lambda: [IlwpConfig(**GRID), INT8StaticQuantConfig()],
    "grid, merged, static": lambda: [IlwpConfig(**GRID, batch_norm="merged"), INT8StaticQuantConfig()],
    "grid, dynamic": lambda: [IlwpConfig(**GRID), DynamicQuantConfig(w_granularity="per_channel")],
}


@pytest.fixture(scope="module")
def stacks(network: nn.Module, examples: Tensor) -> dict[str, nn.Module]:
    return {name: stack(copy.deepcopy(network), make(), examples) for name, make in STACKS.items()}


@pytest.mark.parametrize("name", STACKS)
def test_file_restores_the_graph_bit_for_bit(
    stacks: dict[str, nn.Module], network: nn.Module, examples: Tensor, tmp_path: Path, name: str
) -> None:
    ledger = save(stacks[name], tmp_path)
    assert (tmp_path / "model.ilwp").stat().st_size == ledger.file_bytes
    restored = load(tmp_path, Network(), examples[:2])
    inputs = torch.randn(5, 1, 16, 16)
    assert torch.equal(restored.eval()(inputs), stacks[name].eval()(inputs))
    again, saved = save(restored, tmp_path / "again"), core_load(tmp_path / "model.ilwp").state_dict()
    assert abs(again.file_bytes - ledger.file_bytes) < 64, "'auto' is another coder once it is read"
    assert all(torch.equal(t, saved[n]) for n, t in core_load(tmp_path / "again" / "model.ilwp").state_dict().items())


def test_file_is_smaller_than_the_integers(stacks: dict[str, nn.Module], tmp_path: Path) -> None:
    """INC's own checkpoint is larger than fp32."""
    graph = stacks["static"]
    integers = sum(weight.value.codes.size for weight in integer_weights(graph).values())
    fp32 = 4 * integers
    batch = torch.export.Dim("batch", min=1)
    torch.export.save(
        torch.export.export(graph, (torch.randn(4, 1, 16, 16),), dynamic_shapes=({0: batch},)), tmp_path / "x"
    )
    assert (tmp_path / "x").stat().st_size > fp32
    scales_and_biases = sum(2 * 4 * len(weight.value.codes) for weight in integer_weights(graph).values())
    others = 2048  # names, the configuration, activations: of a network as small as this a tenth
    assert compress_exported(graph).ledger.file_bytes < integers + scales_and_biases + others
    sizes = {name: compress_exported(stacks[name]).ledger.file_bytes for name in STACKS}
    assert sizes["grid, merged, static"] < sizes["grid, static"] < sizes["static"]


def test_weights_are_codes_of_eight_bits(stacks: dict[str, nn.Module]) -> None:
    for name, graph in stacks.items():
        weights = integer_weights(graph)
        assert len(weights) == 8, name
        assert all(int(w.value.codes.min()) >= -128 and int(w.value.codes.max()) <= 127 for w in weights.values())
        scales, _ = activations(graph)
        assert (len(scales) > 0) == ("static" in name)


@pytest.mark.parametrize("name", ["grid, static", "grid, merged, static", "grid, dynamic"])
def test_grids_survive(stacks: dict[str, nn.Module], network: nn.Module, examples: Tensor, name: str) -> None:
    """INC's codes are ilwp's, up to the sign of a batch norm; depthwise layers included."""
    model = copy.deepcopy(network)
    stack(model, STACKS[name](), examples)
    own = attached(model).compressed.quantized
    weights = integer_weights(stacks[name])
    assert set(weights) <= set(own)
    for key, weight in weights.items():
        assert torch.equal(
            torch.from_numpy(weight.value.codes).abs().long(), torch.from_numpy(own[key].centred).abs().long()
        ), key


def test_by_default_the_whole_model_is_on_ilwps_grid(network: nn.Module, examples: Tensor, tmp_path: Path) -> None:
    """With 32 examples and no fields: measured steps for which no code passes 127, and a file of ilwp's integers."""
    many = torch.cat([examples + 0.1 * number for number in range(4)])
    model = copy.deepcopy(network)
    graph = stack(model, [IlwpConfig(), INT8StaticQuantConfig()], many)
    compressed = attached(model).compressed
    weights = integer_weights(graph)
    assert not compressed.chains and set(weights) <= set(compressed.quantized)
    for name, weight in weights.items():
        assert np.array_equal(abs(weight.value.codes), abs(compressed.quantized[name].centred)), name
    steps = {float(value.scale) for name, value in compressed.quantized.items() if name in weights}
    assert len(steps) == len(weights)
    ledger = save(graph, tmp_path)
    assert "digest" in core_load(tmp_path / "model.ilwp").metadata["neural_compressor"]
    assert (
        ledger.file_bytes
        < compress_exported(
            stack(copy.deepcopy(network), [IlwpConfig(bits=8), INT8StaticQuantConfig()], many)
        ).ledger.file_bytes
    )
    inputs = torch.randn(5, 1, 16, 16)
    assert torch.equal(load(tmp_path, Network(), many)(inputs), graph(inputs))


def test_steps_have_a_floor_for_int8(network: nn.Module, examples: Tensor) -> None:
    """One step as fine as this would take ten bits in some layers."""
    fine = IlwpConfig(bits=None, weight_step=1e-3, dead_zone=0.5, step_allocation="equal")
    model = copy.deepcopy(network)
    graph = stack(model, [fine, INT8StaticQuantConfig()], examples)
    weights = integer_weights(graph)
    largest = [abs(weight.value.codes).max() for weight in weights.values()]
    assert max(largest) == 127
    for name, weight in weights.items():
        assert np.array_equal(abs(weight.value.codes), abs(attached(model).compressed.quantized[name].centred)), name


def test_what_keeps_no_grid_is_told(network: nn.Module, examples: Tensor) -> None:
    with pytest.warns(IlwpWarning, match="8 layers get INC's grid .* one scale for the whole tensor.*per_channel can"):
        stack(copy.deepcopy(network), [IlwpConfig(**GRID), DynamicQuantConfig()], examples)


@pytest.mark.parametrize("configs", ["static", "grid, static"])
def test_bfloat16(network: nn.Module, examples: Tensor, configs: str, tmp_path: Path) -> None:
    fresh = copy.deepcopy(network).bfloat16()
    graph = stack(copy.deepcopy(fresh), STACKS[configs](), examples.bfloat16())
    save(graph, tmp_path)
    restored = load(tmp_path, fresh, examples.bfloat16())
    inputs = torch.randn(5, 1, 16, 16).bfloat16()
    assert graph(inputs).dtype == torch.bfloat16
    assert torch.equal(restored(inputs), graph(inputs))


def test_a_module_that_runs_twice(examples: Tensor, tmp_path: Path) -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.layer, self.head = nn.Conv2d(1, 8, 3), nn.Conv2d(8, 8, 3, padding=1), nn.Linear(8, 4)

        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = self.head(self.layer(self.layer(self.stem(x)).relu()).mean((2, 3)))
            return logits

    torch.manual_seed(0)
    model = Twice().eval()
    graph = stack(copy.deepcopy(model), [IlwpConfig(), INT8StaticQuantConfig()], examples)
    save(graph, tmp_path)
    assert torch.equal(load(tmp_path, model, examples)(examples), graph(examples))


def test_chains_get_incs_grid_and_are_predicted(stacks: dict[str, nn.Module], network: nn.Module) -> None:
    """The values of a chain lie on no common grid: INC rounds them again, to its own channels."""
    weights = integer_weights(stacks["chain, static"])
    depthwise = [w for w in weights.values() if w.value.codes.shape[1] == 1 and w.value.codes.shape[2] == 3][1:]
    assert all(abs(w.value.codes.reshape(len(w.value.codes), -1)).max(1).min() >= 126 for w in depthwise)


def test_training_happens_under_ilwp(network: nn.Module, examples: Tensor) -> None:
    seen = []

    def train(model: nn.Module) -> None:
        seen.append(attached(model).quantizer is not None)
        with torch.no_grad():
            model.classifier.bias.fill_(3.0)

    graph = stack(
        copy.deepcopy(network), [IlwpConfig(preset="paper", bits=5), INT8StaticQuantConfig()], examples, run_fn=train
    )
    assert seen == [True]
    assert float(graph.state_dict()["classifier.bias"].mean()) == 3


def test_calibration_data_set_the_scales(network: nn.Module, examples: Tensor) -> None:
    narrow = stack(copy.deepcopy(network), [INT8StaticQuantConfig()], examples)
    wide = stack(copy.deepcopy(network), [INT8StaticQuantConfig()], examples, calibrate=lambda g: g(9 * examples))
    assert float(activations(wide)[0][0]) > 5 * float(activations(narrow)[0][0])


def test_local_configurations_of_inc_are_kept_in_the_file(network: nn.Module, examples: Tensor, tmp_path: Path) -> None:
    fp32 = INT8StaticQuantConfig(w_dtype="fp32", act_dtype="fp32")
    config = INT8StaticQuantConfig().set_local("stem.0", fp32).set_local(nn.Linear, fp32)
    graph = stack(copy.deepcopy(network), [config], examples)
    assert len(integer_weights(graph)) == 6
    save(graph, tmp_path)
    restored = load(tmp_path, copy.deepcopy(network), examples)
    assert torch.equal(restored(examples), graph(examples))


def test_the_model_stays_as_ilwp_left_it(network: nn.Module, examples: Tensor) -> None:
    model = copy.deepcopy(network)
    stack(model, [INT8StaticQuantConfig()], examples)
    assert all(torch.equal(tensor, network.state_dict()[name]) for name, tensor in model.state_dict().items())


def test_clear_errors(stacks: dict[str, nn.Module], network: nn.Module, examples: Tensor, tmp_path: Path) -> None:
    for configs in ([], [IlwpConfig()], [INT8StaticQuantConfig(), IlwpConfig()], [RTNConfig(), DynamicQuantConfig()]):
        with pytest.raises(ConfigError, match="stack: expected"):
            stack(network, configs, examples)
    with pytest.raises(ConfigError, match="stack: expected"):
        stack(network, [MixedPrecisionConfig(), INT8StaticQuantConfig()], examples)
    with pytest.raises(ConfigError, match="two examples or more"):
        stack(network, [INT8StaticQuantConfig()], examples[:1])
    with pytest.raises(TrainingError, match="cannot be trained"):
        stacks["static"].train()
    with pytest.raises(TensorError, match="not made by stack"):
        compress_exported(torch.fx.symbolic_trace(network))
    save(stacks["static"], tmp_path)
    with pytest.raises(ConfigError, match="pass example_inputs"):
        load(tmp_path, network)
    with pytest.raises(TensorError, match="does not fit"):
        load(tmp_path, Network(blocks=2), examples)


def test_another_folding_is_noticed(
    stacks: dict[str, nn.Module], network: nn.Module, examples: Tensor, tmp_path: Path
) -> None:
    """Where the file holds the float model, the graph is verified against its digest."""
    compressed = compress_exported(stacks["grid, merged, static"])
    about = compressed.metadata
    about["neural_compressor"]["digest"] = "0" * 32
    compressed.with_others_of(compressed.state_dict(), about).save(tmp_path / "x.ilwp")
    with pytest.raises(TensorError, match="other numbers here"):
        load(tmp_path / "x.ilwp", copy.deepcopy(network), examples)
    plain = copy.deepcopy(network)
    core_load(tmp_path / "x.ilwp").apply_to(plain)


def test_running_in_int8_costs_few_bytes(stacks: dict[str, nn.Module]) -> None:
    """Scales, zero points, a digest and how the graph was made, on top of the file of the float model."""
    graph = stacks["grid, merged, static"]
    stored = compress_exported(graph)
    assert "digest" in stored.metadata["neural_compressor"]
    alone = stored.with_others_of(stored.state_dict(), {})
    scales, _ = activations(graph)
    assert stored.ledger.file_bytes - alone.ledger.file_bytes < 330 + 3 * len(scales)
    assert torch.equal(scales.bfloat16().double(), scales)


@pytest.mark.parametrize("text", [None, 7, "~~~", "abc", ""])
def test_damaged_scales_are_refused(
    stacks: dict[str, nn.Module], network: nn.Module, examples: Tensor, tmp_path: Path, text: Any
) -> None:
    stored = compress_exported(stacks["grid, merged, static"])
    about = stored.metadata
    about["neural_compressor"]["activations"] = text
    stored.with_others_of(stored.state_dict(), about).save(tmp_path / "x.ilwp")
    with pytest.raises((FormatError, TensorError), match="scales"):
        load(tmp_path / "x.ilwp", copy.deepcopy(network), examples)


def test_copies_are_whole(stacks: dict[str, nn.Module], examples: Tensor) -> None:
    copied = copy.deepcopy(stacks["static"])
    assert copied.eval() is copied
    assert compress_exported(copied).to_bytes() == compress_exported(stacks["static"]).to_bytes()
