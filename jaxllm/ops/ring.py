"""Attention over a sequence that is cut along one mesh axis: keys and values pass round a ring, or are gathered first.

Both run inside a manual region (`rules.shard_map`) on local blocks. Ring attention is arXiv 2310.01889; with the zigzag order of Llama 3
(arXiv 2407.21783, section 3.3.2) each of c devices holds chunks i and 2c-1-i of the sequence, so that a causal mask leaves all of them the
same work: blocks in which nothing is visible are skipped (`blockwise`).
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from jaxllm.ops import blockwise
from jaxllm.ops.blockwise import Rule
from jaxllm.ops.visibility import Side


def zigzag_order(length: int, context: int) -> np.ndarray:
    """The order of the tokens that balances causal work: `x[:, zigzag_order(T, c)]`, then cut along T into c equal parts.

    Args:
      length: T.
      context: how many devices the sequence is cut over; 1 gives the identity.

    Returns:
      int32 [T], a permutation of range(T).

    Raises:
      ValueError: T does not divide by 2 * context.
    """
    if context == 1:
        return np.arange(length, dtype=np.int32)
    if length % (2 * context):
        raise ValueError(
            f"sequence_length={length} does not divide by 2 * parallel.context={2 * context}. "
            f"Use {length - length % (2 * context) or 2 * context} or {length + -length % (2 * context)}."
        )
    chunks = np.arange(length, dtype=np.int32).reshape(2 * context, -1)
    return np.concatenate([chunks[[i, 2 * context - 1 - i]].reshape(-1) for i in range(context)])


def whole_chunks(rule: Rule, local_length: int) -> Rule:
    """The rule with blocks as large as it allows of which a whole number makes one of a device's two chunks, where the sizes permit."""
    chunk = max(1, local_length // 2)
    parts = -(-chunk // rule.block)
    return dataclasses.replace(rule, block=-(-chunk // parts))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def gathered(axis: str, rule: Rule, q, k, v, queries: Side, keys: Side, heads) -> jax.Array:
    """Every device gathers all keys and values: one collective, S of them in memory (shapes as for `blockwise.attend`, local).

    They are not kept for the backward pass but gathered again, and their gradients are summed over the devices in float32.
    """
    return _gathered_forward(axis, rule, q, k, v, queries, keys, heads)[0]


def _gathered_forward(axis, rule, q, k, v, queries, keys, heads):
    local, (all_k, all_v, all_keys) = whole_chunks(rule, q.shape[3]), _all_keys(axis, k, v, keys)
    running = blockwise.extend(local, blockwise.start(q), q, all_k, all_v, queries, all_keys, heads)
    out, log_total = (blockwise.named(x) for x in blockwise.finish(running, q.dtype))
    return out, (q, k, v, queries, keys, heads, out, log_total)


def _gathered_backward(axis, rule, saved, d_out):
    q, k, v, queries, keys, heads, out, log_total = saved
    local, (all_k, all_v, all_keys) = whole_chunks(rule, q.shape[3]), _all_keys(axis, k, v, keys)
    d_out, delta = blockwise.row_delta(out, d_out, k.shape[1])
    dq, *d_all = blockwise.gradients(local, q, all_k, all_v, queries, all_keys, heads, d_out, log_total, delta)
    dk, dv = (jax.lax.psum_scatter(x, axis, scatter_dimension=2, tiled=True) for x in d_all)
    return dq.astype(q.dtype), dk.astype(k.dtype), dv.astype(v.dtype), None, None, None


gathered.defvjp(_gathered_forward, _gathered_backward)


def _all_keys(axis: str, k: jax.Array, v: jax.Array, keys: Side) -> tuple[jax.Array, jax.Array, Side]:
    k, v = (jax.lax.all_gather(x, axis, axis=2, tiled=True) for x in (k, v))
    return k, v, jax.tree.map(lambda x: jax.lax.all_gather(x, axis, axis=1, tiled=True), keys)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def ring(axis: str, rule: Rule, q, k, v, queries: Side, keys: Side, heads) -> jax.Array:
    """Keys and values visit every device in turn: S / context of them in memory (shapes as for `blockwise.attend`, local)."""
    return _ring_forward(axis, rule, q, k, v, queries, keys, heads)[0]


def _ring_forward(axis, rule, q, k, v, queries, keys, heads):
    local = whole_chunks(rule, q.shape[3])

    def visit(carry, _):
        running, guests = carry
        following = _pass_on(axis, guests)  # independent of the work below: sent while it runs
        return (blockwise.extend(local, running, q, guests[0], guests[1], queries, guests[2], heads), following), None

    (running, last), _ = jax.lax.scan(visit, (blockwise.start(q), (k, v, keys)), length=jax.lax.axis_size(axis) - 1)
    running = blockwise.extend(local, running, q, last[0], last[1], queries, last[2], heads)
    out, log_total = (blockwise.named(x) for x in blockwise.finish(running, q.dtype))
    return out, (q, k, v, queries, keys, heads, out, log_total)


def _ring_backward(axis, rule, saved, d_out):
    q, k, v, queries, keys, heads, out, log_total = saved
    local = whole_chunks(rule, q.shape[3])
    d_out, delta = blockwise.row_delta(out, d_out, k.shape[1])

    def visit(carry, _):
        dq, guests, d_guests = carry
        following = _pass_on(axis, guests)
        more = blockwise.gradients(local, q, guests[0], guests[1], queries, guests[2], heads, d_out, log_total, delta)
        d_guests = _pass_on(axis, (d_guests[0] + more[1], d_guests[1] + more[2]))  # they travel with their keys and end at home
        return (dq + more[0], following, d_guests), None

    zeros = [jnp.zeros(x.shape, jnp.float32) for x in (q, k, v)]
    carry = (zeros[0], (k, v, keys), (zeros[1], zeros[2]))
    (dq, _, (dk, dv)), _ = jax.lax.scan(visit, carry, length=jax.lax.axis_size(axis))
    return dq.astype(q.dtype), dk.astype(k.dtype), dv.astype(v.dtype), None, None, None


ring.defvjp(_ring_forward, _ring_backward)


def _pass_on(axis: str, tree):
    size = jax.lax.axis_size(axis)
    return jax.tree.map(lambda x: jax.lax.ppermute(x, axis, [(i, (i + 1) % size) for i in range(size)]), tree)


FORMS: dict[str, Callable[..., jax.Array]] = {"gather": gathered, "ring": ring}
