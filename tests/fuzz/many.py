"""Mutants by the million: `python -m tests.fuzz.many [COUNT] [FOLDER] [--processes N]`.

Coverage finds the files that reach new code, and makes each reading several times as slow. This reads mutants of what
coverage has found, without it. A mutant follows from its number and the corpus. What was read is kept in
FOLDER/many.jsonl, out/fuzz unless it is given, and not read again. What fails is written there, too, and ends the run.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import resource
import signal
import sys
import time
import traceback
from collections import Counter
from pathlib import Path
from random import Random
from typing import Any

from tests.fuzz import mutation, target

ROOT = Path(__file__).parent.parent.parent
BATCH = 10_000
_SECONDS, _MEMORY = 20, 3 << 30
_AGAIN = 0.3
"""How many mutants are mutants of the one before."""

Batch = dict[str, Any]


def change(data: bytes, most: int, random: Random) -> bytes:
    """A few bytes changed, left out, put in, or copied from elsewhere in the data."""
    out = bytearray(data)
    for _ in range(random.choice([1, 1, 1, 2, 3])):
        at, length = random.randrange(len(out) + 1), random.choice([1, 1, 1, 2, 4, 8, 16])
        kind = random.randrange(5)
        if kind == 0 and at < len(out):
            out[at] ^= 1 << random.randrange(8)
        elif kind == 1 and at < len(out):
            out[at] = random.choice([0, 1, 0x7F, 0x80, 0xFF, random.getrandbits(8)])
        elif kind == 2:
            del out[at : at + length]
        elif kind == 3:
            out[at:at] = random.randbytes(length)
        else:
            start = random.randrange(len(out) + 1)
            out[at : at + random.choice([0, length])] = out[start : start + length]
    return bytes(out[:most])


class Mutants:
    """The mutants of some batches, whose bases are read once."""

    def __init__(self) -> None:
        self.bases = mutation.begun_with(mutation.CORPUS.iterdir(), mutation.VALID.glob("*.ilwp"))

    def read(self, batch: int) -> Batch:
        """The codes of a batch, and how long it took. Raises RuntimeError with what failed, and its bytes."""
        random, codes, start = Random(batch), Counter[str](), time.process_time()
        data = b""
        for _ in range(BATCH):
            base = data if data and random.random() < _AGAIN else random.choice(self.bases)
            data = mutation.mutant(base, mutation.MOST, random, lambda body, most: change(body, most, random))
            signal.setitimer(signal.ITIMER_PROF, _SECONDS)
            try:
                codes[target.check(data)] += 1
            except BaseException:
                raise RuntimeError(traceback.format_exc(), data) from None
            finally:
                signal.setitimer(signal.ITIMER_PROF, 0)
        return {"batch": batch, "codes": dict(codes), "seconds": round(time.process_time() - start, 2)}


def _read(batch: int) -> Batch:
    global _MUTANTS
    if _MUTANTS is None:
        resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
        signal.signal(signal.SIGPROF, _too_long)
        _MUTANTS = Mutants()
    return _MUTANTS.read(batch)


_MUTANTS: Mutants | None = None


def _too_long(*_: object) -> None:
    raise TimeoutError(f"took more than {_SECONDS} seconds")


def _of() -> str:
    """A digest of the reader: what another one has read says nothing about this one."""
    found = hashlib.sha256()
    for path in sorted((ROOT / "ilwp_plugin" / "format").rglob("*.py")):
        found.update(path.read_bytes())
    return found.hexdigest()[:16]


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description="Read mutants by the million.")
    parser.add_argument("count", nargs="?", type=int, default=1_000_000, help="mutants in all")
    parser.add_argument("folder", nargs="?", type=Path, default=Path("out/fuzz"))
    parser.add_argument("--processes", type=int, default=2)
    given = parser.parse_args(arguments)
    given.folder.mkdir(parents=True, exist_ok=True)
    log, of = given.folder / "many.jsonl", _of()
    lines = log.read_text().splitlines() if log.exists() else []
    batches = [batch for batch in map(json.loads, lines) if batch["of"] == of]
    known = {batch["batch"] for batch in batches}
    due = [number for number in range(-(-given.count // BATCH)) if number not in known]
    with log.open("a") as out, multiprocessing.Pool(given.processes) as pool:
        try:
            for batch in pool.imap_unordered(_read, due):
                batches.append(batch)
                out.write(json.dumps({**batch, "of": of}) + "\n")
                out.flush()
                print(f"\r{len(batches) * BATCH:,} of {given.count:,}", end="", file=sys.stderr)
        except RuntimeError as error:
            trace, data = error.args
            path = given.folder / f"failure-{hashlib.sha256(data).hexdigest()[:12]}.ilwp"
            path.write_bytes(data)
            print(f"\n{trace}\n{path} has the {len(data)} bytes that did this", file=sys.stderr)
            return 1
    codes = sum((Counter(batch["codes"]) for batch in batches), Counter[str]())
    seconds = sum(batch["seconds"] for batch in batches)
    print(f"\n{codes.total():,} mutants, {codes.total() / max(seconds, 0.01):,.0f} a second of a core; none failed")
    print(", ".join(f"{code} {number:,}" for code, number in codes.most_common()))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
