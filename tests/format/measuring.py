"""What reading a file takes, in a process of its own whose peak no other test has raised."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

__all__ = ["PEAK", "read_in_a_child"]

PEAK = """
import sys, time
from pathlib import Path

def peak():
    \"\"\"Bytes of memory at most so far. (getrusage counts the parent's, which exec takes over.)\"\"\"
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM"))
"""

READ = (
    PEAK
    + """
from ilwp_plugin import format
from ilwp_plugin.errors import FormatError
import ilwp_plugin.format.coding.fast, hashlib, json, mmap, zlib
try:
    import bitarray.util, constriction
except ImportError:
    pass
before, start, code, restored = peak(), time.process_time(), "", 0
limit = int(sys.argv[2]) if sys.argv[2] else None
try:
    file = format.read(sys.argv[1], max_bytes=limit)
    state = file.state(as_bits=True)
    restored = sum(value.nbytes for value in {id(value): value for value in state.values()}.values())
    if sys.argv[3]:
        file.ledger.file_bytes
except FormatError as error:
    code = error.code
print(peak() - before, time.process_time() - start, restored, code or "read")
"""
)


def read_in_a_child(path: Path, *, max_bytes: int | None = None, ledger: bool = False) -> tuple[int, float, int, str]:
    """Bytes of memory that grew, seconds of computing, bytes of what was restored, and the fault or "read"."""
    command = [sys.executable, "-c", READ, path, "" if max_bytes is None else str(max_bytes), "1" if ledger else ""]
    grown, seconds, restored, code = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    return int(grown), float(seconds), int(restored), code
