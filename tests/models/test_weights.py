import argparse
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from ilwp_plugin.errors import FileError, IlwpWarning, TensorError
from ilwp_plugin.models.weights import read_state_dict, write_safetensors


def test_pt_keeps_the_order(tmp_path: Path) -> None:
    state = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)).state_dict()
    for suffix in (".pt", ".pth"):
        torch.save(state, tmp_path / f"x{suffix}")
        read = read_state_dict(tmp_path / f"x{suffix}")
        assert list(read) == list(state) and all(torch.equal(read[n], t) for n, t in state.items())


def test_safetensors_come_in_natural_order(tmp_path: Path) -> None:
    names = ["layer10.w", "layer2.w", "layer2.10", "layer2.9", "a"]
    safetensors.torch.save_file({name: torch.ones(1) for name in names}, tmp_path / "x.safetensors")
    assert list(read_state_dict(tmp_path / "x.safetensors")) == ["a", "layer2.9", "layer2.10", "layer2.w", "layer10.w"]


STATE = {"a.weight": torch.ones(2, 3), "a.bias": torch.zeros(2), "a.num_batches_tracked": torch.tensor(3)}


class Thing:
    """Of a class that no reader knows."""

    def __init__(self) -> None:
        self.x = 1


def _optimizer() -> dict[str, Any]:
    layer = nn.Linear(2, 2)
    optimizer = torch.optim.Adam(layer.parameters())
    layer(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    return optimizer.state_dict()


@pytest.mark.parametrize(
    "name", ["x.ckpt", "pytorch_model.bin", "x.pkl", "UPPER.PT", "x.PTH", "x.pth.tar", "no_suffix"]
)
@pytest.mark.parametrize("zipped", [True, False])
def test_names_of_files_do_not_matter(name: str, zipped: bool, tmp_path: Path) -> None:
    torch.save(STATE, tmp_path / name, _use_new_zipfile_serialization=zipped)
    for mapped in (False, True):
        read = read_state_dict(tmp_path / name, mapped=mapped)
        assert list(read) == list(STATE) and all(torch.equal(read[n], t) for n, t in STATE.items())
    safetensors.torch.save_file(STATE, tmp_path / name)
    assert read_state_dict(tmp_path / name).keys() == STATE.keys()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"state_dict": STATE}, "the state dict under 'state_dict' is taken"),
        ({"a": {"state_dict": STATE}}, "the state dict under 'a.state_dict' is taken"),
        ({**STATE, "epoch": 3}, "3 tensors are taken, not 'epoch' (int)"),
        ({**STATE, "best": np.float64(3)}, "3 tensors are taken, not 'best' (numpy"),
        ({"net": {**STATE, "extra": None}}, "the state dict under 'net' is taken, not 'extra' (NoneType)"),
        (
            {"model": STATE, "optimizer": _optimizer(), "rng": {"torch": torch.get_rng_state()}},
            "the state dict under 'model' is taken, not 'optimizer' (dict), 'rng' (dict)",
        ),
        (
            {"model": STATE, "args": argparse.Namespace(lr=1), "thing": Thing(), "kind": Thing, "root": Path("/")},
            "not 'args' (argparse.Namespace), 'thing' (tests.models.test_weights.Thing), 'kind' (tests.models."
            "test_weights.Thing), 'root' (pathlib",
        ),
        (
            {"epoch": 1, "pytorch-lightning_version": "2", "state_dict": STATE, "loops": {}, "optimizer_states": []},
            "is taken, not 'epoch' (int), 'pytorch-lightning_version' (str), 'loops' (dict), 'optimizer_states' (list)",
        ),
        ({"step": torch.tensor(3.0), "model": STATE}, "the state dict under 'model' is taken, not 'step' (Tensor)"),
    ],
)
def test_a_state_dict_is_found_and_said(content: object, said: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "x.pt")
    with pytest.warns(IlwpWarning) as caught:
        read = read_state_dict(tmp_path / "x.pt")
    assert list(read) == list(STATE) and all(torch.equal(read[n], t) for n, t in STATE.items())
    assert said in str(caught[0].message) and caught[0].filename == __file__


def test_among_several_the_key_chooses(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    ema = {name: tensor * 2 for name, tensor in STATE.items()}
    torch.save({"epoch": 3, "model": STATE, "ema": {"shadow": ema}}, path)
    with pytest.raises(TensorError, match=r"2 state dicts, choose one by key.*'model' \(3 tensors\), 'ema.shadow' \(3"):
        read_state_dict(path)
    assert torch.equal(read_state_dict(path, "ema.shadow")["a.weight"], ema["a.weight"])
    with pytest.raises(TensorError, match=r"no state dict under the key 'x'; 'model' \(3 tensors\), 'ema"):
        read_state_dict(path, "x")
    torch.save({**STATE, "ema": ema}, path)
    assert torch.equal(read_state_dict(path, "ema")["a.weight"], ema["a.weight"])
    with pytest.warns(IlwpWarning, match=r"3 tensors are taken, not 'ema'"):
        assert torch.equal(read_state_dict(path, "")["a.weight"], STATE["a.weight"])
    safetensors.torch.save_file(STATE, path)
    with pytest.raises(TensorError, match="no key 'model'; a .safetensors file holds one state dict"):
        read_state_dict(path, "model")


def test_copies_inside_a_state_dict_are_said_and_the_key_takes_one(tmp_path: Path) -> None:
    path = tmp_path / "x.ckpt"
    own = {f"{layer}.{role}": torch.randn(2) for layer in "abcd" for role in ("weight", "bias")}
    both = {
        f"{part}.{name}": tensor + number for number, part in enumerate(("net", "ema")) for name, tensor in own.items()
    }
    for content, place in (({"state_dict": both}, "state_dict."), (both, "")):
        torch.save(content, path)
        with pytest.warns(
            IlwpWarning, match=f"under each of 'net', 'ema'; all are taken, where --key {place}net takes"
        ):
            assert read_state_dict(path).keys() == both.keys()
        read = read_state_dict(path, f"{place}ema")
        assert read.keys() == own.keys() and all(torch.equal(read[name], own[name] + 1) for name in own)
    with pytest.raises(TensorError, match="no state dict under the key 'emu'"):
        read_state_dict(path, "emu")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "holds no state dict .*, but nothing"),
        ([STATE], "holds a list, and no state dict"),
        (torch.ones(1), "holds a Tensor, and no state dict"),
        ({"a": 3}, r"holds no state dict .*, but 'a' \(int\)"),
        (_optimizer(), "holds no state dict"),
        ({0: torch.ones(2)}, "holds no state dict"),
        (5, "holds a int"),
        (nn.Linear(2, 2), "holds a whole object of torch.nn.modules.linear.Linear, which only its class can read"),
        ({"model": Thing(), "epoch": 3}, r"holds no state dict .*but 'model' \(tests.models.test_weights.Thing\), 'ep"),
        ({**STATE, "b": Thing()}, "'b' among the tensors is an object of tests.models.test_weights.Thing"),
        ({**STATE, "b": np.zeros(3)}, "'b' among the tensors is an object of numpy"),
    ],
)
def test_other_content_is_refused_with_the_way_out(content: object, message: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "x.pt")
    with pytest.raises(TensorError, match=message) as caught:
        read_state_dict(tmp_path / "x.pt")
    assert "torch.save(model.state_dict(), 'weights.pt') writes what can be read" in str(caught.value)


def test_programs_and_pickles_are_refused_with_the_way_out(tmp_path: Path) -> None:
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), tmp_path / "script.pt")
    torch.export.save(torch.export.export(nn.Linear(2, 2), (torch.ones(1, 2),)), tmp_path / "program.pt2")
    (tmp_path / "plain.pkl").write_bytes(pickle.dumps({"a": 3}))
    torch.save({**STATE, "thing": Thing()}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("folder/a", b"")
    expected = {
        "script.pt": r"a TorchScript program; .*torch.save\(torch.jit.load\(path\).state_dict\(\), 'weights.pt'\)",
        "program.pt2": r"a torch.export program; .*torch.save\(torch.export.load\(path\).state_dict, 'weights.pt'\)",
        "plain.pkl": r"a pickle that torch.save has not written; .*torch.save\(model.state_dict\(\), 'weights.pt'\)",
        "old.pt": "an object of tests.models.test_weights.Thing, not tensors and plain values alone; where",
        "x.zip": "damaged, or a zip file that torch.save has not written",
    }
    for name, message in expected.items():
        with pytest.raises(FileError, match=message) as caught:
            read_state_dict(tmp_path / name)
        assert "weights_only" not in str(caught.value) and "\n" not in str(caught.value)


def test_mapped_tensors_are_not_in_memory_and_packed_ones_are_right(tmp_path: Path) -> None:
    torch.save(STATE, tmp_path / "x.pt")
    with zipfile.ZipFile(tmp_path / "x.pt") as stored, zipfile.ZipFile(tmp_path / "y.pt", "w") as packed:
        for name in stored.namelist():
            packed.writestr(name, stored.read(name), zipfile.ZIP_DEFLATED)
    for name in ("x.pt", "y.pt"):
        read = read_state_dict(tmp_path / name, mapped=True)
        assert all(torch.equal(read[n], t) for n, t in STATE.items())
    for mapped in (False, True):
        read = read_state_dict(tmp_path / "x.pt", mapped=mapped)
        assert (str(tmp_path / "x.pt") in Path("/proc/self/maps").read_text()) == mapped


@pytest.mark.parametrize("name", ["x.pt", "x.safetensors"])
@pytest.mark.parametrize("data", [b"", b"garbage" * 100, b"a,b\n1,2\n", b"\x80\x02."])
def test_damaged_files_are_refused(tmp_path: Path, name: str, data: bytes) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(FileError, match=rf"{name}: no (state dict can be read: |.safetensors file)"):
        read_state_dict(tmp_path / name)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="No such file"):
        read_state_dict(tmp_path / "x.pt")
    (tmp_path / "x.onnx").write_bytes(b"\x08\x07\x12\x07pytorch")
    with pytest.raises(FileError, match="x.onnx: .*neither safetensors nor torch.save has written it"):
        read_state_dict(tmp_path / "x.onnx")
    os.mkfifo(tmp_path / "pipe.pt")
    with pytest.raises(FileError, match="it is no regular file"):
        read_state_dict(tmp_path / "pipe.pt")
    (tmp_path / "folder.pt").mkdir()
    with pytest.raises(FileError, match="directory"):
        read_state_dict(tmp_path / "folder.pt")


def test_written_safetensors_are_equal(tmp_path: Path) -> None:
    shared = torch.randn(3, 4)
    state: dict[str, Tensor] = {"a": shared, "b": shared, "t": shared.t(), "n": torch.tensor([float("nan")])}
    write_safetensors(state, tmp_path / "x.safetensors")
    read = safetensors.torch.load_file(tmp_path / "x.safetensors")
    assert set(read) == set(state)
    assert all(torch.equal(read[n].nan_to_num(7), t.nan_to_num(7)) for n, t in state.items())


def test_dtypes_that_safetensors_lacks(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="cannot hold these tensors"):
        write_safetensors({"x": torch.zeros(2, dtype=torch.complex128)}, tmp_path / "x.safetensors")
    assert not list(tmp_path.iterdir())
