"""The same bytes everywhere; `make oldest` compares with the oldest versions of torch and numpy, too."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent

OTHERWISE = {
    "ATEN_CPU_CAPABILITY": "default",  # torch without AVX2 and AVX512, and numpy as well
    "NPY_DISABLE_CPU_FEATURES": "AVX512F AVX512CD AVX512_SKX AVX512_CLX AVX512_CNL AVX512_ICL AVX2 FMA3",
    "OMP_NUM_THREADS": "4",
    "PYTHONHASHSEED": "1",
}


def lines(environment: dict[str, str]) -> list[str]:
    command = [sys.executable, "-W", "ignore", "-m", "tests.determinism"]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True, check=True
    )
    return done.stdout.splitlines()


def test_the_same_bytes_in_every_process_at_every_thread_count_and_on_every_processor() -> None:
    usual = lines({"OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "0"})
    assert len(usual) > 40
    assert lines(OTHERWISE) == usual
