"""Two tables from logical axes to mesh axes, one for what is stored and one for what is computed; nothing else mentions the mesh."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

LogicalAxes = tuple[str | None, ...]
Rules = Mapping[str, str | tuple[str, ...] | None]

# What a parameter, and with it its gradient and its optimizer state, is cut along in memory.
STORED: Rules = {
    "embed": "fsdp",  # D of a weight
    "vocab": "tensor",  # V
    "mlp": "tensor",  # F
    "heads": "tensor",  # N
    "kv_heads": "tensor",  # K
    "head_dim": None,  # H
    "norm": None,  # scales and biases of norms: small, kept whole
    "layers": None,  # the stacked axis of a scan
    "stack": "fsdp",  # same-shape matrices that an optimizer stacks
    "positions": None,  # learned positions
    "rank": None,  # the thin dim of an adapter
    "soft": None,  # soft tokens
    "output": None,  # what a head of scores or classes gives
}

# What an activation, or a weight at the moment of its use, is cut along.
COMPUTE: Rules = {
    "batch": ("replica", "fsdp"),  # B
    "sequence": "context",  # T
    "kv_sequence": None,  # T of gathered keys and values
    "embed": None,
    "vocab": "tensor",
    "mlp": "tensor",
    "heads": "tensor",
    "kv_heads": "tensor",
    "head_dim": None,
    "norm": None,
    "layers": None,
    "positions": None,
    "rank": None,
    "soft": None,
    "output": None,
}

# Dims that may have fewer parts than their mesh axis has devices, where those are a multiple: they stay whole on every device.
FEW = ("kv_heads",)


def spec(axes: LogicalAxes, rules: Rules) -> PartitionSpec:
    """The PartitionSpec of an array whose dims have these logical names (None: never cut).

    Raises:
      KeyError: a name that is not in the table.
    """
    return PartitionSpec(*(None if name is None else rules[name] for name in axes))


def _ways(mesh_axes: str | tuple[str, ...] | None, sizes: Mapping[str, int]) -> int:
    names = (mesh_axes,) if isinstance(mesh_axes, str) else mesh_axes or ()
    return math.prod(sizes[name] for name in names)


def check_divides(name: str, shape: tuple[int, ...], axes: LogicalAxes, sizes: Mapping[str, int], rules: Rules = STORED) -> None:
    """Refuses an array that its mesh axes would not cut into equal parts.

    Raises:
      ValueError: names the array, the dim, the mesh axis and the sizes that would do.
    """
    for dim, (size, logical) in enumerate(zip(shape, axes, strict=True)):
        mesh_axes = None if logical is None else rules[logical]
        ways = _ways(mesh_axes, sizes)
        if size % ways:
            good = [d for d in range(1, ways + 1) if size % d == 0]
            joined = mesh_axes if isinstance(mesh_axes, str) else "*".join(mesh_axes or ())
            larger = f" Or set model.vocab_size={size + -size % ways}: a model may have more ids than its tokenizer."
            raise ValueError(
                f"{name}: dim {dim} ({logical}={size}) does not divide by mesh axis {joined}={ways}. "
                f"Sizes of {joined} that would divide: {', '.join(map(str, good))}.{larger if logical == 'vocab' else ''}"
            )


def without_few(shape: tuple[int, ...], axes: LogicalAxes, sizes: Mapping[str, int], rules: Rules = STORED) -> LogicalAxes:
    """The axes with None for each of `FEW` whose mesh axis has a multiple of the dim's size."""

    def few(size: int, logical: str | None) -> bool:
        ways = _ways(rules[logical], sizes) if logical in FEW else 1
        return ways > size and ways % size == 0

    return tuple(None if few(size, logical) else logical for size, logical in zip(shape, axes, strict=True))


def sharding(name: str, shape: tuple[int, ...], axes: LogicalAxes, mesh: Mesh, rules: Rules = STORED) -> NamedSharding:
    """Where an array lies whose dims have these logical names.

    Raises:
      ValueError: a dim does not divide (see `check_divides`).
    """
    axes = without_few(shape, axes, dict(mesh.shape), rules)
    check_divides(name, shape, axes, dict(mesh.shape), rules)
    return NamedSharding(mesh, spec(axes, rules))


def shardings(axes_tree: Any, mesh: Mesh, abstract: Any, rules: Rules = STORED) -> Any:
    """NamedShardings for a tree of arrays, see `sharding`.

    Args:
      axes_tree: a tree whose leaves are tuples of logical axis names.
      mesh: the mesh.
      abstract: the same tree with arrays or ShapeDtypeStructs as leaves.
      rules: `STORED` or `COMPUTE`.
    """
    return jax.tree_util.tree_map_with_path(
        lambda path, axes, array: sharding(path_name(path), array.shape, axes, mesh, rules),
        axes_tree,
        abstract,
        is_leaf=lambda x: isinstance(x, tuple) and all(isinstance(a, str | None) for a in x),
    )


def path_name(path: tuple[Any, ...]) -> str:
    """A tree path as a/b/c, the way parameters are named everywhere."""
    return "/".join(str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in path)


def ambient_mesh() -> jax.sharding.AbstractMesh | None:
    """The mesh set by `jax.set_mesh` round the present trace, or None outside of one."""
    mesh = jax.sharding.get_abstract_mesh()
    return None if mesh.empty else mesh


def under(mesh: Mesh | jax.sharding.AbstractMesh) -> Any:
    """A context in which `mesh` is the ambient one; an abstract mesh serves for shapes alone."""
    return jax.sharding.use_abstract_mesh(mesh) if isinstance(mesh, jax.sharding.AbstractMesh) else jax.set_mesh(mesh)


def platform() -> str:
    """What the present trace is compiled for, "cpu", "gpu" or "tpu": the ambient mesh's devices, else JAX's own.

    They differ when a program is compiled for devices that are not there.
    """
    mesh = ambient_mesh()
    device = None if mesh is None else mesh.abstract_device
    return jax.default_backend() if device is None else device.platform


def device_kind() -> str:
    """The kind of devices that the present trace is compiled for, as JAX calls it; found as `platform` finds its own."""
    mesh = ambient_mesh()
    device = None if mesh is None else mesh.abstract_device
    return jax.devices()[0].device_kind if device is None else device.device_kind


def axis_size(name: str) -> int:
    """How many ways the ambient mesh cuts along this mesh axis (1 outside of a mesh)."""
    mesh = ambient_mesh()
    return 1 if mesh is None else mesh.shape[name]


def mesh_axes(logical: str, rules: Rules = COMPUTE) -> tuple[str, ...]:
    """The mesh axes that a dim with this logical name is cut along."""
    names = rules[logical]
    return (names,) if isinstance(names, str) else names or ()


def ways(logical: str, rules: Rules = COMPUTE) -> int:
    """How many ways the ambient mesh cuts a dim with this logical name (1 outside of a mesh)."""
    mesh = ambient_mesh()
    return 1 if mesh is None else _ways(rules[logical], dict(mesh.shape))


def constrain(x: jax.Array, *axes: str | None, rules: Rules = COMPUTE) -> jax.Array:
    """Pins the sharding of an activation by the logical names of its dims; outside of a mesh or inside a manual region it does nothing."""
    mesh = ambient_mesh()
    if mesh is None or mesh.size == 1 or not all(t == jax.sharding.AxisType.Auto for t in mesh.axis_types):
        return x
    return jax.lax.with_sharding_constraint(x, spec(without_few(x.shape, axes, dict(mesh.shape), rules), rules))


def shard_map(f: Callable, in_axes: Any, out_axes: Any, rules: Rules = COMPUTE) -> Callable:
    """`jax.shard_map` over the ambient mesh with logical names for specs; outside of a mesh it is `f` itself.

    Every custom kernel is called through this: left to itself, the partitioner gathers a custom call's arguments in silence.

    Args:
      f: the function of the local blocks.
      in_axes: a tuple with one tuple of logical names (or a tree of them) for each argument.
      out_axes: the same for the result.
      rules: the table to read the names in.
    """
    mesh = ambient_mesh()
    if mesh is None or mesh.size == 1:
        return f

    def specs(tree):
        return jax.tree.map(
            lambda axes: spec(axes, rules), tree, is_leaf=lambda x: isinstance(x, tuple) and all(isinstance(a, str | None) for a in x)
        )

    return jax.shard_map(f, mesh=mesh, in_specs=tuple(specs(a) for a in in_axes), out_specs=specs(out_axes), check_vma=False)
