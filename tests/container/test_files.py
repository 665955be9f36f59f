import errno
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import ilwp_plugin
from ilwp_plugin.errors import FileError, FormatError
from ilwp_plugin.format.container import write_file
from tests.corpus import forge


def only(folder: Path, *names: str) -> bool:
    return sorted(path.name for path in folder.iterdir()) == sorted(names)


def test_write_and_replace(tmp_path: Path) -> None:
    path = tmp_path / "x"
    write_file(path, [b"ab", memoryview(b"c")])
    assert path.read_bytes() == b"abc" and only(tmp_path, "x")
    write_file(path, [b"new"])
    assert path.read_bytes() == b"new" and only(tmp_path, "x")


def test_permissions(tmp_path: Path) -> None:
    path = tmp_path / "x"
    before = os.umask(0o027)
    try:
        write_file(path, [b"a"])
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o640
    path.chmod(0o604)
    write_file(path, [b"b"])
    assert path.stat().st_mode & 0o777 == 0o604


def test_symbolic_link_stays_one(tmp_path: Path) -> None:
    (tmp_path / "real").write_bytes(b"old")
    (tmp_path / "link").symlink_to("real")
    write_file(tmp_path / "link", [b"new"])
    assert (tmp_path / "link").is_symlink() and (tmp_path / "real").read_bytes() == b"new"


def test_failed_verification_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"old")

    def verify(data: bytes) -> None:
        assert data == b"new"
        raise FormatError("no")

    with pytest.raises(FileError, match="what was read back is wrong: no"):
        write_file(path, [b"new"], verify)
    assert path.read_bytes() == b"old" and only(tmp_path, "x")


@pytest.mark.parametrize("function", ["fsync", "replace"])
def test_disk_faults_keep_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, function: str) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"old")

    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os if function == "fsync" else Path, function, fail)
    with pytest.raises(FileError, match="No space left on device"):
        write_file(path, [b"new"])
    monkeypatch.undo()
    assert path.read_bytes() == b"old" and only(tmp_path, "x")


def test_full_disk(tmp_path: Path) -> None:
    """A real limit on the size of files, in a process of its own."""
    (tmp_path / "x").write_bytes(b"old")
    script = (
        "import resource, signal, sys\n"
        "from ilwp_plugin.format.container import write_file\n"
        "from ilwp_plugin.errors import FileError\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "try: write_file(sys.argv[1], [bytes(100)] * 100)\n"
        "except FileError as error: print(error)\n"
    )
    result = subprocess.run([sys.executable, "-c", script, tmp_path / "x"], capture_output=True, text=True, check=True)
    assert "File too large" in result.stdout
    assert (tmp_path / "x").read_bytes() == b"old" and only(tmp_path, "x")


@pytest.mark.parametrize("target", ["", "missing/x", "file/x"])
def test_impossible_targets(tmp_path: Path, target: str) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(FileError, match="cannot write"):
        write_file(tmp_path / target, [b"new"])
    assert only(tmp_path, "file")


def test_an_interrupt_leaves_nothing_behind(tmp_path: Path) -> None:
    def chunks():  # type: ignore[no-untyped-def]
        yield b"a"
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_file(tmp_path / "x", chunks())
    assert only(tmp_path)


WRITER = """
import sys, itertools
import ilwp_plugin
models = [ilwp_plugin.load(path) for path in sys.argv[2:]]
print("ready", flush=True)
for model in itertools.cycle(models):
    model.save(sys.argv[1])
"""


def start_writer(target: Path, *sources: Path) -> subprocess.Popen[bytes]:
    process = subprocess.Popen([sys.executable, "-c", WRITER, target, *sources], stdout=subprocess.PIPE)
    assert process.stdout is not None and process.stdout.readline() == b"ready\n"
    return process


def two_files(folder: Path) -> tuple[Path, Path]:
    sources = folder / "a", folder / "b"
    for path, raw in zip(sources, (b"\0" * 12, b"\1" * 12), strict=True):
        file = forge.good()
        file.raw = raw
        path.write_bytes(file.build())
    return sources


def test_killed_writers_leave_the_old_or_the_new_file(tmp_path: Path) -> None:
    sources = two_files(tmp_path)
    target = tmp_path / "x"
    for delay in (0.001, 0.01, 0.03, 0.05, 0.08):
        process = start_writer(target, *sources)
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        process.wait()
        if target.exists():
            ilwp_plugin.load(target)
    assert target.exists()


def read_many(path: Path, times: int) -> int:
    """Reads a file that others replace; raises if it is ever not whole."""
    return len([ilwp_plugin.load(path).state_dict() for _ in range(times)])


def test_readers_always_see_a_complete_version(tmp_path: Path) -> None:
    sources = two_files(tmp_path)
    target = tmp_path / "x"
    writers = [start_writer(target, *sources) for _ in range(2)]
    try:
        while not target.exists():
            time.sleep(0.01)
        with multiprocessing.get_context("spawn").Pool(2) as pool:
            assert pool.starmap(read_many, [(target, 50)] * 8) == [50] * 8
    finally:
        for writer in writers:
            writer.kill()
            writer.wait()
