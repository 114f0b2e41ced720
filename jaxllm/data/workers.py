"""Runs the tasks of a preparation in processes, and only those whose report is not on the disk yet."""

import concurrent.futures
import contextlib
import json
import multiprocessing
import multiprocessing.connection
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from jaxllm.data.preparation import Plan, gather, scatter

AHEAD = 4  # tasks handed out per worker: enough to keep it busy, few enough to stop soon
Submit = Callable[..., concurrent.futures.Future]
_here: dict[str, Any] = {}  # what this worker process works on


def _start(plan: Plan, work: str) -> None:
    """In a fresh process: keeps the plan, and ends the process when its parent is gone (killed, perhaps)."""
    _here.update(plan=plan, work=work)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _scatter(index: int) -> dict[str, Any]:
    return scatter(_here["plan"], index, _here["work"])


def _gather(index: int, runs: Sequence[int]) -> dict[str, Any]:
    return gather(_here["plan"], runs, index, _here["work"])


TASKS: dict[str, Callable[..., dict[str, Any]]] = {"scatter": _scatter, "gather": _gather}


@contextlib.contextmanager
def pool(plan: Plan, work: Path, workers: int) -> Iterator[tuple[Submit, int]]:
    """Something to submit tasks to and how many to hand out at once: spawned processes, or with one worker this process."""
    if workers <= 1:
        _here.update(plan=plan, work=str(work))
        yield _at_once, 1
        return
    context = multiprocessing.get_context("spawn")
    executor = concurrent.futures.ProcessPoolExecutor(workers, context, _start, (plan, str(work)))
    try:
        yield executor.submit, AHEAD * workers
    finally:
        executor.shutdown(wait=True, cancel_futures=True)


def _at_once(task: Callable, *arguments: Any) -> concurrent.futures.Future:
    future: concurrent.futures.Future = concurrent.futures.Future()
    future.set_result(task(*arguments))
    return future


def reports(kind: str, count: int, work: Path, pool: tuple[Submit, int], *arguments: Any) -> Iterator[tuple[int, dict[str, Any]]]:
    """(task, its report) in any order: first those that an earlier attempt left, then what is computed now."""
    submit, at_once = pool
    todo = []
    for index in range(count):
        path = work / kind / f"{index:06d}.json"
        if path.is_file():
            yield index, json.loads(path.read_text())
        else:
            todo.append(index)
    waiting: dict[concurrent.futures.Future, int] = {}
    for index in todo:
        waiting[submit(TASKS[kind], index, *arguments)] = index
        if len(waiting) >= at_once:
            yield from _finished(waiting)
    while waiting:
        yield from _finished(waiting)


def _finished(waiting: dict[concurrent.futures.Future, int]) -> Iterator[tuple[int, dict[str, Any]]]:
    done, _ = concurrent.futures.wait(waiting, return_when=concurrent.futures.FIRST_COMPLETED)
    for future in done:
        yield waiting.pop(future), future.result()
