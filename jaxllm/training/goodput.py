"""The goodput ledger: where the time of a run went, over all its restarts, in an append-only file that survives any kill."""

import contextlib
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from jaxllm.training.sinks import JsonLines

FLUSH_SECONDS = 10.0  # a killed run loses at most so much of its ledger


class Ledger:
    """Adds up seconds by kind of work ("compile", "restore", "data", "step", "save", "eval", ...) and writes them down now and then.

    A line is {"kind", "time" (Unix, when it was written), "seconds"}, for "step" also "step" (the last one taken) and "steps" (how many);
    "start" opens a process, "rollback" {"from", "to"} says which steps are to be taken again.

    Args:
      file: where lines go; None: nowhere.
      clock: seconds, Unix.
    """

    def __init__(self, file: JsonLines | None, clock: Callable[[], float] = time.time):
        self._file, self._clock = file, clock
        self._seconds: dict[str, float] = {}
        self._steps, self._step, self._flushed = 0, 0, clock()
        self.event("start", seconds=round(process_age(), 3))

    def event(self, kind: str, **fields: Any) -> None:
        """Writes one line at once."""
        if self._file is not None:
            self._file.write({"kind": kind, "time": round(self._clock(), 3), **fields})

    def add(self, kind: str, seconds: float, step: int | None = None) -> None:
        """Counts seconds of one kind; with `step`, one more step has been taken."""
        self._seconds[kind] = self._seconds.get(kind, 0.0) + seconds
        if step is not None:
            self._steps, self._step = self._steps + 1, step
        if self._clock() - self._flushed > FLUSH_SECONDS:
            self.flush()

    @contextlib.contextmanager
    def timed(self, kind: str) -> Iterator[None]:
        """Counts the time inside."""
        begin = self._clock()
        try:
            yield
        finally:
            self.add(kind, self._clock() - begin)

    def flush(self) -> None:
        """Writes down what has been counted since the last time."""
        for kind, seconds in self._seconds.items():
            steps = {"step": self._step, "steps": self._steps} if kind == "step" and self._steps else {}
            if seconds > 0 or steps:
                self.event(kind, seconds=round(seconds, 4), **steps)
        self._seconds, self._steps, self._flushed = {}, 0, self._clock()

    def rewind(self, to: int) -> None:
        """Notes that the steps past `to` will be taken again, if any were; the time they took stays in the ledger."""
        self.flush()
        last = max((end for _, end, _ in _lineage(self._file.read())), default=0) if self._file is not None else 0
        if last > to:
            self.event("rollback", **{"from": last, "to": to})


def goodput(records: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """What a ledger adds up to.

    Returns:
      total_seconds: from the first start to the last line, the time between a kill and the next start included.
      seconds: by kind; "down" is what lies between the last line of one process and the start of the next.
      lost_seconds: of steps that had to be taken again.
      restarts: how often the run was started after the first time.
      goodput: the share of all time that went into steps that count; 0.0 for an empty ledger.
    """
    records = list(records)
    if not records:
        return {"total_seconds": 0.0, "seconds": {}, "lost_seconds": 0.0, "restarts": 0, "goodput": 0.0}
    seconds: dict[str, float] = {}
    for before, record in zip([None, *records], records, strict=False):
        spent = float(record.get("seconds", 0.0))
        seconds[record["kind"]] = seconds.get(record["kind"], 0.0) + spent
        if record["kind"] == "start" and before is not None:
            seconds["down"] = seconds.get("down", 0.0) + max(0.0, record["time"] - spent - before["time"])
    total = records[-1]["time"] - (records[0]["time"] - float(records[0].get("seconds", 0.0)))
    useful = sum(spent for _, _, spent in _lineage(records))
    return {
        "total_seconds": total,
        "seconds": seconds,
        "lost_seconds": seconds.get("step", 0.0) - useful,
        "restarts": sum(record["kind"] == "start" for record in records) - 1,
        "goodput": useful / total if total > 0 else 0.0,
    }


def _lineage(records: Iterable[Mapping[str, Any]]) -> list[tuple[int, int, float]]:
    """(first, last, seconds) of the stretches of steps that were not rolled back; one that was cut keeps its share of the seconds."""
    kept: list[tuple[int, int, float]] = []
    for record in records:
        if record["kind"] == "step":
            steps = record.get("steps", 0)
            kept.append((record.get("step", 0) - steps, record.get("step", 0), float(record["seconds"])))
        elif record["kind"] == "rollback":
            to = record["to"]
            kept = [(a, min(b, to), s * (min(b, to) - a) / (b - a) if b > a else s) for a, b, s in kept if a < to or a == b]
    return kept


def process_age() -> float:
    """Seconds since this process began (imports and all); 0.0 where the system does not say."""
    try:
        with open("/proc/self/stat") as stat, open("/proc/uptime") as uptime:
            ticks = int(stat.read().rsplit(")", 1)[1].split()[19])
            return max(0.0, float(uptime.read().split()[0]) - ticks / os.sysconf("SC_CLK_TCK"))
    except (OSError, ValueError, IndexError):
        return 0.0
