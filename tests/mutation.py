"""How many small faults in the format and its writers the tests notice: `make mutation`.

`python -m tests.mutation make`, in an environment with mutmut, samples mutants of the bodies of functions, in
proportion to the lines of each module. `run` puts one after the other into a copy of the project, and runs the tests
of its module until one fails; what is known already is not run again, and `run --again` repeats what went unnoticed.
Left out are annotations, decorators and the text of messages: no reader of a file depends on them.
"""

from __future__ import annotations

import argparse
import compileall
import contextlib
import difflib
import hashlib
import importlib
import json
import os
import re
import resource
import shutil
import signal
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

ROOT = Path(__file__).parent.parent
MUTATED = ("ilwp_plugin/format/**/*.py", "ilwp_plugin/ledger.py", "ilwp_plugin/pipeline/file.py")
COPIED = ("ilwp_plugin", "integrations", "tests", "docs", "pyproject.toml", "setup.cfg", "FORMAT.md", "README.md")
CPU_SECONDS = 240
"""That the tests of a mutant may take; all of them take some forty. One that takes longer is noticed."""
WALL_SECONDS = 1800
MEMORY = 8 << 30

SLOW = "truncation or optimization or killed or always_see or full_disk or seconds"
"""Tests that take long, and see little that others do not see."""

FIRST = {
    "ilwp_plugin/format/container/": ["tests/format/container"],
    "ilwp_plugin/format/coding/": ["tests/format/coding", "tests/format/test_grouping.py"],
    "ilwp_plugin/format/sections/": ["tests/format/sections"],
    "ilwp_plugin/format/grouping.py": ["tests/format/test_grouping.py"],
    "ilwp_plugin/format/integers.py": ["tests/format/test_integers.py"],
    "ilwp_plugin/format/dither.py": ["tests/format/test_dither.py"],
    "ilwp_plugin/format/stream.py": ["tests/format/test_stream.py"],
    "ilwp_plugin/format/spool.py": ["tests/format/test_spool.py"],
    "ilwp_plugin/format/safetensors.py": ["tests/format/test_safetensors.py"],
    "ilwp_plugin/pipeline/": [f"tests/pipeline/test_{name}.py" for name in ("file", "sparse", "fields", "odd_tensors")],
    "ilwp_plugin/ledger.py": ["tests/test_ledger.py"],
}
"""By the beginning of a module's path, the tests that are about it."""

REST = [
    "tests/format/test_corpus.py",
    "tests/format/sections",
    "tests/format/coding",
    "tests/format/container",
    "tests/format/test_values.py",
    "tests/format/test_grouping.py",
    "tests/format/test_file.py",
]

Mutant = dict[str, Any]
"""`path`, `line`, `difference`, the whole `source`, and a digest `of` what it was made of."""


def make(out: Path, count: int, seed: int) -> None:
    """Writes the mutants to mutants.json."""
    random, mutants, due = Random(seed), list[Mutant](), 0.0
    sources = {path: path.read_text() for pattern in MUTATED for path in sorted(ROOT.glob(pattern))}
    lines = sum(map(_length, sources.values()))
    for path, source in sources.items():
        due += count * _length(source) / lines
        found = _mutants_of(source)
        for line, changed in random.sample(found, min(len(found), round(due) - len(mutants))):
            text = changed()
            difference = difflib.unified_diff(source.splitlines(), text.splitlines(), lineterm="", n=0)
            shown = "\n".join([one for one in difference if not re.match(r"---|\+\+\+|@@", one)])
            name = str(path.relative_to(ROOT))
            mutants.append({"path": name, "line": line, "difference": shown, "source": text, "of": _digest(source)})
    random.shuffle(mutants)  # so that the first of them are a fair sample, too
    out.mkdir(parents=True, exist_ok=True)
    (out / "mutants.json").write_text(json.dumps(mutants))
    print(f"{len(mutants)} mutants of {lines:,} lines in {len(sources)} modules, seed {seed}")


def _digest(source: str) -> str:
    return hashlib.sha256(source.encode()).hexdigest()


def _length(source: str) -> int:
    return source.count("\n")


def _mutants_of(source: str) -> list[tuple[int, Callable[[], str]]]:
    """The line of every mutant, and what makes its source."""
    cst, metadata = importlib.import_module("libcst"), importlib.import_module("libcst.metadata")
    mutation_operators = importlib.import_module("mutmut.mutation.mutators").mutation_operators

    wrapper = metadata.MetadataWrapper(cst.parse_module(source))
    places = wrapper.resolve(metadata.PositionProvider)
    found: list[tuple[int, Callable[[], str]]] = []

    def messages(node: Any) -> set[int]:
        """The arguments of a call that are text for people."""
        values = {id(one): one.value for one in getattr(node, "args", ()) if hasattr(one, "value")}
        long = (cst.FormattedString, cst.ConcatenatedString)
        return {
            place
            for place, value in values.items()
            if isinstance(value, long) or (isinstance(value, cst.SimpleString) and " " in value.value)
        }

    def changed(node: Any, other: Any) -> Callable[[], str]:
        return lambda: str(wrapper.module.deep_replace(node, other).code)

    def visit(node: Any, inside: bool) -> None:
        if isinstance(node, (cst.Annotation, cst.Decorator, cst.BaseString)):
            return
        for kind, operator in mutation_operators if inside else ():
            if isinstance(node, kind):
                others = [other for other in operator(node) if messages(node) == messages(other)]
                found.extend((places[node].start.line, changed(node, other)) for other in others)
        for child in node.children:
            visit(child, inside or isinstance(node, cst.FunctionDef))

    visit(wrapper.module, False)
    return found


def run(out: Path, again: bool) -> None:
    """Runs the tests of all mutants whose result is not known, and says how many went unnoticed."""
    mutants: list[Mutant] = json.loads((out / "mutants.json").read_text())
    changed = sorted({one["path"] for one in mutants if one["of"] != _digest((ROOT / one["path"]).read_text())})
    if changed:
        raise SystemExit(f"{', '.join(changed)} changed since the mutants were made: remove {out} to begin anew")
    path = out / "results.jsonl"
    known = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    results = {tuple(one["key"]): one for one in known if not (again and one["outcome"] == "unnoticed")}
    copy = (out / "copy").resolve()
    shutil.rmtree(copy, ignore_errors=True)
    for name in COPIED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, copy / name)
    compileall.compile_dir(copy, quiet=2)
    _import_libraries()
    if len(results) < len(mutants):
        outcome, by = _tested(copy, "ilwp_plugin/", out, fresh=True)
        if outcome != "unnoticed":
            raise SystemExit(f"tests fail without a mutant: {by}; see {out}/tests.txt")
    for number, mutant in enumerate(mutants):
        key = _key(mutant)
        if key not in results:
            outcome, by = _outcome(copy, mutant, out)
            results[key] = {"key": key, "outcome": outcome, "by": by}
            print(f"{number + 1}/{len(mutants)} {mutant['path']}:{mutant['line']} {outcome} {by}", flush=True)
            path.write_text("".join(json.dumps(one) + "\n" for one in results.values()))
    _report(mutants, results, out)


def _key(mutant: Mutant) -> tuple[Any, ...]:
    return mutant["path"], mutant["line"], mutant["difference"]


def _report(mutants: list[Mutant], results: dict[tuple[Any, ...], dict[str, Any]], out: Path) -> None:
    mutants = [mutant for mutant in mutants if _key(mutant) in results]
    outcomes = [results[_key(mutant)]["outcome"] for mutant in mutants]
    left = [mutant for mutant, outcome in zip(mutants, outcomes, strict=True) if outcome == "unnoticed"]
    shown = [f"{one['path']}:{one['line']}\n{one['difference']}\n" for one in left]
    (out / "unnoticed.txt").write_text("\n".join(shown))
    share = 1 - len(left) / len(mutants)
    print(f"{len(mutants)} mutants: {dict(Counter(outcomes))}; {share:.1%} noticed; the others: {out}/unnoticed.txt")


def _outcome(copy: Path, mutant: Mutant, out: Path) -> tuple[str, str]:
    target = copy / mutant["path"]
    right, stat = target.read_bytes(), target.stat()
    target.write_text(mutant["source"])
    os.utime(target, (stat.st_atime, stat.st_mtime + 1000))  # so that what is compiled already is not taken
    try:
        return _tested(copy, mutant["path"], out)
    finally:
        target.write_bytes(right)
        os.utime(target, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def _import_libraries() -> None:
    """What every process would import anew; nothing of the project."""
    for name in ("hypothesis.strategies", "numpy", "pydantic", "pytest", "scipy.spatial", "scipy.stats", "torch"):
        importlib.import_module(name)


def _tested(copy: Path, path: str, out: Path, fresh: bool = False) -> tuple[str, str]:
    """Runs tests in a process forked off.

    Args:
        copy: of the project.
        path: of the module whose tests come first.
        out: where what they print goes.
        fresh: whether what is compiled is kept for the next process.

    Returns:
        "noticed", "unnoticed" or "stopped", since it took too long; and by which test, or signal.
    """
    log = out / "tests.txt"
    process = os.fork()
    if process == 0:
        _child(copy, path, log, fresh)
    _, status = os.waitpid(process, 0)
    with contextlib.suppress(ProcessLookupError):  # what the tests have started
        os.killpg(process, signal.SIGKILL)
    if os.WIFSIGNALED(status):
        return "stopped", signal.Signals(os.WTERMSIG(status)).name
    failed = re.findall(r"^(?:FAILED|ERROR) (\S+)", log.read_text(errors="replace"), re.MULTILINE)
    return ("unnoticed", "") if os.WEXITSTATUS(status) == 0 else ("noticed", failed[0] if failed else "collection")


def _child(copy: Path, path: str, log: Path, fresh: bool) -> None:
    """The process of `_tested`, which ends here."""
    code = 99
    try:
        os.setpgid(0, 0)
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        os.chdir(copy)
        sys.dont_write_bytecode = not fresh
        os.environ["PYTHONPATH"] = f"{copy}:{os.environ.get('PYTHONPATH', '')}"
        sys.path[:0] = [str(copy)]
        for name in [name for name in sys.modules if name.partition(".")[0] == "tests"]:
            del sys.modules[name]
        resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))
        resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
        signal.alarm(WALL_SECONDS)
        import pytest

        own = [tests for start, tests in FIRST.items() if path.startswith(start)]
        files = list(dict.fromkeys([*(own[0] if own else []), *REST]))
        code = int(pytest.main(["-x", "-q", "-p", "no:cacheprovider", "-k", f"not ({SLOW})", *files]))
    finally:
        os._exit(code)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.mutation")
    parser.add_argument("what", choices=["make", "run"])
    parser.add_argument("--out", type=Path, default=Path("out/mutation"))
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--again", action="store_true", help="repeat what went unnoticed")
    options = parser.parse_args()
    if options.what == "make":
        make(options.out, options.count, options.seed)
    else:
        run(options.out.resolve(), options.again)


if __name__ == "__main__":
    main()
