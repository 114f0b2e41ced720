"""The feed of policy optimisation: it samples with the state's own weights and serves minibatches; what is in flight is in `state()`."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from jaxllm.data.mixtures import shuffle_key, shuffled
from jaxllm.rollouts.doctor import entropy
from jaxllm.rollouts.making import Buffer, Carry, Made, Making, Weights
from jaxllm.rollouts.rules import NOTHING
from jaxllm.rollouts.scoring import Place

Controller = Callable[[np.float32, Made], np.float32]  # (coefficient, the rollout it was used in) -> the next one's


def fixed(coefficient: np.float32, made: Made) -> np.float32:
    """The same as before."""
    return coefficient


class RolloutFeed:
    """Rollouts, each served as minibatches before the next is made.

    Position p is served from rollout p div n, n = rows * epochs / batch_size. A rollout is made when its first minibatch is asked for, with
    the weights of that moment, and never across a checkpoint: a run that was killed in the middle of one makes it again from the same
    weights and the same noise, and it is the same, bit for bit.

    Args:
      making: makes rollouts.
      weights: (state, frozen) -> what they are made with.
      place: rows of a minibatch onto the mesh.
      batch_size: rows of a minibatch.
      epochs: how often each sample is served.
      more: position -> rows of other data that each batch brings along (PPO-ptx's text).
      controller: moves the coefficient of the KL.
      coefficient: to begin with.
      watch: sees every rollout as it is made: (rollout, its step, the entropy of the run's first rollout or None: it is the first).
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
        more: Callable[[int], Mapping[str, Any]] = lambda position: {},
        controller: Controller = fixed,
        coefficient: float = 0.0,
        watch: Callable[[Made, int, float | None], None] = lambda made, step, first_entropy: None,
        flush: Callable[[], None] = lambda: None,
        close: Callable[[], None] = lambda: None,
    ):
        self._making, self._weights, self._place, self._more = making, weights, place, more
        self._batch_size, self._controller, self._watch = batch_size, controller, watch
        self._flush, self.close = flush, close
        self.rows = making.plan.num_prompts * making.plan.num_samples
        self.updates = self.rows * epochs // batch_size
        self.position, self._buffer = 0, None
        self._carry = Carry(np.float32(coefficient), 0, {})
        self._first_entropy: float | None = None

    _buffer: Buffer | None

    def __call__(self, state: Any, frozen: Any) -> dict[str, Any]:
        """The next minibatch; where a rollout is served to its end, of a new one."""
        number, place = divmod(self.position, self.updates)
        if place == 0:
            made = self._making(self._weights(state, frozen), number, self.position, self._carry)
            self._watch(made, self.position, self._first_entropy)
            self._first_entropy = entropy(made) if self._first_entropy is None else self._first_entropy
            self._buffer = made.buffer
            self._carry = made.carry._replace(coefficient=np.float32(self._controller(self._carry.coefficient, made)))
        assert self._buffer is not None
        chosen = self._order(number, place)
        batch = self._place(
            {name: values[chosen] for name, values in self._buffer.items()} | {"row": np.arange(len(chosen), dtype=np.int32)}
        )
        batch |= self._more(self.position)
        self.position += 1
        return batch

    def _order(self, number: int, place: int) -> np.ndarray:
        """Sample ids of a minibatch: every epoch goes through all of them, in an order of its own; a batch of all has them as they are."""
        index = place * self._batch_size + np.arange(self._batch_size, dtype=np.int64)
        if self._batch_size == self.rows:
            return index % self.rows
        epochs, places = np.divmod(index, self.rows)
        keys = np.array([shuffle_key(self._making.plan.seed, "minibatches", number, int(epoch)) for epoch in epochs], np.uint64)
        return shuffled(places, np.full(len(places), self.rows), keys)

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps: the position, what goes from rollout to rollout, and the rollout that is being served."""
        self._flush()
        buffer = None if self.position % self.updates == 0 else dict(self._buffer or {})
        said: dict[str, Any] = {"position": self.position, "first_entropy": self._first_entropy, "prompts": self._carry.prompts}
        said |= {"rewards": self._carry.rewards, "returns": list(self._carry.returns)}
        return said | {"coefficient": np.array(self._carry.coefficient), "buffer": buffer}

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Goes to where `state()` was taken."""
        self.position = int(saved["position"])
        started = -(-self.position // self.updates)
        prompts = saved.get("prompts", started * self._making.plan.num_prompts)  # older checkpoints do not say it
        self._carry = Carry(np.float32(saved["coefficient"]), int(prompts), saved.get("rewards", {}), tuple(saved.get("returns", NOTHING)))
        self._first_entropy = saved["first_entropy"]
        self._buffer = None if saved["buffer"] is None else {name: np.asarray(values) for name, values in saved["buffer"].items()}
