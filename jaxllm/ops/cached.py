"""Attention of a few new tokens over a cache of keys and values, whose slots lie in any order of positions."""

import jax
import jax.numpy as jnp

from jaxllm.ops.attention import attention
from jaxllm.ops.products import multiply

FEW = 16  # new tokens of a row whose scores are held at once; more of them go block by block
MASKED = -1e30


def attend_cached(
    q: jax.Array,
    keys: jax.Array,
    values: jax.Array,
    positions: jax.Array,
    held: jax.Array,
    *,
    prefix: jax.Array | None = None,
    window: int | None = None,
    softcap: float | None = None,
    scale: float | None = None,
) -> jax.Array:
    """Causal attention, or with `prefix` also to the first positions of the row.

    Args:
      q: [B, T, N, H], rotated.
      keys: [B, K, S, H], those of these tokens among them.
      values: [B, K, S, H].
      positions: int32 [B, T].
      held: int32 [B, S], the position in each slot, below 0 where it is empty.
      prefix: int32 [B]: positions below it are seen by all.
      window: how many positions back are visible, the token's own included; None: all.
      softcap: scores become softcap * tanh(scores / softcap).
      scale: what scores are multiplied by first; None: H ** -0.5.

    Returns:
      [B, T, N, H] in q's dtype. Softmax is float32.
    """
    B, T, N, H = q.shape
    scale = H**-0.5 if scale is None else scale
    if T > FEW:
        there = (held >= 0).astype(jnp.int32)
        how = {"kind": "causal"} if prefix is None else {"kind": "prefix", "prefix": held < prefix[:, None]}
        return attention(
            q,
            keys.swapaxes(1, 2),
            values.swapaxes(1, 2),
            q_positions=positions,
            kv_positions=held,
            q_segments=jnp.ones_like(positions),
            kv_segments=there,
            window=window,
            softcap=softcap,
            scale=scale,
            implementation="xla",
            **how,
        )
    K = keys.shape[1]
    grouped = q.reshape(B, T, K, N // K, H).transpose(0, 2, 1, 3, 4).reshape(B, K, -1, H)  # T * G rows of one product
    scores = multiply("bkrh,bksh->bkrs", grouped, keys) * scale
    if softcap is not None:
        scores = softcap * jnp.tanh(scores / softcap)
    behind = positions[:, :, None] - held[:, None, :]
    mask = behind >= 0 if prefix is None else (behind >= 0) | (held < prefix[:, None])[:, None]
    mask &= (held >= 0)[:, None]
    if window is not None:
        mask &= behind < window
    mask = jnp.repeat(mask, N // K, axis=1)[:, None]
    probs = jax.nn.softmax(jnp.where(mask, scores, MASKED), axis=-1)
    out = multiply("bkrs,bksh->bkrh", probs.astype(values.dtype), values)
    return out.reshape(B, K, T, N // K, H).transpose(0, 2, 1, 3, 4).reshape(B, T, N, H).astype(q.dtype)
