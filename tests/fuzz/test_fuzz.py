"""What fuzzing has found stays found; and that it runs."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from random import Random

import pytest

from ilwp_plugin.format import SECTIONS, read
from tests.fuzz import grammar, many, mutation, target
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
    for _ in range(1500):
        data = mutation.mutant(random.choice(VALID), 600, random, lambda body, most: many.change(body, most, random))
        codes.add(target.check(data))
    assert {"read", "name", "count", "form", "range", "payload", "table", "ownership", "unfit", "position"} <= codes


def test_what_is_empty_has_mutants() -> None:
    for seed in range(200):
        parts = mutation.Parts([b""], [(0, b"")])
        for change in mutation._CHANGES:
            change(parts, Random(seed), lambda body, most: body)


VALID = [grammar.make(seed) for seed in range(20)]


def test_many_mutants_go_on_where_they_stopped_and_name_what_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(many, "BATCH", 20)
    alone = many.Mutants().read(1)
    assert sum(alone["codes"].values()) == 20
    assert many.main(["40", str(tmp_path), "--processes", "1"]) == 0
    first = [json.loads(line) for line in (tmp_path / "many.jsonl").read_text().splitlines()]
    assert [batch["batch"] for batch in first] == [0, 1] and first[1]["codes"] == alone["codes"]
    assert many.main(["60", str(tmp_path), "--processes", "1"]) == 0
    lines = (tmp_path / "many.jsonl").read_text().splitlines()
    assert len(lines) == 3 and "60 mutants" in capsys.readouterr().out

    monkeypatch.setattr(target, "check", lambda data: 1 / 0)
    assert many.main(["80", str(tmp_path), "--processes", "1"]) == 1
    (failed,) = tmp_path.glob("failure-*.ilwp")
    shown = capsys.readouterr().err
    assert "ZeroDivisionError" in shown and failed.name in shown


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
