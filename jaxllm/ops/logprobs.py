"""Where hidden states meet the vocabulary: log-probabilities of targets, chunk by chunk, without ever holding the logits.

The gradient is written by hand in the same loop, from recomputed logits: with p the softmax, d log_prob = onehot - p and d log_z = p.
Accumulation is float32. On a mesh each device takes its own rows, its part of the sequence and its part of the vocabulary.
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxllm.ops.products import gradient_dtype
from jaxllm.parallel import rules

CHUNK_BYTES = {"tpu": 1 << 29, "gpu": 1 << 29, "cpu": 1 << 26}  # what one chunk of float32 logits may take on one device
LANES = 128  # a chunk that jaxllm chooses is a multiple of it, as accelerators lay arrays out
MASKED = -1e30  # the logit of a column that is not in the vocabulary
# Kernels enter whole along D; their gradients leave cut as they are stored, where D divides.
TABLE = {**rules.COMPUTE, "stored_embed": rules.STORED["embed"]}


class LogProbs(NamedTuple):
    """What is known of each target."""

    log_probs: jax.Array  # float32 [B, T], log softmax at the target
    log_z: jax.Array  # float32 [B, T], log of the softmax's sum (the z-loss takes its square); differentiable
    correct: jax.Array  # float32 [B, T], 1 where the target is the argmax (the first one, where several are equal); no gradient


@dataclasses.dataclass(frozen=True)
class _Head:
    """What is static in one call."""

    vocab: int  # V, before any padding
    padded: bool  # the kernel has columns from V on
    chunk: int  # tokens
    softcap: float | None
    transposed: bool
    dtype: str
    sharded: bool  # inside a mesh of more than one device
    axes: tuple[str | None, str | None, str | None]  # logical names of B, T, and of D in the kernel's gradient


def token_log_probs(
    hidden: jax.Array,
    kernel: jax.Array,
    targets: jax.Array,
    *,
    bias: jax.Array | None = None,
    softcap: float | None = None,
    transposed: bool = False,
    chunk: int | None = None,
    dtype: str | jnp.dtype | None = None,
) -> LogProbs:
    """Log-probabilities of `targets` under softmax(softcap(hidden @ kernel + bias)).

    Args:
      hidden: [B, T, D].
      kernel: [D, V], or [V, D] if `transposed` (tied embeddings). Any V, also one that the mesh does not divide.
      targets: int32 [B, T], 0 <= target < V.
      bias: [V] or None.
      softcap: logits become softcap * tanh(logits / softcap).
      transposed: the kernel is [V, D].
      chunk: tokens whose logits a device holds at a time; None: as many as `CHUNK_BYTES` allows.
      dtype: of the operands of the products (None: hidden's); they accumulate in float32.

    Returns:
      `LogProbs`. Gradients have the dtypes of hidden, kernel and bias; that of a kernel or bias which nobody asks for costs nothing.

    Raises:
      ValueError: shapes that do not belong together.
    """
    B, T, D = hidden.shape
    vocab = kernel.shape[0 if transposed else 1]
    if kernel.shape != ((vocab, D) if transposed else (D, vocab)) or targets.shape != (B, T):
        raise ValueError(
            f"hidden {hidden.shape}, kernel {kernel.shape} (transposed={transposed}) and targets {targets.shape} do not belong together."
        )
    if bias is not None and bias.shape != (vocab,):
        raise ValueError(f"bias {bias.shape} does not belong to a vocabulary of {vocab}.")
    mesh = rules.ambient_mesh()
    tensor = rules.ways("vocab")
    axes = (
        "batch" if B % rules.ways("batch") == 0 else None,
        "sequence" if T % rules.ways("sequence") == 0 else None,
        "stored_embed" if D % rules.ways("stored_embed", TABLE) == 0 else None,
    )
    tokens = B * T // (rules.ways("batch") if axes[0] else 1) // (rules.ways("sequence") if axes[1] else 1)
    fitting = max(LANES, CHUNK_BYTES.get(rules.platform(), 1 << 28) // (4 * -(-vocab // tensor)))
    size = -(-tokens // -(-tokens // (chunk or fitting)))  # chunks of one size, as little padding as can be
    head = _Head(
        vocab=vocab,
        padded=vocab % tensor != 0,
        chunk=size if chunk or size < LANES else size + -size % LANES,
        softcap=softcap,
        transposed=transposed,
        dtype=jnp.dtype(dtype or hidden.dtype).name,
        sharded=mesh is not None and mesh.size > 1,
        axes=axes,
    )
    pad = -vocab % tensor  # only where V does not divide: such a kernel is not stored cut
    if pad:
        kernel = jnp.pad(kernel, [(0, pad), (0, 0)] if transposed else [(0, 0), (0, pad)])
        bias = None if bias is None else jnp.pad(bias, (0, pad))
    return LogProbs(*_log_probs(head, hidden, kernel, bias, targets))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _log_probs(head: _Head, hidden, kernel, bias, targets):
    batch, sequence, _ = head.axes
    local = rules.shard_map(functools.partial(_local_forward, head), _in_axes(head, bias), ((batch, sequence),) * 3)
    return local(hidden, _narrow(head, kernel), bias, targets)


def _narrow(head: _Head, kernel: jax.Array) -> jax.Array:
    """The kernel in the compute dtype, still cut as it is stored: in that dtype it is gathered over `fsdp`."""
    return rules.constrain(kernel.astype(head.dtype), *(head.axes[2], "vocab")[:: -1 if head.transposed else 1], rules=TABLE)


def _forward(head, hidden, kernel, bias, targets):
    out = _log_probs(head, hidden.value, kernel.value, None if bias is None else bias.value, targets.value)
    wanted = tuple(() if x is not None and x.perturbed else None for x in (kernel, bias))  # static: part of the tree's structure
    return out, (hidden.value, kernel.value, None if bias is None else bias.value, targets.value, out[1], wanted)


def _backward(head, saved, cotangents):
    hidden, kernel, bias, targets, log_z, wanted = saved
    d_log_probs, d_log_z = (jnp.zeros_like(log_z) if isinstance(c, jax.custom_derivatives.SymbolicZero) else c for c in cotangents[:2])
    batch, sequence, embed = head.axes
    rows = (batch, sequence)
    embed = embed if batch else None
    head = dataclasses.replace(head, axes=(*rows, embed))
    kernel_out = () if wanted[0] is None else ("vocab", embed) if head.transposed else (embed, "vocab")
    bias_out = () if wanted[1] is None else ("vocab",)
    backward = functools.partial(_local_backward, head, tuple(w is not None for w in wanted))
    in_axes = (*_in_axes(head, bias), rows, rows, rows)
    local = rules.shard_map(backward, in_axes, ((*rows, None), kernel_out, bias_out), TABLE)
    d_hidden, d_kernel, d_bias = local(hidden, _narrow(head, kernel), bias, targets, log_z, d_log_probs, d_log_z)
    cast = lambda x, like: None if x is None else x.astype(like.dtype)  # noqa: E731
    return d_hidden.astype(hidden.dtype), cast(d_kernel, kernel), cast(d_bias, bias), None


_log_probs.defvjp(_forward, _backward, symbolic_zeros=True)


def _in_axes(head: _Head, bias) -> tuple:
    rows = head.axes[:2]
    return (*rows, None), ((None, "vocab")[:: -1 if head.transposed else 1]), () if bias is None else ("vocab",), rows


def _local_forward(head: _Head, hidden, kernel, bias, targets):
    """One device's rows over its part of the vocabulary, then joined over the parts."""
    shape, first = targets.shape, _first_column(head, kernel)
    product = _Product(head, kernel, bias, first)

    def one_chunk(chunk):
        hidden, targets = chunk
        logits = product.logits(hidden)[0]
        maximum = jnp.max(logits, axis=-1)
        total = jnp.sum(jnp.exp(logits - maximum[:, None]), axis=-1)
        columns = jnp.arange(logits.shape[1], dtype=jnp.int32)
        argmax = jnp.min(jnp.where(logits == maximum[:, None], columns, logits.shape[1]), axis=-1)
        mine = (targets >= first) & (targets < first + logits.shape[1])
        at_target = jnp.take_along_axis(logits, jnp.clip(targets - first, 0, logits.shape[1] - 1)[:, None], axis=1)[:, 0]
        return maximum, total, first + argmax, jnp.where(mine, at_target, 0.0)

    tokens = targets.size
    chunks = _cut(head, hidden.reshape(tokens, -1)), _cut(head, targets.reshape(-1))
    maximum, total, argmax, at_target = (x.reshape(-1)[:tokens] for x in _each(one_chunk, chunks))
    if head.sharded:
        best = jax.lax.pmax(maximum, "tensor")
        total = jax.lax.psum(total * jnp.exp(maximum - best), "tensor")
        argmax = jax.lax.pmin(jnp.where(maximum == best, argmax, head.vocab), "tensor")
        at_target, maximum = jax.lax.psum(at_target, "tensor"), best
    log_z = maximum + jnp.log(total)
    correct = (argmax == targets.reshape(-1)).astype(jnp.float32)
    return tuple(x.reshape(shape) for x in (at_target - log_z, log_z, correct))


def _local_backward(head: _Head, wanted: tuple[bool, ...], hidden, kernel, bias, targets, log_z, d_log_probs, d_log_z):
    """Gradients of one device's rows, over its part of the vocabulary, summed over whoever shares them."""
    tokens, first = targets.size, _first_column(head, kernel)
    product = _Product(head, kernel, bias, first)

    def one_chunk(sums, chunk):
        hidden, targets, log_z, d_log_probs, d_log_z = chunk
        logits, slope = product.logits(hidden)
        columns = first + jnp.arange(logits.shape[1], dtype=jnp.int32)
        d_logits = jnp.exp(logits - log_z[:, None]) * (d_log_z - d_log_probs)[:, None]
        d_logits += jnp.where(columns == targets[:, None], d_log_probs[:, None], 0.0)
        d_logits = d_logits if slope is None else d_logits * slope
        operand = d_logits.astype(head.dtype)
        d_kernel = sums[0] + product.d_kernel(hidden, operand) if wanted[0] else None
        d_bias = sums[1] + jnp.sum(d_logits, axis=0) if wanted[1] else None
        return (d_kernel, d_bias), product.d_hidden(operand)

    flat = (x.reshape(tokens, *x.shape[2:]) for x in (hidden, targets, log_z, d_log_probs, d_log_z))
    zeros = lambda x: jnp.zeros(x.shape, jnp.float32)  # noqa: E731
    sums = (zeros(kernel) if wanted[0] else None, zeros(bias) if wanted[1] else None)
    (d_kernel, d_bias), d_hidden = _fold(one_chunk, sums, tuple(_cut(head, x) for x in flat))
    d_hidden = d_hidden.reshape(-1, hidden.shape[-1])[:tokens].reshape(hidden.shape)
    if head.sharded:
        d_hidden = jax.lax.psum(d_hidden, "tensor")
        d_kernel, d_bias = _sum_over_rows(head, d_kernel, 1 if head.transposed else 0), _sum_over_rows(head, d_bias, None)
    return d_hidden, d_kernel, d_bias


class _Product:
    """The products of one device with its part of the kernel; operands in the compute dtype, sums in float32 (on CPU see `products`)."""

    def __init__(self, head: _Head, kernel: jax.Array, bias: jax.Array | None, first: jax.Array | int):
        self.head, self.bias, self.first = head, bias, first
        self.out_dtype = gradient_dtype(head.dtype)
        self.kernel = kernel
        # Where bfloat16 into float32 is no faster than float32 (CPU), the logits are multiplied in float32.
        self.logits_kernel = self.kernel if self.out_dtype == jnp.float32 else self.kernel.astype(jnp.float32)
        self.width, self.vocab = (0, 1)[:: -1 if head.transposed else 1]  # dims of D and V in the kernel

    def logits(self, hidden: jax.Array) -> tuple[jax.Array, jax.Array | None]:
        """hidden [C, D] -> logits float32 [C, V] and their slope by the uncapped ones (None: 1)."""
        hidden = hidden.astype(self.head.dtype).astype(self.logits_kernel.dtype)
        logits = _dot(hidden, self.logits_kernel, 1, self.width, jnp.dtype("float32"))
        if self.bias is not None:
            logits += self.bias.astype(jnp.float32)
        slope = None
        if self.head.softcap is not None:
            ratio = jnp.tanh(logits / self.head.softcap)
            logits, slope = self.head.softcap * ratio, 1 - jnp.square(ratio)
        if self.head.padded:
            logits = jnp.where(self.first + jnp.arange(logits.shape[1]) < self.head.vocab, logits, MASKED)
        return logits, slope

    def d_hidden(self, d_logits: jax.Array) -> jax.Array:
        """[C, V] -> float32 [C, D]."""
        return _dot(d_logits, self.kernel, 1, self.vocab, self.out_dtype).astype(jnp.float32)

    def d_kernel(self, hidden: jax.Array, d_logits: jax.Array) -> jax.Array:
        """[C, D], [C, V] -> float32, in the kernel's layout."""
        pair = (hidden.astype(self.head.dtype), d_logits)
        return _dot(*(pair[::-1] if self.head.transposed else pair), 0, 0, self.out_dtype).astype(jnp.float32)


def _dot(a: jax.Array, b: jax.Array, a_dim: int, b_dim: int, out_dtype: jnp.dtype) -> jax.Array:
    return jax.lax.dot_general(a, b, (((a_dim,), (b_dim,)), ((), ())), preferred_element_type=out_dtype)


def _first_column(head: _Head, kernel: jax.Array) -> jax.Array | int:
    """The vocabulary index of this device's first column."""
    return jax.lax.axis_index("tensor") * kernel.shape[0 if head.transposed else 1] if head.sharded else 0


def _sum_over_rows(head: _Head, x: jax.Array | None, width: int | None) -> jax.Array | None:
    """Sums a gradient over the devices that hold other rows; its dim `width` (D) leaves cut as it is stored, where that divides."""
    if x is None:
        return None
    names = [name for logical in head.axes[:2] if logical for name in rules.mesh_axes(logical)]
    scattered = rules.mesh_axes(head.axes[2], TABLE) if width is not None and head.axes[2] else ()
    whole = tuple(name for name in names if name not in scattered)
    for name in scattered:
        x = jax.lax.psum_scatter(x, name, scatter_dimension=width, tiled=True)
    return jax.lax.psum(x, whole) if whole else x  # of what is left


def _cut(head: _Head, x: jax.Array) -> jax.Array:
    """[tokens, ...] -> [chunks, chunk, ...], padded with zeros: a zero cotangent trains nothing."""
    x = jnp.pad(x, [(0, -x.shape[0] % head.chunk)] + [(0, 0)] * (x.ndim - 1))
    return x.reshape(-1, head.chunk, *x.shape[1:])


def _each(f, chunks):
    """`f` of every chunk, without a loop where there is one."""
    if chunks[0].shape[0] == 1:
        return jax.tree.map(lambda x: x[None], f(tuple(x[0] for x in chunks)))
    return jax.lax.map(f, chunks)


def _fold(f, carry, chunks):
    """`jax.lax.scan`, without a loop where there is one chunk."""
    if chunks[0].shape[0] == 1:
        carry, out = f(carry, tuple(x[0] for x in chunks))
        return carry, out[None]
    return jax.lax.scan(f, carry, chunks)
