"""Every malformed file, every truncation and every flipped bit must be refused; run under `python -O` too.

Of well-signed mutants it prints a digest of what the reader makes of them, which has to be the same then.

Explicit checks, no `assert`: these would vanish.

    python -O -m tests.corpus.refuse_all
"""

from __future__ import annotations

import hashlib
import json
import random
import sys
from pathlib import Path

from ilwp_plugin.errors import FormatError
from ilwp_plugin.format import read
from tests.corpus import forge

FOLDER = Path(__file__).parent
SMALL = FOLDER / "valid" / "v1_full.ilwp"
MUTANTS = 2000


def refused(data: bytes, what: str, code: str = "") -> None:
    """Raises SystemExit unless the data is refused with the package's own error."""
    try:
        read(data, where=what)
    except FormatError as error:
        if code not in ("", error.code):
            raise SystemExit(f"{what}: expected {code!r}, got {error.code!r}: {error}") from None
    else:
        raise SystemExit(f"{what}: accepted")


def mutants(count: int) -> str:
    """A digest of the values or the faults of valid files with a byte changed, signed anew."""
    draw, digest, faults = random.Random(0), hashlib.sha256(), 0
    files = [data for path in sorted(SMALL.parent.glob("*.ilwp")) if len(data := path.read_bytes()) < 2048]
    for _ in range(count):
        data = bytearray(draw.choice(files))
        data[draw.randrange(13, len(data) - 16)] = draw.randrange(256)
        try:
            for name, values in read(forge.signed(bytes(data))).state(as_bits=True).items():
                digest.update(name.encode() + values.tobytes())
        except FormatError as error:
            digest.update(error.code.encode())
            faults += 1
    return f"{count} mutants, {faults} of them refused: {digest.hexdigest()}"


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
    print(mutants(MUTANTS))
    print(
        f"refused: {len(expected)} malformed files, {len(data)} truncations, {8 * len(data)} flipped bits; "
        f"optimize={sys.flags.optimize}"
    )


if __name__ == "__main__":
    main()
