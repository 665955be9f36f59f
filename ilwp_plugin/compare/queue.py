"""Tasks in an optuna storage, so that several processes or machines can share them, and a kill loses none.

Each task is a trial with the task in its user attributes; optuna hands waiting trials out, one at a time, and tells by
heartbeats which running ones have died.
"""

from __future__ import annotations

import os
import socket
import threading
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from pathlib import Path
from typing import Any

from filelock import FileLock

from ilwp_plugin._imports import optional
from ilwp_plugin.compare.config import Task
from ilwp_plugin.compare.results import MethodResult, TrainingResult, parse_result
from ilwp_plugin.errors import FileError, IlwpError

__all__ = ["Queue", "TaskError"]

_STUDY = "ilwp compare"
_HEARTBEAT, _GRACE = 10, 120
"""Seconds between heartbeats, and without one before a task counts as abandoned."""


_PAUSE = 0.5
"""Seconds until a queue without waiting tasks is looked at again."""


_LOCK = 0x696C7770  # "ilwp"
"""Of a database of PostgreSQL."""


class TaskError(IlwpError):
    """A task has failed; the others go on."""


class Queue:
    """The tasks of a comparison.

    Args:
        storage: URL of a database (RDB) as optuna takes it, or a path: a file of sqlite.

    Raises:
        MissingDependencyError: without optuna.
        FileError: the storage cannot be opened.
    """

    def __init__(self, storage: str | os.PathLike[str]) -> None:
        self._optuna = optuna = optional("optuna", "compare")
        optuna.logging.set_verbosity(optuna.logging.ERROR)  # a failed task is told once, by its own error
        # Heartbeats are "experimental" in optuna since 2021. The filter is global: trials run in threads.
        warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
        url, shown = _url(storage)
        self._state = optuna.trial.TrialState
        self._results: dict[str, TrainingResult | MethodResult] = {}
        self._owner = f"{socket.gethostname()}:{os.getpid()}"
        try:
            self._lock = _lock(url)
            with self._lock:
                database = optuna.storages.RDBStorage(
                    url, heartbeat_interval=_HEARTBEAT, grace_period=_GRACE, heartbeat_stale_trial_callback=self._again
                )
                self._study = optuna.create_study(storage=database, study_name=_STUDY, load_if_exists=True)
        except Exception as error:  # each database driver has its own
            missing = isinstance(error, ImportError) and url.startswith("postgresql")
            advice = "; pip install 'ilwp-plugin[postgresql]'" if missing else ""
            raise FileError(f"cannot open the storage {shown}: {error}{advice}") from error

    def add(self, tasks: Sequence[Task], done: Sequence[TrainingResult | MethodResult] = ()) -> None:
        """Enter the tasks that are not waiting, running or done; those of a process of this machine that is gone go
        back first.

        Args:
            tasks: what is to be done.
            done: results that are known from elsewhere.
        """
        alive = optional("psutil", "compare").pid_exists
        host = socket.gethostname()
        for trial in self._trials("RUNNING"):
            name, _, process = str(trial.user_attrs.get("owner", "")).rpartition(":")
            if name == host and not alive(int(process)):
                self._study.tell(trial.number, state=self._state.FAIL, skip_if_finished=True)
        with self._lock:
            results = {result.key: result.model_dump_json() for result in done}
            known = {trial.user_attrs.get("key") for trial in self._trials("WAITING", "RUNNING", "COMPLETE")}
            for task in tasks:
                if task.key in known:
                    continue
                if task.key in results:
                    attributes = {"key": task.key, "result": results[task.key]}
                    trial = self._optuna.trial.create_trial(value=1.0, user_attrs=attributes)
                    self._study.add_trial(trial)
                else:
                    self._enter(task)

    def work(self, do: Callable[[Task], TrainingResult | MethodResult]) -> bool:
        """Take a task and do it, if one waits; returns whether any are left, waiting or running elsewhere.

        An error of the task is kept, see `errors`.
        """
        self._optuna.storages.fail_stale_trials(self._study)
        if not self._trials("WAITING"):
            time.sleep(_PAUSE)
            return bool(self._trials("RUNNING", "WAITING"))
        taking = ExitStack()

        def objective(trial: Any) -> float:
            taking.close()
            if "task" not in trial.user_attrs or trial.user_attrs["key"] in {
                t.user_attrs.get("key") for t in self._trials("COMPLETE")
            }:  # another process was faster
                raise self._optuna.TrialPruned
            trial.set_user_attr("owner", self._owner)
            try:
                result = do(Task.model_validate(trial.user_attrs["task"]))
            except TaskError as error:
                trial.set_user_attr("error", str(error))
                raise
            trial.set_user_attr("result", result.model_dump_json())
            return 1.0

        with taking:
            taking.enter_context(self._lock)
            self._study.optimize(objective, n_trials=1, catch=(TaskError,))
        return True

    def results(self, tasks: Sequence[Task]) -> list[TrainingResult | MethodResult]:
        """What is done of some tasks, by any process."""
        keys = {task.key for task in tasks}
        for trial in self._trials("COMPLETE"):
            key = trial.user_attrs["key"]
            if key in keys and key not in self._results:  # parsed once, since this is asked all the time
                self._results[key] = parse_result(trial.user_attrs["result"], f"task {key} in the storage")
        return [result for key, result in self._results.items() if key in keys]

    def errors(self, tasks: Sequence[Task]) -> dict[str, str]:
        """Of tasks that failed and were not done since: title and message."""
        titles = {task.key: task.title for task in tasks}
        done = {trial.user_attrs.get("key") for trial in self._trials("COMPLETE")}
        failed = {t.user_attrs["key"]: t.user_attrs["error"] for t in self._trials("FAIL") if "error" in t.user_attrs}
        return {titles[key]: text for key, text in failed.items() if key in titles and key not in done}

    def running(self) -> int:
        """How many tasks are being done, here and elsewhere."""
        return len(self._trials("RUNNING"))

    def _trials(self, *states: str) -> list[Any]:
        wanted = tuple(getattr(self._state, state) for state in states)
        found: list[Any] = self._study.get_trials(deepcopy=False, states=wanted)
        return found

    def _enter(self, task: Task) -> None:
        self._study.enqueue_trial({}, user_attrs={"key": task.key, "task": task.model_dump(mode="json")})

    def _again(self, study: Any, trial: Any) -> None:
        """A trial whose process is gone, on whatever machine."""
        if "task" in trial.user_attrs:
            self._enter(Task.model_validate(trial.user_attrs["task"]))


def _url(storage: str | os.PathLike[str]) -> tuple[str, str]:
    """The URL of a database, and the same for people to read, without its password."""
    if "://" not in os.fspath(storage):
        url = f"sqlite:///{Path(storage).absolute()}"
        return url, url
    scheme, _, rest = os.fspath(storage).partition("://")
    url = f"{'postgresql+psycopg' if scheme in ('postgresql', 'postgres') else scheme}://{rest}"
    account, at, place = rest.rpartition("@")
    user, colon, _ = account.partition(":")
    return url, f"{scheme}://{user}{':***' if colon else ''}{at}{place}"


def _lock(url: str) -> AbstractContextManager[Any]:
    """What shuts out others of the same database while tables are made, tasks entered, or one of them is taken.

    sqlite knows no row locks, so two could be handed the same trial; whoever can open its file can lock another. The
    lock is one for each thread (`thread_local`), since threads of this process must shut each other out, too.
    PostgreSQL has locks for what programs agree upon. Other databases have the rows' own alone.
    """
    _, _, file = url.partition("sqlite:///")
    if file:
        return FileLock(f"{file}.lock", thread_local=True)
    return _AdvisoryLock(url) if url.startswith("postgresql") else nullcontext()


class _AdvisoryLock(AbstractContextManager[None]):
    """A lock of PostgreSQL; every thread that enters has a connection of its own, whose end frees it."""

    def __init__(self, url: str) -> None:
        sqlalchemy = optional("sqlalchemy", "compare")
        self._engine = sqlalchemy.create_engine(url, poolclass=sqlalchemy.pool.NullPool)
        self._take = sqlalchemy.text(f"SELECT pg_advisory_lock({_LOCK})")
        self._held = threading.local()

    def __enter__(self) -> None:
        self._held.connection = self._engine.connect()
        self._held.connection.execute(self._take)

    def __exit__(self, *_: object) -> None:
        self._held.connection.close()
