"""Processes that share one database of PostgreSQL; a server of Debian's package `postgresql` is started for it."""

import getpass
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ilwp_plugin.compare import CompareConfig, read_results
from ilwp_plugin.compare.queue import Queue
from ilwp_plugin.errors import FileError

pytestmark = pytest.mark.slow

GRID: dict[str, Any] = {
    "networks": [{"epochs": 1}],
    "methods": [{"method": "fp32"}, {"method": "ilwp", "grid": {"bits": [8, 7, 6, 5, 4], "mode": ["none", "local"]}}],
}


def program(name: str) -> str:
    """Of the newest server that is there."""
    found = shutil.which(name) or max(map(str, Path("/usr/lib/postgresql").glob(f"*/bin/{name}")), default=None)
    assert found, f"{name} is not there; install Debian's package postgresql"
    return found


@pytest.fixture
def database() -> Iterator[str]:
    """URL of an empty one."""
    user = "nobody" if os.geteuid() == 0 else getpass.getuser()  # PostgreSQL refuses to run as root
    folder = Path(tempfile.mkdtemp())
    options: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.STDOUT, "cwd": "/"}
    if os.geteuid() == 0:
        shutil.chown(folder, user)
        options["user"] = user
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    data = str(folder / "data")
    subprocess.run([program("initdb"), "-D", data, "-A", "trust", "-U", "ilwp", "-E", "UTF8"], check=True, **options)
    settings = ["-c", "fsync=off", "-c", f"unix_socket_directories={folder}", "-c", "listen_addresses=127.0.0.1"]
    server = subprocess.Popen([program("postgres"), "-D", data, "-p", str(port), *settings], **options)
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                assert time.monotonic() < deadline and server.poll() is None, "the server does not answer"
                time.sleep(0.1)
        time.sleep(0.5)  # it answers a little before it is ready
        yield f"postgresql://ilwp:secret@127.0.0.1:{port}/postgres"
    finally:
        server.send_signal(signal.SIGINT)  # the fast way down; the other waits for clients
        server.wait(60)
        shutil.rmtree(folder)


def test_two_processes_begin_at_once_on_an_empty_database(database: str, tmp_path: Path) -> None:
    path = tmp_path / "grid.json"
    path.write_text(json.dumps(GRID))
    code = "from ilwp_plugin.cli.main import run; run()"
    command = [sys.executable, "-c", code, "compare", str(path), "--storage", database, "--workers", "2", "-o"]
    folders = [tmp_path / name for name in ("one", "two")]
    processes = [
        subprocess.Popen([*command, str(folder)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for folder in folders
    ]
    for process in processes:
        output, _ = process.communicate(timeout=600)
        assert process.returncode == 0, output
    tasks = CompareConfig.from_dict(GRID).tasks()
    for folder in folders:
        assert {result.key for result in read_results(folder)} == {task.key for task in tasks}
    trials = Queue(database)._study.get_trials()
    assert Counter(trial.user_attrs["key"] for trial in trials) == {task.key: 1 for task in tasks}, "each is done once"
    assert len({trial.user_attrs["owner"] for trial in trials}) == 2, "both have worked"


def test_a_server_that_is_not_there() -> None:
    with pytest.raises(FileError, match=r"cannot open the storage postgresql://ilwp:\*\*\*@127.0.0.1:1/x: ") as caught:
        Queue("postgresql://ilwp:secret@127.0.0.1:1/x")
    assert "secret" not in str(caught.value)
