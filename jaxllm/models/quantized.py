"""A base whose linear layers are quantised: made kernel by kernel, and cut over a mesh as the kernels are."""

from typing import Any

import jax

from jaxllm.models.adapted import Params
from jaxllm.models.layers import AXES, INPUTS, logical_axes
from jaxllm.models.model import Model
from jaxllm.ops import quantize
from jaxllm.ops.quantize import is_quantized
from jaxllm.parallel import rules


def along(name: str, kind: str) -> tuple[int, ...]:
    """The dims of a linear layer's kernel that share a scale.

    nf4's blocks run along D, the one dim that every kernel has and no mesh axis cuts at its use: there no block lies on two devices.
    """
    axes = AXES[f"{name}/kernel"]
    return (axes.index("embed"),) if kind == "nf4" else tuple(range(INPUTS.get(name, 1)))


def quantize_leaf(name: str, leaf: Any, kind: str) -> Any:
    """A parameter as a quantised base has it: kernels of the layers as records, on their devices; all else as it is.

    Args:
      name: "layers/scanned/0/attention/query/kernel"; stacked layers are quantised one after the other.
      leaf: the parameter.
      kind: "nf4" or "int8".

    Raises:
      ValueError: see `quantize.quantize`.
    """
    parts = name.split("/")
    if parts[0] != "layers" or parts[-1] != "kernel":
        return leaf
    dims = along(parts[-2], quantize.known(kind))

    def one(kernel):
        return quantize.quantize(kernel, kind, dims)

    make = (lambda leaf: jax.lax.map(one, leaf)) if "scanned" in parts else one
    sharding = getattr(leaf, "sharding", None)
    if isinstance(leaf, jax.core.Tracer) or not isinstance(sharding, jax.sharding.NamedSharding):
        return make(leaf)
    abstract = jax.eval_shape(make, leaf)
    axes = quantize.logical_axes(abstract, logical_axes(tuple(parts), leaf.ndim))
    return jax.jit(make, out_shardings=_lie(name, axes, sharding.mesh, abstract))(leaf)


def _lie(name: str, axes: Any, mesh: Any, abstract: Any) -> Any:
    return rules.shardings({name: axes}, mesh, {name: abstract})[name]


def quantize_params(params: Params, kind: str, *, free: bool = False) -> Params:
    """The parameters with every linear layer of the blocks quantised; embeddings, head, norms and biases stay as they are.

    Args:
      params: of a model, in either layout of the layers.
      kind: "nf4" or "int8".
      free: each kernel's memory is given back as soon as its record is there, so that beside what is made there is one kernel at a time;
        `params` cannot be used afterwards.

    Raises:
      ValueError: see `quantize.quantize`.
    """

    def one(path, leaf):
        record = quantize_leaf(rules.path_name(path), leaf, kind)
        if free and is_quantized(record):
            jax.block_until_ready(record)
            leaf.delete()
        return record

    return jax.tree_util.tree_map_with_path(one, params)


def abstract(model: Model, kind: str) -> Params:
    """A quantised base as ShapeDtypeStructs."""
    return jax.eval_shape(lambda params: quantize_params(params, kind), model.abstract())


def axes(model: Model, kind: str) -> Params:
    """Its logical axes; `rules.shardings(axes(...), mesh, abstract(...))` is where it lies."""

    def one(record, axes):
        return quantize.logical_axes(record, axes) if is_quantized(record) else axes

    return jax.tree.map(one, abstract(model, kind), model.axes(), is_leaf=is_quantized)
