"""Soft tokens: ids beyond the vocabulary, whose vectors are learned (prompt tuning)."""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp

from jaxllm.models.adapted import Adapter, Params
from jaxllm.models.layers import look_up
from jaxllm.models.method import Peft, nearest

STARTS = ("uniform", "vocab", "labels", "text")


@partial(jax.tree_util.register_dataclass, data_fields=("table",), meta_fields=())
@dataclass(frozen=True)
class Prompt(Adapter):
    """Rows of the embedding beyond the vocabulary's (arXiv 2104.08691, section 2).

    Attributes:
      table: [tasks * P, D]; the vector of id V + k is row k.
    """

    table: jax.Array

    @property
    def count(self) -> int:
        """How many soft tokens there are."""
        return self.table.shape[0]

    def vectors(self, index: jax.Array, width: int, dtype: str) -> jax.Array:
        """[B, T, D] for int32 [B, T], where it is not negative."""
        return look_up(self.table, jnp.maximum(index, 0), dtype, ("soft", "embed"))


@partial(jax.tree_util.register_dataclass, data_fields=(), meta_fields=("count",))
@dataclass(frozen=True)
class Silent(Adapter):
    """Soft tokens without vectors: nobody sees them but by the keys and values that each layer puts in their places.

    Attributes:
      count: how many there are.
    """

    count: int

    def vectors(self, index: jax.Array, width: int, dtype: str) -> jax.Array:
        """Zeros [B, T, D]; NaN for an id that does not exist."""
        return jnp.broadcast_to(jnp.where(index < self.count, 0, jnp.nan)[..., None], (*index.shape, width)).astype(dtype)


@dataclass(frozen=True)
class SoftPeft(Peft):
    """What both have in common.

    Attributes:
      length: P, soft tokens of a task.
      num_tasks: how many tasks have soft tokens of their own.
    """

    length: int = 100
    num_tasks: int = 1

    def __post_init__(self):
        for name in ("length", "num_tasks"):
            if getattr(self, name) < 1:
                raise ValueError(f"peft.{name}={getattr(self, name)} is not a number of {name}. Give 1 or more.")

    @property
    def num_soft(self) -> int:
        """See `Peft.num_soft`."""
        return self.length

    @property
    def rows(self) -> int:
        """All soft tokens."""
        return self.length * self.num_tasks


@dataclass(frozen=True)
class PromptTuning(SoftPeft):
    """Prompt tuning (arXiv 2104.08691): only the vectors of soft tokens in front of the text learn.

    The paper's optimizer is adafactor at a constant 0.3 without `parameter_scale`, weight decay 1e-5.

    Attributes:
      start: "uniform" between -0.5 and 0.5; "vocab", rows of the embedding drawn from `frequent`; "labels", the mean vector of each of
        `labels` and then as "vocab"; "text", the vectors of `text`, again and again (section 3.2).
      frequent: ids to draw from; None: the lowest 5000.
      labels: the ids of every label.
      text: ids.
    """

    start: str = "uniform"
    frequent: tuple[int, ...] | None = None
    labels: tuple[tuple[int, ...], ...] = ()
    text: tuple[int, ...] = ()

    def __post_init__(self):
        super().__post_init__()
        if self.start not in STARTS:
            raise ValueError(f"Unknown peft.start={self.start!r}. Choose one of: {', '.join(STARTS)}.{nearest(self.start, STARTS)}")
        needed = {"labels": self.labels, "text": self.text}.get(self.start)
        if needed is not None and not 0 < len(needed) <= self.length:
            raise ValueError(
                f"peft.start={self.start!r} with {len(needed)} {self.start} and peft.length={self.length}. Give 1 to {self.length}."
            )
        given = [id for ids in (self.frequent or (), self.text, *self.labels) for id in ids]
        vocab = self.model.config.vocab_size
        if self.frequent == () or () in self.labels or not all(0 <= id < vocab for id in given):
            raise ValueError(f"peft.frequent, labels or text: empty, or ids outside of 0 to {vocab - 1}. Give ids of the vocabulary.")

    def stem(self, rng: jax.Array, base: Params) -> Params:
        """See `Peft.stem`."""
        table = base["embedding"]["tokens"]
        drawn = [self._task(key, table) for key in jax.random.split(rng, self.num_tasks)]
        return {"embedding": {"prompt": Prompt(jnp.concatenate(drawn).astype(jnp.float32))}}

    def stem_axes(self) -> Params:
        """See `Peft.stem_axes`."""
        return {"embedding": {"prompt": Prompt(("soft", "embed"))}}  # type: ignore[arg-type]

    def _task(self, rng: jax.Array, table: jax.Array) -> jax.Array:
        """[P, D]."""
        if self.start == "uniform":
            return jax.random.uniform(rng, (self.length, table.shape[1]), minval=-0.5, maxval=0.5)
        if self.start == "text":
            return table[jnp.resize(jnp.array(self.text), (self.length,))]
        first = [jnp.mean(table[jnp.array(ids)], 0) for ids in self.labels] if self.start == "labels" else []
        frequent = range(min(5000, table.shape[0])) if self.frequent is None else self.frequent
        rest = jax.random.choice(rng, jnp.array(frequent), (self.length - len(first),), replace=self.length > len(frequent))
        return jnp.concatenate([*(row[None] for row in first), table[rest]])
