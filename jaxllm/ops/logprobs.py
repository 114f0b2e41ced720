"""Where hidden states meet the vocabulary: log-probabilities of targets, chunk by chunk, without ever holding the logits.

The gradient is written by hand: with p the softmax, d log_prob = onehot - p and d log_z = p. What a loss makes of the log-probabilities is
known only after all of them, so `token_log_probs` computes the logits again for its gradient: 4 products. What cross-entropy makes of them
is known before: `fused_cross_entropy` finds its gradient while a chunk's logits are there, with 3 (as Liger's fused loss does, arXiv
2410.10989). Accumulation is float32. On a mesh each device takes its own rows, its part of the sequence and its part of the vocabulary.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from jaxllm.ops.vocabulary import TABLE, Head, LogProbs, Product, over_chunks, sum_over_rows
from jaxllm.parallel import rules

CHUNK_BYTES = {"tpu": 1 << 29, "gpu": 1 << 29, "cpu": 1 << 26}  # what one chunk of float32 logits may take on one device
LANES = 128  # a chunk that jaxllm chooses is a multiple of it, as accelerators lay arrays out


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
    logits_dtype: str | jnp.dtype = "float32",
    weights: jax.Array | None = None,
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
      logits_dtype: what the logits are rounded to as they leave their product; whatever is made of them is float32.
      weights: [B, T] or None; of tokens where it is 0, as in prompts, nobody asks: they go to the last chunks, a chunk that holds nothing
        else is not computed, and what is found of them is 0.

    Returns:
      `LogProbs`. Gradients have the dtypes of hidden, kernel and bias; that of a kernel or bias which nobody asks for costs nothing.

    Raises:
      ValueError: shapes that do not belong together.
    """
    head, kernel, bias = _prepare(hidden, kernel, targets, bias, softcap, transposed, chunk, dtype, logits_dtype)
    if weights is None:
        return LogProbs(*_log_probs(head, hidden, kernel, bias, targets, None))
    if weights.shape != targets.shape:
        raise ValueError(f"weights {weights.shape} do not belong to targets {targets.shape}.")
    asked = jax.lax.stop_gradient(weights) != 0
    found = _log_probs(dataclasses.replace(head, sparse=True), hidden, kernel, bias, targets, asked)
    return LogProbs(*(jnp.where(asked, x, 0.0) for x in found))


def fused_cross_entropy(
    hidden: jax.Array,
    kernel: jax.Array,
    targets: jax.Array,
    weights: jax.Array,
    *,
    z_loss: float = 0.0,
    sparse: bool = False,
    bias: jax.Array | None = None,
    softcap: float | None = None,
    transposed: bool = False,
    chunk: int | None = None,
    dtype: str | jnp.dtype | None = None,
    logits_dtype: str | jnp.dtype = "float32",
) -> tuple[jax.Array, LogProbs]:
    """sum(weights * (z_loss * log_z^2 - log_prob)), whose gradient needs no second pass over the logits.

    Args:
      weights: float [B, T]; not to be differentiated by.
      z_loss: the coefficient of log_z^2.
      sparse: many weights are 0, as of prompts: such tokens go to the last chunks, and a chunk that holds nothing else is not computed.
        The same sum and gradients; what is found of such tokens is 0.
      hidden, kernel, targets, bias, softcap, transposed, chunk, dtype, logits_dtype: as for `token_log_probs`.

    Returns:
      The sum, a float32 scalar, and the `LogProbs` it was made of, which carry no gradient.

    Raises:
      ValueError: shapes that do not belong together, or a gradient asked for by the weights.
    """
    head, kernel, bias = _prepare(hidden, kernel, targets, bias, softcap, transposed, chunk, dtype, logits_dtype)
    if weights.shape != targets.shape:
        raise ValueError(f"weights {weights.shape} do not belong to targets {targets.shape}.")
    head = dataclasses.replace(head, sparse=sparse)
    loss, *found = _cross_entropy(head, float(z_loss), hidden, kernel, bias, targets, weights.astype(jnp.float32))
    if sparse:  # whether or not it was differentiated
        found = [jnp.where(weights != 0, x, 0.0) for x in found]
    return loss, LogProbs(*map(jax.lax.stop_gradient, found))


def _prepare(hidden, kernel, targets, bias, softcap, transposed, chunk, dtype, logits_dtype) -> tuple[Head, jax.Array, jax.Array | None]:
    """What is static, and kernel and bias with as many columns as the mesh divides."""
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
    head = Head(
        vocab=vocab,
        padded=vocab % tensor != 0,
        chunk=size if chunk or size < LANES else size + -size % LANES,
        softcap=softcap,
        transposed=transposed,
        dtype=jnp.dtype(dtype or hidden.dtype).name,
        logits_dtype=jnp.dtype(logits_dtype).name,
        sharded=mesh is not None and mesh.size > 1,
        axes=axes,
    )
    pad = -vocab % tensor  # only where V does not divide: such a kernel is not stored cut
    if pad:
        kernel = jnp.pad(kernel, [(0, pad), (0, 0)] if transposed else [(0, 0), (0, pad)])
        bias = None if bias is None else jnp.pad(bias, (0, pad))
    return head, kernel, bias


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _log_probs(head: Head, hidden, kernel, bias, targets, asked):
    rows = head.axes[:2]
    local = rules.shard_map(functools.partial(_local_forward, head), (*_in_axes(head, bias), _axes_of(asked, rows)), (rows,) * 3)
    return local(hidden, _narrow(head, kernel), bias, targets, asked)


def _axes_of(asked, rows: tuple) -> tuple:
    return () if asked is None else rows


def _narrow(head: Head, kernel: jax.Array) -> jax.Array:
    """The kernel in the compute dtype, still cut as it is stored: in that dtype it is gathered over `fsdp`."""
    return rules.constrain(kernel.astype(head.dtype), *(head.axes[2], "vocab")[:: -1 if head.transposed else 1], rules=TABLE)


def _forward(head, hidden, kernel, bias, targets, asked):
    asked = None if asked is None else asked.value
    out = _log_probs(head, hidden.value, kernel.value, None if bias is None else bias.value, targets.value, asked)
    wanted = tuple(() if x is not None and x.perturbed else None for x in (kernel, bias))  # static: part of the tree's structure
    return out, (hidden.value, kernel.value, None if bias is None else bias.value, targets.value, asked, out[1], wanted)


def _backward(head, saved, cotangents):
    hidden, kernel, bias, targets, asked, log_z, wanted = saved
    d_log_probs, d_log_z = (jnp.zeros_like(log_z) if isinstance(c, jax.custom_derivatives.SymbolicZero) else c for c in cotangents[:2])
    wanted, rows = tuple(w is not None for w in wanted), head.axes[:2]
    local = rules.shard_map(
        functools.partial(_local_backward, head, wanted),
        (*_in_axes(head, bias), _axes_of(asked, rows), rows, rows, rows),
        _gradient_axes(head, wanted),
        TABLE,
    )
    gradients = local(hidden, _narrow(head, kernel), bias, targets, asked, log_z, d_log_probs, d_log_z)
    return *_like(gradients, hidden, kernel, bias), None, None


_log_probs.defvjp(_forward, _backward, symbolic_zeros=True)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _cross_entropy(head: Head, z_loss: float, hidden, kernel, bias, targets, weights):
    found = _log_probs(head, hidden, kernel, bias, targets, weights != 0 if head.sparse else None)
    return _weighted(z_loss, weights, *found[:2]), *found


def _weighted(z_loss: float, weights, log_probs, log_z):
    """The loss; its value does not look at what stands where the weight is 0 (it may be -inf or NaN)."""
    return jnp.sum(jnp.where(weights != 0, weights * (z_loss * jnp.square(log_z) - log_probs), 0.0))


def _fused_forward(head, z_loss, hidden, kernel, bias, targets, weights):
    if weights.perturbed:
        raise ValueError("fused_cross_entropy has no gradient by its weights. Use token_log_probs.")
    wanted = tuple(x is not None and x.perturbed for x in (kernel, bias))
    hidden, kernel, bias, targets, weights = (None if x is None else x.value for x in (hidden, kernel, bias, targets, weights))
    rows = head.axes[:2]
    local = rules.shard_map(
        functools.partial(_local_fused, head, z_loss, wanted),
        (*_in_axes(head, bias), rows),
        ((rows,) * 3, *_gradient_axes(head, wanted)),
        TABLE,
    )
    found, *gradients = local(hidden, _narrow(head, kernel), bias, targets, weights)
    return (_weighted(z_loss, weights, *found[:2]), *found), _like(gradients, hidden, kernel, bias)


def _fused_backward(head, z_loss, gradients, cotangents):
    scale = cotangents[0]
    if isinstance(scale, jax.custom_derivatives.SymbolicZero):
        scale = jnp.zeros((), jnp.float32)
    return *(None if g is None else (g.astype(jnp.float32) * scale).astype(g.dtype) for g in gradients), None, None


_cross_entropy.defvjp(_fused_forward, _fused_backward, symbolic_zeros=True)


def _in_axes(head: Head, bias) -> tuple:
    rows = head.axes[:2]
    return (*rows, None), ((None, "vocab")[:: -1 if head.transposed else 1]), () if bias is None else ("vocab",), rows


def _gradient_axes(head: Head, wanted: tuple[bool, ...]) -> tuple:
    """Of the gradients of hidden, kernel and bias as they leave `_local_backward`."""
    kernel = (head.embed, "vocab")[:: -1 if head.transposed else 1] if wanted[0] else ()
    return (*head.axes[:2], None), kernel, ("vocab",) if wanted[1] else ()


def _like(gradients, *arrays) -> list:
    return [None if g is None else g.astype(x.dtype) for g, x in zip(gradients, arrays, strict=True)]


def _local_forward(head: Head, hidden, kernel, bias, targets, asked):
    """One device's rows, over all parts of the vocabulary."""
    product = Product(head, kernel, bias)

    def one_chunk(nothing, chunk):
        return nothing, product.look(chunk[1], product.logits(chunk[0])[0])

    found = over_chunks(head, one_chunk, (), (hidden, targets), asked)[1]
    return tuple(x.reshape(targets.shape) for x in found)


def _local_backward(head: Head, wanted: tuple[bool, ...], hidden, kernel, bias, targets, asked, log_z, d_log_probs, d_log_z):
    """Gradients of one device's rows, over its part of the vocabulary, summed over whoever shares them."""
    product = Product(head, kernel, bias)

    def one_chunk(sums, chunk):
        return product.gradients(sums, chunk[0], *product.logits(chunk[0]), *chunk[1:])

    rows = (hidden, targets, log_z, d_log_probs, d_log_z)
    sums, d_hidden = over_chunks(head, one_chunk, product.zeros(wanted), rows, asked)
    return _summed(head, sums, d_hidden, hidden.shape)


def _local_fused(head: Head, z_loss: float, wanted: tuple[bool, ...], hidden, kernel, bias, targets, weights):
    """Both at once: what is known of each target, and the gradients of `_weighted`."""
    product = Product(head, kernel, bias)

    def one_chunk(sums, chunk):
        hidden, targets, weights = chunk
        logits, slope = product.logits(hidden)
        found = product.look(targets, logits)
        log_z = found[1]
        sums, d_hidden = product.gradients(sums, hidden, logits, slope, targets, log_z, -weights, 2 * z_loss * weights * log_z)
        return sums, (found, d_hidden.astype(hidden.dtype))

    asked = weights != 0 if head.sparse else None
    sums, (found, d_hidden) = over_chunks(head, one_chunk, product.zeros(wanted), (hidden, targets, weights), asked)
    found = tuple(x.reshape(targets.shape) for x in found)
    return found, *_summed(head, sums, d_hidden, hidden.shape)


def _summed(head: Head, sums, d_hidden, shape):
    """One device's part of the gradients -> what `_gradient_axes` says."""
    d_kernel, d_bias = sums
    d_hidden = d_hidden.reshape(shape)
    if head.sharded:
        d_hidden = jax.lax.psum(d_hidden, "tensor")
        d_kernel, d_bias = sum_over_rows(head, d_kernel, 1 if head.transposed else 0), sum_over_rows(head, d_bias, None)
    return d_hidden, d_kernel, d_bias
