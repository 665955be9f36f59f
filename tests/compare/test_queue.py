"""Tasks in a storage."""

from __future__ import annotations

import threading
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from ilwp_plugin.compare.config import CompareConfig, Task
from ilwp_plugin.compare.queue import Queue, TaskError
from ilwp_plugin.compare.results import MethodResult

from .test_results import result


def test_no_task_is_handed_out_twice(tmp_path: Path) -> None:
    grid = {"seeds": [*range(20)], "methods": [{"method": "fp32"}]}
    tasks = CompareConfig.from_dict(grid).tasks()
    queues = [Queue(tmp_path / "tasks.sqlite3") for _ in range(2)]
    queues[0].add(tasks)
    queues[1].add(tasks)
    done: Counter[str] = Counter()
    errors: list[BaseException] = []

    def do(task: Task) -> MethodResult:
        done[task.key] += 1
        return result(task.key)

    def worker(queue: Queue) -> None:
        try:
            while queue.work(do):
                pass
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=worker, args=(queues[i % 2],)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert done == {task.key: 1 for task in tasks}
    assert {r.key for r in queues[0].results(tasks)} == set(done)


def test_two_that_begin_together_enter_each_task_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tasks = CompareConfig.from_dict({"seeds": [0, 1, 2], "methods": [{"method": "fp32"}]}).tasks()
    queues = [Queue(tmp_path / "tasks.sqlite3") for _ in range(2)]
    look, both = Queue._trials, threading.Barrier(2)

    def slowly(queue: Queue, *states: str) -> list[Any]:
        """What is known is read, then another is given time to read it, too."""
        found = look(queue, *states)
        if "WAITING" in states:
            with suppress(threading.BrokenBarrierError):
                both.wait(timeout=1)
        return found

    monkeypatch.setattr(Queue, "_trials", slowly)
    threads = [threading.Thread(target=queue.add, args=(tasks,)) for queue in queues]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    monkeypatch.undo()
    waiting = [trial.user_attrs["key"] for trial in queues[0]._trials("WAITING")]
    assert sorted(waiting) == sorted(task.key for task in tasks)


def test_a_failed_task_is_entered_again(tmp_path: Path) -> None:
    tasks = CompareConfig.from_dict({"methods": [{"method": "fp32"}]}).tasks()
    queue = Queue(tmp_path / "tasks.sqlite3")
    queue.add(tasks)

    def fail(task: Task) -> MethodResult:
        raise TaskError("not today")

    while queue.work(fail):
        pass
    assert set(queue.errors(tasks).values()) == {"not today"}
    queue.add(tasks)
    while queue.work(lambda task: result(task.key)):
        pass
    assert not queue.errors(tasks)
    assert len(queue.results(tasks)) == len(tasks)


def test_a_task_whose_process_is_gone_goes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tasks = CompareConfig.from_dict({"methods": [{"method": "fp32"}]}).tasks()[:1]
    queue = Queue(tmp_path / "tasks.sqlite3")
    queue.add(tasks)

    class Killed(BaseException):
        pass

    def die(task: Task) -> MethodResult:
        raise Killed

    monkeypatch.setattr(queue._study._storage, "set_trial_state_values", _keep_running(queue))
    with pytest.raises(Killed):
        queue.work(die)
    monkeypatch.undo()
    assert queue.running() == 1
    other = Queue(tmp_path / "tasks.sqlite3")
    other.add(tasks)  # this process lives, so the task is taken for running
    assert other.running() == 1
    monkeypatch.setattr("psutil.pid_exists", lambda pid: False)
    other.add(tasks)
    assert other.running() == 0
    assert other.work(lambda task: result(task.key))
    assert len(other.results(tasks)) == 1


def _keep_running(queue: Queue):  # type: ignore[no-untyped-def]
    """A storage that a killed process cannot tell of its end any more."""
    real, states = queue._study._storage.set_trial_state_values, type(queue._state.RUNNING)

    def only_running(trial_id: int, state: object, values: object = None) -> bool:
        return bool(real(trial_id, state=state, values=values)) if state == states.RUNNING else True

    return only_running
