import random
from pathlib import Path
from typing import Any

import pytest
import torch

from ilwp_plugin.errors import FileError
from ilwp_plugin.training.checkpoints import reading_checkpoint, write_checkpoint


def test_what_was_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    for step in (1, 2):
        write_checkpoint(path, {"step": step, "state": torch.full((3,), step)})
    with reading_checkpoint(path, "a test") as content:
        assert content["step"] == 2 and torch.equal(content["state"], torch.full((3,), 2))
    assert [found.name for found in tmp_path.iterdir()] == ["checkpoint.pt"]


@pytest.mark.parametrize("content", [b"", b"rubbish", None])
def test_what_is_no_checkpoint_is_told(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    if content is not None:
        path.write_bytes(content)
    with (
        pytest.raises(FileError, match="cannot read" if content is None else "no checkpoint of a test") as caught,
        reading_checkpoint(path, "a test"),
    ):
        pytest.fail("nothing to take up")
    assert str(path) in str(caught.value)


def test_a_state_that_does_not_fit_is_told(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    write_checkpoint(path, torch.nn.Linear(2, 3).state_dict())
    with (
        pytest.raises(FileError, match="(?s)no checkpoint of a test .RuntimeError: .*size mismatch.*delete it"),
        reading_checkpoint(path, "a test") as content,
    ):
        torch.nn.Linear(3, 3).load_state_dict(content)


def test_code_in_a_checkpoint_is_not_run(tmp_path: Path) -> None:
    path, ran = tmp_path / "checkpoint.pt", tmp_path / "ran"

    class Bomb:
        def __reduce__(self) -> Any:
            return (open, (str(ran), "w"))

    torch.save({"step": Bomb(), "random": random.getstate()}, path)
    with pytest.raises(FileError, match="no checkpoint of a test"), reading_checkpoint(path, "a test"):
        pass
    assert not ran.exists()
