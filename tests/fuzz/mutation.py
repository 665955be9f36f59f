"""Mutants of files that reach the checks behind the checksums: a part is changed, then everything is signed anew."""

from __future__ import annotations

import functools
import struct
from collections.abc import Callable, Iterable
from pathlib import Path
from random import Random

from tests.fuzz import grammar
from tests.fuzz.parts import Parts, take_apart, varint

CORPUS = Path(__file__).parent / "corpus"
VALID = Path(__file__).parent.parent / "corpus" / "valid"
MOST = 600
"""Bytes of a mutant, and of what mutants are made of."""
_GRAMMAR = 200
"""Files of the grammar that fuzzing begins with."""
_SMALL = 1500
"""Bytes of files of the other corpus that mutants borrow from."""

_NUMBERS = [varint(n) for n in (0, 1, 2, 127, 128, 255, 256, 16383, 65535, 1 << 31, 1 << 32, 1 << 62, (1 << 63) - 1)]
_NUMBERS += [b"\xff" * 9, b"\xff" * 9 + b"\1", b"\x80\0"]
_FLOATS = [struct.pack("<f", x) for x in (0, -0.0, 1, -1, 1e-45, 3e38, float("inf"), float("nan"), 2.0**-126)]


def begun_with(*files: Iterable[Path]) -> list[bytes]:
    """What mutants are made of: those files, in the order of their names, and some of the grammar; all small."""
    found = [path.read_bytes() for some in files for path in sorted(some)]
    return [data for data in [*found, *map(grammar.make, range(_GRAMMAR))] if len(data) <= MOST]


Mutate = Callable[[bytes, int], bytes]
"""Changes some bytes, which then are at most so many: the fuzzer's own, which is led by coverage."""


def mutant(data: bytes, most: int, random: Random, mutate: Mutate) -> bytes:
    """Another file.

    Args:
        data: a file, or anything.
        most: bytes of the mutant.
        random: draws what is done.
        mutate: see `Mutate`.
    """
    chance = random.random()
    if chance < 0.005:
        return _within(grammar.make(random.getrandbits(32)), data, most)
    if chance < 0.4:  # most files that reach new code are refused for one thing, and hide what comes after it
        valid = random.choice(_others())
        parts: Parts | None = Parts([*valid.entries], [*valid.sections])
    else:
        parts = take_apart(data)
    if parts is None or chance > 0.98:
        return mutate(data, most)
    for _ in range(random.choice([1, 1, 1, 2, 4])):
        change = random.choices(_CHANGES, _WEIGHTS)[0]
        change(parts, random, mutate)
    return _within(parts.build(), data, most)


def _within(found: bytes, data: bytes, most: int) -> bytes:
    return found if len(found) <= most else data


def _section(parts: Parts, random: Random, mutate: Mutate) -> None:
    if parts.sections:
        at = random.randrange(len(parts.sections))
        code, body = parts.sections[at]
        parts.sections[at] = code, mutate(body, len(body) + 64)


def _entry(parts: Parts, random: Random, mutate: Mutate) -> None:
    if parts.entries:
        at = random.randrange(len(parts.entries))
        parts.entries[at] = mutate(parts.entries[at], len(parts.entries[at]) + 16)


def _byte(parts: Parts, random: Random, mutate: Mutate) -> None:
    """One byte of a section: most fields are one."""
    at = random.randrange(len(parts.sections)) if parts.sections else 0
    if parts.sections and parts.sections[at][1]:
        code, body = parts.sections[at]
        changed = bytearray(body)
        place = random.randrange(min(len(body), random.choice([8, 32, 1 << 20])))
        changed[place] = random.choice([random.getrandbits(8), changed[place] ^ 1 << random.randrange(8)])
        parts.sections[at] = code, bytes(changed)


def _number(parts: Parts, random: Random, mutate: Mutate) -> None:
    """A number that is often wrong, over another one or between two."""
    if parts.sections:
        at = random.randrange(len(parts.sections))
        code, body = parts.sections[at]
        number = random.choice(random.choice([_NUMBERS, _FLOATS]))
        place = random.randrange(min(len(body), random.choice([8, 32, 1 << 20])) + 1)
        over = random.choice([0, 1, len(number)])
        parts.sections[at] = code, body[:place] + number + body[place + over :]


def _tensor(parts: Parts, random: Random, mutate: Mutate) -> None:
    """A tensor more, less, or in another place; or another dtype or storage."""
    entries = parts.entries
    at = random.randrange(len(entries) + 1)
    if at == len(entries):
        entries.append(b"\0\1\0\2" + bytes(random.choices(b"abcxyz", k=2)) + bytes([random.getrandbits(8), 1, 1]))
    elif random.random() < 0.4:
        del entries[at]
    elif random.random() < 0.5:
        entries.insert(random.randrange(len(entries)), entries.pop(at))
    elif entries[at]:
        places = range(len(entries[at]))[-6:]
        place = random.choice(places)
        entries[at] = entries[at][:place] + bytes([random.getrandbits(8)]) + entries[at][place + 1 :]


def _order(parts: Parts, random: Random, mutate: Mutate) -> None:
    """A section more, less, in another place, or of another kind."""
    sections = parts.sections
    if not sections:
        return
    at = random.randrange(len(sections))
    chance = random.random()
    if chance < 0.25:
        del sections[at]
    elif chance < 0.5:
        sections.insert(random.randrange(len(sections) + 1), sections[at])
    elif chance < 0.75:
        sections.append(sections.pop(at))
    else:
        sections[at] = random.randrange(26), sections[at][1]


def _borrow(parts: Parts, random: Random, mutate: Mutate) -> None:
    """A section of another file, instead of one of the same kind if there is any."""
    other = random.choice(_others())
    if not other.sections:
        return
    code, body = random.choice(other.sections)
    same = [i for i, section in enumerate(parts.sections) if section[0] == code]
    if same:
        parts.sections[random.choice(same)] = code, body
    else:
        parts.sections.append((code, body))
        parts.entries += other.entries


@functools.cache
def _others() -> list[Parts]:
    found = [take_apart(path.read_bytes()) for path in sorted(VALID.glob("*.ilwp")) if path.stat().st_size < _SMALL]
    found += [take_apart(grammar.make(seed)) for seed in range(100)]
    return [parts for parts in found if parts is not None]


_CHANGES = [_section, _entry, _byte, _number, _tensor, _order, _borrow]
_WEIGHTS = [30, 8, 25, 15, 8, 6, 8]
