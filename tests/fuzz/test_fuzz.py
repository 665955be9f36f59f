"""What fuzzing has found stays found; and that it runs."""

import os
import re
import subprocess
import sys
from pathlib import Path
from random import Random

import pytest

from ilwp_plugin.format import SECTIONS, read
from tests.fuzz import grammar, mutation, target
from tests.fuzz.parts import take_apart

ROOT = Path(__file__).parent.parent.parent


def test_the_corpus_that_fuzzing_has_grown() -> None:
    """Each file reaches code that the others do not."""
    files = sorted(mutation.CORPUS.iterdir())
    assert len(files) > 200
    codes = {target.check(path.read_bytes()) for path in files}
    assert "read" in codes and len(codes) > 20


def test_the_grammar_makes_valid_files() -> None:
    kinds = set()
    for seed in range(150):
        data = grammar.make(seed)
        assert data == grammar.make(seed) and target.check(data) == "read"
        kinds |= {section.number for section in read(data).sections}
        parts = take_apart(data)
        assert parts is not None and take_apart(parts.build()) == parts and target.check(parts.build()) == "read"
        assert parts.packed or parts.build() == data
    assert kinds >= {kind.number for kind in SECTIONS.values() if kind.number < 63}


def test_mutants_reach_what_is_behind_the_checksums() -> None:
    """Those of this seed, without coverage; what the fuzzer does is the same with more luck."""
    random, codes = Random(0), set()

    def mutate(data: bytes, most: int) -> bytes:
        at = random.randrange(len(data) + 1)
        return (data[:at] + random.randbytes(random.randrange(3)) + data[at + random.randrange(3) :])[:most]

    for _ in range(1500):
        codes.add(target.check(mutation.mutant(random.choice(VALID), 600, random, mutate)))
    assert {"read", "name", "count", "form", "range", "payload", "table", "ownership", "unfit", "position"} <= codes


VALID = [grammar.make(seed) for seed in range(20)]


@pytest.mark.slow
def test_fuzzing(tmp_path: Path) -> None:
    """For some minutes; the first failure ends it."""
    pytest.importorskip("atheris")
    seconds = os.environ.get("FUZZ_SECONDS", "120")
    command = [sys.executable, "-m", "tests.fuzz", str(tmp_path), f"-max_total_time={seconds}", "-print_final_stats=1"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    (count,) = re.findall(r"number_of_executed_units: (\d+)", done.stderr)
    assert int(count) > 5_000
