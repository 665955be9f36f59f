"""Every malformed file, every truncation and every flipped bit must be refused; run under `python -O` too.

Explicit checks, no `assert`: these would vanish.

    python -O -m tests.corpus.refuse_all
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from ilwp_plugin.errors import FormatError
from ilwp_plugin.format import read

FOLDER = Path(__file__).parent
SMALL = FOLDER / "valid" / "v1_full.ilwp"


def refused(data: bytes, what: str, code: str = "") -> None:
    """Raises SystemExit unless the data is refused with the package's own error."""
    try:
        read(data, where=what)
    except FormatError as error:
        if code not in ("", error.code):
            raise SystemExit(f"{what}: expected {code!r}, got {error.code!r}: {error}") from None
    else:
        raise SystemExit(f"{what}: accepted")


def main() -> None:
    expected = json.loads((FOLDER / "malformed" / "expected.json").read_text())
    for name, code in expected.items():
        refused((FOLDER / "malformed" / f"{name}.ilwp").read_bytes(), name, code)
    data = SMALL.read_bytes()
    read(data)
    for end in range(len(data)):
        refused(data[:end], f"the first {end} bytes")
    for bit in range(8 * len(data)):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        refused(bytes(flipped), f"flipped bit {bit}")
    print(
        f"refused: {len(expected)} malformed files, {len(data)} truncations, {8 * len(data)} flipped bits; "
        f"optimize={sys.flags.optimize}"
    )


if __name__ == "__main__":
    main()
