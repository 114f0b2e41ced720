"""Who may attend to whom: the one rule, from segments and positions alone, and the hash that drops attention without storing a mask."""

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


def token_codes(rng: jax.Array, rows: jax.Array, side_tokens: Side, salt: int) -> jax.Array:
    """One hash for each token, uint32 [B, T], of (key, row, document, position): independent of batch split and of the order along T.

    Args:
      rng: a key.
      rows: int32 [B], each row's index in the global batch.
      side_tokens: the tokens.
      salt: different for queries and keys.
    """
    words = jax.random.key_data(rng) if jnp.issubdtype(rng.dtype, jax.dtypes.prng_key) else rng
    words = words.reshape(-1).astype(jnp.uint32)
    code = _mix(words[0] + jnp.uint32(salt)) ^ words[-1]
    code = _mix(code ^ _mix(rows.astype(jnp.uint32)))[:, None]
    code = _mix(code ^ _mix(side_tokens.segments.astype(jnp.uint32)))
    return _mix(code ^ _mix(side_tokens.positions.astype(jnp.uint32) + jnp.uint32(0x9E3779B9)))


def kept(query_codes: jax.Array | None, key_codes: jax.Array | None, heads: jax.Array, rate: float) -> jax.Array:
    """Which probabilities survive dropout.

    Args:
      query_codes: uint32 [B, T].
      key_codes: uint32 [B, S].
      heads: int32 [K, G], the global index of each query head.
      rate: the share that is dropped.

    Returns:
      bool [B, K, G, T, S].
    """
    assert query_codes is not None and key_codes is not None, "dropout needs the codes of both sides"
    by_head = _mix(key_codes[:, None, None, :] + _mix(heads.astype(jnp.uint32))[None, :, :, None])
    bits = _mix(query_codes[:, None, None, :, None] ^ by_head[:, :, :, None, :])
    return bits >= jnp.uint32(min(int(rate * 2**32), 2**32 - 1))


def _mix(x: jax.Array) -> jax.Array:
    """The finaliser of MurmurHash3: every input bit reaches every output bit."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)
