"""TPU slices by name: what their chips are, and their devices as the compiler knows them, without having one."""

import contextlib
import difflib
import importlib.util
import math
import os
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from jax.sharding import AxisType, Mesh

from jaxllm.parallel.mesh import AXES, resolve_sizes

GiB = 1 << 30


class Chip(NamedTuple):
    """One generation of TPU.

    Attributes:
      torus: dims of its network.
      devices: JAX devices in a chip.
      hbm: bytes of a device's memory that a program can have, as libtpu 0.0.50.1 gives them in its refusals.
      hbm_rate: bytes/s between a chip and its memory.
      ici_rate: bytes/s that a chip sends into its slice's network over all links, one way.
      dcn_rate: bytes/s that a chip sends between slices; None: not published.
      pod: chips of the largest slice.
      config: how the compiler calls the chip's cores in use.
    """

    torus: int
    devices: int
    hbm: int
    hbm_rate: float
    ici_rate: float
    dcn_rate: float | None
    pod: int
    config: str = "default"


# cloud.google.com/tpu/docs/<generation>. ICI: half of the bidirectional figure of a chip (v5e 400, v5p and tpu7x 1200, v6e 800 GB/s); v4:
# the all-reduce bandwidth of a pod, 1.1 PB/s, over its 4096 chips. DCN: of a chip (v5p 50, v6e and tpu7x 100 Gbit/s); v5e: 6.4 Tbit/s of a
# pod over its 256 chips.
CHIPS: dict[str, Chip] = {
    "v4": Chip(3, 1, int(30.75 * GiB), 1200e9, 1.1e15 / 4096, None, 4096, "megacore"),
    "v5e": Chip(2, 1, int(15.75 * GiB), 819e9, 200e9, 6.4e12 / 256 / 8, 256),
    "v5p": Chip(3, 1, int(95.73 * GiB), 2765e9, 600e9, 50e9 / 8, 6144, "megacore"),
    "v6e": Chip(2, 1, int(31.24 * GiB), 1640e9, 400e9, 100e9 / 8, 256),
    "tpu7x": Chip(3, 2, int(94.74 * GiB), 7380e9, 600e9, 100e9 / 8, 9216),
}
HOST = (2, 2, 1)  # chips of one host, by dim


class Topology(NamedTuple):
    """Some slices of one shape.

    Attributes:
      generation: a row of `CHIPS`.
      shape: chips along each dim.
      num_slices: how many slices, joined by DCN.
    """

    generation: str
    shape: tuple[int, ...]
    num_slices: int = 1

    @property
    def chip(self) -> Chip:
        """What it is made of."""
        return CHIPS[self.generation]

    @property
    def num_devices(self) -> int:
        """JAX devices of all slices."""
        return math.prod(self.shape) * self.chip.devices * self.num_slices

    @property
    def wrap(self) -> tuple[bool, bool, bool]:
        """Along which dims the last chip is linked to the first: slices of whole 4x4x4 cubes, and of 16 chips along a dim of a 2-D network.

        cloud.google.com/tpu/docs/v5p and .../v6e. Without such links the compiler turns gathers into all-reduces on 3-D slices.
        """
        cubes = all(size % 4 == 0 for size in self.shape)
        linked = [cubes if self.chip.torus == 3 else size == 16 for size in self.shape]
        return tuple([*linked, False][:3])  # type: ignore[return-value]

    def __str__(self) -> str:
        name = f"{self.generation}:{'x'.join(map(str, self.shape))}"
        return f"{self.num_slices} x {name}" if self.num_slices > 1 else name


def parse(name: str, num_slices: int = 1) -> Topology:
    """A topology from "v5p:4x4x4".

    Raises:
      ValueError: an unknown generation, a shape of other dims, or one that a host does not divide.
    """
    generation, _, shape = name.partition(":")
    if generation not in CHIPS:
        near = difflib.get_close_matches(generation, CHIPS, 1, 0.3)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise ValueError(f"Unknown TPU generation {generation!r} in --topology {name}.{hint} Choose one of: {', '.join(CHIPS)}.")
    chip = CHIPS[generation]
    example = "x".join(["4"] * chip.torus)
    if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", shape) or len(shape.split("x")) != chip.torus:
        raise ValueError(f"--topology {name}: a {generation} slice has {chip.torus} dims. Write {generation}:{example}, say.")
    sizes = tuple(map(int, shape.split("x")))
    if math.prod(sizes) > chip.pod:
        raise ValueError(f"--topology {name}: the largest {generation} slice has {chip.pod:,} chips. Take several: --num-slices.")
    if num_slices < 1:
        raise ValueError(f"--num-slices {num_slices} is not a number of slices. Give 1 or more.")
    good = tuple(-(-size // host) * host for size, host in zip(sizes, HOST, strict=False))
    if good != sizes:
        near_shape = "x".join(map(str, good))
        raise ValueError(f"--topology {name}: hosts of {'x'.join(map(str, HOST))} chips do not fill it. Choose {generation}:{near_shape}.")
    return Topology(generation, sizes, num_slices)


def make_mesh(topology: Topology, sizes: Mapping[str, int]) -> Mesh:
    """A mesh of devices that are not there; with several slices `replica` crosses them.

    Args:
      topology: the slices.
      sizes: mesh axes, as for `parallel.mesh.resolve_sizes`.

    Raises:
      ValueError: sizes that do not multiply to the devices, a `replica` that the slices do not divide, or no compiler for TPUs.
    """
    full = resolve_sizes(sizes, topology.num_devices)
    if full["replica"] % topology.num_slices:
        raise ValueError(
            f"parallel.replica={full['replica']} cannot be laid over {topology.num_slices} slices: only replica crosses DCN."
            f" Set parallel.replica to a multiple of {topology.num_slices}, and fsdp=-1."
        )
    from jax.experimental import mesh_utils

    shape, devices = tuple(full.values()), _devices(topology)
    if topology.num_slices > 1:
        inner = (shape[0] // topology.num_slices, *shape[1:])
        grid = mesh_utils.create_hybrid_device_mesh(inner, (topology.num_slices, *(1,) * (len(AXES) - 1)), devices)
    else:
        grid = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    return Mesh(np.asarray(grid), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def _devices(topology: Topology) -> list[Any]:
    if importlib.util.find_spec("libtpu") is None:
        raise ValueError("jaxllm plan needs the TPU compiler, which runs without a TPU: pip install 'jaxllm[tpu]'")
    from jax.experimental import topologies

    chip = topology.chip
    name = f"{topology.generation}:{'x'.join(map(str, topology.shape))}"
    options: dict[str, Any] = {"chips_per_host_bounds": HOST, "chip_config_name": chip.config, "num_slices": topology.num_slices}
    if any(topology.wrap):
        options["wrap"] = topology.wrap
    with _quiet():
        return list(topologies.get_topology_desc(name, platform="tpu", **options).devices)


@contextlib.contextmanager
def _quiet() -> Any:
    """libtpu looks for a TPU's metadata first: told that there is none, it does not wait for it, nor complain."""
    wanted = {"TPU_SKIP_MDS_QUERY": "1", "TPU_ACCELERATOR_TYPE": "v5litepod-4", "TPU_WORKER_HOSTNAMES": "localhost"}
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update({name: value for name, value in wanted.items() if before[name] is None})
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
