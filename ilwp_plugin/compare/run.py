"""A whole comparison: every task in a process of its own, several at a time, and all of it resumable."""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

from ilwp_plugin._imports import optional
from ilwp_plugin.compare.config import CompareConfig, Task
from ilwp_plugin.compare.methods import find_method
from ilwp_plugin.compare.queue import Queue, TaskError
from ilwp_plugin.compare.results import (
    MethodResult,
    TrainingResult,
    append_results,
    parse_result,
    stored_results,
)
from ilwp_plugin.errors import ConfigError, FileError, IlwpError

__all__ = ["compare"]

Report = Callable[[str, int, int], None]
"""(what is being done, done, in all): "tasks", and each one that is running, by its title."""

_POLL = 0.5
"""Seconds between two looks at the queue."""


def compare(
    config: CompareConfig,
    folder: str | os.PathLike[str],
    *,
    storage: str | None = None,
    data_folder: str | os.PathLike[str] | None = None,
    workers: int | None = None,
    threads: int = 1,
    device: str = "cpu",
    report: Report | None = None,
) -> list[TrainingResult | MethodResult]:
    """Do what is not done yet, and bring all results together in the folder's `results.jsonl`.

    It may be interrupted or killed at any moment, and started again; several processes or machines may work on one
    storage. On platforms that do not fork, and for scripts in general, call it under `if __name__ == "__main__":`.

    Args:
        config: the grid.
        folder: for results, trained networks and files; is made if need be.
        storage: URL of a database that others work on, too (see optuna); None keeps a file of sqlite in the folder.
        data_folder: where the data sets' files are, if not in the usual place.
        workers: tasks at a time; as many as there are cores if None.
        threads: of each task. Another number sums in another order, and gives slightly other networks.
        device: where networks are trained and fine-tuned, as torch names it, such as "cuda". Toolkits' trainings stay
            on the CPU. On a GPU a training does not end with the same bits each time.
        report: is told the progress.

    Returns:
        The results of all tasks of the grid.

    Raises:
        TaskError: some tasks failed; the message names them. The others are done.
        ConfigError: less than one worker or thread, or no such device.
        MissingDependencyError: the extra `compare` is not installed, or what a method needs besides.
        FileError: the folder or the storage cannot be used.
    """
    folder = Path(folder)
    workers = workers or max(1, (os.cpu_count() or 1) // threads)
    if workers < 1 or threads < 1:
        raise ConfigError(f"expected at least one worker and one thread, got {workers} and {threads}")
    _check_device(device)
    try:
        (folder / "logs").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FileError(f"cannot make the folder {folder}: {error.strerror or error}") from error
    tasks = config.tasks()
    for task in tasks:
        if task.method is not None:
            method = find_method(task.method)
            method.check(method.options.from_dict(task.options))
    queue = Queue(storage or folder / "tasks.sqlite3")
    queue.add(tasks, stored_results(folder))
    # A server that has imported torch once forks a process for each task: memory is measured from a clean start, and
    # what a toolkit patches into torch is gone with it.
    context = multiprocessing.get_context("forkserver" if sys.platform != "win32" else "spawn")
    if context.get_start_method() == "forkserver":
        context.set_forkserver_preload(["ilwp_plugin.compare.execute"])
    stop = threading.Event()
    doing: dict[int, str] = {}
    written: set[str] = set()

    def do(task: Task) -> TrainingResult | MethodResult:
        doing[threading.get_ident()] = task.title
        if stop.is_set():
            raise KeyboardInterrupt
        try:
            return _in_process(context, task, folder, data_folder, threads, device, stop)
        finally:
            del doing[threading.get_ident()]

    def collect() -> list[TrainingResult | MethodResult]:
        results = queue.results(tasks)
        if new := [result for result in results if result.key not in written]:
            append_results(folder, new)
            written.update(result.key for result in new)
        if report is not None:
            report("tasks", len(results), len(tasks))
        return results

    def worker() -> None:
        try:
            while not stop.is_set() and queue.work(do):
                pass
        except KeyboardInterrupt:
            return
        except BaseException as error:
            broken.append(error)
            stop.set()

    broken: list[BaseException] = []
    crew = [threading.Thread(target=worker, daemon=True) for _ in range(workers)]
    saved = {name: os.environ.get(name) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    os.environ.update({name: str(threads) for name in saved})
    try:
        for thread in crew:
            thread.start()
        shown: set[str] = set()
        while any(thread.is_alive() for thread in crew):
            collect()
            if report is not None:
                now = set(doing.values())
                for what in sorted(now | shown):
                    report(what, 0 if what in now else 1, 1)
                shown = now
            time.sleep(_POLL)
    finally:
        stop.set()
        for thread in crew:
            thread.join()
        for name, value in saved.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
    if broken:
        raise broken[0]
    results = collect()
    if errors := queue.errors(tasks):
        what = "; ".join(f"{title}: {message}" for title, message in errors.items())
        raise TaskError(f"{len(errors)} of {len(tasks)} tasks failed: {what}. Logs are in {folder / 'logs'}")
    return results


def _check_device(device: str) -> None:
    import torch

    try:
        torch.ones(1, device=device).item()  # the meta device has no values
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ConfigError(f"device: torch cannot use {device!r} here: {str(error).splitlines()[0]}") from None


def _in_process(
    context: multiprocessing.context.BaseContext,
    task: Task,
    folder: Path,
    data_folder: str | os.PathLike[str] | None,
    threads: int,
    device: str,
    stop: threading.Event,
) -> TrainingResult | MethodResult:
    """The task, done by a process of its own."""
    mine, theirs = context.Pipe(duplex=False)
    arguments = (theirs, os.getpid(), task.model_dump_json(), folder, data_folder, threads, device)
    process = context.Process(target=_child, args=arguments, daemon=True)  # type: ignore[attr-defined]
    process.start()
    theirs.close()
    try:
        while not mine.poll(_POLL):
            if stop.is_set():
                raise KeyboardInterrupt
        failed, text = mine.recv()
    except EOFError:
        process.join()
        log = folder / "logs" / f"{task.key}.log"
        raise TaskError(f"its process ended with exit code {process.exitcode}; see {log}") from None
    finally:
        if process.is_alive():
            process.join(timeout=_POLL if stop.is_set() else 10)
            process.kill()
        mine.close()
    if failed:
        raise TaskError(text)
    return parse_result(text, "what the task's process has sent")


def _child(
    pipe: Connection, asking: int, task: str, folder: Path, data_folder: str | None, threads: int, device: str
) -> None:
    """What a process does; everything that is printed goes to a log of the task's own."""
    import torch

    from ilwp_plugin.compare.execute import execute  # preloaded by the server

    _end_with(asking)
    torch.set_num_threads(threads)
    asked = Task.model_validate_json(task)
    with (folder / "logs" / f"{asked.key}.log").open("wb", buffering=0) as log:
        for stream in (1, 2):
            os.dup2(log.fileno(), stream)
        faulthandler.enable()
        try:
            result = execute(asked, folder, None if data_folder is None else Path(data_folder), device)
            answer = (False, result.model_dump_json())
        except IlwpError as error:
            answer = (True, str(error))
        except Exception as error:  # of a toolkit: its traceback goes to the log
            import traceback

            traceback.print_exc()
            answer = (True, f"{type(error).__name__}: {error}")
        pipe.send(answer)


def _end_with(process: int) -> None:
    """End this process when the one that asked for it is gone. Its parent is the server, which lives on for it."""
    psutil = optional("psutil", "compare")

    def lives() -> bool:
        try:
            return bool(psutil.Process(process).status() != psutil.STATUS_ZOMBIE)
        except psutil.NoSuchProcess:
            return False

    def look() -> None:
        while lives():
            time.sleep(_POLL)
        os._exit(1)

    threading.Thread(target=look, daemon=True).start()
