"""The writer of a run: step reports fetched one step late, averaged, timed, and handed to files, TensorBoard, wandb and the screen."""

import contextlib
import math
import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath

from jaxllm.training.goodput import Ledger
from jaxllm.training.profiler import ProfilerWindow
from jaxllm.training.progress import ProgressSink
from jaxllm.training.sinks import JsonLines, Sink, TensorBoard, Wandb
from jaxllm.training.throughput import mfu

SUMS = ("tokens", "skipped")  # added up over the steps of a record
LATEST = ("learning_rate",)  # like every integer: the last step's value
AFTERWARDS = {"stage": "evaluate"}  # what tells a record of `jaxllm evaluate` from those that training made in the same evals.jsonl
WAITING = ("data",)  # hidden behind the device's work unless that had run dry


class Writer:
    """Records of training in a work directory: metrics.jsonl, evals.jsonl, goodput.jsonl, tensorboard/.

    Only the first process writes; the others merely follow along. `write` reads the numbers of the step before, so that the device always
    has work queued. A record covers the `every` steps up to its own: means, but sums of "tokens" and "skipped" and the last of counters and
    rates. Its "step_seconds" and "tokens_per_second" leave out compilation, evals and saves, and are not there for the first step of a
    process; "mfu" is there when the device's peak is known.

    Args:
      workdir: the work directory, local or remote (TensorBoard's events are written to local ones only).
      every: steps per record.
      until: the last step; given, progress is shown.
      flops_per_token: of the model, forward and backward; given, MFU is reported.
      devices: those of the mesh; None: all.
      tensorboard: whether to write events.
      wandb: a Weights & Biases project.
      config: what a wandb run is labelled with.
      profile: (first step, number of steps) of a profiler window; a first step of 0: none.
      active: whether this process writes; None: the first one does.
      clock: seconds, Unix.
    """

    def __init__(
        self,
        workdir: os.PathLike | str,
        *,
        every: int = 1,
        until: int | None = None,
        flops_per_token: float | None = None,
        devices: Sequence[Any] | None = None,
        tensorboard: bool = True,
        wandb: str | None = None,
        config: Mapping[str, Any] | None = None,
        profile: tuple[int, int] = (0, 1),
        active: bool | None = None,
        clock: Callable[[], float] = time.time,
    ):
        if every < 1:
            raise ValueError(f"log.every={every} is not a number of steps. Give 1 or more.")
        folder = epath.Path(workdir)
        self._active = jax.process_index() == 0 if active is None else active
        self._every, self._flops, self._clock = every, flops_per_token, clock
        self._devices = list(jax.devices() if devices is None else devices)
        self._pending: deque[tuple[int, Mapping[str, jax.Array]]] = deque()
        self._window: list[dict[str, Any]] = []
        self._timed_steps, self._timed_tokens, self._timed_seconds = 0, 0.0, 0.0
        self._mark, self._elsewhere, self._compiled, self._warm = clock(), 0.0, False, False
        self._inside: tuple[str, float] | None = None  # what `timed` is timing, and since when it is not counted yet
        self._metrics: list[Sink] = []
        self._evals: JsonLines | None = None
        if self._active:
            self._evals = JsonLines(folder / "evals.jsonl")
            self._metrics = [JsonLines(folder / "metrics.jsonl")]
            self._metrics += [TensorBoard(folder / "tensorboard")] if tensorboard and "://" not in os.fspath(folder) else []
            self._metrics += [Wandb(wandb, folder, config)] if wandb else []
            self._metrics += [ProgressSink(until)] if until is not None else []
        self._samples = folder / "samples.jsonl"
        self._ledger = Ledger(JsonLines(folder / "goodput.jsonl") if self._active else None, clock)
        self._profiler = ProfilerWindow(folder / "profile", *profile) if self._active else None

    def rewind(self, to: int) -> None:
        """Drops what was recorded past step `to`: metrics, evals, samples, TensorBoard's events; the ledger notes it as a rollback."""
        self._pending.clear()
        self._window.clear()
        for sink in self._sinks():
            sink.rewind(to)
        if self._active and self._samples.exists():
            JsonLines(self._samples).rewind(to)
        self._ledger.rewind(to)
        self._mark, self._elsewhere = self._clock(), 0.0
        if self._profiler is not None:
            self._profiler.reached(to, lambda: None)

    def write(self, step: int, report: Mapping[str, jax.Array]) -> None:
        """Takes the report of a step that may still be running, and reads the one before it (this one too, if it is there already)."""
        for value in report.values():
            if isinstance(value, jax.Array):
                value.copy_to_host_async()
        self._pending.append((step, report))
        while len(self._pending) > 1 or (self._pending and self._has_run_dry()):
            self._read_one()
        if self._profiler is not None:
            self._profiler.reached(step, self._read_all)

    def record_eval(self, step: int, name: str, values: Mapping[str, float]) -> None:
        """Writes the numbers of one eval at one step."""
        record = {"step": step, "name": name, **{key: _number(value) for key, value in values.items()}}
        for sink in self._sinks():
            if not isinstance(sink, JsonLines) or sink is self._evals:
                sink.write(record)

    def has_eval(self, step: int, name: str) -> bool:
        """Whether this eval is on record at this step."""
        return any(at == step for at, _ in self.eval_history(name))

    def eval_history(self, name: str) -> list[tuple[int, dict[str, float]]]:
        """(step, numbers) of every record that training made of this eval."""
        records = self._evals.read() if self._evals is not None else []
        own = [r for r in records if r["name"] == name and not AFTERWARDS.items() <= r.items()]
        return [(r["step"], {k: v for k, v in r.items() if k not in ("step", "name")}) for r in own]

    def event(self, kind: str, **fields: Any) -> None:
        """A line of the goodput ledger."""
        self._ledger.event(kind, **fields)

    @contextlib.contextmanager
    def timed(self, what: str) -> Iterator[None]:
        """Counts the time inside as `what`: "compile", "restore", "data", "save", "eval", ...

        "step" is not counted here but between the reports, but for the first of a process, which compiles. Waiting for data counts when the
        device had run dry by the end of it. An eval first waits for the steps before it; in a save, what `flush` waits for them is theirs.
        """
        if what == "eval":
            self._read_all()
        outer, self._inside = self._inside, (what, self._clock())
        try:
            yield
        finally:
            self._count_inside()
            self._inside = outer

    def flush(self) -> None:
        """Reads and writes all that is there, in a record of fewer steps if need be; call it before a checkpoint is written.

        What is on record at a checkpoint is then the same in a run that goes on and in one that was killed and starts again from there.
        """
        self._count_inside()  # so that waiting for the steps under way is theirs, and not the save's
        self._read_all()
        if self._inside is not None:
            self._inside = (self._inside[0], self._clock())
        self._close_window()
        self._ledger.flush()
        for sink in self._sinks():
            sink.flush()

    def close(self) -> None:
        """Writes what is left and closes every file."""
        self.flush()
        if self._profiler is not None:
            self._profiler.close()
        for sink in self._sinks():
            sink.close()

    def _sinks(self) -> list[Sink]:
        return [*self._metrics, *([self._evals] if self._evals is not None else [])]

    def _count_inside(self) -> None:
        """Counts what `timed` has been timing until now."""
        if self._inside is None:
            return
        what, begin = self._inside
        spent = self._clock() - begin
        if what == "step" and not self._compiled:
            self._compiled, what = True, "compile"
        elif what == "step" or (what in WAITING and not self._has_run_dry()):
            spent = 0.0
        if spent:
            self._ledger.add(what, spent)
            self._elsewhere += spent
            self._timed_seconds += spent if what in WAITING else 0.0

    def _has_run_dry(self) -> bool:
        """Whether the device has finished the last step that it was given."""
        return not self._pending or all(value.is_ready() for value in self._pending[-1][1].values() if hasattr(value, "is_ready"))

    def _read_all(self) -> None:
        while self._pending:
            self._read_one()

    def _read_one(self) -> None:
        """Waits for the oldest report, and counts the time since the last one that went nowhere else as its step's."""
        step, report = self._pending.popleft()
        values = {name: _number(value) for name, value in report.items()}
        now = self._clock()
        seconds = max(0.0, now - self._mark - self._elsewhere)
        self._mark, self._elsewhere = now, 0.0
        self._ledger.add("step", seconds, step)
        self._window.append({"step": step, **values})
        if self._warm:  # the first step of a process compiles: its time says nothing
            self._timed_steps += 1
            self._timed_tokens += values.get("tokens", 0.0)
            self._timed_seconds += seconds
        else:
            self._warm, self._timed_seconds = True, 0.0
        if step % self._every == 0:
            self._close_window()

    def _close_window(self) -> None:
        if not self._window:
            return
        record = {"step": self._window[-1]["step"], **average(self._window), **self._speed(), "time": round(self._clock(), 3)}
        self._window.clear()
        for sink in self._metrics:
            sink.write(record)

    def _speed(self) -> dict[str, float]:
        steps, tokens, seconds = self._timed_steps, self._timed_tokens, self._timed_seconds
        self._timed_steps, self._timed_tokens, self._timed_seconds = 0, 0.0, 0.0
        if not steps or seconds <= 0:
            return {}
        speed = {"step_seconds": seconds / steps}
        if tokens:
            speed["tokens_per_second"] = tokens / seconds
            if self._flops is not None:
                speed |= mfu(speed["tokens_per_second"], self._flops, self._devices[0].device_kind, len(self._devices))
        return speed


def average(window: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One record from those of several steps; a mean is over the finite values, and NaN where there are none."""
    merged: dict[str, Any] = {}
    for name in window[-1]:
        values = [record[name] for record in window if name in record]
        finite = [value for value in values if math.isfinite(value)]
        if name in SUMS:
            merged[name] = sum(values)
        elif isinstance(values[-1], int) or name in LATEST or len(values) == 1:
            merged[name] = values[-1]
        else:
            merged[name] = sum(finite) / len(finite) if finite else math.nan
    return merged


def _number(value: Any) -> Any:
    """A scalar of any kind as int or float."""
    array = np.asarray(value)
    return int(array) if np.issubdtype(array.dtype, np.integer) else float(array)
