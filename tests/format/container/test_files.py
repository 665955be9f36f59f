import errno
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from ilwp_plugin.errors import FileError, FormatError
from ilwp_plugin.format import read, write
from ilwp_plugin.format.container import files, read_file, write_file
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

    def verify(data: memoryview) -> None:
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


SHORT = """
import resource, signal, sys
from ilwp_plugin.errors import FileError
from ilwp_plugin.format.container import write_file
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
for sizes in ([20_001], [9_000, 9_000, 9_000], [1, 30_000], [20_000, 1]):
    try:
        write_file(sys.argv[1], (bytes(size) for size in sizes))
    except FileError as error:
        print(error)
write_file(sys.argv[1] + ".fits", [bytes(20_000)])
"""


def test_a_write_that_is_cut_short(tmp_path: Path) -> None:
    """The system takes a part of the last piece and reports no error; the rest is asked for, or the file is refused."""
    (tmp_path / "x").write_bytes(b"old")
    result = subprocess.run([sys.executable, "-c", SHORT, tmp_path / "x"], capture_output=True, text=True, check=True)
    assert result.stdout.count("File too large") == 4
    assert (tmp_path / "x").read_bytes() == b"old" and (tmp_path / "x.fits").stat().st_size == 20_000
    assert only(tmp_path, "x", "x.fits")


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
from ilwp_plugin import format
files = [format.read(path) for path in sys.argv[2:]]
print("ready", flush=True)
for file in itertools.cycle(files):
    format.write(sys.argv[1], file.infos, file.sections)
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
            read(target)
    assert target.exists()
    write_file(target, [b"new"])
    assert only(tmp_path, "a", "b", "x"), "what the killed ones have left is gone"


READERS = 8
_together: Any = None


def _meet(barrier: Any) -> None:
    global _together
    _together = barrier


def read_many(path: Path, times: int) -> tuple[int, set[bytes]]:
    """Reads a file that others replace, once all readers are there; raises if it is ever not whole."""
    _together.wait(timeout=60)
    seen = {read(path).state()["b.bias"].tobytes() for _ in range(times)}
    _together.wait(timeout=60)
    return os.getpid(), seen


def test_readers_always_see_a_complete_version(tmp_path: Path) -> None:
    sources = two_files(tmp_path)
    target = tmp_path / "x"
    writers = [start_writer(target, *sources) for _ in range(2)]
    try:
        while not target.exists():
            time.sleep(0.01)
        context = multiprocessing.get_context("spawn")
        with context.Pool(READERS, _meet, (context.Barrier(READERS),)) as pool:
            found = pool.starmap(read_many, [(target, 50)] * READERS, chunksize=1)
        assert len({process for process, _ in found}) == READERS, "all at the same time"
        assert set.union(*(seen for _, seen in found)) == {b"\0" * 12, b"\1" * 12}
        assert [writer.poll() for writer in writers] == [None, None], "both are still writing"
    finally:
        for writer in writers:
            writer.kill()
            writer.wait()


STAGED = """
import os, signal, sys
from pathlib import Path
from ilwp_plugin.format.container import files

def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)

def chunks():
    yield b"new"
    if stage == "writing":
        die()
    yield b" content"

target, stage = sys.argv[1:]
if stage == "file sync":
    os.fsync = die
elif stage == "replacing":
    Path.replace = die
elif stage == "folder sync":
    files._sync_folder = die
files.write_file(target, chunks(), die if stage == "verifying" else None)
"""


@pytest.mark.parametrize("stage", ["writing", "file sync", "verifying", "replacing", "folder sync", "none"])
def test_killed_at_any_stage(tmp_path: Path, stage: str) -> None:
    target = tmp_path / "x"
    target.write_bytes(b"old")
    done = subprocess.run([sys.executable, "-c", STAGED, target, stage], check=False)
    assert done.returncode == (0 if stage == "none" else -signal.SIGKILL)
    expected = b"new content" if stage in ("folder sync", "none") else b"old"
    assert target.read_bytes() == expected
    assert only(tmp_path, "x") == (stage in ("folder sync", "none"))
    write_file(target, [b"next"])
    assert target.read_bytes() == b"next" and only(tmp_path, "x")


def test_file_and_folder_are_forced_to_disk_around_the_replacement(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a loss of power the path holds the old file or the new one, and in the end the new one."""
    happened: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def note_sync(handle: int) -> None:
        happened.append("folder" if os.path.samestat(os.fstat(handle), tmp_path.stat()) else "file")
        fsync(handle)

    def note_replace(self: Path, target: Path) -> Path:
        happened.append("replaced")
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", note_sync)
    monkeypatch.setattr(Path, "replace", note_replace)
    write_file(tmp_path / "x", [b"new"])
    assert happened == ["file", "replaced", "folder"]


def test_a_system_that_opens_no_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = os.open

    def no_folders(path: Any, *arguments: Any, **options: Any) -> int:
        if Path(path).is_dir():
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path, *arguments, **options)

    monkeypatch.setattr(os, "open", no_folders)
    write_file(tmp_path / "x", [b"abc"], lambda data: None)
    assert (tmp_path / "x").read_bytes() == b"abc" and [path.name for path in tmp_path.iterdir()] == ["x"]


def test_orphans_of_others_stay(tmp_path: Path) -> None:
    hexadecimal = "0123456789abcdef" * 2
    others = [f".y.{hexadecimal}.tmp", f".x.y.{hexadecimal}.tmp", ".x.tmp", ".x.0123.tmp", f"x.{hexadecimal}.tmp"]
    for name in [*others, f".x.{hexadecimal}.tmp"]:
        (tmp_path / name).write_bytes(b"")
    write_file(tmp_path / "x", [b"new"])
    assert only(tmp_path, "x", *others)


def test_a_living_writer_keeps_its_file(tmp_path: Path) -> None:
    """Another one writes to the same path meanwhile, and finishes first."""

    def chunks():  # type: ignore[no-untyped-def]
        yield b"slow "
        write_file(tmp_path / "x", [b"quick"])
        assert (tmp_path / "x").read_bytes() == b"quick"
        yield b"writer"

    write_file(tmp_path / "x", chunks())
    assert (tmp_path / "x").read_bytes() == b"slow writer" and only(tmp_path, "x")


def test_a_file_that_is_removed_before_it_is_locked_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock, removed = files._lock, []

    def late(handle: int) -> bool:
        if not removed:
            removed.extend(tmp_path.glob(".x.*"))
            removed[0].unlink()
        return lock(handle)

    monkeypatch.setattr(files, "_lock", late)
    write_file(tmp_path / "x", [b"new"])
    assert removed and (tmp_path / "x").read_bytes() == b"new" and only(tmp_path, "x")


@pytest.mark.parametrize("name", ["x" * 255, "ü" * 127, "." + "y" * 254, os.fsdecode(b"\xff\xfe" * 100)])
def test_long_and_strange_names(tmp_path: Path, name: str) -> None:
    for content in (b"one", b"two"):
        write_file(tmp_path / name, [content])
        assert (tmp_path / name).read_bytes() == content and only(tmp_path, name)


def test_long_names_that_begin_alike_are_told_apart(tmp_path: Path) -> None:
    one, other = (tmp_path / ("x" * 250 + end) for end in "ab")
    orphan = tmp_path / f"{files._stem(other)}{'0' * 32}.tmp"
    orphan.write_bytes(b"")
    write_file(one, [b"new"])
    assert orphan.exists()
    write_file(other, [b"new"])
    assert not orphan.exists()


READ_ONLY = """
import os, sys
from ilwp_plugin.errors import FileError
from ilwp_plugin.format.container import read_file, write_file
if os.getuid() == 0:
    os.setuid(65534)
for use in (lambda: write_file(sys.argv[1], [b"new"]), lambda: read_file(sys.argv[2])):
    try:
        use()
    except FileError as error:
        print(error)
"""


def test_no_permission(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "x").write_bytes(b"old")
    (folder / "secret").write_bytes(b"")
    (folder / "secret").chmod(0)
    folder.chmod(0o555)
    for parent in (tmp_path, *tmp_path.parents):
        if parent.stat().st_uid == os.getuid() and parent.name.startswith("pytest"):
            parent.chmod(0o755)
    command = [sys.executable, "-c", READ_ONLY, folder / "x", folder / "secret"]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    folder.chmod(0o755)
    assert [line.rpartition(": ")[2] for line in result.stdout.splitlines()] == ["Permission denied"] * 2
    assert (folder / "x").read_bytes() == b"old" and only(folder, "x", "secret")


def test_what_is_no_regular_file_is_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path, message in (
        (tmp_path / "pipe", "it is no regular file"),
        (Path("/dev/zero"), "it is no regular file"),
        (tmp_path, "Is a directory"),
        (tmp_path / "absent.ilwp", "No such file"),
        (tmp_path / "a\0b", "null byte"),
    ):
        with pytest.raises(FileError, match=f"cannot read .*{message}"):
            read_file(path)


def test_no_more_is_read_than_there_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that grows or shrinks meanwhile is refused, or read as far as it went."""
    path = tmp_path / "x"
    path.write_bytes(b"abc")
    fstat = os.fstat

    def then(change: bytes):  # type: ignore[no-untyped-def]
        def stat(handle: int) -> os.stat_result:
            found = fstat(handle)
            path.write_bytes(change)
            return found

        return stat

    monkeypatch.setattr(os, "fstat", then(b"abcdef"))
    assert read_file(path) == b"abc"
    monkeypatch.setattr(os, "fstat", then(b"a"))
    with pytest.raises(FileError, match="it has changed while it was read"):
        read_file(path)


def test_large_files_are_mapped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "_LARGE", 100)
    (tmp_path / "x").write_bytes(forge.good().build())
    before = read(tmp_path / "x")
    write_file(tmp_path / "x", [b"other"])
    assert before.state()["b.bias"].tolist() == [1, 2, 3], "who has the old file keeps it"


@pytest.mark.parametrize("cut", [True, False])
def test_what_the_disk_has_made_of_it_is_not_taken_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cut: bool
) -> None:
    """`format.write` reads back what it wrote, before the old file goes."""
    path = tmp_path / "x"
    good = read(forge.good().build())
    write(path, good.infos, good.sections)
    before = path.read_bytes()
    fsync = os.fsync

    def damage(handle: int) -> None:
        if os.fstat(handle).st_size == len(before):
            os.truncate(handle, 100) if cut else os.pwrite(handle, b"?", 120)
        fsync(handle)

    monkeypatch.setattr(os, "fsync", damage)
    with pytest.raises(FileError, match="what was read back is wrong"):
        write(path, good.infos, good.sections)
    assert path.read_bytes() == before and only(tmp_path, "x")
