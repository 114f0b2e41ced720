"""What every layer is told of the tokens of a call."""

from typing import NamedTuple

import jax

from jaxllm.models.cache import Place


class Tokens(NamedTuple):
    """A pytree, so that it can be broadcast through the scan."""

    positions: jax.Array  # int32 [B, T]
    segments: jax.Array | None  # int32 [B, T]; None: every row is one document
    prefix: jax.Array | None = None  # bool [B, T], only with kind "prefix"
    place: Place | None = None  # where in the cache the T tokens go; None without one
    rows: jax.Array | None = None  # int32 [B], names of the rows; only with dropout
    rng: jax.Array | None = None  # None: no dropout; inside a block it is the layer's own
    adapter: jax.Array | None = None  # int32 [B], which of several stacked adapters each row goes through; only where the base is adapted
    soft: jax.Array | None = None  # int32 [B, T], the soft tokens' numbers, negative for words; only where the base is adapted
    inner: jax.Array | None = None  # float32 [P, M], what all layers' prefixes are made of, see `prefixes.Prefix`
