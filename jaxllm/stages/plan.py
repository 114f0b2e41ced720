"""`jaxllm plan`: a config and a TPU slice that is not there -> what the step will take, from the compiler."""

import collections
import json
import os
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict
from rich.console import Console
from rich.table import Table

from jaxllm.planning import topologies
from jaxllm.planning.compiled import Compiled, compile_program
from jaxllm.planning.roofline import ASSUMPTIONS, Roofline, roofline
from jaxllm.stages import pretrain, setup
from jaxllm.stages.config import load

MISFIT = 1
GROUPS = {"params": "parameters", "opt_state": "optimizer", "ema": "moving average"}


def group(path: str) -> str:
    """The memory group of an argument of a train step: (state, frozen, batch)."""
    argument, _, rest = path.partition("/")
    return {"0": GROUPS.get(rest.partition("/")[0], "other state"), "1": "frozen parameters"}.get(argument, "batch")


def plan(config: ConfigDict, topology: topologies.Topology) -> dict[str, tuple[Compiled, Roofline]]:
    """name -> what a program of this config takes on this topology, and how fast it can be."""
    from jaxllm.models.counts import training_flops
    from jaxllm.parallel import rules
    from jaxllm.training.step import jit_step
    from jaxllm.training.throughput import peak_flops

    mesh = topologies.make_mesh(topology, setup.mesh_sizes(config))
    with rules.under(mesh.abstract_mesh):
        programs = pretrain.programs(config, mesh)
        shape = setup.model_config(config, setup.vocabulary(config))
    peak = peak_flops(mesh.devices.flat[0].device_kind)
    assert peak is not None, mesh.devices.flat[0].device_kind
    flops = training_flops(shape, config.sequence_length) * config.batch_size * config.sequence_length / mesh.size
    found = {}
    for name, (function, arguments) in programs.items():
        compiled = compile_program(name, jit_step(function, arguments[0]), arguments, mesh, group)
        found[name] = compiled, roofline(topology, peak, flops, config.remat, compiled.collectives)
    return found


def main(args: Namespace, overrides: Sequence[str]) -> int:
    """`jaxllm plan --config F --topology v5p:4x4x4`; 0: it fits, 1: it does not."""
    topology = topologies.parse(args.topology, args.num_slices)
    os.environ["JAX_PLATFORMS"] = "cpu"  # the compiler for TPUs is asked for by name
    config = load(args.config, overrides)
    console, records, code = Console(), [], 0
    console.print(f"Compiling for {topology} ({topology.num_devices} devices) ...")
    for name, (compiled, speed) in plan(config, topology).items():
        left = topology.chip.hbm - compiled.total
        for table in (memory_table(compiled, topology.chip.hbm), traffic_table(compiled)):
            console.print(table)
        for path, size in compiled.replicated:
            console.print(f"replicated on every device: {path} ({size / 1e6:.1f} MB)")
        for call in compiled.gathered_calls:
            console.print(f"an all-gather feeds the kernel {call}: call it through rules.shard_map")
        dcn = "not published" if speed.dcn is None else f"{speed.dcn:.3g}"
        console.print(
            f"{name}: at least {speed.step:.3g} s a step (products {speed.products:.3g}, ICI {speed.ici:.3g}, DCN {dcn}), "
            f"MFU at most {speed.mfu:.0%}, {config.batch_size * config.sequence_length / speed.step:,.0f} tokens/s; "
            f"compiled in {compiled.seconds:.0f} s.\nAssumed: {ASSUMPTIONS}.",
            soft_wrap=True,
        )
        if left < 0:
            code = MISFIT
            remedy = "a larger slice, a smaller batch_size, more microbatches" + ("" if config.remat == "full" else ", or remat=full")
            console.print(f"[red]{name} does not fit: {-left / 1e9:.1f} GB too much for each device.[/red] Try {remedy}.", soft_wrap=True)
        else:
            console.print(f"[green]{name} fits[/green]: {left / 1e9:.1f} GB of each device are left.")
        records.append(record(name, topology, compiled, speed))
    if args.json:
        Path(args.json).write_text(json.dumps(records, indent=1) + "\n")
    return code


def memory_table(compiled: Compiled, hbm: int) -> Table:
    """Memory of one device by group, largest first."""
    table = Table(title=f"{compiled.name}: memory of one device")
    for heading, justify in (("group", "left"), ("GB", "right"), ("of the device", "right")):
        table.add_column(heading, justify=justify)  # type: ignore[arg-type]
    for name, size in sorted(compiled.memory.items(), key=lambda item: -item[1]):
        if size:
            table.add_row(name, f"{size / 1e9:.3f}", f"{size / hbm:.1%}")
    table.add_row("total", f"{compiled.total / 1e9:.3f}", f"{compiled.total / hbm:.1%}", style="bold")
    for tensor in compiled.largest[:5]:
        table.add_row(f"  {tensor.shape} {tensor.source or tensor.operation[-60:]}", f"{tensor.num_bytes / 1e9:.3f}", "", style="dim")
    return table


def traffic_table(compiled: Compiled) -> Table:
    """What one device sends in a step, by kind and mesh axes."""
    table = Table(title=f"{compiled.name}: sent by one device in a step")
    for heading, justify in (("kind", "left"), ("mesh axes", "left"), ("calls", "right"), ("GB", "right")):
        table.add_column(heading, justify=justify)  # type: ignore[arg-type]
    for (kind, axes), (calls, sent) in traffic(compiled).items():
        table.add_row(kind, axes, str(calls), f"{sent / 1e9:.3f}")
    return table


def traffic(compiled: Compiled) -> dict[tuple[str, str], tuple[int, float]]:
    """(kind, mesh axes) -> (calls, bytes sent by one device) in a step, most bytes first."""
    sums: dict[tuple[str, str], tuple[int, float]] = collections.defaultdict(lambda: (0, 0.0))
    for c in compiled.collectives:
        calls, sent = sums[c.kind, " ".join(c.axes)]
        sums[c.kind, " ".join(c.axes)] = calls + c.times, sent + c.sent
    return dict(sorted(sums.items(), key=lambda item: -item[1][1]))


def record(name: str, topology: topologies.Topology, compiled: Compiled, speed: Roofline) -> dict[str, Any]:
    """Everything as JSON."""
    return {
        "program": name,
        "topology": str(topology),
        "devices": topology.num_devices,
        "hbm_bytes": topology.chip.hbm,
        "total_bytes": compiled.total,
        "fits": compiled.total <= topology.chip.hbm,
        "memory_bytes": compiled.memory,
        "collectives": [
            {"kind": kind, "axes": axes, "calls": calls, "sent_bytes": sent} for (kind, axes), (calls, sent) in traffic(compiled).items()
        ],
        "largest": [tensor._asdict() for tensor in compiled.largest],
        "replicated": compiled.replicated,
        "gathered_calls": compiled.gathered_calls,
        "roofline_seconds": speed._asdict(),
        "compile_seconds": round(compiled.seconds, 1),
    }
