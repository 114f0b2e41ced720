"""Who may attend to whom: the one rule, from segments and positions alone."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

KINDS = ("causal", "bidirectional", "prefix")


class Side(NamedTuple):
    """What the mask needs to know of the tokens on one side, queries or keys."""

    positions: jax.Array  # int32 [B, T], counted within each document
    segments: jax.Array  # int32 [B, T], 0 is padding
    prefix: jax.Array | None = None  # bool [B, S], keys only
    codes: jax.Array | None = None  # uint32 [B, T], only where attention is dropped


def visible(queries: Side, keys: Side, kind: str, window: int | None) -> jax.Array:
    """The mask bool [B, T, S]: same document, not padding, and as `kind` and `window` say.

    A window w keeps position differences q - k < w, and |q - k| < w where attention is bidirectional.
    """
    same = queries.segments[:, :, None] == keys.segments[:, None, :]
    mask = same & (queries.segments[:, :, None] != 0)
    behind = queries.positions[:, :, None] - keys.positions[:, None, :]
    if kind == "causal":
        mask &= behind >= 0
    elif kind == "prefix":
        assert keys.prefix is not None, "kind='prefix' needs the prefix of the keys"
        mask &= (behind >= 0) | keys.prefix[:, None, :]
    if window is not None:
        mask &= jnp.abs(behind) < window if kind == "bidirectional" else behind < window
    return mask
