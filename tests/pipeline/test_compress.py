import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch import Tensor, nn

from ilwp_plugin import IlwpConfig, compress, estimate, load, loads
from ilwp_plugin.errors import ChainError, ConfigError, TensorError
from ilwp_plugin.method.prediction import PREDICTORS
from ilwp_plugin.method.quantization import BITS
from ilwp_plugin.models.tensors import same_bits
from ilwp_plugin.training import FakeQuantizer
from ilwp_plugin.zoo import MODELS, build_model
from tests.format import textbook
from tests.pipeline.states import check_round_trip, pair

MODES = list(PREDICTORS)
PAPER = ["mobilenet", "mobilenetv2", "shufflenet", "shufflenetv2"]


@pytest.mark.parametrize(("name", "mode"), [*itertools.product(PAPER, MODES)])
def test_networks_of_the_paper(name: str, mode: str, tmp_path: Path) -> None:
    check_network(name, IlwpConfig.paper(mode=mode), tmp_path)


@pytest.mark.parametrize(("name", "preset"), [*itertools.product(MODELS, ["small", "lossless"])])
def test_whole_networks(name: str, preset: str, tmp_path: Path) -> None:
    check_network(name, IlwpConfig.of(preset), tmp_path)


def check_network(name: str, config: IlwpConfig, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = build_model(name, width=0.25)
    compressed = compress(model, config)
    check_round_trip(model.state_dict(), compressed)
    path = tmp_path / "model.ilwp"
    ledger = compressed.save(path)
    assert ledger.file_bytes == path.stat().st_size == estimate(model, config).file_bytes
    other = build_model(name, width=0.25)
    load(path).apply_to(other)
    assert all(same_bits(t, compressed.state_dict()[n]) for n, t in other.state_dict().items())


@pytest.mark.parametrize("anchor", ["fp32", "fp16", "quantized"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("mode", MODES)
def test_dtypes_and_anchors(dtype: torch.dtype, anchor: str, mode: str) -> None:
    state = pair(9, dtype)
    model = compress(state, IlwpConfig.paper(mode=mode, anchor=anchor, bits=6))
    check_round_trip(state, model)
    if anchor == "fp32" and dtype != torch.float64:
        assert same_bits(model.state_dict()["a.weight"], state["a.weight"])
    assert (model.layers[0].details["mode"] == "anchor") == (anchor != "quantized")


@given(
    hnp.arrays(
        np.float32, st.tuples(st.integers(1, 6), st.just(9)), elements=st.floats(-(2.0**100), 2.0**100, width=32)
    ),
    hnp.arrays(
        np.float32, st.tuples(st.integers(1, 6), st.just(9)), elements=st.floats(-(2.0**100), 2.0**100, width=32)
    ),
    st.sampled_from(MODES),
    st.sampled_from(BITS),
    st.sampled_from(["max", "percentile", "mse"]),
    st.sampled_from(["fp32", "quantized"]),
)
@settings(max_examples=150)
def test_any_finite_weights(a: Any, b: Any, mode: str, bits: int, rule: str, anchor: str) -> None:
    state = {"a.weight": torch.from_numpy(a).view(-1, 1, 3, 3), "b.weight": torch.from_numpy(b).view(-1, 1, 3, 3)}
    config = IlwpConfig.paper(mode=mode, bits=bits, range=rule, anchor=anchor)
    model = compress(state, config)
    data = model.to_bytes()
    assert len(data) == model.ledger.file_bytes and loads(data).to_bytes() == data
    assert all(same_bits(t, model.state_dict()[n]) for n, t in loads(data).state_dict().items())
    if rule == "max":
        check_round_trip(state, model)


@pytest.mark.parametrize(
    "weights",
    [torch.zeros(3, 1, 3, 3), torch.full((3, 1, 3, 3), 2.5), torch.zeros(1, 1, 3, 3), torch.full((2, 1, 3, 3), 1e-45)],
    ids=["zeros", "constant", "one kernel", "smallest"],
)
@pytest.mark.parametrize("mode", MODES)
def test_degenerate_layers(weights: Tensor, mode: str) -> None:
    state = {"a.weight": weights, "b.weight": weights.clone(), "c.weight": weights.clone()}
    check_round_trip(state, compress(state, IlwpConfig.paper(mode=mode)))
    check_round_trip(state, compress(state, IlwpConfig(mode=mode)))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["a.weight", "b.weight", "c.weight"])
def test_values_that_are_not_finite_are_refused(value: float, name: str) -> None:
    state = {**pair(), "c.weight": torch.randn(4, 4, 3, 3)}
    state[name][1, 0, 2, 2] = value
    with pytest.raises(TensorError, match=rf"tensor '{name}': 1 of its \d+ values are NaN or infinite"):
        compress(state)


def test_overflows_are_refused() -> None:
    state = pair()
    state["b.weight"].fill_(3e38)
    state["a.weight"].fill_(-3e38)
    with pytest.raises(TensorError, match="overflow"):
        compress(state, "paper")
    with pytest.raises(TensorError, match="beyond the range of float16"):
        compress(state, IlwpConfig.paper(anchor="fp16"))
    state = pair(dtype=torch.float64)
    state["b.weight"].fill_(1e300)
    with pytest.raises(TensorError, match="beyond the range of float32"):
        compress(state)
    rounded = {"a.weight": torch.tensor([[65504.0, 1.0], [3.0, -7.0]], dtype=torch.float16)}
    with pytest.raises(TensorError, match="'a.weight': overflow: .* beyond the range of float16"):
        compress(rounded, IlwpConfig(weight_step=999.0))


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"x": 3}, "'x' is a int; a .ilwp file holds tensors only"),
        ({"x": torch.ones(3).to_sparse()}, "'x' is sparse"),
        ({"x": torch.ones(3, device="meta")}, "'x' has no values"),
        ({"x": torch.quantize_per_tensor(torch.ones(3), 1.0, 0, torch.qint8)}, "'x' is sparse or quantized by torch"),
        ({"x": torch.zeros(3, dtype=torch.complex32)}, "dtype complex32"),
        ({"": torch.ones(3)}, "has 0 bytes"),
        ({"a..b": torch.ones(3)}, "empty component"),
        ({"a\0": torch.ones(3)}, "control character"),
        ({3: torch.ones(3)}, "is no string"),
    ],
)
def test_tensors_that_cannot_be_stored_are_refused(extra: dict[Any, Any], message: str) -> None:
    with pytest.raises(TensorError, match=message):
        compress({**pair(), **extra})


def test_wrong_arguments() -> None:
    with pytest.raises(ChainError, match="no chain"):
        compress({"a.weight": torch.randn(4, 1, 3, 3)}, "paper")
    with pytest.raises(TensorError, match="expected a torch.nn.Module or a state dict, got list"):
        compress([torch.ones(3)])  # type: ignore[arg-type]
    for function in (compress, estimate):
        with pytest.raises(ConfigError, match="quantizes nothing; set `bits` to 2..8, or a `weight_step`"):
            function(pair(), IlwpConfig.paper(bits=None))
    with pytest.raises(TensorError, match="metadata holds a object"):
        compress(pair(), metadata={"x": object()})


def test_more_wrong_arguments() -> None:
    with pytest.raises(TensorError, match="is no string"):
        compress({0: torch.randn(4, 1, 3, 3), **pair()})  # type: ignore[dict-item]
    with pytest.raises(TensorError, match="lazy layer that has not run yet"):
        compress(nn.Sequential(*(nn.Conv2d(4, 4, 3, groups=4) for _ in range(2)), nn.LazyConv2d(3, 3)))
    with pytest.raises(TensorError, match="which a .ilwp file cannot hold"):
        compress({**pair(), "x": torch.zeros([1] * 65)})
    assert compress(pair(), {"preset": "paper", "bits": 4}).layers[1].details["bits"] == 4
    with pytest.raises(ConfigError, match="unknown key 'bit'"):
        compress(pair(), {"bit": 4})


def test_parametrized_layers_are_refused(mobilenet: nn.Module) -> None:
    convolution = next(m for m in mobilenet.modules() if isinstance(m, nn.Conv2d) and m.groups > 1)
    nn.utils.parametrize.register_parametrization(convolution, "weight", nn.Identity())
    with pytest.raises(TensorError, match="a parametrization or mask on the layer has to be removed first"):
        compress(mobilenet)


def test_scope_conv() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 6, 3, groups=2), nn.Conv2d(6, 5, 3))
    compressed = compress(model, IlwpConfig.paper(scope="conv", mode="full"))
    assert [(layer.name, layer.details["kernels"]) for layer in compressed.layers if layer.kind == "chain"] == [
        ("0.weight", 24),
        ("2.weight", 24),
        ("3.weight", 30),
    ]
    check_round_trip(model.state_dict(), compressed)


def test_mixed_kernel_sizes_make_two_chains() -> None:
    state = {**pair(), "c.weight": torch.randn(3, 1, 5, 5), "d.weight": torch.randn(7, 1, 5, 5)}
    model = compress(state, IlwpConfig.paper(mode="full"))
    assert [layer.details["kernel_size"] for layer in model.layers] == [(3, 3), (3, 3), (5, 5), (5, 5)]
    check_round_trip(state, model)


@pytest.mark.parametrize("kernel", [(3,), (7,), (7, 7), (3, 3, 3), (1, 3, 2)])
def test_kernels_of_any_size_and_dimension_predict_each_other(kernel: tuple[int, ...]) -> None:
    """Layers that resemble each other cost a fraction, are read by the reader that was written from the page alone, and
    come back in their shapes."""
    generator = torch.Generator().manual_seed(0)
    first = torch.randn(96, 1, *kernel, generator=generator)
    close = [first + 0.01 * torch.randn(first.shape, generator=generator) for _ in range(3)]
    state = {f"{name}.weight": weight for name, weight in zip("abcd", [first, *close], strict=True)}
    model = compress(state, {"mode": "collocated"})
    details = [layer.details for layer in model.layers]
    assert [(d["kernel_size"], d["mode"]) for d in details] == [(kernel, "none"), *[(kernel, "collocated")] * 3]
    assert compress(state).ledger.file_bytes <= model.ledger.file_bytes, "of modes the smaller one is taken"
    layers = model.ledger.layers
    assert all(layers[f"{name}.weight"].file_bytes < 0.6 * layers["a.weight"].file_bytes for name in "bcd")
    check_round_trip(state, model)
    read = textbook.read(model.to_bytes())
    assert {name: shape for name, (_, shape, _) in read.items()} == {name: tuple(t.shape) for name, t in state.items()}
    values = {name: np.frombuffer(data, "<f4") for name, (_, _, data) in read.items()}
    assert all(np.array_equal(values[name], t.numpy().ravel()) for name, t in model.state_dict().items())


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("mode", MODES)
def test_searches_find_what_collocation_cannot(mode: str, bits: int) -> None:
    """A layer that is a permutation of the one before: a search predicts it perfectly."""
    first = torch.randn(32, 1, 3, 3, generator=torch.Generator().manual_seed(0))
    order = torch.randperm(32, generator=torch.Generator().manual_seed(1))
    state = {"a.weight": first, "b.weight": first[order]}
    restored = compress(state, IlwpConfig.paper(mode=mode, bits=bits)).state_dict()["b.weight"]
    assert torch.equal(restored, state["b.weight"]) == (mode in {"local", "full"})


def test_given_references_replace_the_mode() -> None:
    first = torch.randn(8, 1, 3, 3, generator=torch.Generator().manual_seed(0))
    order = torch.randperm(8, generator=torch.Generator().manual_seed(1))
    state = {"a.weight": first, "b.weight": first[order], "c.weight": torch.randn(8, 1, 3, 3)}
    model = compress(state, "paper", references={"b": order})
    assert torch.equal(model.state_dict()["b.weight"], state["b.weight"])
    assert [layer.details["mode"] for layer in model.layers] == ["anchor", "local", "collocated"]
    assert model.ledger.layers["b.weight"].non_texture_bytes == 1 + 3  # eight indices of three bits
    check_round_trip(state, model)
    orphaned = order.clone()
    orphaned[3] = -1
    model = compress(state, "paper", references={"b": orphaned})
    assert model.layers[1].details["mode"] == "full", "an orphan has no reference at all"
    check_round_trip(state, model)
    with pytest.raises(ChainError, match="'a' is no predicted layer; known: 'b', 'c'"):
        compress(state, references={"a": order})
    with pytest.raises(TensorError, match="references of layer 'b'"):
        compress(state, references={"b": order[:3]})


def test_fewer_bits_never_give_a_larger_file() -> None:
    torch.manual_seed(0)
    for name in PAPER:
        state = build_model(name, width=0.5).state_dict()
        kernels = {name: tensor for name, tensor in state.items() if tensor.dim() == 4 and tensor.shape[1] == 1}
        for mode in MODES:
            sizes = [estimate(kernels, IlwpConfig.paper(mode=mode, bits=bits)).file_bytes for bits in BITS]
            assert sizes == sorted(sizes), (name, mode, sizes)


def test_progress_ends_at_the_number_of_kernels(mobilenet: nn.Module) -> None:
    told: list[tuple[str, int, int]] = []
    compressed = compress(mobilenet, IlwpConfig.paper(mode="full"), progress=lambda *args: told.append(args))
    done = [step[1] for step in told]
    kernels = sum(layer.details["kernels"] for layer in compressed.layers if layer.kind == "chain")
    assert done == sorted(done) and done[-1] == told[-1][2] == kernels


def test_summaries_match_the_codes() -> None:
    state = pair(20)
    layer = compress(state, IlwpConfig.paper(bits=3, mode="none")).layers[1].details
    step = float(state["b.weight"].abs().max()) / 3
    codes = torch.round(state["b.weight"] / step)
    _, counts = codes.unique(return_counts=True)
    p = counts / counts.sum()
    assert layer["step"] == pytest.approx(step) and layer["bits"] == 3 and layer["mode"] == "none"
    assert layer["zeros"] == pytest.approx(float((codes == 0).double().mean()))
    assert layer["entropy"] == pytest.approx(float(-(p * p.log2()).sum()), abs=1e-5)


def test_overrides_change_single_layers(mobilenet: nn.Module) -> None:
    config = IlwpConfig.paper(
        overrides={"features.5": {"bits": 3}, "{re}features\\.7\\..*": {"mode": "none", "bits": 5}}
    )
    layers = {layer.name: layer.details for layer in compress(mobilenet, config).layers}
    assert [layers[f"features.{i}.0.weight"]["bits"] for i in (4, 5, 6, 7)] == [8, 3, 8, 5]
    assert layers["features.7.0.weight"]["mode"] == "none"
    quantizer = FakeQuantizer(mobilenet, config)
    seen = mobilenet.get_submodule("features.7.0").weight.detach().clone()
    quantizer.remove()
    restored = compress(mobilenet, config).state_dict()
    assert torch.equal(restored["features.7.0.weight"], seen)
    with pytest.raises(ChainError, match="`overrides`: 'features.55' matches no layer of a chain"):
        compress(mobilenet, IlwpConfig.paper(overrides={"features.55": {"bits": 3}}))
