"""Kernels in four or eight bits: nf4 with double quantisation and int8, and the product in which no whole copy of them outlives its use.

A quantised kernel is read and never trained: gradients go through the activations alone.
"""

import dataclasses
import difflib
import itertools
import math
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from jaxllm.parallel import rules

# QLoRA (arXiv 2305.14314), appendix E: quantiles of the normal distribution scaled into [-1, 1], with an exact zero.
LEVELS = (
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334),
    *(-0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
    *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
)
BLOCK = 64  # numbers that share a scale
SCALES_BLOCK = 256  # scales that share one of their own


@dataclass(frozen=True)
class Quantized:
    """A kernel in few bits; a pytree of arrays, which may all have one more dim in front: stacked layers."""

    kind: ClassVar[str]

    def astype(self, dtype: Any) -> jax.Array:
        """The kernel, dequantised."""
        return dequantize(self, dtype)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the kernel."""
        raise NotImplementedError


@partial(jax.tree_util.register_dataclass, data_fields=["codes", "scales", "steps", "offset"], meta_fields=["along"])
@dataclass(frozen=True)
class NF4(Quantized):
    """4-bit NormalFloat in blocks of 64, whose scales are 8-bit integers in blocks of 256 round their mean (section 3).

    4 + 8 / 64 + 32 / (64 * 256) = 4.127 bits a number. The paper has 8-bit floats for the scales; torchao has integers as here.

    Attributes:
      codes: uint8, the kernel's shape with the dim `along` halved: in a block of 64, number i lies in the low four bits of byte i, number
        i + 32 in the high ones.
      scales: int8, the kernel's shape with the dim `along` divided by 64.
      steps: float32 [scales.size / 256], rounded up: what a scale's unit is worth, in row-major order.
      offset: float32 [], the mean scale.
      along: the dim in which blocks run, counted from the end, so that stacked layers do not change it.
    """

    kind: ClassVar[str] = "nf4"
    codes: jax.Array
    scales: jax.Array
    steps: jax.Array
    offset: jax.Array
    along: int

    @property
    def shape(self) -> tuple[int, ...]:
        shape = list(self.codes.shape)
        shape[self.along] *= 2
        return tuple(shape)


@partial(jax.tree_util.register_dataclass, data_fields=["codes", "scales"], meta_fields=[])
@dataclass(frozen=True)
class Int8(Quantized):
    """8-bit integers, one scale for each output channel.

    Attributes:
      codes: int8, of the kernel's shape.
      scales: float32, the kernel's shape with 1 for the dims that are summed over.
    """

    kind: ClassVar[str] = "int8"
    codes: jax.Array
    scales: jax.Array

    @property
    def shape(self) -> tuple[int, ...]:
        return self.codes.shape


def _to_nf4(kernel: jax.Array, along: tuple[int, ...]) -> NF4:
    (dim,) = along
    if kernel.shape[dim] % BLOCK:
        raise ValueError(
            f"A kernel of shape {kernel.shape} cannot be nf4: blocks of {BLOCK} run along its dim {dim}, and {kernel.shape[dim]} does not"
            f" divide by {BLOCK}. Choose int8, which divides any."
        )
    dim %= kernel.ndim
    blocks = kernel.astype(jnp.float32).reshape(*kernel.shape[:dim], -1, BLOCK, *kernel.shape[dim + 1 :])
    largest = jnp.max(jnp.abs(blocks), dim + 1)
    unit = blocks / jnp.expand_dims(jnp.where(largest == 0, 1, largest), dim + 1)
    codes = jnp.zeros(unit.shape, jnp.uint8)
    for low, high in itertools.pairwise(LEVELS):  # how many of the borders between levels lie below
        codes += (unit > (low + high) / 2).astype(jnp.uint8)
    first, second = jnp.split(codes, 2, dim + 1)
    packed = (first | second << 4).reshape(*kernel.shape[:dim], -1, *kernel.shape[dim + 1 :])
    return NF4(packed, *_to_scales(largest), along=dim - kernel.ndim)


def _to_scales(largest: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Double quantisation: int8 scales, what their units are worth in each block of 256, and their mean."""
    offset = jnp.mean(largest)
    flat = jnp.pad((largest - offset).reshape(-1), (0, -largest.size % SCALES_BLOCK)).reshape(-1, SCALES_BLOCK)
    steps = jnp.max(jnp.abs(flat), -1) / 127
    scales = jnp.round(flat / jnp.where(steps == 0, 1, steps)[:, None]).astype(jnp.int8)
    return scales.reshape(-1)[: largest.size].reshape(largest.shape), steps, offset


def _from_nf4(record: NF4) -> jax.Array:
    if record.offset.ndim:  # stacked layers
        return jax.vmap(_from_nf4)(record)
    dim, shape = record.codes.ndim + record.along, record.codes.shape
    bytes_ = record.codes.reshape(*shape[:dim], -1, BLOCK // 2, *shape[dim + 1 :])
    unit = jnp.concatenate([_level(bytes_ & 15), _level(bytes_ >> 4)], dim + 1)
    steps = jnp.repeat(record.steps, SCALES_BLOCK)[: record.scales.size].reshape(record.scales.shape)
    largest = record.scales.astype(jnp.float32) * steps + record.offset
    return (unit * jnp.expand_dims(largest, dim + 1)).reshape(record.shape)


def _level(codes: jax.Array) -> jax.Array:
    """LEVELS[codes], uint8 in 0..15, exact: four rounds of choosing one of two by a bit, on the floats' own bits.

    A table's gather is slow on accelerators, and `where` makes an array of every constant, which a scan keeps: L kernels' worth of them.
    """
    found: list[Any] = list(np.asarray(LEVELS, np.float32).view(np.int32))
    for bit in range(4):
        mask = -(codes >> bit & 1).astype(jnp.int32)  # all ones or none
        found = [mask & (low ^ high) ^ low for low, high in zip(found[::2], found[1::2], strict=True)]
    return jax.lax.bitcast_convert_type(found[0], jnp.float32)


def _to_int8(kernel: jax.Array, along: tuple[int, ...]) -> Int8:
    kernel = kernel.astype(jnp.float32)
    scales = jnp.max(jnp.abs(kernel), along, keepdims=True) / 127
    return Int8(jnp.round(kernel / jnp.where(scales == 0, 1, scales)).astype(jnp.int8), scales)


def _from_int8(record: Int8) -> jax.Array:
    return record.codes.astype(jnp.float32) * record.scales


KINDS: dict[str, tuple[Any, Any]] = {"nf4": (_to_nf4, _from_nf4), "int8": (_to_int8, _from_int8)}


def known(kind: str) -> str:
    """The kind itself, if it is one.

    Raises:
      ValueError: it is none; the nearest and all are named.
    """
    if kind not in KINDS:
        near = difflib.get_close_matches(str(kind), KINDS, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"Unknown kind of quantization {kind!r}. Choose one of: {', '.join(KINDS)}.{hint}")
    return kind


@partial(jax.jit, static_argnames=("kind", "along"))
def quantize(kernel: jax.Array, kind: str, along: tuple[int, ...]) -> Quantized:
    """A kernel in few bits.

    Args:
      kernel: floats of any rank.
      kind: "nf4" (QLoRA, arXiv 2305.14314) or "int8".
      along: the dims whose numbers share a scale: for nf4 one dim, in blocks of 64; for int8 all that the product sums over.

    Raises:
      ValueError: an unknown kind, or a dim that does not divide into blocks.
    """
    return KINDS[known(kind)][0](kernel, along)


def dequantize(record: Quantized, dtype: jnp.dtype | str) -> jax.Array:
    """The kernel again, computed in float32 and cast to `dtype`; it is off by at most its rounding."""
    return KINDS[record.kind][1](record).astype(dtype)


def is_quantized(leaf: Any) -> bool:
    """For `jax.tree.map(is_leaf=...)`."""
    return isinstance(leaf, Quantized)


def whole(tree: Any, dtype: jnp.dtype | str = "float32") -> Any:
    """A tree whose quantised kernels are plain arrays again."""
    return jax.tree.map(lambda leaf: dequantize(leaf, dtype) if is_quantized(leaf) else leaf, tree, is_leaf=is_quantized)


def bits(record: Quantized) -> float:
    """Bits in memory for each number of the kernel."""
    return 8 * sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(record)) / math.prod(record.shape)


def logical_axes(record: Quantized, axes: rules.LogicalAxes) -> Any:
    """The record with logical names for its arrays' dims: codes lie as the kernel would, scales too but for the dims they are shared in.

    What must divide is the codes: half the kernel's dim `along` by that dim's mesh axis (nf4), every other dim as for the kernel itself.

    Args:
      record: of arrays or of ShapeDtypeStructs.
      axes: of the kernel, with "layers" in front where they are stacked.
    """
    record_: Any = record
    stacked = axes[:1] if axes[0] == "layers" else ()
    sizes = zip(record_.scales.shape, record.shape, axes, strict=True)
    scales = tuple(name if size == whole else None for size, whole, name in sizes)
    if isinstance(record, NF4):
        return dataclasses.replace(record_, codes=axes, scales=scales, steps=(*stacked, None), offset=stacked)
    return dataclasses.replace(record_, codes=axes, scales=scales)


def weight(record: Quantized, axes: rules.LogicalAxes, dtype: str) -> jax.Array:
    """The kernel as its product needs it: the codes are gathered over `fsdp`, a quarter of the bytes of bfloat16, and then dequantised."""
    named = logical_axes(record, axes)

    def gathered(array, axes):
        return rules.constrain(rules.constrain(array, *axes, rules=rules.STORED), *axes)

    record = jax.tree.map(gathered, record, named)
    return rules.constrain(dequantize(record, dtype), *axes)


@partial(jax.custom_vjp, nondiff_argnums=(0, 3, 4))
def project(spec: str, x: jax.Array, record: Quantized, axes: rules.LogicalAxes, dtype: str) -> jax.Array:
    """`einsum(spec, x, kernel)` with a quantised kernel, which has no gradient; for the backward pass its codes alone are kept.

    Of layers that are not scanned, barriers see to it that one kernel at a time is dequantised; XLA:CPU of jax 0.10 does not heed them.

    Args:
      spec: an einsum.
      x: activations in `dtype`.
      record: the kernel.
      axes: logical names of the kernel's dims.
      dtype: in which the product is computed.
    """
    record, x = jax.lax.optimization_barrier((record, x))  # else XLA may dequantise the kernels of many layers at once
    return jnp.einsum(spec, x, weight(record, axes, dtype))


def _project_forward(spec, x, record, axes, dtype):
    return project(spec, x, record, axes, dtype), record


def _project_backward(spec, axes, dtype, record, cotangent):
    operands, y = spec.split("->")
    a, b = operands.split(",")
    record, cotangent = jax.lax.optimization_barrier((record, cotangent))  # else XLA keeps the kernel that the forward pass made
    return jnp.einsum(f"{y},{b}->{a}", cotangent, weight(record, axes, dtype)), None


project.defvjp(_project_forward, _project_backward)
