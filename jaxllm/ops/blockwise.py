"""Attention in plain XLA whose memory is linear in T: blocks of queries against blocks of keys, with an online softmax.

The rescaling is that of Rabe and Staats (arXiv 2112.05682) and FlashAttention-2 (arXiv 2307.08691, algorithms 1 and 2). A pair of blocks
in which nothing is visible is skipped at run time, whatever the order of the tokens.
Letters here: K kv heads, G query heads of each (N = K * G).
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from jaxllm.ops import dropout, visibility
from jaxllm.ops.products import gradient_dtype, multiply
from jaxllm.ops.visibility import Side

MASKED = -1e30  # a score that is not visible
FLOOR = -1e29  # the least running maximum: exp(MASKED - FLOOR) is 0, so a row that sees nothing sums to 0
RESIDUALS = "attention_residuals"  # what remat policies call a kernel's output and softmax totals


@dataclasses.dataclass(frozen=True)
class Rule:
    """What is static in one attention."""

    kind: str = "causal"
    window: int | None = None
    softcap: float | None = None
    scale: float = 1.0
    dropout: float = 0.0
    block: int = 512  # tokens in a block, of queries and of keys


class Running(NamedTuple):
    """The online softmax so far, float32."""

    maximum: jax.Array  # [B, K, G, T]
    total: jax.Array  # [B, K, G, T]
    weighted: jax.Array  # [B, K, G, T, H]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def attend(rule: Rule, q: jax.Array, k: jax.Array, v: jax.Array, queries: Side, keys: Side, heads: jax.Array) -> jax.Array:
    """Attention of all queries over all keys.

    Args:
      rule: what is static.
      q: [B, K, G, T, H].
      k: [B, K, S, H].
      v: [B, K, S, H].
      queries: the query tokens.
      keys: the key tokens.
      heads: int32 [K, G], global head indices, for dropout.

    Returns:
      [B, T, N, H] in q's dtype; a row that sees nothing is 0, and has zero gradient.
    """
    return finish(extend(rule, start(q), q, k, v, queries, keys, heads), q.dtype)[0]


def _attend_forward(rule, q, k, v, queries, keys, heads):
    out, log_total = finish(extend(rule, start(q), q, k, v, queries, keys, heads), q.dtype)
    out, log_total = named(out), named(log_total)
    return out, (q, k, v, queries, keys, heads, out, log_total)


def _attend_backward(rule, saved, d_out):
    q, k, v, queries, keys, heads, out, log_total = saved
    d_out, delta = row_delta(out, d_out, k.shape[1])
    dq, dk, dv = gradients(rule, q, k, v, queries, keys, heads, d_out, log_total, delta)
    return dq.astype(q.dtype), dk.astype(k.dtype), dv.astype(v.dtype), None, None, None


attend.defvjp(_attend_forward, _attend_backward)


def named(residual: jax.Array) -> jax.Array:
    """A part of the result that the backward pass needs, under the name by which a remat policy keeps it."""
    return checkpoint_name(residual, RESIDUALS)


def start(q: jax.Array) -> Running:
    """The softmax over nothing."""
    rows = q.shape[:-1]
    return Running(jnp.full(rows, FLOOR, jnp.float32), jnp.zeros(rows, jnp.float32), jnp.zeros(q.shape, jnp.float32))


def finish(running: Running, dtype: jnp.dtype) -> tuple[jax.Array, jax.Array]:
    """The output [B, T, N, H], and the log of each row's softmax total [B, K, G, T] (0 where the row saw nothing).

    The output has the shape in which it is used next, so that what the backward passes of both keep is one array.
    """
    seen = running.total > 0
    total = jnp.where(seen, running.total, 1.0)
    return ungroup((running.weighted / total[..., None]).astype(dtype)), jnp.where(seen, running.maximum + jnp.log(total), 0.0)


def row_delta(out: jax.Array, d_out: jax.Array, num_kv_heads: int) -> tuple[jax.Array, jax.Array]:
    """From out and d_out [B, T, N, H]: d_out [B, K, G, T, H], and sum over H of out * d_out, float32 [B, K, G, T].

    The sum is what the softmax's gradient subtracts in each row.
    """
    product = jnp.sum(out.astype(jnp.float32) * d_out.astype(jnp.float32), axis=-1, keepdims=True)
    return group(d_out, num_kv_heads), group(product, num_kv_heads)[..., 0]


def extend(rule: Rule, running: Running, q, k, v, queries: Side, keys: Side, heads) -> Running:
    """Takes more keys into the running softmax of every query (shapes as for `attend`)."""
    # What is visible is the same in all layers. Where they are scanned, JAX would compute it once, before them: the masks of all pairs of
    # blocks, spread over heads, B * N * T * T in memory. So it is made to depend on q.
    q, queries, keys = jax.lax.optimization_barrier((q, queries, keys))
    num_q, num_k = _num_blocks(q.shape[3], rule), _num_blocks(k.shape[2], rule)
    if num_q == num_k == 1:
        return _extend_block(rule, running, q, k, v, visibility.visible(queries, keys, rule.kind, rule.window), queries, keys, heads)
    kv_blocks = (_cut(k, 2, num_k), _cut(v, 2, num_k), _cut_side(keys, num_k))

    def one_q_block(block):
        running, q, queries = block

        def one_kv_block(running, kv):
            k, v, keys = kv
            mask = visibility.visible(queries, keys, rule.kind, rule.window)
            compute = functools.partial(_extend_block, rule)
            skip = lambda running, *_: running  # noqa: E731
            return jax.lax.cond(jnp.any(mask), compute, skip, running, q, k, v, mask, queries, keys, heads), None

        return jax.lax.scan(one_kv_block, running, kv_blocks)[0]

    blocks = (Running(*(_cut(x, 3, num_q) for x in running)), _cut(q, 3, num_q), _cut_side(queries, num_q))
    length = q.shape[3]
    return Running(*(_join(x, 3, length) for x in jax.lax.map(one_q_block, blocks)))


def gradients(rule: Rule, q, k, v, queries: Side, keys: Side, heads, d_out, log_total, delta) -> tuple[jax.Array, jax.Array, jax.Array]:
    """What these keys contribute to dq, dk and dv, all float32 (shapes as for `attend`; `delta` from `row_delta`)."""
    num_q, num_k = _num_blocks(q.shape[3], rule), _num_blocks(k.shape[2], rule)
    if num_q == num_k == 1:
        mask = visibility.visible(queries, keys, rule.kind, rule.window)
        return _block_gradients(rule, mask, q, k, v, queries, keys, heads, d_out, log_total, delta)
    q_blocks = (_cut(q, 3, num_q), _cut_side(queries, num_q), *(_cut(x, 3, num_q) for x in (d_out, log_total, delta)))
    zeros = lambda x: jnp.zeros(x.shape, jnp.float32)  # noqa: E731

    def one_kv_block(dq_blocks, kv):
        k, v, keys = kv

        def one_q_block(carry, block):
            dk, dv = carry
            dq, (q, queries, d_out, log_total, delta) = block
            mask = visibility.visible(queries, keys, rule.kind, rule.window)

            def compute(dq, dk, dv):
                more = _block_gradients(rule, mask, q, k, v, queries, keys, heads, d_out, log_total, delta)
                return dq + more[0], dk + more[1], dv + more[2]

            dq, dk, dv = jax.lax.cond(jnp.any(mask), compute, lambda *x: x, dq, dk, dv)
            return (dk, dv), dq

        dkv, dq_blocks = jax.lax.scan(one_q_block, (zeros(k), zeros(v)), (dq_blocks, q_blocks))
        return dq_blocks, dkv

    dq, (dk, dv) = jax.lax.scan(one_kv_block, zeros(q_blocks[0]), (_cut(k, 2, num_k), _cut(v, 2, num_k), _cut_side(keys, num_k)))
    return _join(dq, 3, q.shape[3]), _join(dk, 2, k.shape[2]), _join(dv, 2, v.shape[2])


def computed_blocks(rule: Rule, queries: Side, keys: Side) -> jax.Array:
    """Which pairs of blocks are computed and not skipped, bool [query blocks, key blocks]."""
    q_blocks, k_blocks = (_cut_side(s, _num_blocks(s.positions.shape[1], rule)) for s in (queries, keys))
    any_visible = lambda a, b: jnp.any(visibility.visible(a, b, rule.kind, rule.window))  # noqa: E731
    return jax.vmap(lambda a: jax.vmap(lambda b: any_visible(a, b))(k_blocks))(q_blocks)


def _extend_block(rule: Rule, running: Running, q, k, v, mask, queries, keys, heads) -> Running:
    scores = _scores(rule, q, k, mask)[1]
    maximum = jnp.maximum(running.maximum, jnp.max(scores, axis=-1))
    shrink = jnp.exp(running.maximum - maximum)
    weights = jnp.exp(scores - maximum[..., None])
    dropped = _drop(rule, weights, queries, keys, heads).astype(v.dtype)
    more = multiply("bkrs,bksh->bkrh", _rows(dropped), v, gradient_dtype(v.dtype)).reshape(q.shape)
    return Running(maximum, running.total * shrink + jnp.sum(weights, axis=-1), running.weighted * shrink[..., None] + more)


def _block_gradients(rule: Rule, mask, q, k, v, queries, keys, heads, d_out, log_total, delta):
    capped, scores = _scores(rule, q, k, mask)
    probs = jnp.exp(scores - log_total[..., None])
    dtype = gradient_dtype(q.dtype)
    d_probs = multiply("bkrh,bksh->bkrs", _rows(d_out), v, dtype).reshape(probs.shape)
    d_scores = probs * (_drop(rule, d_probs, queries, keys, heads) - delta[..., None]) * rule.scale
    if rule.softcap is not None:
        d_scores *= 1 - jnp.square(capped / rule.softcap)
    d_scores = _rows(d_scores.astype(q.dtype))
    dropped = _rows(_drop(rule, probs, queries, keys, heads).astype(d_out.dtype))
    dv = multiply("bkrs,bkrh->bksh", dropped, _rows(d_out), dtype)
    dq = multiply("bkrs,bksh->bkrh", d_scores, k, dtype).reshape(q.shape)
    dk = multiply("bkrs,bkrh->bksh", d_scores, _rows(q), dtype)
    return tuple(x.astype(jnp.float32) for x in (dq, dk, dv))


def _scores(rule: Rule, q, k, mask) -> tuple[jax.Array, jax.Array]:
    """Scores before and after the mask, float32 [B, K, G, T, S]."""
    B, K, G, T, _ = q.shape
    scores = multiply("bkrh,bksh->bkrs", _rows(q), k).reshape(B, K, G, T, -1) * rule.scale
    if rule.softcap is not None:
        scores = rule.softcap * jnp.tanh(scores / rule.softcap)
    return scores, jnp.where(mask[:, None, None], scores, MASKED)


def _rows(x: jax.Array) -> jax.Array:
    """[B, K, G, T, ...] -> [B, K, G * T, ...]: the query heads of a kv head as more rows of one product, so k and v are not repeated."""
    return x.reshape(*x.shape[:2], -1, x.shape[-1])


def _drop(rule: Rule, x, queries: Side, keys: Side, heads):
    if not rule.dropout:
        return x
    return jnp.where(dropout.kept_pairs(queries.codes, keys.codes, heads, rule.dropout), x / (1 - rule.dropout), 0)


def _num_blocks(length: int, rule: Rule) -> int:
    return max(1, -(-length // rule.block))


def _cut(x: jax.Array, dim: int, num: int) -> jax.Array:
    """[..., T, ...] -> [num, ..., ceil(T/num), ...], padded at the end with zeros (segment 0: seen by nobody)."""
    size = -(-x.shape[dim] // num)
    padding = num * size - x.shape[dim]
    if padding:
        x = jnp.pad(x, [(0, padding if d == dim else 0) for d in range(x.ndim)])
    x = x.reshape(*x.shape[:dim], num, size, *x.shape[dim + 1 :])
    return jnp.moveaxis(x, dim, 0)


def _join(x: jax.Array, dim: int, length: int) -> jax.Array:
    """Undoes `_cut`."""
    x = jnp.moveaxis(x, 0, dim)
    x = x.reshape(*x.shape[:dim], -1, *x.shape[dim + 2 :])
    return jax.lax.slice_in_dim(x, 0, length, axis=dim)


def _cut_side(side: Side, num: int) -> Side:
    return jax.tree.map(lambda x: _cut(x, 1, num), side)


def group(q: jax.Array, num_kv_heads: int) -> jax.Array:
    """[B, T, N, H] -> [B, K, G, T, H]; consecutive query heads share a kv head."""
    B, T, N, H = q.shape
    return q.reshape(B, T, num_kv_heads, N // num_kv_heads, H).transpose(0, 2, 3, 1, 4)


def ungroup(out: jax.Array) -> jax.Array:
    """[B, K, G, T, H] -> [B, T, N, H]."""
    B, K, G, T, H = out.shape
    return out.transpose(0, 3, 1, 2, 4).reshape(B, T, K * G, H)
