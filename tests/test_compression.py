import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from ilwp_plugin.container.directory import DTYPES
from torch import Tensor, nn
from torch.ao.quantization import MinMaxObserver

from ilwp_plugin import CompressedModel, IlwpConfig, compress, estimate, load, loads
from ilwp_plugin.errors import ChainError, ConfigError, FileError, IlwpError, TensorError
from ilwp_plugin.method.prediction import PREDICTORS
from ilwp_plugin.method.quantization import BITS
from ilwp_plugin.training import FakeQuantizer
from ilwp_plugin.zoo import MODELS, build_model
from tests.corpus import forge

MODES = list(PREDICTORS)


def same(a: Tensor, b: Tensor) -> bool:
    """Equal bits, NaN included."""
    flat = [t.flatten().clone().view(torch.uint8) if t.numel() else torch.empty(0) for t in (a, b)]
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(*flat)


def pair(kernels: int = 6, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """The smallest model with a chain."""
    generator = torch.Generator().manual_seed(kernels)
    return {
        "a.weight": torch.randn(4, 1, 3, 3, generator=generator).to(dtype),
        "b.weight": torch.randn(kernels, 1, 3, 3, generator=generator).to(dtype),
    }


def check_round_trip(state: dict[str, Tensor], model: CompressedModel) -> None:
    data = model.to_bytes()
    restored = loads(data)
    assert restored.ledger == model.ledger and model.ledger.file_bytes == len(data)
    assert sum(layer.file_bytes for layer in model.ledger.layers.values()) <= len(data)
    assert restored.to_bytes() == data
    assert restored.layers == model.layers
    values, expected = restored.state_dict(), model.state_dict()
    assert list(values) == list(state) == list(expected)
    coded = {layer.name: layer for layer in model.layers}
    for name, original in state.items():
        assert same(values[name], expected[name]), name
        layer = coded.get(name)
        if layer is None:
            shared = [c for c in coded if state[c].data_ptr() == original.data_ptr() and original.numel()]
            assert same(values[name], values[shared[0]] if shared else original), name
        elif layer.step is not None:
            half = layer.step / 2 * (1 + 1e-4) + float(original.abs().max()) * torch.finfo(original.dtype).eps + 1e-43
            assert float((values[name].double() - original.double()).abs().max()) <= half, name


@pytest.mark.parametrize("name", list(MODELS))
@pytest.mark.parametrize("mode", MODES)
def test_networks_of_the_paper(name: str, mode: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = build_model(name, width=0.5)
    compressed = compress(model, IlwpConfig(mode=mode))
    check_round_trip(model.state_dict(), compressed)
    path = tmp_path / "model.ilwp"
    ledger = compressed.save(path)
    assert ledger.file_bytes == path.stat().st_size == estimate(model, IlwpConfig(mode=mode)).file_bytes
    other = build_model(name, width=0.5)
    load(path).apply_to(other)
    assert all(same(t, compressed.state_dict()[n]) for n, t in other.state_dict().items())


@pytest.mark.parametrize("anchor", ["fp32", "fp16", "quantized"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("mode", MODES)
def test_dtypes_and_anchors(dtype: torch.dtype, anchor: str, mode: str) -> None:
    state = pair(9, dtype)
    model = compress(state, IlwpConfig(mode=mode, anchor=anchor, bits=6))  # type: ignore[arg-type]
    check_round_trip(state, model)
    if anchor == "fp32" and dtype != torch.float64:
        assert same(model.state_dict()["a.weight"], state["a.weight"])
    assert (model.layers[0].mode == "anchor") == (anchor != "quantized")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_other_tensors_of_every_dtype_come_back_exactly(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    raw = torch.randint(0, 2 if dtype == torch.bool else 256, (48,), generator=generator, dtype=torch.uint8)
    values = raw.view(dtype)
    others = {"x": values, "empty": values[:0], "scalar": values[0], "strided": values[::2], "empty2": values[:0]}
    state = {**pair(), **others}
    check_round_trip(state, compress(state))


def test_special_values_outside_the_chain_come_back_exactly() -> None:
    odd = torch.tensor([float("nan"), float("inf"), -float("inf"), -0.0, 1e-45])
    state = {**pair(), "x": odd, "conjugate": torch.tensor([1 + 2j]).conj(), "negative": torch.tensor([1j]).conj().imag}
    restored = loads(compress(state).to_bytes()).state_dict()
    assert same(restored["x"], odd)
    assert restored["conjugate"].tolist() == [1 - 2j] and restored["negative"].tolist() == [-1.0]


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
    config = IlwpConfig(mode=mode, bits=bits, range=rule, anchor=anchor)  # type: ignore[arg-type]
    model = compress(state, config)
    data = model.to_bytes()
    assert len(data) == model.ledger.file_bytes and loads(data).to_bytes() == data
    assert all(same(t, model.state_dict()[n]) for n, t in loads(data).state_dict().items())
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
    check_round_trip(state, compress(state, IlwpConfig(mode=mode)))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["a.weight", "b.weight"])
def test_values_that_are_not_finite_are_refused(value: float, name: str) -> None:
    state = pair()
    state[name][1, 0, 2, 2] = value
    with pytest.raises(TensorError, match=rf"tensor '{name}': 1 of its \d+ values are NaN or infinite"):
        compress(state)


def test_overflows_are_refused() -> None:
    state = pair()
    state["b.weight"].fill_(3e38)
    state["a.weight"].fill_(-3e38)
    with pytest.raises(TensorError, match="overflow"):
        compress(state)
    with pytest.raises(TensorError, match="beyond the range of float16"):
        compress(state, IlwpConfig(anchor="fp16"))
    state = pair(dtype=torch.float64)
    state["b.weight"].fill_(1e300)
    with pytest.raises(TensorError, match="beyond the range of float32"):
        compress(state)


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"x": 3}, "'x' is a int; a .ilwp file holds tensors only"),
        ({"x": torch.ones(3).to_sparse()}, "'x' is sparse"),
        ({"x": torch.ones(3, device="meta")}, "'x' has no values"),
        ({"x": torch.quantize_per_tensor(torch.ones(3), 1.0, 0, torch.qint8)}, "'x' is sparse or quantized by torch"),
        ({"x": torch.zeros(3, dtype=torch.complex32)}, "dtype torch.complex32"),
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
        compress({"a.weight": torch.randn(4, 1, 3, 3)})
    with pytest.raises(TensorError, match="expected a torch.nn.Module or a state dict, got list"):
        compress([torch.ones(3)])  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="bits: None"):
        compress(pair(), IlwpConfig(bits=None))
    with pytest.raises(ConfigError, match="bits: None"):
        estimate(pair(), IlwpConfig(bits=None))
    with pytest.raises(TensorError, match="metadata holds a object"):
        compress(pair(), metadata={"x": object()})


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ([1], "is a list"),
        ("abc", "is a str"),
        ({"a": 10**5000}, "more than 64 bits"),
        ({"a": "\ud800"}, "lone surrogate"),
        ({"\ud800": 1}, "lone surrogate"),
        ({1: 2}, "a key that is no string"),
        ({"a": float("nan")}, "holds nan"),
        ({"a": "x" * (1 << 20)}, "the most are 1048576"),
    ],
)
def test_metadata_that_cannot_be_stored_is_refused(metadata: Any, message: str) -> None:
    with pytest.raises(TensorError, match=message):
        compress(pair(), metadata=metadata)


def test_more_wrong_arguments(tmp_path: Path) -> None:
    with pytest.raises(TensorError, match="is no string"):
        compress({0: torch.randn(4, 1, 3, 3), **pair()})  # type: ignore[dict-item]
    with pytest.raises(TensorError, match="lazy layer that has not run yet"):
        compress(nn.Sequential(*(nn.Conv2d(4, 4, 3, groups=4) for _ in range(2)), nn.LazyConv2d(3, 3)))
    with pytest.raises(TensorError, match="which a .ilwp file cannot hold"):
        compress({**pair(), "x": torch.zeros([1] * 65)})
    assert compress(pair(), {"bits": 4}).layers[1].bits == 4
    with pytest.raises(ConfigError, match="unknown key 'bit'"):
        compress(pair(), {"bit": 4})
    with pytest.raises(FileError, match="null"):
        compress(pair()).save("a\0b")
    with pytest.raises(FileError, match="null"):
        load("a\0b")


def test_a_compressed_model_is_a_snapshot(mobilenet: nn.Module, images: Tensor) -> None:
    compressed = compress(mobilenet, metadata={"a": [1]})
    before = compressed.to_bytes()
    mobilenet.train()(images)
    compressed.metadata["a"].append(2)
    assert compressed.to_bytes() == before


@pytest.mark.parametrize("order", [("x", "a", "b"), ("a", "x", "b"), ("a", "b", "x")])
def test_weights_shared_under_any_name_are_restored(order: tuple[str, ...]) -> None:
    tensors = {"a": torch.randn(4, 1, 3, 3), "b": torch.randn(4, 1, 3, 3)}
    tensors["x"] = tensors["b"]
    state = {"x" if name == "x" else f"{name}.weight": tensors[name] for name in order}
    model = compress(state)
    check_round_trip(state, model)
    restored = loads(model.to_bytes()).state_dict()
    assert restored["x"] is restored["b.weight"]


def test_saving_a_file_of_another_encoder_tells_its_new_size(tmp_path: Path) -> None:
    file = forge.good()
    file.metadata = b'{ "a" : 1 }'
    model = loads(file.build())
    assert model.ledger.file_bytes == len(file.build())
    assert model.save(tmp_path / "x").file_bytes == (tmp_path / "x").stat().st_size == model.ledger.file_bytes


def test_parametrized_layers_are_refused(mobilenet: nn.Module) -> None:
    convolution = next(m for m in mobilenet.modules() if isinstance(m, nn.Conv2d) and m.groups > 1)
    nn.utils.parametrize.register_parametrization(convolution, "weight", nn.Identity())
    with pytest.raises(TensorError, match="a parametrization or mask on the layer has to be removed first"):
        compress(mobilenet)


def test_shared_weights_are_stored_once() -> None:
    state = pair()
    plain = compress(state).ledger.file_bytes
    state["c.weight"] = state["b.weight"]
    model = compress(state)
    assert model.excluded == {"c": "shares its weight with 'b'"}
    assert model.ledger.file_bytes < plain + 20
    restored = loads(model.to_bytes()).state_dict()
    assert restored["c.weight"] is restored["b.weight"]
    view = torch.randn(8)
    mixed = {**pair(), "x": view, "y": view[:4], "z": view.view(2, 4)}
    check_round_trip(mixed, compress(mixed))


def test_scope_conv() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 6, 3, groups=2), nn.Conv2d(6, 5, 3))
    compressed = compress(model, IlwpConfig(scope="conv", mode="full"))
    assert [(layer.name, layer.kernels) for layer in compressed.layers] == [
        ("0.weight", 24),
        ("2.weight", 24),
        ("3.weight", 30),
    ]
    check_round_trip(model.state_dict(), compressed)


def test_mixed_kernel_sizes_make_two_chains() -> None:
    state = {**pair(), "c.weight": torch.randn(3, 1, 5, 5), "d.weight": torch.randn(7, 1, 5, 5)}
    model = compress(state, IlwpConfig(mode="full"))
    assert [layer.kernel_size for layer in model.layers] == [(3, 3), (3, 3), (5, 5), (5, 5)]
    check_round_trip(state, model)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("mode", MODES)
def test_searches_find_what_collocation_cannot(mode: str, bits: int) -> None:
    """A layer that is a permutation of the one before: a search predicts it perfectly."""
    first = torch.randn(32, 1, 3, 3, generator=torch.Generator().manual_seed(0))
    order = torch.randperm(32, generator=torch.Generator().manual_seed(1))
    state = {"a.weight": first, "b.weight": first[order]}
    restored = compress(state, IlwpConfig(mode=mode, bits=bits)).state_dict()["b.weight"]
    assert torch.equal(restored, state["b.weight"]) == (mode in {"local", "full"})


def test_given_references_replace_the_mode() -> None:
    first = torch.randn(8, 1, 3, 3, generator=torch.Generator().manual_seed(0))
    order = torch.randperm(8, generator=torch.Generator().manual_seed(1))
    state = {"a.weight": first, "b.weight": first[order], "c.weight": torch.randn(8, 1, 3, 3)}
    model = compress(state, references={"b": order})
    assert torch.equal(model.state_dict()["b.weight"], state["b.weight"])
    assert [layer.mode for layer in model.layers] == ["anchor", "local", "collocated"]
    assert model.ledger.layers["b.weight"].non_texture_bytes == 1 + 3  # eight indices of three bits
    check_round_trip(state, model)
    orphaned = order.clone()
    orphaned[3] = -1
    model = compress(state, references={"b": orphaned})
    assert model.layers[1].mode == "full", "an orphan has no reference at all"
    check_round_trip(state, model)
    with pytest.raises(ChainError, match="'a' is no predicted layer; known: 'b', 'c'"):
        compress(state, references={"a": order})
    with pytest.raises(TensorError, match="references of layer 'b'"):
        compress(state, references={"b": order[:3]})


def test_metadata_is_kept() -> None:
    metadata = {"name": "käse", "list": [1, 2.5, None, True], "nested": {"a": {}}}
    model = compress(pair(), metadata=metadata)
    assert loads(model.to_bytes()).metadata == metadata
    assert model.ledger.file_bytes == len(model.to_bytes())
    assert model.ledger.total_bytes == compress(pair()).ledger.total_bytes


def test_ledger_by_hand() -> None:
    """Two layers of one kernel each, zeros, at 8 bits: every byte accounted for."""
    state = {"a.weight": torch.ones(1, 1, 1, 2), "b.weight": torch.ones(1, 1, 1, 2), "n": torch.ones(3)}
    model = compress(state, {"coder": "huffman"})
    ledger = model.ledger
    assert ledger.texture_bytes == 1  # two symbols of one bit
    assert ledger.non_texture_bytes == 0
    assert ledger.anchor_bytes == 8  # two fp32
    assert ledger.table_bytes == 1 + 1 + 2 + 7 + 1  # layers, coder, symbols, code lengths, length of the payload
    assert ledger.layers["n"].other_bytes == 12 + 2 + 1 + 1 + 1 + 1 + 2
    assert ledger.other_bytes == ledger.layers["n"].other_bytes + 1 + 1 + 4  # and its section's entry
    assert ledger.file_bytes == len(model.to_bytes())
    assert ledger.total_bytes + ledger.other_bytes == ledger.file_bytes


def test_fewer_bits_never_give_a_larger_file() -> None:
    torch.manual_seed(0)
    models = [build_model(name, width=0.5) for name in MODELS]
    for model in models:
        for mode in MODES:
            sizes = [estimate(model, IlwpConfig(mode=mode, bits=bits)).file_bytes for bits in BITS]
            assert sizes == sorted(sizes), (type(model).__name__, mode, sizes)


DETERMINISM = """
import hashlib, sys, torch
torch.set_num_threads(int(sys.argv[1]))
from ilwp_plugin import IlwpConfig, compress
from ilwp_plugin.zoo import build_model
torch.manual_seed(0)
model = build_model("mobilenetv2", width=0.5)
digest = hashlib.sha256()
for mode in ("none", "collocated", "local", "full"):
    for rule in ("max", "percentile", "mse"):
        digest.update(compress(model, IlwpConfig(mode=mode, range=rule, bits=5)).to_bytes())
print(digest.hexdigest())
"""


def test_the_same_bytes_in_every_process_and_at_every_thread_count() -> None:
    digests = set()
    for threads, seed in (("1", "0"), ("2", "1"), ("4", "2")):
        environment = {**os.environ, "PYTHONHASHSEED": seed, "OMP_NUM_THREADS": threads}
        command = [sys.executable, "-c", DETERMINISM, threads]
        digests.add(subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout)
    assert len(digests) == 1


def test_apply_to_refuses_what_does_not_fit(mobilenet: nn.Module) -> None:
    compressed = compress(mobilenet)
    other = build_model("mobilenet", width=0.5, stem_stride=2)
    before = {name: tensor.clone() for name, tensor in other.state_dict().items()}
    with pytest.raises(TensorError, match=r"does not fit MobileNet: expected \(16, 3, 3, 3\).*got \(8, 3, 3, 3\)"):
        compressed.apply_to(other)
    assert all(torch.equal(tensor, before[name]) for name, tensor in other.state_dict().items())
    with pytest.raises(TensorError, match="not in the file: .*not in the model: .*more"):
        compressed.apply_to(nn.Linear(3, 3))
    with pytest.raises(TensorError, match=r"float64, got .*float32"):
        compressed.apply_to(build_model("mobilenet", width=0.25, stem_stride=2).double())


def test_apply_to_looks_through_wrappers(mobilenet: nn.Module) -> None:
    compress(mobilenet).apply_to(nn.DataParallel(mobilenet))


def test_state_dicts_are_copies() -> None:
    model = compress({**pair(), "x": torch.ones(3)})
    model.state_dict()["x"].zero_()
    model.state_dict()["b.weight"].zero_()
    assert model.state_dict()["x"].any() and model.state_dict()["b.weight"].any()


def test_progress_ends_at_the_number_of_kernels(mobilenet: nn.Module) -> None:
    told: list[tuple[str, int, int]] = []
    compress(mobilenet, IlwpConfig(mode="full"), progress=lambda *args: told.append(args))
    done = [step[1] for step in told]
    assert done == sorted(done) and done[-1] == told[-1][2] == sum(
        layer.kernels for layer in compress(mobilenet).layers
    )


def test_summaries_match_the_codes() -> None:
    state = pair(20)
    layer = compress(state, IlwpConfig(bits=3, mode="none")).layers[1]
    step = float(state["b.weight"].abs().max()) / 3
    codes = torch.round(state["b.weight"] / step)
    _, counts = codes.unique(return_counts=True)
    p = counts / counts.sum()
    assert layer.step == pytest.approx(step) and layer.bits == 3 and layer.mode == "none"
    assert layer.zeros == pytest.approx(float((codes == 0).double().mean()))
    assert layer.entropy == pytest.approx(float(-(p * p.log2()).sum()), abs=1e-5)


def test_every_error_has_one_root() -> None:
    from ilwp_plugin import errors

    classes = [value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, Exception)]
    assert len(classes) > 8 and all(issubclass(c, (IlwpError, UserWarning)) for c in classes)


def test_overrides_change_single_layers(mobilenet: nn.Module) -> None:
    config = IlwpConfig(overrides={"features.5": {"bits": 3}, "{re}features\\.7\\..*": {"mode": "none", "bits": 5}})
    layers = {layer.name: layer for layer in compress(mobilenet, config).layers}
    assert [layers[f"features.{i}.0.weight"].bits for i in (4, 5, 6, 7)] == [8, 3, 8, 5]
    assert layers["features.7.0.weight"].mode == "none"
    quantizer = FakeQuantizer(mobilenet, config)
    seen = mobilenet.get_submodule("features.7.0").weight.detach().clone()
    quantizer.remove()
    restored = compress(mobilenet, config).state_dict()
    assert torch.equal(restored["features.7.0.weight"], seen)
    with pytest.raises(ChainError, match="`overrides`: 'features.55' matches no layer of a chain"):
        compress(mobilenet, IlwpConfig(overrides={"features.55": {"bits": 3}}))


def test_one_tensor_is_restored_alone() -> None:
    state = {**pair(), "other": torch.randn(4, 3)}
    state["same"] = state["other"]
    compressed = loads(compress(state, IlwpConfig()).to_bytes())
    whole = compressed.state_dict()
    for name, tensor in whole.items():
        assert torch.equal(compressed.tensor(name), tensor)
    compressed.tensor("other").zero_()  # a copy
    assert torch.equal(compressed.tensor("same"), state["other"])
    with pytest.raises(TensorError, match="no tensor 'missing' in the file; it has "):
        compressed.tensor("missing")


def test_modules_that_changed_their_version_are_restored_exactly() -> None:
    """torch resets the eps of an observer whose state dict tells no version."""

    def make(eps: float) -> nn.Module:
        model = build_model("mobilenet", width=0.25)
        model.observer = MinMaxObserver(eps=eps)
        return model

    model = make(1e-16)
    restored = make(1e-3)
    loads(compress(model).to_bytes()).apply_to(restored)
    assert restored.observer.eps.item() == model.observer.eps.item() < 1e-15
