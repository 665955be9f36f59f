"""Breaks the code in one place at a time, and looks whether a test fails: `python -m tests.breaking [WORDS]`.

The faults are those that tests once did not notice. Each is put into a copy of the project, and the tests that are
about it run; with WORDS only faults whose name holds one of them.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
COPIED = (
    "ilwp_plugin",
    "integrations",
    "tests",
    "examples",
    "docs",
    "pyproject.toml",
    "setup.cfg",
    "FORMAT.md",
    "README.md",
)
FILES, QUEUE = "ilwp_plugin/format/container/files.py", "ilwp_plugin/compare/queue.py"
EXPORTED = "ilwp_plugin/models/exported.py"
TEST_FILES, TEST_QUEUE = "tests/format/container/test_files.py", "tests/compare/test_queue.py"
NOTHING_RUNS = "tests/test_nothing_runs.py"


@dataclass(frozen=True)
class Fault:
    """A fault.

    Attributes:
        name: in words.
        path: of the file.
        right, wrong: what stands there, and what instead.
        tests: the file that has to notice, and pytest's expression for which of its tests.
    """

    name: str
    path: str
    right: str
    wrong: str
    tests: tuple[str, str]


FAULTS = [
    Fault("unbuffered writes", FILES, 'open("xb")', 'open("xb", buffering=0)', (TEST_FILES, "cut_short")),
    Fault(
        "folder not forced to disk", FILES, "        _sync_folder(target.parent)\n", "", (TEST_FILES, "forced_to_disk")
    ),
    Fault(
        "save not verified",
        "ilwp_plugin/format/file.py",
        "container.pack(infos, encoded), verify)",
        "container.pack(infos, encoded))",
        (TEST_FILES, "made_of_it"),
    ),
    Fault(
        "new file left behind",
        FILES,
        "                temporary.unlink()\n",
        "                pass\n",
        (TEST_FILES, "disk"),
    ),
    Fault(
        "permissions lost", FILES, "temporary.chmod(target.stat().st_mode & 0o777)", "pass", (TEST_FILES, "permissions")
    ),
    Fault(
        "replaced in place",
        FILES,
        "            temporary.replace(target)\n            temporary = None\n",
        "            target.write_bytes(temporary.read_bytes())\n",
        (TEST_FILES, "complete_version"),
    ),
    Fault(
        "pickle in the reader",
        "ilwp_plugin/format/stream.py",
        "import struct\n",
        "import pickle\nimport struct\n",
        ("tests/format/test_file.py", "executes_nothing"),
    ),
    Fault(
        "pickle for programs", EXPORTED, "import copy\n", "import copy\nimport pickle\n", (NOTHING_RUNS, "nowhere_else")
    ),
    Fault(
        "programs read without trust",
        EXPORTED,
        "    if not trust:\n        raise FileError(untrusted(path))\n",
        "",
        (NOTHING_RUNS, "only_where_it_is_trusted"),
    ),
    Fault(
        "queue without a lock",
        QUEUE,
        'return FileLock(f"{file}.lock", thread_local=True)',
        "return nullcontext()",
        (TEST_QUEUE, "twice"),
    ),
    Fault("tasks taken unlocked", QUEUE, "            taking.enter_context(self._lock)\n", "", (TEST_QUEUE, "twice")),
    Fault(
        "tasks entered unlocked",
        QUEUE,
        "        with self._lock:\n            results =",
        "        if True:\n            results =",
        (TEST_QUEUE, "together"),
    ),
    Fault(
        "assert in the reader",
        "ilwp_plugin/format/sections/grid.py",
        "        raise reader.fail(",
        "        assert False\n        raise reader.fail(",
        ("tests/format/test_corpus.py", "truncation"),
    ),
    Fault(
        "survivors not distinct",
        "ilwp_plugin/format/sections/structure.py",
        "    if distinct != kernels or len(survivors) != kernels:",
        "    if len(survivors) != kernels:",
        ("tests/format/test_corpus.py", "malformed"),
    ),
    Fault(
        "planes coded anew",
        "ilwp_plugin/format/sections/floats.py",
        "        section._flags = stored",
        "        section._flags = None",
        ("tests/format/test_file.py", "planes"),
    ),
]


def noticed(fault: Fault, folder: Path) -> bool:
    """Whether a test fails in a copy with the fault."""
    path = folder / fault.path
    right = path.read_text(encoding="utf-8")
    if right.count(fault.right) < 1:
        raise SystemExit(f"{fault.name}: {fault.path} does not hold {fault.right!r} any more")
    path.write_text(right.replace(fault.right, fault.wrong, 1), encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
    where, which = fault.tests
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", where, "-k", which]
    try:
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    finally:
        path.write_text(right, encoding="utf-8")
    if done.returncode not in (0, 1):
        raise SystemExit(f"{fault.name}: pytest ended with {done.returncode}: {done.stdout[-1000:]}")
    return done.returncode == 1


def main(words: list[str]) -> None:
    faults = [fault for fault in FAULTS if not words or any(word in fault.name for word in words)]
    missed = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for part in COPIED:
            copy = shutil.copytree if (ROOT / part).is_dir() else shutil.copy
            copy(ROOT / part, folder / part)
        (folder / "ilwp_integrations").symlink_to("integrations")
        for fault in faults:
            found = noticed(fault, folder)
            print(f"{fault.name}: {'noticed' if found else 'MISSED'}", flush=True)
            missed += [] if found else [fault.name]
    print(f"{len(faults) - len(missed)} of {len(faults)} faults are noticed")
    raise SystemExit(bool(missed))


if __name__ == "__main__":
    main(sys.argv[1:])
