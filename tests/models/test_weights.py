from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from ilwp_plugin.errors import FileError, TensorError
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


def test_checkpoints_need_a_key(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    torch.save({"epoch": 3, "model": {"a": torch.ones(1)}, "ema": {"a": torch.zeros(1)}}, path)
    with pytest.raises(
        TensorError, match=r"with other things in it; choose one of its state dicts by key: \['ema', 'm"
    ):
        read_state_dict(path)
    assert read_state_dict(path, "ema")["a"] == 0
    with pytest.raises(TensorError, match=r"no state dict under the key 'x'; those are: \['ema', 'model'\]"):
        read_state_dict(path, "x")


@pytest.mark.parametrize("content", [{}, [torch.ones(1)], torch.ones(1), {"a": 3}, 5])
def test_other_content_is_refused(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "x.pt")
    with pytest.raises(TensorError, match="not a state dict but a .*it holds no state dict"):
        read_state_dict(tmp_path / "x.pt")


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return print, ("executed",)


def test_pickled_code_is_not_executed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"a": Evil()}, tmp_path / "x.pt")
    with pytest.raises(FileError, match="not a .pt file of tensors only"):
        read_state_dict(tmp_path / "x.pt")
    assert "executed" not in capsys.readouterr().out


@pytest.mark.parametrize("name", ["x.pt", "x.safetensors"])
@pytest.mark.parametrize("data", [b"", b"garbage" * 100, b"a,b\n1,2\n", b"\x80\x02."])
def test_damaged_files_are_refused(tmp_path: Path, name: str, data: bytes) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(FileError, match=rf"{name}: not a \.\w+ file of tensors only"):
        read_state_dict(tmp_path / name)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="No such file"):
        read_state_dict(tmp_path / "x.pt")
    with pytest.raises(FileError, match="unknown kind of file '.onnx'; expected .safetensors"):
        read_state_dict(tmp_path / "x.onnx")
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
