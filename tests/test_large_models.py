"""Models that are larger than the memory that is spent on them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch

WATCHED = """
import sys, threading, time
peak = 0
def watch():
    global peak
    while True:
        with open("/proc/self/status") as status:
            own = next(line for line in status if line.startswith("RssAnon"))
        peak = max(peak, int(own.split()[1]) << 10)
        time.sleep(0.01)
threading.Thread(target=watch, daemon=True).start()
from ilwp_plugin.cli import main
try:
    main.run()
except SystemExit as end:
    assert not end.code, end.code
print(peak, file=sys.stderr)
"""
"""A command that says at the end how much memory of its own it had at most, mapped files aside."""


def peak(*arguments: object) -> int:
    command = [sys.executable, "-c", WATCHED, *map(str, arguments)]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(run.stderr.split()[-1])


def write(path: Path, size: int, largest: int, dtype: torch.dtype) -> None:
    """A state dict of so many bytes, with the weights of transformers, as .safetensors."""
    generator = torch.Generator().manual_seed(0)

    def weight(rows: int, columns: int) -> torch.Tensor:
        return (torch.randn(rows, columns, generator=generator) * 0.02).to(dtype)

    state = {"embedding.weight": weight(largest // 1024 // dtype.itemsize, 1024)}
    number = 0
    while sum(tensor.nbytes for tensor in state.values()) < size:
        state[f"layers.{number}.up.weight"] = weight(4096, 1024)
        state[f"layers.{number}.down.weight"] = weight(1024, 4096)
        state[f"layers.{number}.norm.weight"] = torch.ones(1024, dtype=dtype)
        number += 1
    safetensors.torch.save_file(state, path)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("size", "largest", "dtype", "options"),
    [
        (2240 * 10**6, 150 * 10**6, torch.float32, {}),
        (1000 * 10**6, 400 * 10**6, torch.bfloat16, {}),
        (1000 * 10**6, 100 * 10**6, torch.float32, {"preset": "lossless"}),
    ],
)
def test_memory_is_that_of_the_largest_tensor(
    size: int, largest: int, dtype: torch.dtype, options: dict[str, str], tmp_path: Path
) -> None:
    """Besides mapped files at most 1.5 times the largest tensor and 1 GB."""
    source, out, back = tmp_path / "m.safetensors", tmp_path / "m.ilwp", tmp_path / "back.safetensors"
    write(source, size, largest, dtype)
    (tmp_path / "c.json").write_text(json.dumps(options))
    allowed = 1.5 * largest + 10**9
    assert peak("compress", source, "-o", out, "--config", tmp_path / "c.json", "--json") < allowed
    assert peak("verify", out) < allowed
    assert peak("decompress", out, "-o", back) < allowed
    assert out.stat().st_size < (0.6 if not options else 0.9) * size
    with safetensors.safe_open(source, "pt") as before, safetensors.safe_open(back, "pt") as after:
        assert set(before.keys()) == set(after.keys())
        for name in before.keys():  # noqa: SIM118  (it is no dict)
            a, b = before.get_tensor(name), after.get_tensor(name)
            error = float((a.float() - b.float()).abs().max())
            assert error == 0 if options else error < 1e-3
