"""The key-value cache: plain arrays, passed in and returned, one contiguous slot for every token that was ever fed."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxllm.models.config import ModelConfig
from jaxllm.parallel import rules


class LayerCache(NamedTuple):
    """Keys (rotated) and values of one layer, or with a leading dim of the layers of a scan."""

    keys: jax.Array  # [B, S, K, H]
    values: jax.Array  # [B, S, K, H]


class Cache(NamedTuple):
    """Everything that decoding remembers.

    All rows write to the same slots: padding takes a slot too (with segment 0, so nobody sees it), on whichever side of the prompt it is.
    """

    layers: Any  # the tree of `layers` in the parameters, with a LayerCache for each block
    positions: jax.Array  # int32 [B, S]
    segments: jax.Array  # int32 [B, S], 0: empty or padding
    prefix: jax.Array  # bool [B, S]
    cursor: jax.Array  # int32 [], the slot that is written next
    next_position: jax.Array  # int32 [B], the position of each row's next token

    @property
    def length(self) -> int:
        """S: how many slots there are."""
        return self.segments.shape[1]


def empty_layers(config: ModelConfig, scan_layers: bool, batch: int, length: int, dtype: str) -> dict[str, Any]:
    """A LayerCache of zeros for every block, in the layout of the parameters."""

    def zeros(*leading):
        shape = (*leading, batch, length, config.num_groups, config.head_size)
        axes = (*("layers" for _ in leading), "batch", None, "kv_heads", "head_dim")
        return LayerCache(*(rules.constrain(jnp.zeros(shape, dtype), *axes) for _ in range(2)))

    if not scan_layers:
        return {str(layer): zeros() for layer in range(config.num_layers)}
    layers: dict[str, Any] = {str(layer): zeros() for layer in config.remainder}
    if config.num_repeats:
        layers["scanned"] = {str(place): zeros(config.num_repeats) for place in range(len(config.layer_pattern))}
    return layers


def empty_cache(config: ModelConfig, scan_layers: bool, batch: int, length: int, dtype: str) -> Cache:
    """A cache with `length` slots for each of `batch` rows and nothing in it."""
    integers = jnp.zeros((batch, length), jnp.int32)
    layers = empty_layers(config, scan_layers, batch, length, dtype)
    return Cache(layers, integers, integers, integers.astype(bool), jnp.zeros((), jnp.int32), jnp.zeros((batch,), jnp.int32))


def extend(cache: Cache, segments: jax.Array, positions: jax.Array, prefix: jax.Array) -> Cache:
    """Notes the next T tokens' segments, positions and prefix flags; keys and values are written layer by layer, at the old cursor.

    Args:
      cache: with a cursor of at most S - T.
      segments: int32 [B, T].
      positions: int32 [B, T].
      prefix: bool [B, T].
    """

    def write(old, new):
        return jax.lax.dynamic_update_slice(old, new.astype(old.dtype), (0, cache.cursor))

    newest = jnp.max(jnp.where(segments > 0, positions + 1, 0), axis=1)
    return cache._replace(
        positions=write(cache.positions, positions),
        segments=write(cache.segments, segments),
        prefix=write(cache.prefix, prefix),
        cursor=cache.cursor + segments.shape[1],
        next_position=jnp.maximum(cache.next_position, newest),
    )


def write_layer(layer: LayerCache, keys: jax.Array, values: jax.Array, cursor: jax.Array) -> LayerCache:
    """Puts the keys and values [B, T, K, H] of T tokens into the slots from `cursor` on."""

    def write(old, new):
        return jax.lax.dynamic_update_slice(old, new.astype(old.dtype), (0, cursor, 0, 0))

    return LayerCache(write(layer.keys, keys), write(layer.values, values))
