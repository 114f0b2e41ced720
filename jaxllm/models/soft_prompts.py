"""Soft tokens: ids beyond the vocabulary, whose vectors (prompt tuning) or keys and values in every layer (prefix tuning) are learned."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from jaxllm.models.adapted import Adapter, Params
from jaxllm.models.layers import look_up
from jaxllm.models.method import Peft, nearest
from jaxllm.models.tokens import Tokens

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


@partial(jax.tree_util.register_dataclass, data_fields=("keys", "values"), meta_fields=())
@dataclass(frozen=True)
class Prefix(Adapter):
    """One layer's keys (as if rotated) and values of the soft tokens (arXiv 2101.00190, equation 3).

    Attributes:
      keys, values: [tasks * P, K, H].
    """

    keys: jax.Array
    values: jax.Array

    def replaced(self, k: jax.Array, v: jax.Array, tokens: Tokens) -> tuple[jax.Array, jax.Array]:
        """Keys and values [B, T, K, H] with those of the soft tokens in their places."""
        assert tokens.soft is not None
        index, soft = jnp.maximum(tokens.soft, 0), (tokens.soft >= 0)[..., None, None]
        found = self.rows(tokens.inner)
        own = (jnp.take(table.astype(k.dtype), index, axis=0, mode="clip") for table in found)
        return tuple(jnp.where(soft, new, old) for new, old in zip(own, (k, v), strict=True))  # type: ignore[return-value]

    def rows(self, inner: jax.Array | None) -> tuple[jax.Array, jax.Array]:
        """Keys and values of all soft tokens."""
        return self.keys, self.values


@partial(jax.tree_util.register_dataclass, data_fields=("keys", "values", "key_bias", "value_bias"), meta_fields=())
@dataclass(frozen=True)
class MadePrefix(Prefix):
    """The same as the last layer of an MLP whose first one all layers of the model share (section 4.3); made anew at each use.

    Attributes:
      keys, values: [M, K, H].
      key_bias, value_bias: [K, H].
    """

    key_bias: jax.Array
    value_bias: jax.Array

    def rows(self, inner: jax.Array | None) -> tuple[jax.Array, jax.Array]:
        """See `Prefix.rows`."""
        assert inner is not None
        return jnp.tensordot(inner, self.keys, 1) + self.key_bias, jnp.tensordot(inner, self.values, 1) + self.value_bias


@partial(jax.tree_util.register_dataclass, data_fields=("table", "kernel", "bias"), meta_fields=())
@dataclass(frozen=True)
class Source(Adapter):
    """What all layers share: tanh(table kernel + bias).

    Attributes:
      table, kernel, bias: [tasks * P, D], [D, M], [M].
    """

    table: jax.Array
    kernel: jax.Array
    bias: jax.Array

    def inner(self) -> jax.Array:
        """Float32 [tasks * P, M]."""
        return jnp.tanh(self.table @ self.kernel + self.bias)


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


@dataclass(frozen=True)
class PrefixTuning(SoftPeft):
    """Prefix tuning (arXiv 2101.00190): in every layer the soft tokens have keys and values of their own, and nothing else of them shows.

    Layers with a window see them as long as they are within it.

    Attributes:
      inner: M, width of the MLP that makes them in training; 0: they learn themselves. `folded` ends with the MLP.
    """

    length: int = 30
    inner: int = 512

    def __post_init__(self):
        super().__post_init__()
        if self.inner < 0:
            raise ValueError(f"peft.inner={self.inner} is not a width. Give 1 or more, or 0 for no MLP.")

    def layer(self, rng: jax.Array, base: Params, index: jax.Array) -> Params:
        """See `Peft.layer`."""
        config, (key, value) = self.model.config, jax.random.split(rng)
        heads = (config.num_groups, config.head_size)
        if not self.inner:
            return {"attention": {"prefix": Prefix(*(0.02 * jax.random.normal(k, (self.rows, *heads)) for k in (key, value)))}}
        bound = self.inner**-0.5
        keys, values = (jax.random.uniform(k, (self.inner, *heads), minval=-bound, maxval=bound) for k in (key, value))
        return {"attention": {"prefix": MadePrefix(keys, values, jnp.zeros(heads), jnp.zeros(heads))}}

    def layer_axes(self) -> Params:
        """See `Peft.layer_axes`."""
        heads = ("kv_heads", "head_dim")
        if not self.inner:
            direct: Any = (("soft", *heads),) * 2
            return {"attention": {"prefix": Prefix(*direct)}}
        made: Any = (("rank", *heads), ("rank", *heads), heads, heads)
        return {"attention": {"prefix": MadePrefix(*made)}}

    def stem(self, rng: jax.Array, base: Params) -> Params:
        """See `Peft.stem`."""
        D, (key, other) = self.model.config.width, jax.random.split(rng)
        silent = {"embedding": {"prompt": Silent(self.rows)}}
        if not self.inner:
            return silent
        kernel = jax.random.uniform(other, (D, self.inner), minval=-(D**-0.5), maxval=D**-0.5)
        return {**silent, "prefix": Source(jax.random.normal(key, (self.rows, D)), kernel, jnp.zeros(self.inner))}

    def stem_axes(self) -> Params:
        """See `Peft.stem_axes`."""
        silent, made = {"embedding": {"prompt": Silent(self.rows)}}, (("soft", "embed"), ("embed", "rank"), ("rank",))
        return {**silent, "prefix": Source(*made)} if self.inner else silent  # type: ignore[arg-type]

    def folded(self, adapters: Params) -> Params:
        """The same prefixes without the MLP, for sampling: those of `dataclasses.replace(self, inner=0)`."""
        if "prefix" not in adapters:
            return adapters
        inner = adapters["prefix"].inner()

        def made(found):
            return found.rows(inner)

        def fold(found):
            if not isinstance(found, MadePrefix):
                return found
            return Prefix(*(jax.vmap(made)(found) if found.keys.ndim == 4 else made(found)))

        kept = {name: tree for name, tree in adapters.items() if name != "prefix"}
        return jax.tree.map(fold, kept, is_leaf=lambda x: isinstance(x, Adapter))
