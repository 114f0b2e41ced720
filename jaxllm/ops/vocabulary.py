"""One device's part of the product of hidden states with the vocabulary: what one chunk of logits tells, and its gradients."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxllm.ops.products import gradient_dtype
from jaxllm.parallel import rules

MASKED = -1e30  # the logit of a column that is not in the vocabulary
# Kernels enter whole along D; their gradients leave cut as they are stored, where D divides.
TABLE = {**rules.COMPUTE, "stored_embed": rules.STORED["embed"]}


class LogProbs(NamedTuple):
    """What is known of each target."""

    log_probs: jax.Array  # float32 [B, T], log softmax at the target
    log_z: jax.Array  # float32 [B, T], log of the softmax's sum (the z-loss takes its square); differentiable
    correct: jax.Array  # float32 [B, T], 1 where the target is the argmax (the first one, where several are equal); no gradient


@dataclasses.dataclass(frozen=True)
class Head:
    """What is static in one call."""

    vocab: int  # V, before any padding
    padded: bool  # the kernel has columns from V on
    chunk: int  # tokens
    softcap: float | None
    transposed: bool
    dtype: str  # of the operands
    logits_dtype: str  # that logits come out in
    sharded: bool  # inside a mesh of more than one device
    axes: tuple[str | None, str | None, str | None]  # logical names of B, T, and of D in the kernel's gradient
    sparse: bool = False  # tokens that weigh nothing are put last, and left out

    @property
    def embed(self) -> str | None:
        """The logical name of D in the kernel's gradient: it is scattered over devices that hold other rows, if any do."""
        return self.axes[2] if self.axes[0] else None


class Product:
    """The products of one device with its part of the kernel; operands in the compute dtype, sums in float32 (on CPU see `products`)."""

    def __init__(self, head: Head, kernel: jax.Array, bias: jax.Array | None):
        self.head, self.kernel, self.bias = head, kernel, bias
        self.out_dtype = gradient_dtype(head.dtype)
        # Where bfloat16 into float32 is no faster than float32 (CPU), such logits are multiplied in float32.
        self.logits_kernel = kernel.astype(jnp.float32) if self.out_dtype != head.logits_dtype == "float32" else kernel
        self.width, self.vocab = (0, 1)[:: -1 if head.transposed else 1]  # dims of D and V in the kernel
        self.first = jax.lax.axis_index("tensor") * kernel.shape[self.vocab] if head.sharded else 0  # this device's first column

    def logits(self, hidden: jax.Array) -> tuple[jax.Array, jax.Array | None]:
        """hidden [C, D] -> logits float32 [C, V] and their slope by the uncapped ones (None: 1)."""
        hidden = hidden.astype(self.head.dtype).astype(self.logits_kernel.dtype)
        logits = _dot(hidden, self.logits_kernel, 1, self.width, jnp.dtype(self.head.logits_dtype)).astype(jnp.float32)
        if self.bias is not None:
            logits += self.bias.astype(jnp.float32)
        slope = None
        if self.head.softcap is not None:
            ratio = jnp.tanh(logits / self.head.softcap)
            logits, slope = self.head.softcap * ratio, 1 - jnp.square(ratio)
        if self.head.padded:
            logits = jnp.where(self.first + jnp.arange(logits.shape[1]) < self.head.vocab, logits, MASKED)
        return logits, slope

    def look(self, targets: jax.Array, logits: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """The fields of `LogProbs`, [C] each, from this device's logits [C, V], joined over the parts of the vocabulary."""
        maximum = jnp.max(logits, axis=-1)
        total = jnp.sum(jnp.exp(logits - maximum[:, None]), axis=-1)
        columns = jnp.arange(logits.shape[1], dtype=jnp.int32)
        argmax = self.first + jnp.min(jnp.where(logits == maximum[:, None], columns, logits.shape[1]), axis=-1)
        mine = (targets >= self.first) & (targets < self.first + logits.shape[1])
        at_target = jnp.take_along_axis(logits, jnp.clip(targets - self.first, 0, logits.shape[1] - 1)[:, None], axis=1)[:, 0]
        at_target = jnp.where(mine, at_target, 0.0)
        if self.head.sharded:
            best = jax.lax.pmax(maximum, "tensor")
            total = jax.lax.psum(total * jnp.exp(maximum - best), "tensor")
            argmax = jax.lax.pmin(jnp.where(maximum == best, argmax, self.head.vocab), "tensor")
            at_target, maximum = jax.lax.psum(at_target, "tensor"), best
        log_z = maximum + jnp.log(total)
        return at_target - log_z, log_z, (argmax == targets).astype(jnp.float32)

    def zeros(self, wanted: tuple[bool, ...]) -> tuple[jax.Array | None, jax.Array | None]:
        """The sums to begin with: of the kernel's gradient and of the bias's, where they are wanted."""
        d_bias = jnp.zeros(self.bias.shape, jnp.float32) if wanted[1] and self.bias is not None else None
        return jnp.zeros(self.kernel.shape, jnp.float32) if wanted[0] else None, d_bias

    def gradients(self, sums, hidden, logits, slope, targets, log_z, d_log_probs, d_log_z):
        """Adds a chunk's part to the sums; the other result is the gradient of hidden, float32 [C, D]."""
        columns = self.first + jnp.arange(logits.shape[1], dtype=jnp.int32)
        d_logits = jnp.exp(logits - log_z[:, None]) * (d_log_z - d_log_probs)[:, None]
        d_logits += jnp.where(columns == targets[:, None], d_log_probs[:, None], 0.0)
        d_logits = d_logits if slope is None else d_logits * slope
        operand = d_logits.astype(self.head.dtype)
        d_hidden = _dot(operand, self.kernel, 1, self.vocab, self.out_dtype).astype(jnp.float32)
        d_kernel, d_bias = sums
        if d_kernel is not None:
            hidden = hidden.astype(self.head.dtype)
            rows, columns = (operand, hidden) if self.head.transposed else (hidden, operand)
            d_kernel += _dot(rows, columns, 0, 0, self.out_dtype).astype(jnp.float32)
        return (d_kernel, None if d_bias is None else d_bias + jnp.sum(d_logits, axis=0)), d_hidden


def _dot(a: jax.Array, b: jax.Array, a_dim: int, b_dim: int, out_dtype: jnp.dtype) -> jax.Array:
    return jax.lax.dot_general(a, b, (((a_dim,), (b_dim,)), ((), ())), preferred_element_type=out_dtype)


def sum_over_rows(head: Head, x: jax.Array | None, width: int | None) -> jax.Array | None:
    """Sums a gradient over the devices that hold other rows; its dim `width` (D) leaves cut as it is stored, where that divides."""
    if x is None:
        return None
    names = row_axes(head)
    scattered = rules.mesh_axes(head.embed, TABLE) if width is not None and head.embed else ()
    whole = tuple(name for name in names if name not in scattered)
    for name in scattered:
        x = jax.lax.psum_scatter(x, name, scatter_dimension=width, tiled=True)
    return jax.lax.psum(x, whole) if whole else x  # of what is left


def row_axes(head: Head) -> tuple[str, ...]:
    """The mesh axes along which devices hold different tokens."""
    return tuple(name for logical in head.axes[:2] if logical for name in rules.mesh_axes(logical))


def over_chunks(head: Head, f, sums, rows: tuple[jax.Array, ...], asked: jax.Array | None):
    """`f` of (sums, chunk of every row) -> (sums, what is found of the chunk's tokens), chunk after chunk.

    Args:
      head: what is static.
      f: see above.
      sums: to begin with.
      rows: [B, T, ...] of this device.
      asked: bool [B, T], or None: all. Tokens of which nobody asks are put last, and a chunk that holds nothing else is left out: what is
        found there is 0. All devices leave out the same chunks, as `f` may sum over some of them; the fullest has to be waited for anyhow.

    Returns:
      The sums, and what was found, [B * T, ...].
    """
    tokens = rows[0].shape[0] * rows[0].shape[1]
    flat, order = tuple(x.reshape(tokens, *x.shape[2:]) for x in rows), None
    if asked is None:
        sums, found = fold(f, sums, tuple(cut(head, x) for x in flat))
    else:
        order = jnp.argsort(~asked.reshape(tokens), stable=True)
        chunks = tuple(cut(head, x[order]) for x in flat)
        sums, found = fold(_skipping(head, f, asked), sums, (jnp.arange(len(chunks[0])), chunks))
    whole = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:tokens], found)
    return sums, whole if order is None else jax.tree.map(lambda x: x[jnp.argsort(order)], whole)


def _skipping(head: Head, f, asked: jax.Array):
    """`f` of (sums, chunk) as a function of (sums, (number, chunk)) that leaves out chunks past the last token that is asked of."""
    count = jnp.sum(asked, dtype=jnp.int32)
    if head.sharded and (names := row_axes(head)):
        count = jax.lax.pmax(count, names)

    def g(sums, numbered):
        number, chunk = numbered
        found = jax.eval_shape(f, sums, chunk)[1]
        nothing = lambda sums, chunk: (sums, jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), found))  # noqa: E731
        return jax.lax.cond(number * head.chunk < count, f, nothing, sums, chunk)

    return g


def cut(head: Head, x: jax.Array) -> jax.Array:
    """[tokens, ...] -> [chunks, chunk, ...], padded with zeros: a zero cotangent trains nothing."""
    x = jnp.pad(x, [(0, -x.shape[0] % head.chunk)] + [(0, 0)] * (x.ndim - 1))
    return x.reshape(-1, head.chunk, *x.shape[1:])


def fold(f, carry, chunks):
    """`jax.lax.scan`, without a loop where there is one chunk."""
    if jax.tree.leaves(chunks)[0].shape[0] == 1:
        carry, out = f(carry, jax.tree.map(lambda x: x[0], chunks))
        return carry, jax.tree.map(lambda x: x[None], out)
    return jax.lax.scan(f, carry, chunks)
