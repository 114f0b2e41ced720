"""Dropout by a hash of what an element is, and never of where it lies: a mask is not stored, and no split of a batch can change it.

A token is its row's name in the global batch, its document within the row, and its position within the document. Where it lies along T (in
zigzag order over the axis `context`), which device has it, and which microbatch its row is in do not matter.
"""

import jax
import jax.numpy as jnp


def token_codes(rng: jax.Array, rows: jax.Array, segments: jax.Array | None, positions: jax.Array, salt: int = 0) -> jax.Array:
    """One hash for each token, uint32 [B, T], of (key, row, document, position).

    Args:
      rng: a key.
      rows: int32 [B], each row's index in the global batch.
      segments: int32 [B, T]; None: one document.
      positions: int32 [B, T].
      salt: one for each use of the same key.
    """
    words = jax.random.key_data(rng) if jnp.issubdtype(rng.dtype, jax.dtypes.prng_key) else rng
    words = words.reshape(-1).astype(jnp.uint32)
    code = _mix(words[0] + jnp.uint32(salt)) ^ words[-1]
    code = _mix(code ^ _mix(rows.astype(jnp.uint32)))[:, None]
    code = _mix(code ^ _mix(jnp.ones_like(positions, jnp.uint32) if segments is None else segments.astype(jnp.uint32)))
    return _mix(code ^ _mix(positions.astype(jnp.uint32) + jnp.uint32(0x9E3779B9)))


def drop_channels(x: jax.Array, codes: jax.Array, rate: float) -> jax.Array:
    """Zeroes elements of x [B, T, D] with probability `rate` and scales the rest; `codes` [B, T] are the tokens'."""
    channels = _mix(jnp.arange(x.shape[-1], dtype=jnp.uint32) + jnp.uint32(1))
    return jnp.where(_kept(_mix(codes[..., None] + channels), rate), x / (1 - rate), 0).astype(x.dtype)


def kept_pairs(query_codes: jax.Array | None, key_codes: jax.Array | None, heads: jax.Array, rate: float) -> jax.Array:
    """Which probabilities of attention survive dropout.

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
    return _kept(_mix(query_codes[:, None, None, :, None] ^ by_head[:, :, :, None, :]), rate)


def _kept(bits: jax.Array, rate: float) -> jax.Array:
    return bits >= jnp.uint32(min(int(rate * 2**32), 2**32 - 1))


def _mix(x: jax.Array) -> jax.Array:
    """The finaliser of MurmurHash3: every input bit reaches every output bit."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)
