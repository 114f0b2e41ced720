"""What a person sees while a model trains: a bar on a terminal, plain lines anywhere else."""

import math
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn


def compact(number: float) -> str:
    """12345.6 -> '12.3k'."""
    for size, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(number) >= size:
            return f"{number / size:.3g}{unit}"
    return f"{number:.3g}"


def duration(seconds: float) -> str:
    """3725 -> '1:02:05'."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}"


class ProgressSink:
    """A sink of records that shows step, loss, tokens per second, MFU, skipped updates and the time that is left.

    Args:
      until: the last step.
      stream: where to; None: standard error.
      every_seconds: plain lines come at most so often; a bar shows every record.
      clock: seconds.
    """

    def __init__(self, until: int, stream: TextIO | None = None, every_seconds: float = 5.0, clock: Callable[[], float] = time.monotonic):
        self._until, self._stream, self._every, self._clock = until, stream or sys.stderr, every_seconds, clock
        self._shown, self._skipped = -math.inf, 0.0
        self._bar: Progress | None = None
        self._task: Any = None
        if self._stream.isatty():
            columns = [BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[note]}"), TimeElapsedColumn()]
            self._bar = Progress(*columns, console=Console(file=self._stream))
            self._task = self._bar.add_task("", total=until, note="compiling")

    def write(self, record: Mapping[str, Any]) -> None:
        now, step = self._clock(), record["step"]
        if "name" in record:
            what = "eval " if "loss" in record else ""  # the epochs of the sources are told in the same way
            self._say(f"step {step}  {what}{record['name']}  " + _pairs(record))
            return
        self._skipped += record.get("skipped") or 0
        note = self._note(record)
        if self._bar is not None:
            self._bar.start()
            self._bar.update(self._task, completed=step, note=note)
        elif now - self._shown >= self._every or step == self._until:
            self._shown = now
            self._say(f"step {step}/{self._until}  {note}")
        if record.get("skipped"):
            self._say(f"step {step}: {record['skipped']:g} update(s) skipped (non-finite or a spike); {self._skipped:g} in this process")

    def rewind(self, to: int) -> None:
        if self._bar is not None:
            self._bar.update(self._task, completed=to)

    def flush(self) -> None:
        self._stream.flush()

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()

    def _note(self, record: Mapping[str, Any]) -> str:
        parts = [f"loss {record['loss']:.4f}" if record.get("loss") is not None else "loss not finite"]
        if "tokens_per_second" in record:
            parts.append(f"{compact(record['tokens_per_second'])} tok/s")
        if "mfu" in record:
            parts.append(f"mfu {record['mfu']:.1%}")
        if "step_seconds" in record:  # not in the first: that one compiled
            parts.append(f"eta {duration(record['step_seconds'] * (self._until - record['step']))}")
        return "  ".join(parts)

    def _say(self, line: str) -> None:
        if self._bar is not None:
            self._bar.console.print(line, highlight=False, markup=False)
        else:
            print(line, file=self._stream, flush=True)


def _pairs(record: Mapping[str, Any]) -> str:
    numbers = {k: v for k, v in record.items() if k not in ("step", "name", "time") and isinstance(v, int | float)}
    return "  ".join(f"{key} {value:.4g}" for key, value in numbers.items())
