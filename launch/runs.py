"""Several runs at a time on this machine, started again where they fail, compared while they run, and the losers stopped."""

import json
import math
import signal
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

from launch import job

STATES = "points"  # the folder with what became of each point
LOGS = "logs"


def rungs(halving: str | None, count: int) -> list[tuple[int, int]]:
    """(step, how many points go on from there) of successive halving (Jamieson and Talwalkar, arXiv 1502.07943).

    Args:
      halving: ETA:STEP, or None.
      count: points.

    Raises:
      ValueError: another form.
    """
    if halving is None:
        return []
    eta, _, step = halving.partition(":")
    if not (eta.isdecimal() and step.isdecimal() and int(eta) > 1 and int(step) > 0):
        raise ValueError(f"--halving {halving}: write ETA:STEP, two whole numbers, the first above 1: 2:100, say.")
    found, left, at = [], count, int(step)
    while left > 1:
        left = -(-left // int(eta))
        found.append((at, left))
        at *= int(eta)
    return found


def check(jobs: Sequence[tuple[dict, job.Job]], parallel: int) -> None:
    """Runs what must succeed before anything starts, so many at a time.

    Raises:
      ValueError: the last line of each that failed, once, with the point that it came from.
    """
    waiting, mistakes = list(jobs), dict[str, dict]()
    while waiting:
        now, waiting = waiting[:parallel], waiting[parallel:]
        processes = [(point, job.start(one, {})) for point, one in now]
        for point, process in processes:
            said, _ = process.communicate()
            if process.returncode:
                mistakes.setdefault((said.strip().splitlines() or ["nothing"])[-1].removeprefix("jaxllm: "), point)
    if mistakes:
        raise ValueError(" ".join(f"{point['settings']}: {said}" for said, point in mistakes.items()) + " Nothing was started.")


def _records(path: Path) -> list[dict]:
    """The records of a JSON-lines file that are whole."""
    found = []
    for line in path.read_bytes().split(b"\n") if path.exists() else []:
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    return found


def last_step(workdir: Path) -> int:
    """The last step that a run has written a record of; 0 before the first."""
    return max((record["step"] for record in _records(workdir / "metrics.jsonl")), default=0)


def score(workdir: Path, metric: str, until: int) -> float | None:
    """The last finite value of a metric at this step or before it; None where there is none.

    Args:
      workdir: of the run.
      metric: KEY of metrics.jsonl, or SET/KEY of evals.jsonl.
      until: the step.
    """
    name, slash, key = metric.rpartition("/")
    records = [r for r in _records(workdir / "evals.jsonl") if r["name"] == name] if slash else _records(workdir / "metrics.jsonl")
    found = [r[key] for r in records if r["step"] <= until and isinstance(r.get(key), int | float) and math.isfinite(r[key])]
    return float(found[-1]) if found else None


class Runs:
    """The runs of a sweep on this machine; what became of each is in `points/NAME.json`, what it said in `logs/NAME.txt`."""

    def __init__(self, workdir: Path, jobs: Mapping[str, job.Job], sweep: Mapping, parallel: int, restarts: int):
        self.workdir, self.jobs, self.sweep, self.parallel, self.restarts = workdir, jobs, sweep, parallel, restarts
        self.told = threading.Event()
        self.active = dict[str, subprocess.Popen[str]]()
        for folder in (STATES, LOGS):
            (workdir / folder).mkdir(parents=True, exist_ok=True)

    def state(self, name: str) -> dict:
        """What became of a point: {"state": "done", "failed", "dropped" or nothing yet, ...}."""
        path = self.workdir / STATES / f"{name}.json"
        return json.loads(path.read_text()) if path.exists() else {}

    def put(self, name: str, **state: object) -> None:
        """Records it."""
        partial = self.workdir / STATES / f"{name}.partial"
        partial.write_text(json.dumps(state) + "\n")
        partial.replace(self.workdir / STATES / f"{name}.json")

    def halve(self, rungs: Sequence[tuple[int, int]]) -> int:
        """Runs all points, through these rungs where there are some; returns the exit code of the whole."""
        alive = list(self.jobs)
        for step, left in rungs:
            now = [name for name in alive if self.state(name).get("at", step) >= step]  # dropped at an earlier rung: not here
            self.run(now, step)
            if self.told.is_set():
                return job.STOPPED
            alive = self._best(now, step, left)
            for name in set(now) - set(alive):
                if self.state(name).get("state") not in ("done", "failed"):
                    self.put(name, state="dropped", at=step)
                    self._say(name, f"stopped at step {step}: not among the best {left}")
        self.run(alive)
        failed = any(self.state(name).get("state") == "failed" for name in self.jobs)
        return job.STOPPED if self.told.is_set() else int(failed)

    def _best(self, names: Sequence[str], step: int, left: int) -> list[str]:
        metric, sign = self.sweep["metric"], -1 if self.sweep["mode"] == "max" else 1
        found = {name: score(self.workdir / name, metric, step) for name in names if self.state(name).get("state") != "failed"}
        missing = [name for name, value in found.items() if value is None]
        if missing and len(missing) == len(found):
            raise ValueError(f"--halving: no {metric} at or before step {step}. Set log.every (or eval.every) to {step}, or a larger STEP.")
        order = sorted(found, key=lambda name: math.inf if found[name] is None else sign * found[name])  # type: ignore[operator]
        return order[:left]

    def run(self, names: Sequence[str], until: int | None = None) -> None:
        """Runs these points, to their end or until they have passed a step, and returns when all have ended or when told to stop."""
        budgets = {name: job.Restarts(self.restarts) for name in names}
        due = {name: 0.0 for name in names if not self._over(name, until)}
        files, asked = dict[str, IO[str]](), set[str]()
        before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
        handler = job.forward(self.active.values(), self.told)
        for number in before:
            signal.signal(number, handler)
        try:
            while self.active or (due and not self.told.is_set()):
                for name in [name for name, at in due.items() if at <= time.monotonic()][: self.parallel - len(self.active)]:
                    if self.told.is_set():
                        break
                    del due[name]
                    files[name] = (self.workdir / LOGS / f"{name}.txt").open("a")
                    self.active[name] = job.start(self.jobs[name], self.jobs[name].environments[0], files[name])
                    self._say(name, "started")
                for name, process in list(self.active.items()):
                    if until is not None and name not in asked and last_step(self.workdir / name) >= until:
                        asked.add(name)
                        process.terminate()
                    code = process.poll()
                    if code is None:
                        continue
                    del self.active[name]
                    files.pop(name).close()
                    if (seconds := self._ended(name, code, budgets[name], name in asked)) is not None:
                        due[name] = time.monotonic() + seconds
                self.told.wait(0.05) if not self.told.is_set() else time.sleep(0.05)
        finally:
            for process in self.active.values():
                process.kill()
            for number, old in before.items():
                signal.signal(number, old)

    def _over(self, name: str, until: int | None) -> bool:
        """Whether there is nothing to run for a point, here or up to this step."""
        if self.state(name).get("state") == "done":
            self._say(name, "done before")
            return True
        return until is not None and last_step(self.workdir / name) >= until

    def _ended(self, name: str, code: int, budget: job.Restarts, asked: bool) -> float | None:
        """Records and says how a run has ended; returns the seconds until it starts again, None where it does not."""
        if code == 0:
            self.put(name, state="done", restarts=budget.used)
            self._say(name, f"done: {self.sweep['metric']} {score(self.workdir / name, self.sweep['metric'], 1 << 62)}")
            return None
        if self.told.is_set() or (asked and code == job.STOPPED):
            return None
        code = 128 - code if code < 0 else code
        if (seconds := budget.wait(code)) is not None:
            self._say(name, budget.said(code, seconds))
            return seconds
        self.put(name, state="failed", code=code, restarts=budget.used)
        said = (self.workdir / LOGS / f"{name}.txt").read_text(errors="replace").strip().splitlines() or ["nothing was said"]
        self._say(name, f"failed (exit {code}): {said[-1]}")
        return None

    def _say(self, name: str, what: str) -> None:
        settings = next(point["settings"] for point in self.sweep["points"] if point["name"] == name)
        print(f"{name} ({' '.join(f'{key}={value}' for key, value in settings.items())}) {what}", flush=True)
