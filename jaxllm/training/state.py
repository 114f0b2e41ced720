"""The training state: one small frozen record, born sharded, with a report of what it costs each device."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from jaxllm.parallel import rules
from jaxllm.training.masks import named_axes
from jaxllm.training.optimizers import Optimizer
from jaxllm.training.spikes import Guard

MEBIBYTE = 2**20
Transformation: TypeAlias = Optimizer | optax.GradientTransformation


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """All that changes from one update to the next.

    Attributes:
      step: int32 scalar, updates taken; a skipped update counts.
      params: tree of arrays.
      opt_state: the optimizer's state.
      ema: exponential moving average of the parameters, same tree, in float32 whatever theirs is; or None.
      guard: what spike skipping remembers, or None.
    """

    step: jax.Array
    params: Any
    opt_state: Any
    ema: Any = None
    guard: Guard | None = None


def _build(params: Any, optimizer: Transformation, ema: bool, guard: int | None) -> TrainState:
    average = jax.tree.map(lambda p: jnp.array(p, jnp.float32, copy=True), params) if ema else None
    return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params), average, None if guard is None else Guard.new(guard))


def abstract(
    init_params: Callable[[], Any],
    optimizer: Transformation,
    mesh: Mesh,
    axes: Any,
    *,
    ema: bool = False,
    guard: int | None = 128,
) -> TrainState:
    """The state as ShapeDtypeStructs that carry their shardings; no memory is touched.

    Args:
      init_params: draws the parameters; only traced here.
      optimizer: makes the optimizer's state from the parameters.
      mesh: the mesh; an abstract one will do.
      axes: the tree of the parameters with tuples of logical axis names as leaves.
      ema: whether to keep a moving average of the parameters.
      guard: how many updates spike skipping remembers; None: it is off.

    Raises:
      ValueError: a dim of a parameter does not divide by its mesh axis.
    """
    with rules.under(mesh):
        shapes = jax.eval_shape(lambda: _build(init_params(), optimizer, ema, guard))
    return jax.tree.map(
        lambda s, sharding: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=sharding), shapes, state_shardings(shapes, mesh, axes)
    )


def create(
    init_params: Callable[[], Any],
    optimizer: Transformation,
    mesh: Mesh,
    axes: Any,
    *,
    ema: bool = False,
    guard: int | None = 128,
) -> TrainState:
    """A new state, every leaf of it born in its own place: no device ever holds more than its share. Arguments as for `abstract`."""
    shardings = jax.tree.map(lambda s: s.sharding, abstract(init_params, optimizer, mesh, axes, ema=ema, guard=guard))
    with jax.set_mesh(mesh):
        return jax.jit(lambda: _build(init_params(), optimizer, ema, guard), out_shardings=shardings)()


def from_params(params: Any, optimizer: Transformation, mesh: Mesh, axes: Any, *, ema: bool = False, guard: int | None = 128) -> TrainState:
    """A state at step 0 round parameters that exist already (a fine-tuning run). Arguments as for `abstract`."""
    shapes = abstract(lambda: jax.tree.map(lambda p: jnp.zeros(p.shape, p.dtype), params), optimizer, mesh, axes, ema=ema, guard=guard)
    shardings = jax.tree.map(lambda s: s.sharding, shapes)
    placed = jax.device_put(params, shardings.params)
    with jax.set_mesh(mesh):
        return jax.jit(lambda p: _build(p, optimizer, ema, guard), out_shardings=shardings)(placed)


def state_shardings(state: TrainState, mesh: Mesh, axes: Any) -> TrainState:
    """NamedShardings for a whole state.

    A leaf whose path ends in a parameter's name takes that parameter's axes: all of them when the shapes agree, those that are left when
    one dim was summed away (adafactor's rows and columns). Everything else, counters say, is kept whole on every device.

    Args:
      state: arrays or ShapeDtypeStructs.
      mesh: the mesh.
      axes: tree of logical axis names of the parameters.

    Raises:
      ValueError: a dim does not divide by its mesh axis.
    """
    names = named_axes(axes)
    shapes = {rules.path_name(path): leaf.shape for path, leaf in jax.tree_util.tree_leaves_with_path(state.params)}
    missing = sorted(set(shapes) - set(names))
    if missing:
        raise ValueError(f"Parameter {missing[0]!r} has no logical axes. Give each parameter a tuple of names in `axes`.")

    def one(path, leaf):
        name = rules.path_name(path)
        owner = _owner(name, shapes)
        kept = _axes_left(leaf.shape, shapes[owner], names[owner], rows="v_row" in name) if owner else (None,) * len(leaf.shape)
        return rules.sharding(name, leaf.shape, kept, mesh)

    return jax.tree_util.tree_map_with_path(one, state)


def _owner(name: str, shapes: dict[str, tuple[int, ...]]) -> str | None:
    """The parameter whose name a leaf's path ends in, the longest such name."""
    parts = name.split("/")
    return next((suffix for i in range(len(parts)) if (suffix := "/".join(parts[i:])) in shapes), None)


def _axes_left(shape: tuple[int, ...], full: tuple[int, ...], names: rules.LogicalAxes, rows: bool) -> rules.LogicalAxes:
    """The axes of a leaf that belongs to a parameter of shape `full`; of two equal dims, adafactor's rows have lost the later one."""
    if shape == full:
        return names
    dropped = [d for d in range(len(full)) if full[:d] + full[d + 1 :] == shape]
    if not dropped:
        return (None,) * len(shape)
    d = dropped[-1] if rows else dropped[0]
    return names[:d] + names[d + 1 :]


@dataclasses.dataclass(frozen=True)
class StateReport:
    """What a state costs.

    Attributes:
      num_params: how many numbers are in `params`.
      bytes_per_device: group ("params", "opt_state", "ema", "guard") -> bytes on the fullest device.
      replicated: (name, bytes) of every leaf over 1 MiB that each device keeps whole though a storage axis of the mesh could cut it.
    """

    num_params: int
    bytes_per_device: dict[str, int]
    replicated: list[tuple[str, int]]

    def lines(self) -> list[str]:
        """The report in sentences, for the start-up log."""
        groups = ", ".join(f"{name} {size / MEBIBYTE:,.1f} MiB" for name, size in self.bytes_per_device.items() if size)
        lines = [
            f"parameters: {self.num_params:,}",
            f"state per device: {sum(self.bytes_per_device.values()) / MEBIBYTE:,.1f} MiB ({groups})",
        ]
        return lines + [f"replicated on every device: {name} ({size / MEBIBYTE:,.1f} MiB)" for name, size in self.replicated]


def report(state: TrainState, mesh: Mesh) -> StateReport:
    """Counts parameters, bytes per device and what is left replicated; takes real or abstract states (their leaves carry shardings)."""
    storage = {axis for value in rules.STORED.values() if value for axis in ((value,) if isinstance(value, str) else value)}
    ways = [mesh.shape[axis] for axis in storage if mesh.shape[axis] > 1]
    sizes, replicated = dict.fromkeys(("params", "opt_state", "ema", "guard"), 0), []
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        name, whole = rules.path_name(path), math.prod(leaf.shape) * leaf.dtype.itemsize
        group = name.split("/")[0]
        if group in sizes:
            sizes[group] += math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        if whole > MEBIBYTE and leaf.sharding.is_fully_replicated and any(dim % way == 0 for dim in leaf.shape for way in ways):
            replicated.append((name, whole))
    return StateReport(sum(math.prod(p.shape) for p in jax.tree.leaves(state.params)), sizes, replicated)
