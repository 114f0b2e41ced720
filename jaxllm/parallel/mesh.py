"""Devices into a named mesh: six axes, always all there, any of them may be 1."""

import math
from collections.abc import Mapping, Sequence

import jax
import numpy as np
from jax.sharding import AxisType, Mesh

# The order is the order of the devices: `replica` is the outermost (it crosses DCN), `tensor` the innermost (it needs the fastest links).
AXES = ("replica", "fsdp", "stage", "expert", "context", "tensor")
LATER = ("stage", "expert")  # named, so that no config has to change when they come


def resolve_sizes(sizes: Mapping[str, int], num_devices: int) -> dict[str, int]:
    """Fills in the one axis that is -1 and checks that the product is the number of devices.

    Args:
      sizes: axis name -> size; an axis left out is 1; at most one may be -1 (it takes what is left).
      num_devices: how many devices the mesh must cover.

    Returns:
      A size >= 1 for every name in `AXES`, in their order.

    Raises:
      ValueError: an unknown axis, two -1, an axis that does not exist yet, or a product that is not `num_devices`.
    """
    unknown = sorted(set(sizes) - set(AXES))
    if unknown:
        raise ValueError(f"Unknown mesh axis {unknown[0]!r}. Choose from: {', '.join(AXES)}.")
    full = {axis: int(sizes.get(axis, 1)) for axis in AXES}
    wild = [axis for axis, size in full.items() if size == -1]
    bad = [axis for axis, size in full.items() if size < 1 and size != -1]
    if bad:
        raise ValueError(f"parallel.{bad[0]}={full[bad[0]]} is not a size. Give a number >= 1, or -1 for what is left.")
    if len(wild) > 1:
        raise ValueError(f"parallel.{wild[0]} and parallel.{wild[1]} are both -1. Only one axis can take what is left.")
    known = math.prod(size for size in full.values() if size != -1)
    described = " x ".join(f"{axis}={size}" for axis, size in full.items() if size != 1) or "1"
    if wild and num_devices % known == 0:
        full[wild[0]] = num_devices // known
    elif wild or known != num_devices:
        divisors = [d for d in range(1, num_devices + 1) if num_devices % d == 0]
        raise ValueError(
            f"The mesh {described} does not fit {num_devices} devices. Sizes must multiply to {num_devices}"
            f" (divisors: {divisors}); set one axis, parallel.fsdp say, to -1 to let it take what is left."
        )
    for axis in LATER:
        if full[axis] != 1:
            raise ValueError(f"parallel.{axis}={full[axis]} is not supported yet. Use fsdp, tensor, context or replica instead.")
    return full


def make_mesh(sizes: Mapping[str, int] | None = None, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh over all six axes in Auto mode; without sizes, everything there is goes to `fsdp`.

    Args:
      sizes: as for `resolve_sizes`; None means {"fsdp": -1}.
      devices: the devices to use; None means all of them, laid out by `jax.make_mesh` to follow the physical links.
    """
    count = len(devices) if devices is not None else jax.device_count()
    full = resolve_sizes({"fsdp": -1} if sizes is None else sizes, count)
    types = (AxisType.Auto,) * len(AXES)
    shape = tuple(full.values())
    if devices is not None:
        return Mesh(np.asarray(devices).reshape(shape), AXES, axis_types=types)
    return jax.make_mesh(shape, AXES, axis_types=types)
