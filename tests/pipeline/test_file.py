"""A compressed model: its file, its ledger, and the ways back into a module."""

import copy
import pickle
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.ao.quantization import MinMaxObserver

from ilwp_plugin import CompressedModel, IlwpConfig, compress, load, loads, toolkits
from ilwp_plugin.config import PRESETS
from ilwp_plugin.errors import FileError, TensorError
from ilwp_plugin.format import DTYPES, MetadataSection, TensorInfo
from ilwp_plugin.format.stream import ByteWriter
from ilwp_plugin.method.provenance import Origin
from ilwp_plugin.models.tensors import dtype_of, same_bits
from ilwp_plugin.zoo import build_model
from tests.pipeline.states import check_round_trip, pair


@pytest.mark.parametrize("name", DTYPES)
def test_other_tensors_of_every_dtype_come_back_exactly(name: str) -> None:
    dtype = dtype_of(name)
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
    assert same_bits(restored["x"], odd)
    assert restored["conjugate"].tolist() == [1 - 2j] and restored["negative"].tolist() == [-1.0]


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
    class Spacious(MetadataSection):
        def write(self, writer: ByteWriter, directory: Sequence[TensorInfo]) -> None:
            writer.raw(b'{ "a" : 1 }')

    plain = compress(pair())
    data = CompressedModel(plain.tensors, [*plain.sections, Spacious({})]).to_bytes()
    model = loads(data)
    assert model.metadata == {"a": 1} and model.ledger.file_bytes == len(data)
    assert model.save(tmp_path / "x").file_bytes == (tmp_path / "x").stat().st_size == model.ledger.file_bytes


@pytest.mark.parametrize("preset", PRESETS)
def test_shared_weights_are_stored_once(preset: str) -> None:
    state = pair()
    plain = compress(state, preset).ledger.file_bytes
    state["c.weight"] = state["b.weight"]
    model = compress(state, preset)
    assert preset == "lossless" or not model.left
    assert model.ledger.file_bytes < plain + 20
    restored = loads(model.to_bytes()).state_dict()
    assert restored["c.weight"] is restored["b.weight"]
    view = torch.randn(8)
    mixed = {**pair(), "x": view, "y": view[:4], "z": view.view(2, 4)}
    check_round_trip(mixed, compress(mixed, preset))


def test_paths_that_are_none() -> None:
    with pytest.raises(FileError, match="null"):
        compress(pair()).save("a\0b")
    with pytest.raises(FileError, match="null"):
        load("a\0b")


def test_metadata_is_kept() -> None:
    metadata = {"name": "käse", "list": [1, 2.5, None, True], "nested": {"a": {}}}
    model = compress(pair(), metadata=metadata)
    assert loads(model.to_bytes()).metadata == metadata
    assert model.ledger.file_bytes == len(model.to_bytes())
    assert model.ledger.total_bytes == compress(pair()).ledger.total_bytes


def test_ledger_by_hand() -> None:
    """Two layers of one kernel each, zeros, at 8 bits: every byte accounted for."""
    state = {"a.weight": torch.ones(1, 1, 1, 2), "b.weight": torch.ones(1, 1, 1, 2), "n": torch.ones(3)}
    model = compress(state, {"preset": "paper", "coder": "huffman"})
    ledger = model.ledger
    assert ledger.texture_bytes == 1  # two symbols of one bit
    assert ledger.non_texture_bytes == 0
    assert ledger.anchor_bytes == 8  # two fp32
    assert ledger.table_bytes == 1 + 1 + 2 + 7 + 1  # layers, coder, symbols, code lengths, length of the payload
    assert ledger.layers["n"].other_bytes == 12 + 2 + 1 + 1 + 1 + 1 + 2
    assert ledger.other_bytes == ledger.layers["n"].other_bytes + 1 + 1 + 4  # and its section's entry
    assert ledger.file_bytes == len(model.to_bytes())
    assert ledger.total_bytes + ledger.other_bytes == ledger.file_bytes


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


def test_one_tensor_is_restored_alone() -> None:
    state = {**pair(), "other": torch.randn(4)}
    state["same"] = state["other"]
    compressed = loads(compress(state).to_bytes())
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


def test_copies_are_whole() -> None:
    compressed = compress(pair())
    data = compressed.to_bytes()
    copies = (copy.deepcopy(compressed), pickle.loads(pickle.dumps(compressed)))  # noqa: S301
    assert all(copied.to_bytes() == data for copied in copies)


def test_what_is_compressed_has_to_be_as_it_was() -> None:
    """Where the other tensors of a file are made anew, those that it holds as codes stay."""
    compressed = compress({f"{i}.weight": torch.randn(8, 1, 3, 3) for i in range(2)})
    state = compressed.state_dict()
    assert compressed.with_others_of(state).to_bytes() == compressed.to_bytes()
    with pytest.raises(TensorError, match=r"tensor '1\.weight' is changed since it was compressed; compress the model"):
        compressed.with_others_of({**state, "1.weight": state["1.weight"] + 1})
    with pytest.raises(TensorError, match=r"tensor '1\.weight' is not there any more; compress the model again"):
        compressed.with_others_of({"0.weight": state["0.weight"]})


def test_codes_and_origins_that_a_file_holds() -> None:
    generator = torch.Generator().manual_seed(0)
    state = {f"{n}.weight": torch.randn(6, 1, 3, 3, generator=generator) for n in range(3)}
    state["linear.weight"] = torch.randn(5, 7, generator=generator)
    origin = Origin(torch.tensor([0, 2, 3, 4, 6, 7]), 8)
    config = IlwpConfig(weight_step=0.1, mode="collocated")
    stored = loads(compress(state, config, references={"1": origin}).to_bytes())
    assert list(stored.provenance) == ["1.weight"] and stored.provenance["1.weight"].channels == 8
    assert torch.equal(stored.provenance["1.weight"].survivors, origin.survivors)
    (name,) = stored.quantized
    codes, step = stored.quantized[name].codes, float(stored.quantized[name].scale)
    assert name == "linear.weight" and codes.shape == (5, 7)
    assert np.allclose(codes * step, stored.state_dict()[name].numpy()) and step == pytest.approx(0.1)


def test_into_a_model_that_a_toolkit_has_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the toolkit needs besides is loaded, too, and a file of quantizers is restored by the toolkit."""
    model = nn.Sequential(nn.Linear(3, 3))
    stored = compress(model, metadata={"toolkit": "theirs", "quantizers": {}})
    other = nn.Sequential(nn.Linear(3, 3))
    other.register_buffer("scale", torch.zeros(2))
    with pytest.raises(TensorError, match="scale"):
        stored.apply_to(other)

    def added(asked: nn.Module, file: CompressedModel) -> dict[str, Tensor]:
        assert asked is other and file is stored
        return {"scale": torch.tensor([1.0, 2.0])}

    monkeypatch.setattr(toolkits, "function_for", lambda model, name: added if name == "added_state" else None)
    stored.apply_to(other)
    assert other.scale.tolist() == [1, 2] and same_bits(other[0].weight, stored.state_dict()["0.weight"])

    asked: list[Any] = []
    toolkit = SimpleNamespace(restore=lambda file, model: asked.append((file, model)) or model)
    monkeypatch.setattr(toolkits, "load", {"theirs": toolkit}.__getitem__)
    assert stored.restore(other) is other and asked == [(stored, other)]
