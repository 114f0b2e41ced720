"""The parts of a block that are not attention: weights brought to their use, norms, look-up, the MLP."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name

from jaxllm.models.adapted import entries, entry
from jaxllm.models.config import ModelConfig
from jaxllm.models.tokens import Tokens
from jaxllm.ops import quantize
from jaxllm.ops.products import project
from jaxllm.ops.quantize import Quantized
from jaxllm.parallel import rules

# The logical names of every parameter's dims, by the last two parts of its name; a scanned layer has "layers" in front.
AXES: dict[str, rules.LogicalAxes] = {
    "embedding/tokens": ("vocab", "embed"),
    "embedding/positions": ("positions", "embed"),
    "head/kernel": ("embed", "vocab"),
    "query/kernel": ("embed", "heads", "head_dim"),
    "query/bias": ("heads", "head_dim"),
    "key/kernel": ("embed", "kv_heads", "head_dim"),
    "key/bias": ("kv_heads", "head_dim"),
    "value/kernel": ("embed", "kv_heads", "head_dim"),
    "value/bias": ("kv_heads", "head_dim"),
    "output/kernel": ("heads", "head_dim", "embed"),
    "output/bias": ("norm",),
    "gate/kernel": ("embed", "mlp"),
    "gate/bias": ("mlp",),
    "up/kernel": ("embed", "mlp"),
    "up/bias": ("mlp",),
    "down/kernel": ("mlp", "embed"),
    "down/bias": ("norm",),
}
INPUTS = {"output": 2}  # how many leading dims of a kernel are summed over, where it is not one
PROJECTION_NORM_AXES: dict[str, rules.LogicalAxes] = {"query_norm": ("heads", "head_dim"), "key_norm": ("kv_heads", "head_dim")}
NORM_AXES: rules.LogicalAxes = ("norm",)  # every other scale and bias of a norm

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "silu": jax.nn.silu,
    "gelu": partial(jax.nn.gelu, approximate=False),
    "gelu_tanh": partial(jax.nn.gelu, approximate=True),
    "relu": jax.nn.relu,
    "relu2": lambda x: jnp.square(jax.nn.relu(x)),
}


@dataclass(frozen=True)
class Compute:
    """How a forward is computed, as far as its modules have to know: static, and without influence on the parameters.

    Attributes:
      dtype: of activations and of weights at their use.
      param_dtype: of the parameters in memory.
      attention: the kernel, a name for `ops.attention.attention`.
      context: how keys and values travel along the mesh axis `context`: "gather" or "ring".
      kind: "causal", "bidirectional" or "prefix".
      regather: weights that were gathered over the mesh are gathered again for the backward pass, where no remat policy sees to it.
      scanned: the module is called in the body of a scan.
      fresh: the cache, where there is one, was empty before: the tokens attend to one another alone, by the kernel of training.
    """

    dtype: str = "float32"
    param_dtype: str = "float32"
    attention: str = "auto"
    context: str = "gather"
    kind: str = "causal"
    regather: bool = False
    scanned: bool = False
    fresh: bool = False


def _sharded() -> bool:
    mesh = rules.ambient_mesh()
    return mesh is not None and mesh.size > 1


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def _gathered(kernel: jax.Array, axes: rules.LogicalAxes) -> jax.Array:
    return _gathered_forward(kernel, axes)[0]


def _gathered_forward(kernel, axes):  # of plain constraints: a remat policy sees the primitives in here
    return rules.constrain(rules.constrain(kernel, *axes, rules=rules.STORED), *axes), None


def _gathered_backward(axes, _, cotangent):
    return (rules.constrain(cotangent, *axes, rules=rules.STORED),)


_gathered.defvjp(_gathered_forward, _gathered_backward)


def weight(kernel: jax.Array | Quantized, axes: rules.LogicalAxes, dtype: str) -> jax.Array:
    """A stored weight as its product needs it: in the compute dtype, gathered over `fsdp`; its gradient goes back cut as it is stored.

    The cast comes first and is pinned to the stored cut, so that half the bytes travel in bfloat16: left to itself, the partitioner gathers
    and then casts. The gathered copy is named "weight": no remat policy keeps it. A quantised weight is dequantised, and has no gradient.
    """
    if isinstance(kernel, Quantized):
        return quantize.weight(kernel, axes, dtype)
    kernel = kernel.astype(dtype)
    return checkpoint_name(_gathered(kernel, axes), "weight") if _sharded() else kernel


def again(f: Callable, compute: Compute) -> Callable:
    """A chain of elementwise steps whose inside the backward pass computes again: cheaper than to keep its intermediates.

    Only a scan keeps the compiler from finding the same steps in the forward pass, and keeping them after all.
    """
    return jax.checkpoint(f, prevent_cse=not compute.scanned)


class Dense(nn.Module):
    """einsum(x, kernel) + bias with a kernel of any rank, and what adapters make of it (`adapted.Adapter`).

    The kernel may be given as a `Quantized` one.

    Attributes:
      equation: the einsum, for example "btd,dnh->btnh".
      shape: of the kernel.
      axes: logical names of the kernel's dims.
      std: standard deviation of the initial kernel.
      bias: shape of the bias, or None for none; it is added to the last dims of the result.
      before: elementwise steps that make x of what is given; the backward pass computes x again, only their operands are kept.
      name: also what the remat policies call the result.
    """

    equation: str
    shape: tuple[int, ...]
    axes: rules.LogicalAxes
    compute: Compute
    std: float
    bias: tuple[int, ...] | None = None
    before: Callable[..., jax.Array] | None = None

    @nn.compact
    def __call__(self, *operands: jax.Array, tokens: Tokens | None = None) -> jax.Array:
        kernel, adapters = self._kernel(), entries(self)

        def product(kernel, adapters, tokens, *operands):
            (x,) = operands if self.before is None else (self.before(*operands),)
            for adapter in adapters:
                x = adapter.into(x)
            y = self._product(x, kernel)
            for adapter in adapters:
                y = adapter.product(y, x, self, kernel, tokens)
            return y

        is_again = self.before is not None or (self.compute.regather and _sharded())
        y = (again(product, self.compute) if is_again else product)(kernel, adapters, tokens if adapters else None, *operands)
        if self.bias is not None:  # added in float32, so that its gradient, a sum over all tokens, is summed in float32
            bias = self.param("bias", nn.initializers.zeros, self.bias, self.compute.param_dtype)
            y = (y.astype(jnp.float32) + bias.astype(jnp.float32)).astype(self.compute.dtype)
        y = checkpoint_name(y, str(self.name))
        for adapter in adapters:
            y = adapter.out(y.astype(jnp.float32)).astype(self.compute.dtype)
        return y

    def _kernel(self) -> Any:
        given: Any = self.get_variable("params", "kernel")
        if isinstance(given, Quantized):  # Flax's own look-up would compare its arrays with the shape of a plain one
            assert given.shape == self.shape, (given.shape, self.shape)
            return given
        return self.param("kernel", nn.initializers.normal(self.std), self.shape, self.compute.param_dtype)

    def _product(self, x: jax.Array, kernel: Any) -> jax.Array:
        if isinstance(kernel, Quantized):
            return quantize.project(self.equation, x, kernel, self.axes, self.compute.dtype)
        return project(self.equation, x, weight(kernel, self.axes, self.compute.dtype))


class Norm(nn.Module):
    """RMSNorm or LayerNorm over the last dims, computed in float32.

    Attributes:
      shape: the dims that are normalised together, (D,), (H,) or (N, H), and the shape of scale and bias.
    """

    config: ModelConfig
    compute: Compute
    shape: tuple[int, ...]

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        config, param_dtype = self.config, self.compute.param_dtype
        start = nn.initializers.zeros if config.norm_plus_one else nn.initializers.ones
        scale, bias = self.param("scale", start, self.shape, param_dtype).astype(jnp.float32), None
        if config.norm == "layernorm" and config.norm_bias:
            bias = self.param("bias", nn.initializers.zeros, self.shape, param_dtype).astype(jnp.float32)

        def normalized(x, scale, bias, adapters):
            dims = tuple(range(-len(self.shape), 0))
            y = x.astype(jnp.float32)
            if config.norm == "layernorm":
                y = y - jnp.mean(y, dims, keepdims=True)
            y = y * jax.lax.rsqrt(jnp.mean(jnp.square(y), dims, keepdims=True) + config.norm_epsilon)
            y = y * (1 + scale if config.norm_plus_one else scale)
            y = y if bias is None else y + bias
            for adapter in adapters:
                y = adapter.out(y)
            return y.astype(self.compute.dtype)

        return again(normalized, self.compute)(x, scale, bias, entries(self))


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _read(block: jax.Array, rows: jax.Array, dtype: str, axis: str) -> jax.Array:
    """Rows of a table whose columns are cut over a mesh axis: gathered in `dtype`; the gradient is summed in float32 and goes back cut."""
    block = jax.lax.all_gather(block.astype(dtype), axis, axis=1, tiled=True)
    return jnp.take(block, rows, axis=0, mode="fill", fill_value=0)


def _read_forward(block, rows, dtype, axis):
    return _read(block, rows, dtype, axis), (block, rows)


def _read_backward(dtype, axis, saved, cotangent):
    block, rows = saved
    whole = jnp.zeros((block.shape[0], cotangent.shape[-1]), jnp.float32).at[rows].add(cotangent.astype(jnp.float32), mode="drop")
    return jax.lax.psum_scatter(whole, axis, scatter_dimension=1, tiled=True).astype(block.dtype), None


_read.defvjp(_read_forward, _read_backward)


def look_up(table: jax.Array, index: jax.Array, dtype: str, axes: rules.LogicalAxes = ("vocab", "embed")) -> jax.Array:
    """Rows of a stored table, which may be cut over both dims; an index outside of it gives NaN.

    On a mesh every device reads what its part of the rows holds, and the parts are summed. D is gathered over `fsdp` for the read, in
    `dtype`, and the gradient, which is as large as the table, is scattered back over `fsdp` instead of being kept whole on every device.

    Args:
      table: [V, D].
      index: int [B, T].
      dtype: of the result.
      axes: logical names of the table's dims, as it is stored.

    Returns:
      [B, T, D].
    """
    size = table.shape[0]
    if not _sharded():
        return jnp.take(table, jnp.where(index < 0, size, index), axis=0).astype(dtype)
    row_axis, embed_axis = (None if name is None else rules.STORED[name] for name in axes)

    def local(block, index):
        own = index if row_axis is None else index - jax.lax.axis_index(row_axis) * block.shape[0]
        own = jnp.where((own < 0) | (index >= size), block.shape[0], own)  # a negative index would count from the end
        rows = _read(block, own, dtype, embed_axis)
        return rows if row_axis is None else jax.lax.psum(rows, row_axis)

    specs = rules.spec(axes, rules.STORED), rules.spec(("batch", "sequence"), rules.COMPUTE)
    out = rules.spec(("batch", "sequence", "embed"), rules.COMPUTE)
    rows = jax.shard_map(local, mesh=rules.ambient_mesh(), in_specs=specs, out_specs=out, check_vma=False)(table, index)
    return jnp.where(((index >= 0) & (index < size))[..., None], rows, jnp.nan)


class Embedding(nn.Module):
    """Token embedding, scaled where the family does, plus learned positions where it has them."""

    config: ModelConfig
    compute: Compute

    @nn.compact
    def __call__(self, tokens: jax.Array, positions: jax.Array) -> jax.Array:
        config, compute = self.config, self.compute
        std = 0.02 if config.init_std is None else config.init_std
        table = self.param("tokens", nn.initializers.normal(std), (config.vocab_size, config.width), compute.param_dtype)
        soft, index = entry(self, "prompt"), tokens - config.vocab_size
        if soft is None:
            x = look_up(table, tokens, compute.dtype)
        else:
            words = look_up(table, jnp.where(index < 0, tokens, 0), compute.dtype)
            x = jnp.where((index < 0)[..., None], words, soft.vectors(index, config.width, compute.dtype))
        if config.scale_embeddings:
            x = x * jnp.asarray(math.sqrt(config.width), compute.dtype)
        if config.positions == "learned":
            learned = self.param("positions", nn.initializers.normal(std), (config.max_positions, config.width), compute.param_dtype)
            x = x + look_up(learned, positions, compute.dtype, AXES["embedding/positions"])
        return rules.constrain(x, "batch", "sequence", "embed")


def logical_axes(path: tuple[str, ...], rank: int) -> rules.LogicalAxes:
    """The logical names of the dims of the parameter at this path of the tree.

    Raises:
      KeyError: a parameter that is not in the table.
    """
    name = "/".join(path[-2:])
    if path[-2].endswith("_norm"):
        axes = PROJECTION_NORM_AXES.get(path[-2], NORM_AXES) if rank - ("scanned" in path) == 2 else NORM_AXES
    else:
        axes = AXES[name]
    return ("layers", *axes) if "scanned" in path else axes


def standard_deviations(config: ModelConfig, fan_in: int) -> tuple[float, float]:
    """Initial standard deviation of a matrix that reads the residual stream, and of one that writes to it (GPT-2 paper, section 2.3)."""
    std = fan_in**-0.5 if config.init_std is None else config.init_std
    return std, std / math.sqrt(2 * config.num_layers)


class MLP(nn.Module):
    """down(activation(gate(x)) * up(x)), or down(activation(up(x))): [B, T, D] -> [B, T, D]."""

    config: ModelConfig
    compute: Compute

    @nn.compact
    def __call__(self, x: jax.Array, tokens: Tokens | None = None) -> jax.Array:
        config, D, F = self.config, self.config.width, self.config.mlp_width
        act = ACTIVATIONS[config.activation]
        inner = (F,) if config.mlp_bias else None
        std, _ = standard_deviations(config, D)
        _, std_out = standard_deviations(config, F)
        parts = [Dense("btd,df->btf", (D, F), AXES["up/kernel"], self.compute, std, inner, name="up")(x, tokens=tokens)]
        if config.gated_mlp:
            parts.append(Dense("btd,df->btf", (D, F), AXES["gate/kernel"], self.compute, std, inner, name="gate")(x, tokens=tokens))

        def activated(up, gate=None):
            return rules.constrain(act(up) if gate is None else act(gate) * up, "batch", "sequence", "mlp")

        out = (D,) if config.mlp_bias else None
        return Dense("btf,fd->btd", (F, D), AXES["down/kernel"], self.compute, std_out, out, activated, name="down")(*parts, tokens=tokens)
