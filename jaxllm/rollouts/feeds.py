"""The feed of policy optimisation: it samples with the state's own weights and serves minibatches; what is in flight is in `state()`."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from jaxllm.data.mixtures import shuffle_key, shuffled
from jaxllm.rollouts.doctor import recorded
from jaxllm.rollouts.making import Carry, Made, Making, Weights
from jaxllm.rollouts.overoptimisation import KEPT, History
from jaxllm.rollouts.replay import Kept, aged, mixed, of_state
from jaxllm.rollouts.rules import NOTHING
from jaxllm.rollouts.scoring import Place

Controller = Callable[[np.float32, Made], np.float32]  # (coefficient, the rollout it was used in) -> the next one's


def fixed(coefficient: np.float32, made: Made) -> np.float32:
    """The same as before."""
    return coefficient


class RolloutFeed:
    """Rollouts, each served as minibatches before the next is made.

    Position p is served from rollout p div n, n = rows * epochs / (batch_size - replayed). A rollout is made `lag` updates before its first
    minibatch is asked for (the first ones at the start of the run), with the weights of that moment, and never across a checkpoint: a run
    that was killed in the middle of one makes it again from the same weights and the same noise, and it is the same, bit for bit. Rollouts
    that wait, or that are drawn from again, are in checkpoints; no old weights are kept.

    Args:
      making: makes rollouts.
      weights: (state, frozen) -> what they are made with.
      place: rows of a minibatch onto the mesh.
      batch_size: rows of a minibatch.
      epochs: how often each sample is served.
      lag: updates between a rollout's making and its first minibatch.
      replay: rollouts before the present one that rows are drawn from.
      replayed: rows of a minibatch that are.
      more: position -> rows of other data that each batch brings along (PPO-ptx's text).
      controller: moves the coefficient of the KL.
      coefficient: to begin with.
      watch: sees every rollout as it is made: (rollout, the step, what `record` said of those before it).
      record: what is remembered of a rollout, for `watch`: plain numbers.
      flush: writes down what `watch` has written, before a checkpoint.
      close: the same, at the end.
    """

    def __init__(
        self,
        making: Making,
        weights: Callable[[Any, Any], Weights],
        place: Place,
        *,
        batch_size: int,
        epochs: int = 1,
        lag: int = 0,
        replay: int = 0,
        replayed: int = 0,
        more: Callable[[int], Mapping[str, Any]] = lambda position: {},
        controller: Controller = fixed,
        coefficient: float = 0.0,
        watch: Callable[[Made, int, History], None] = lambda made, step, history: None,
        record: Callable[[Made], dict[str, float]] = recorded,
        flush: Callable[[], None] = lambda: None,
        close: Callable[[], None] = lambda: None,
    ):
        self._making, self._weights, self._place, self._more = making, weights, place, more
        self._fresh, self._replayed, self._lag, self._replay = batch_size - replayed, replayed, lag, replay
        self._controller, self._watch, self._record = controller, watch, record
        self._flush, self.close = flush, close
        self.rows = making.plan.num_prompts * making.plan.num_samples
        self.updates = self.rows * epochs // self._fresh
        self.position = 0
        self.rollouts: list[Kept] = []  # those to be drawn from, the present one, those made ahead
        self._carry = Carry(np.float32(coefficient), 0, {})
        self._history: list[Mapping[str, float]] = []

    def __call__(self, state: Any, frozen: Any) -> dict[str, Any]:
        """The next minibatch; rollouts whose time has come are made first."""
        number, place = divmod(self.position, self.updates)
        while self._next * self.updates <= self.position + self._lag:
            self._make(state, frozen)
        self.rollouts = [kept for kept in self.rollouts if kept.number >= number - self._replay]
        chosen, (present,) = self._order(number, place), [kept for kept in self.rollouts if kept.number == number]
        rows = {name: values[chosen] for name, values in present.buffer.items()}
        if self._lag or self._replay:
            rows = aged(rows, present, self.position)
        if self._replayed:
            earlier = [kept for kept in self.rollouts if kept.number < number] or [present]  # the first has nothing before it
            rows = mixed(rows, earlier, self._replayed, seed=self._making.plan.seed, step=self.position)
        batch = self._place(rows | {"row": np.arange(len(rows["tokens"]), dtype=np.int32)}) | dict(self._more(self.position))
        self.position += 1
        return batch

    @property
    def _next(self) -> int:
        """The number of the rollout that is made next."""
        return self.rollouts[-1].number + 1 if self.rollouts else self.position // self.updates

    def _make(self, state: Any, frozen: Any) -> None:
        number = self._next
        made = self._making(self._weights(state, frozen), number, number * self.updates, self._carry)
        self._watch(made, self.position, self._history)
        self._history = [*self._history[:1], *self._history[1:][-KEPT:], {"step": self.position, **self._record(made)}]
        self.rollouts.append(Kept(number, self.position, made.buffer))
        self._carry = made.carry._replace(coefficient=np.float32(self._controller(self._carry.coefficient, made)))

    def _order(self, number: int, place: int) -> np.ndarray:
        """Sample ids of a minibatch: every epoch goes through all of them, in an order of its own; a batch of all has them as they are."""
        index = place * self._fresh + np.arange(self._fresh, dtype=np.int64)
        if self._fresh == self.rows:
            return index % self.rows
        epochs, places = np.divmod(index, self.rows)
        keys = np.array([shuffle_key(self._making.plan.seed, "minibatches", number, int(epoch)) for epoch in epochs], np.uint64)
        return shuffled(places, np.full(len(places), self.rows), keys)

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps: the position, what goes from rollout to rollout, and the rollouts that are not done with."""
        self._flush()
        oldest = self.position // self.updates - self._replay
        said: dict[str, Any] = {"position": self.position, "history": list(self._history), "prompts": self._carry.prompts}
        said |= {"rewards": self._carry.rewards, "returns": list(self._carry.returns), "coefficient": np.array(self._carry.coefficient)}
        return said | {"rollouts": [kept.state for kept in self.rollouts if kept.number >= oldest]}

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Goes to where `state()` was taken."""
        first = {"step": 0, "entropy": saved.get("first_entropy")}  # all that older checkpoints say
        self.position, self._history = int(saved["position"]), list(saved.get("history", [first]))
        self.rollouts = [of_state(one) for one in _rollouts(saved, self.updates)]
        prompts = saved.get("prompts", -(-self.position // self.updates) * self._making.plan.num_prompts)
        returns = tuple(saved.get("returns", NOTHING))
        self._carry = Carry(np.float32(saved["coefficient"]), int(prompts), saved.get("rewards", {}), returns)


def _rollouts(saved: Mapping[str, Any], updates: int) -> list[Any]:
    """The rollouts of a checkpoint; older ones kept the buffer of the present one alone."""
    if "rollouts" in saved:
        return saved["rollouts"]
    number = saved["position"] // updates
    return [] if saved["buffer"] is None else [{"number": number, "made": number * updates, "buffer": saved["buffer"]}]
