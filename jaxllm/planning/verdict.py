"""What a plan comes to: does it fit, what would, and what in it should not be there."""

import collections
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from jaxllm.planning.compiled import Compiled
from jaxllm.planning.topologies import Topology


class Flow(NamedTuple):
    """What one device sends in a step, of one kind along the same mesh axes.

    Attributes:
      kind: "all-gather", ...
      axes: mesh axes, joined by spaces.
      link: "ICI" or "DCN".
      calls: how many, loops counted by their trips.
      sent: bytes.
      minimum: bytes by the formula, or None where there is none.
    """

    kind: str
    axes: str
    link: str
    calls: int
    sent: float
    minimum: float | None


def flows(compiled: Compiled, num_slices: int = 1, minimum: Mapping[tuple[str, str], float] | None = None) -> list[Flow]:
    """The collectives of a step by kind and mesh axes, most bytes first; kinds of which the formula has some and the program none too."""
    sums: dict[tuple[str, str], tuple[int, float]] = collections.defaultdict(lambda: (0, 0.0))
    for c in compiled.collectives:
        calls, sent = sums[c.kind, " ".join(c.axes)]
        sums[c.kind, " ".join(c.axes)] = calls + c.times, sent + c.sent
    known = minimum or {}
    for key in known:
        sums[key] = sums[key]
    found = [
        Flow(kind, axes, "DCN" if num_slices > 1 and "replica" in axes.split() else "ICI", calls, sent, known.get((kind, axes)))
        for (kind, axes), (calls, sent) in sums.items()
    ]
    return sorted(found, key=lambda flow: -flow.sent)


def fsdp_minimum(layers: int, once: int, whole: int, ways: int, microbatches: int = 1) -> dict[tuple[str, str], float]:
    """What pure FSDP has to send (ZeRO stage 3, arXiv 1910.02054, section 7.2): weights gathered for each pass, gradients scattered.

    Args:
      layers: bytes, on their way, of the weights in the layers: gathered for the forward and for the backward pass.
      once: bytes of embedding and head, which are gathered once.
      whole: bytes of the gradients of all of them.
      ways: devices along `fsdp`.
      microbatches: each gathers and scatters.

    Returns:
      (kind, axes) -> bytes that one device sends in a step.
    """
    share = (ways - 1) / ways * microbatches
    return {("all-gather", "fsdp"): (2 * layers + once) * share, ("reduce-scatter", "fsdp"): whole * share} if ways > 1 else {}


def remedy(topology: Topology, used: int, state: int, rows: int, remat: str) -> str:
    """By proportion, what would make a step fit that needs `used` bytes of each device.

    Args:
      topology: the slice.
      used: bytes of one device that the step needs.
      state: bytes of it that are parameters and optimizer: they shrink with the slice alone; the rest shrinks with the rows as well.
      rows: of one microbatch on one device.
      remat: the policy's name.
    """
    hbm, choices = topology.chip.hbm, []
    parts = next((parts for parts in range(2, rows + 1) if rows % parts == 0 and state + (used - state) / parts <= hbm), None)
    if parts is not None:
        choices.append(f"{parts} times the microbatches")
    shape = list(topology.shape)
    while used * topology.num_devices > hbm * topology._replace(shape=tuple(shape)).num_devices:
        shape[shape.index(min(shape))] *= 2
    choices.append(f"{topology._replace(shape=tuple(shape))} with fsdp=-1")
    more = "" if remat == "full" else "; remat=full takes the least memory of the policies"
    return f"By proportion these would fit: {', or '.join(choices)}{more}. `--search` compiles to make sure."


def faults(compiled: Compiled, flows: Sequence[Flow] = ()) -> list[str]:
    """What a step should not have, a sentence each: replicated arrays, kernels behind a gather, traffic far above its formula."""
    found = [f"Every device holds all of {path} ({size / 1e6:.1f} MB)." for path, size in compiled.replicated]
    found += [f"An all-gather feeds the kernel {call}: call it through rules.shard_map." for call in compiled.gathered_calls]
    sums = {flow.axes: flow.sent for flow in flows if flow.kind == "all-reduce"}
    for flow in flows:
        least = flow.minimum or 0.0
        if least and flow.sent > 1.05 * least:
            found.append(f"{flow.kind} along {flow.axes}: {flow.sent / 1e9:.3g} GB are sent where {least / 1e9:.3g} GB would do.")
        elif flow.sent < 0.5 * least and sums.get(flow.axes, 0.0) > least:
            found.append(f"The compiler does the {flow.kind} along {flow.axes} as an all-reduce, which sends twice the bytes.")
    return found
