"""Every malformed file, every truncation and every flipped bit must be refused; run under `python -O` too.

Explicit checks, no `assert`: these would vanish.

    python -O -m tests.corpus.refuse_all
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import ilwp_plugin
from ilwp_plugin.errors import FormatError

FOLDER = Path(__file__).parent
SMALL = FOLDER / "valid" / "v1_full_2bit.ilwp"


def refused(data: bytes, what: str, message: str = "") -> None:
    """Raises SystemExit unless the data is refused with the package's own error."""
    try:
        ilwp_plugin.loads(data, what)
    except FormatError as error:
        if message not in str(error):
            raise SystemExit(f"{what}: expected {message!r}, got {error}") from None
    else:
        raise SystemExit(f"{what}: accepted")


def main() -> None:
    expected = json.loads((FOLDER / "malformed" / "expected.json").read_text())
    for name, message in expected.items():
        refused((FOLDER / "malformed" / f"{name}.ilwp").read_bytes(), name, message)
    data = SMALL.read_bytes()
    ilwp_plugin.loads(data)
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
