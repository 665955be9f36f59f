"""The code of the README runs when it is pasted."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

README = Path(__file__).parent.parent / "README.md"


def test_blocks_run_one_after_the_other(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) >= 3
    (tmp_path / "pasted.py").write_text("\n".join(blocks), encoding="utf-8")
    subprocess.run([sys.executable, "pasted.py"], cwd=tmp_path, check=True, capture_output=True, text=True, timeout=250)
    for name in ("model", "small", "tuned", "onnx"):
        assert (tmp_path / f"{name}.ilwp").stat().st_size > 1000


def test_it_can_be_read_in_one_sitting() -> None:
    assert len(README.read_text(encoding="utf-8").splitlines()) <= 220
