"""Bytes and operations into seconds: the least that a step can take, and what it would then use of the chip."""

from collections.abc import Sequence
from typing import NamedTuple

from jaxllm.planning.hlo import Collective
from jaxllm.planning.topologies import Topology

ASSUMPTIONS = (
    "products at the published dense bf16 peak; gathers and sums at the published link rate, one way, as rings over all links;"
    " products and traffic overlap perfectly; nothing else takes time"
)


class Roofline(NamedTuple):
    """Seconds of one step, each as if it were alone, and what follows.

    Attributes:
      products: the model's FLOPs, and what remat computes again, at the peak.
      ici: traffic inside the slices.
      dcn: traffic between the slices; None: the rate of this generation is not published.
      step: the longest of those known.
      mfu: share of the peak that the model's own FLOPs would be, if a step took no longer.
    """

    products: float
    ici: float
    dcn: float | None
    step: float
    mfu: float


def roofline(topology: Topology, peak: float, flops: float, recomputed: float, collectives: Sequence[Collective]) -> Roofline:
    """The least time of a step.

    Args:
      topology: where it runs.
      peak: FLOP/s of one device.
      flops: of the model's forward and backward on one device in one step, nothing recomputed.
      recomputed: what a remat policy adds to them.
      collectives: of the compiled step.
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
    step = max(products, ici, dcn or 0.0)
    return Roofline(products, ici, dcn, step, flops / peak / step)
