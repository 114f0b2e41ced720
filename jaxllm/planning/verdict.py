"""What a plan comes to: does it fit, what would, and what in it should not be there."""

import collections
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from rich.table import Table

from jaxllm.planning.compiled import Compiled, OutOfMemory
from jaxllm.planning.roofline import ASSUMPTIONS, Roofline
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
    larger = topology._replace(shape=tuple(shape))
    if larger.num_devices <= topology.chip.pod * topology.chip.devices * topology.num_slices:
        grown = larger.num_devices // topology.num_devices
        wider = f" and batch_size at least {-(-grown // rows)} times as large" if grown > rows else ""
        choices.append(f"{larger} with fsdp=-1{wider}")
    if not choices:
        return f"No {topology.generation} slice would hold it by proportion. `--search` tries other policies and meshes."
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


class Plan(NamedTuple):
    """What one program of a stage will take on a slice.

    Attributes:
      topology: the slice.
      name: of the program.
      compiled: what the compiler says, or what it says is missing.
      speed: None where it does not fit.
      flows: what travels.
      flags: compiler options.
      state: bytes of one device that parameters and optimizer take.
      tokens: of a step.
      rows: of one microbatch on one device.
      remat: the policy's name.
    """

    topology: Topology
    name: str
    compiled: Compiled | OutOfMemory
    speed: Roofline | None
    flows: list[Flow]
    flags: dict[str, Any]
    state: int
    tokens: int
    rows: int
    remat: str

    @property
    def used(self) -> int:
        """Bytes of one device that hold something at one time: what the compiler refuses a program by."""
        return self.compiled.live if isinstance(self.compiled, Compiled) else self.compiled.needed

    @property
    def left(self) -> int:
        """Bytes of one device that are left; below 0, that are missing."""
        return self.topology.chip.hbm - self.used


def lines(found: Plan) -> list[str]:
    """The verdict, a sentence each."""
    said = []
    if isinstance(found.compiled, Compiled):
        said += faults(found.compiled, found.flows)
    if found.speed is not None:
        speed = found.speed
        dcn = "not published" if speed.dcn is None else f"{speed.dcn:.3g}"
        said.append(
            f"{found.name}: at least {speed.step:.3g} s a step (products {speed.products:.3g}, memory {speed.hbm:.3g}, "
            f"ICI {speed.ici:.3g}, DCN {dcn}), "
            f"MFU at most {speed.mfu:.0%}, {found.tokens / speed.step:,.0f} tokens/s. Assumed: {ASSUMPTIONS}."
        )
    if found.left >= 0:
        return [*said, f"{found.name} fits: {found.left / 1e9:.1f} GB of each device are left."]
    how = remedy(found.topology, found.used, found.state, found.rows, found.remat)
    return [*said, f"{found.name} does not fit: {-found.left / 1e9:.1f} GB too much for each device. {how}"]


def memory_table(found: Plan) -> Table:
    """Memory of one device by group, largest first."""
    table, hbm = Table(title=f"{found.name}: memory of one device"), found.topology.chip.hbm
    for heading, justify in (("group", "left"), ("GB", "right"), ("of the device", "right")):
        table.add_column(heading, justify=justify)  # type: ignore[arg-type]
    for name, size in memory(found).items():
        table.add_row(name, f"{size / 1e9:.3f}", f"{size / hbm:.1%}")
    total = found.compiled.total if isinstance(found.compiled, Compiled) else found.used
    table.add_row("all of it, laid out", f"{total / 1e9:.3f}", f"{total / hbm:.1%}")
    table.add_row("in use at one time", f"{found.used / 1e9:.3f}", f"{found.used / hbm:.1%}", style="bold")
    for tensor in found.compiled.largest[:5]:
        table.add_row(f"  {tensor.shape} {tensor.source or tensor.operation[-60:]}", f"{tensor.num_bytes / 1e9:.3f}", "", style="dim")
    return table


def memory(found: Plan) -> dict[str, int]:
    """Group -> bytes of one device, largest first; they add up to what is laid out for it."""
    if isinstance(found.compiled, OutOfMemory):
        return {"everything else": found.used - found.state, "parameters and optimizer": found.state}
    return dict(sorted(((name, size) for name, size in found.compiled.memory.items() if size), key=lambda item: -item[1]))


HEADINGS = ("kind", "mesh axes", "link", "calls", "GB", "at least")


def flow_rows(found: Plan) -> list[list[str]]:
    """What one device sends in a step, a row for each kind and mesh axes."""
    return [
        [f.kind, f.axes, f.link, str(f.calls), f"{f.sent / 1e9:.3f}", "" if f.minimum is None else f"{f.minimum / 1e9:.3f}"]
        for f in found.flows
    ]


def flow_table(found: Plan) -> Table:
    """`flow_rows` for a terminal."""
    table = Table(title=f"{found.name}: sent by one device in a step")
    for heading in HEADINGS:
        table.add_column(heading, justify="right" if heading in HEADINGS[3:] else "left")
    for row in flow_rows(found):
        table.add_row(*row)
    return table


def record(found: Plan) -> dict[str, Any]:
    """Everything as JSON."""
    compiled = found.compiled if isinstance(found.compiled, Compiled) else None
    return {
        "program": found.name,
        "topology": str(found.topology),
        "devices": found.topology.num_devices,
        "hbm_bytes": found.topology.chip.hbm,
        "used_bytes": found.used,
        "laid_out_bytes": compiled.total if compiled else None,
        "fits": found.left >= 0,
        "memory_bytes": memory(found),
        "collectives": [flow._asdict() for flow in found.flows],
        "largest": [tensor._asdict() for tensor in found.compiled.largest],
        "replicated": compiled.replicated if compiled else [],
        "gathered_calls": compiled.gathered_calls if compiled else [],
        "operations": compiled.operations if compiled else {},
        "compiler_options": found.flags,
        "roofline": found.speed._asdict() if found.speed else None,
        "compile_seconds": round(compiled.seconds, 1) if compiled else None,
    }
