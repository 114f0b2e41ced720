"""Bytes and operations into seconds: the least that a step can take, and what it would then use of the chip."""

from collections.abc import Sequence
from typing import NamedTuple

from jaxllm.planning.hlo import Collective
from jaxllm.planning.topologies import Topology

ASSUMPTIONS = (
    "products at the published dense bf16 peak; what a program is given is read once at the memory's published rate;"
    " gathers and sums at the published link rate, one way, as rings over all links;"
    " all of these overlap perfectly; nothing else takes time"
)


class Roofline(NamedTuple):
    """Seconds of one step, each as if it were alone, and what follows.

    Attributes:
      products: the model's FLOPs, and what remat computes again, at the peak.
      hbm: what the program is given, read once from memory.
      ici: traffic inside the slices.
      dcn: traffic between the slices; None: the rate of this generation is not published.
      step: the longest of those known.
      mfu: share of the peak that the model's own FLOPs would be, if a step took no longer.
    """

    products: float
    hbm: float
    ici: float
    dcn: float | None
    step: float
    mfu: float


def roofline(
    topology: Topology, peak: float, flops: float, recomputed: float, collectives: Sequence[Collective], read: float = 0.0
) -> Roofline:
    """The least time of a step.

    Args:
      topology: where it runs.
      peak: FLOP/s of one device.
      flops: of the model's forward and backward on one device in one step, nothing recomputed.
      recomputed: what a remat policy adds to them.
      collectives: of the compiled step.
      read: bytes of one device's memory that it must at least read.
    """
    chip, crossing, inside = topology.chip, 0.0, 0.0
    for c in collectives:
        if topology.num_slices > 1 and "replica" in c.axes:
            # Best done inside each slice first, and then between the slices by each device for its share.
            within = max(1, c.group // topology.num_slices)
            crossing += c._replace(num_bytes=c.num_bytes // within, group=topology.num_slices).sent * chip.devices
            inside += c._replace(group=within).sent * chip.devices
        else:
            inside += c.sent * chip.devices
    ici, dcn = inside / chip.ici_rate, 0.0 if not crossing else crossing / chip.dcn_rate if chip.dcn_rate else None
    products = (flops + recomputed) / peak
    hbm = read * chip.devices / chip.hbm_rate
    step = max(products, hbm, ici, dcn or 0.0)
    return Roofline(products, hbm, ici, dcn, step, flops / peak / step)
