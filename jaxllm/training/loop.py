"""fit(): the one training loop. Every stage of a model's life is this loop with another feed and another step."""

import dataclasses
import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple, Protocol

import jax

from jaxllm.parallel import hosts

IN_FLIGHT = 2  # steps handed to the device before the host waits for the oldest


class Feed(Protocol):
    """Where batches come from: a data iterator ignores its arguments, a reinforcement-learning feed samples with them."""

    def __call__(self, state: Any, frozen: Any) -> Any: ...

    def state(self) -> Any: ...

    def restore(self, saved: Any) -> None: ...


class Writer(Protocol):
    """Where numbers go. In all but the first process a writer may do nothing at all."""

    def rewind(self, to: int) -> None: ...

    def write(self, step: int, report: Mapping[str, jax.Array]) -> None: ...

    def record_eval(self, step: int, name: str, values: Mapping[str, float]) -> None: ...

    def has_eval(self, step: int, name: str) -> bool: ...

    def eval_history(self, name: str) -> Sequence[tuple[int, Mapping[str, float]]]: ...

    def timed(self, what: str) -> AbstractContextManager[Any]: ...

    def flush(self) -> None: ...


class Saver(Protocol):
    """What the loop asks of `Checkpoints`."""

    def maybe_save(
        self, step: int, state: Any, feed_state: Any, metrics: Mapping[str, float] | None = None, force: bool = False
    ) -> bool: ...

    def close(self) -> None: ...


class Eval(NamedTuple):
    """Something to measure during training.

    Attributes:
      name: prefix of its metrics, "heldout" say.
      every: steps between runs; it runs at the last step too.
      run: state -> metrics; called in every process.
      at_start: run at step 0 as well.
    """

    name: str
    every: int
    run: Callable[[Any], Mapping[str, float]]
    at_start: bool = False

    def is_due(self, step: int, until: int) -> bool:
        return step == until or (step % self.every == 0 and (step > 0 or self.at_start))


@dataclasses.dataclass(frozen=True)
class EarlyStopping:
    """Ends training when a metric has not improved for some evals.

    Attributes:
      metric: "eval name/metric name".
      patience: evals without improvement after which to stop, at least 1.
      mode: "min" or "max".
      least: improvements smaller than this do not count.

    Raises:
      ValueError: another mode, or no patience.
    """

    metric: str
    patience: int
    mode: str = "min"
    least: float = 0.0

    def __post_init__(self) -> None:
        if self.patience < 1:
            raise ValueError(f"early_stopping.patience={self.patience} is not a number of evals. Give 1 or more.")
        if self.mode not in ("min", "max"):
            raise ValueError(f"early_stopping.mode={self.mode!r} is neither of: min, max.")

    def is_over(self, values: Sequence[float]) -> bool:
        """Whether to stop after these values of the metric, oldest first; a NaN is no improvement."""
        sign = 1 if self.mode == "min" else -1
        best, waited = math.inf, 0
        for value in values:
            if sign * value < best - self.least:
                best, waited = sign * value, 0
            else:
                waited += 1
        return waited >= self.patience


class Ended(NamedTuple):
    """How `fit` ended: reason is "done", "early" (the metric stopped improving) or "stopped" (asked to; run again to go on)."""

    state: Any
    step: int
    reason: str


def fit(
    state: Any,
    frozen: Any,
    feed: Feed,
    step: Callable[[Any, Any, Any], tuple[Any, Mapping[str, jax.Array]]],
    *,
    until: int,
    writer: Writer,
    checkpoints: Saver,
    evals: Sequence[Eval] = (),
    stop: Callable[[int], bool] = lambda step: False,
    early: EarlyStopping | None = None,
) -> Ended:
    """Trains from `state.step` to `until`; the order of its blocks is a contract.

    Nothing here waits for the device but the throttle, so that the next step is always queued while one runs.

    Args:
      state: a TrainState; it is donated step by step, so use the one that comes back.
      frozen: what the step reads and never trains.
      feed: restored to where `state` is.
      step: (state, frozen, batch) -> (state, report of scalars).
      until: optimizer updates in all.
      writer: takes metrics, evals and times.
      checkpoints: a `Checkpoints`.
      evals: what to measure, in this order.
      stop: asked at every step, whether to save and stop; see `StopRequests`.
      early: when to end for lack of progress.

    Raises:
      OSError: the last save failed.
    """
    start, in_flight, reason = int(state.step), deque[Any](), "done"
    # What was written past the checkpoint belongs to a run that no longer is.
    writer.rewind(to=start)
    recorded, watched = _recall(writer, evals, early, start)

    def resume_point() -> Any:  # asked for when a save starts: the record must not lag behind the checkpoint
        writer.flush()
        return feed.state()

    for i in range(start, until + 1):
        stopping, metrics = stop(i), dict[str, float]()
        # Run the evals that are due and not recorded yet; when asked to stop, leave them to the next run, which starts at this step.
        for item in evals:
            if item.is_due(i, until) and not stopping and not (i == start and item.name in recorded):
                with writer.timed("eval"):
                    values = item.run(state)
                writer.record_eval(i, item.name, values)
                metrics |= _flat({item.name: values})
        # Decide whether this is the last step.
        if early is not None and early.metric in metrics:
            watched.append(metrics[early.metric])
        if stopping:
            reason = "stopped"
        elif early is not None and i < until and early.is_over(watched):
            reason = "early"
        last = i == until or reason != "done"
        # Save when it is due, and always at the end.
        with writer.timed("save"):
            checkpoints.maybe_save(i, state, resume_point, (_flat(recorded) if i == start else {}) | metrics, force=last)
        if last:
            break
        # Get a batch: the next one, or one that is sampled and scored with the present weights.
        with writer.timed("data"):
            batch = feed(state, frozen)
        # Take one step.
        with writer.timed("step"):
            state, report = step(state, frozen, batch)
            _throttle(in_flight, report)
        # Hand on its numbers, which are read once they are there.
        writer.write(i + 1, report)
    # A run has ended when its last checkpoint is whole.
    with writer.timed("save"):
        checkpoints.close()
    return Ended(state, int(state.step), reason)


def _throttle(in_flight: deque[Any], report: Mapping[str, jax.Array]) -> None:
    """Waits for the oldest step when more than `IN_FLIGHT` are queued: a host that runs ahead only fills memory."""
    in_flight.append(report)
    if len(in_flight) > IN_FLIGHT:
        jax.block_until_ready(in_flight.popleft())


def _flat(values: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """{eval: {metric: value}} as {"eval/metric": value}."""
    return {f"{name}/{metric}": value for name, metrics in values.items() for metric, value in metrics.items()}


def _recall(
    writer: Writer, evals: Sequence[Eval], early: EarlyStopping | None, start: int
) -> tuple[dict[str, dict[str, float]], list[float]]:
    """What the record knows at the start: the evals of this very step, and the watched metric so far. The first process's word counts.

    A metric that was not finite is on record as null, and NaN again here.
    """
    recorded: dict[str, dict[str, float]] = {}
    for item in evals:
        if writer.has_eval(start, item.name):
            found = [values for at, values in writer.eval_history(item.name) if at == start]
            recorded[item.name] = {name: value for values in found for name, value in values.items() if value is not None}
    watched: list[float | None] = []
    if early is not None:
        name, _, metric = early.metric.partition("/")
        watched = [values[metric] for at, values in writer.eval_history(name) if at <= start and metric in values]
    recorded, watched = hosts.tell(hosts.fresh("recall"), [recorded, watched])
    return recorded, [math.nan if value is None else value for value in watched]
