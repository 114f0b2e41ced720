"""Prefix tuning: soft tokens whose keys and values are learned, in every layer."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from jaxllm.models.adapted import Adapter, Params
from jaxllm.models.soft_prompts import Silent, SoftPeft
from jaxllm.models.tokens import Tokens


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
        own = (jnp.take(table.astype(k.dtype), index, axis=0, mode="fill") for table in found)  # NaN for an id that does not exist
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
