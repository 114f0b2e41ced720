"""`jaxllm plan`: a config and a TPU slice that is not there -> what the step will take, from the compiler."""

import html
import json
import os
from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict
from rich.console import Console
from rich.table import Table

from jaxllm.planning import topologies
from jaxllm.planning.compiled import Compiled, OutOfMemory, compile_program
from jaxllm.planning.roofline import ASSUMPTIONS, RECOMPUTED, Roofline, roofline
from jaxllm.planning.search import Choice, Outcome, search
from jaxllm.planning.verdict import Flow, faults, flows, fsdp_minimum, remedy
from jaxllm.stages import page, pretrain, setup
from jaxllm.stages.config import load

MISFIT = 1
GROUPS = {"params": "parameters", "opt_state": "optimizer", "ema": "moving average"}
SEARCHED = ("none", "minimal", "dots", "offload", "full")  # remat policies


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
    """

    topology: topologies.Topology
    name: str
    compiled: Compiled | OutOfMemory
    speed: Roofline | None
    flows: list[Flow]
    flags: dict[str, Any]
    state: int

    @property
    def used(self) -> int:
        """Bytes of one device."""
        return self.compiled.total

    @property
    def left(self) -> int:
        """Bytes of one device that are left; below 0, that are missing."""
        return self.topology.chip.hbm - self.used


def group(path: str) -> str:
    """The memory group of an argument of a train step: (state, frozen, batch)."""
    argument, _, rest = path.partition("/")
    return {"0": GROUPS.get(rest.partition("/")[0], "other state"), "1": "frozen parameters"}.get(argument, "batch")


def plan(config: ConfigDict, topology: topologies.Topology) -> list[Plan]:
    """What each program of this config takes on this topology, and how fast it can be."""
    from jaxllm.models.counts import training_flops
    from jaxllm.parallel import rules
    from jaxllm.training.step import jit_step
    from jaxllm.training.throughput import peak_flops

    mesh = topologies.make_mesh(topology, setup.mesh_sizes(config))
    with rules.under(mesh.abstract_mesh):
        programs = pretrain.programs(config, mesh)
        shape = setup.model_config(config, setup.vocabulary(config))
        itemsize = jax.numpy.dtype(setup.compute_dtype(config)).itemsize
    peak = peak_flops(mesh.devices.flat[0].device_kind)
    assert peak is not None, mesh.devices.flat[0].device_kind
    flops = training_flops(shape, config.sequence_length) * config.batch_size * config.sequence_length / mesh.size
    flags, found = setup.compiler_options(config, mesh), []
    for name, (function, arguments) in programs.items():
        state = sum(_local_bytes(leaf) for leaf in jax.tree.leaves(arguments[0]))
        try:
            compiled = compile_program(name, jit_step(function, arguments[0], flags), arguments, mesh, group)
        except OutOfMemory as error:
            found.append(Plan(topology, name, error, None, [], flags, state))
            continue
        minimum = _minimum(arguments[0].params, dict(mesh.shape), itemsize, config.microbatches)
        speed = roofline(topology, peak, flops, config.remat, compiled.collectives)
        found.append(Plan(topology, name, compiled, speed, flows(compiled, topology.num_slices, minimum), flags, state))
    return found


def _local_bytes(leaf: Any) -> int:
    return int(jax.numpy.dtype(leaf.dtype).itemsize) * int(jax.numpy.prod(jax.numpy.array(leaf.sharding.shard_shape(leaf.shape))))


def _minimum(params: Any, sizes: Mapping[str, int], itemsize: int, microbatches: int) -> dict[tuple[str, str], float]:
    """The formula of pure FSDP, where the config is that: what docs/decisions.md says travels in which dtype."""
    if any(size > 1 for axis, size in sizes.items() if axis != "fsdp"):
        return {}
    layers = once = 0
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        cut = "fsdp" in str(leaf.sharding.spec)
        inside = "layers" in jax.tree_util.keystr(path)
        layers, once = layers + leaf.size * (cut and inside), once + leaf.size * (cut and not inside)
    return fsdp_minimum(layers * itemsize, once * itemsize, layers * itemsize + once * 4, sizes["fsdp"], microbatches)


def main(args: Namespace, overrides: Sequence[str]) -> int:
    """`jaxllm plan --config F --topology v5p:4x4x4`; 0: it fits, 1: it does not."""
    topology = topologies.parse(args.topology, args.num_slices)
    os.environ["JAX_PLATFORMS"] = "cpu"  # the compiler for TPUs is asked for by name
    config = load(args.config, overrides)
    console = Console()
    if args.search:
        return _search(config, topology, args.search, console)
    console.print(f"Compiling for {topology} ({topology.num_devices} devices) ...")
    plans = plan(config, topology)
    for found in plans:
        for table in (memory_table(found), flow_table(found)):
            console.print(table)
        for line in lines(found, config):
            console.print(line, soft_wrap=True, markup=False, highlight=False)
    if args.json:
        Path(args.json).write_text(json.dumps([record(found) for found in plans], indent=1) + "\n")
    if args.html:
        page.write(args.html, f"plan for {topology}", "".join(html_section(found, config) for found in plans))
    return 0 if all(found.left >= 0 for found in plans) else MISFIT


def lines(found: Plan, config: ConfigDict) -> list[str]:
    """The verdict, a sentence each."""
    said = []
    if isinstance(found.compiled, Compiled):
        said += faults(found.compiled, found.flows)
    if found.speed is not None:
        speed, tokens = found.speed, config.batch_size * config.sequence_length
        dcn = "not published" if speed.dcn is None else f"{speed.dcn:.3g}"
        said.append(
            f"{found.name}: at least {speed.step:.3g} s a step (products {speed.products:.3g}, ICI {speed.ici:.3g}, DCN {dcn}), "
            f"MFU at most {speed.mfu:.0%}, {tokens / speed.step:,.0f} tokens/s. Assumed: {ASSUMPTIONS}."
        )
    if found.left >= 0:
        return [*said, f"{found.name} fits: {found.left / 1e9:.1f} GB of each device are left."]
    rows = config.batch_size // config.microbatches // max(1, _row_ways(config, found.topology))
    how = remedy(found.topology, found.used, found.state, rows, config.remat)
    return [*said, f"{found.name} does not fit: {-found.left / 1e9:.1f} GB too much for each device. {how}"]


def _row_ways(config: ConfigDict, topology: topologies.Topology) -> int:
    sizes = setup.mesh_sizes(config)
    return topology.num_devices // max(1, sizes["tensor"] * sizes["context"])


def memory_table(found: Plan) -> Table:
    """Memory of one device by group, largest first."""
    table, hbm = Table(title=f"{found.name}: memory of one device"), found.topology.chip.hbm
    for heading, justify in (("group", "left"), ("GB", "right"), ("of the device", "right")):
        table.add_column(heading, justify=justify)  # type: ignore[arg-type]
    for name, size in memory(found).items():
        table.add_row(name, f"{size / 1e9:.3f}", f"{size / hbm:.1%}")
    table.add_row("total", f"{found.used / 1e9:.3f}", f"{found.used / hbm:.1%}", style="bold")
    for tensor in found.compiled.largest[:5]:
        table.add_row(f"  {tensor.shape} {tensor.source or tensor.operation[-60:]}", f"{tensor.num_bytes / 1e9:.3f}", "", style="dim")
    return table


def memory(found: Plan) -> dict[str, int]:
    """Group -> bytes of one device, largest first; they add up to what it uses."""
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


def html_section(found: Plan, config: ConfigDict) -> str:
    """One program: verdict, pictures, tables."""
    hbm = found.topology.chip.hbm / 1e9
    parts = [f"<h1>{html.escape(found.name)} on {found.topology}</h1>", *(f"<p>{html.escape(line)}</p>" for line in lines(found, config))]
    parts += ["<h2>Memory of one device</h2>", page.bars({name: size / 1e9 for name, size in memory(found).items()}, hbm, "GB")]
    tensors = [[t.shape, t.source, t.operation[-80:], t.num_bytes / 1e9] for t in found.compiled.largest]
    parts += ["<h2>Largest arrays</h2>", page.table(tensors, ["shape", "made by", "operation", "GB"])]
    if found.speed is not None:
        seconds = {"products": found.speed.products, "ICI": found.speed.ici, "DCN": found.speed.dcn or 0.0}
        parts += ["<h2>Least time of a step</h2>", page.table([[name, value] for name, value in seconds.items()], ["", "seconds"])]
        parts += ["<h2>Sent by one device in a step</h2>", page.table(flow_rows(found), list(HEADINGS))]
    shown = "\n".join(f"{name}={value}" for name, value in found.flags.items()) or "none"
    return "".join([*parts, f"<details><summary>Compiler options</summary><pre>{html.escape(shown)}</pre></details>"])


def record(found: Plan) -> dict[str, Any]:
    """Everything as JSON."""
    compiled = found.compiled
    fitting = isinstance(compiled, Compiled)
    return {
        "program": found.name,
        "topology": str(found.topology),
        "devices": found.topology.num_devices,
        "hbm_bytes": found.topology.chip.hbm,
        "total_bytes": found.used,
        "live_bytes": compiled.live if isinstance(compiled, Compiled) else None,
        "fits": found.left >= 0,
        "memory_bytes": memory(found),
        "collectives": [flow._asdict() for flow in found.flows],
        "largest": [tensor._asdict() for tensor in compiled.largest],
        "replicated": compiled.replicated if isinstance(compiled, Compiled) else [],
        "gathered_calls": compiled.gathered_calls if isinstance(compiled, Compiled) else [],
        "operations": compiled.operations if isinstance(compiled, Compiled) else {},
        "compiler_options": found.flags,
        "roofline_seconds": found.speed._asdict() if found.speed else None,
        "compile_seconds": round(compiled.seconds, 1) if fitting and isinstance(compiled, Compiled) else None,
    }


def choices(config: ConfigDict, topology: topologies.Topology, shape: Any, itemsize: int, peak: float) -> list[Choice]:
    """Remat policies, microbatches and tensor ways that this config could have on this slice, with the same batch.

    A choice's bound is that of its products, or of its traffic: weights and gradients along `fsdp`, and along `tensor` one sum for the
    output of attention and of the MLP, forward and backward (arXiv 1909.08053, section 3).

    Args:
      config: resolved.
      topology: the slice.
      shape: the ModelConfig.
      itemsize: bytes of a number on its way.
      peak: FLOP/s of a device.
    """
    from jaxllm.models import counts

    found, chip, tokens = [], topology.chip, config.batch_size * config.sequence_length
    products = counts.training_flops(shape, config.sequence_length) * tokens / topology.num_devices / peak
    stem = shape.vocab_size * shape.width * (1 if shape.tied_embeddings else 2)
    for tensor in (1, 2, 4, 8):
        ways = topology.num_devices // topology.num_slices // tensor
        rows = config.batch_size / (topology.num_slices * ways)
        for parts in (parts for parts in (1, 2, 4, 8, 16, 32) if rows >= parts and rows % parts == 0):
            weights = (counts.parameters(shape) - stem) * itemsize // tensor, stem * itemsize // tensor
            sent = sum(fsdp_minimum(*weights, weights[0] + stem * 4 // tensor, ways, parts).values())
            activations = rows * config.sequence_length * shape.width * itemsize
            for remat in SEARCHED:
                sums = shape.num_layers * (6 if RECOMPUTED[remat] > 3 else 4) * 2 * (tensor - 1) / tensor * activations
                bound = max(products * RECOMPUTED[remat] / 3, (sent + sums) * chip.devices / chip.ici_rate)
                sizes = {"replica": topology.num_slices, "fsdp": ways, "tensor": tensor, "context": 1}
                overrides: dict[str, object] = {"remat": remat, "microbatches": parts}
                found.append(Choice(overrides | {f"parallel.{axis}": size for axis, size in sizes.items()}, bound))
    return found


def _search(config: ConfigDict, topology: topologies.Topology, limit: int, console: Console) -> int:
    from jaxllm.parallel import rules
    from jaxllm.training.throughput import peak_flops

    mesh = topologies.make_mesh(topology, dict.fromkeys(setup.mesh_sizes(config), 1) | {"fsdp": -1, "replica": topology.num_slices})
    peak = peak_flops(mesh.devices.flat[0].device_kind)
    assert peak is not None
    with rules.under(mesh.abstract_mesh):
        shape, itemsize = setup.model_config(config, setup.vocabulary(config)), jax.numpy.dtype(setup.compute_dtype(config)).itemsize

    def evaluate(choice: Choice) -> Outcome:
        said = " ".join(f"{key}={value}" for key, value in choice.overrides.items())
        with console.status(f"Compiling {said} ..."):
            try:
                (found,) = plan(_with(config, choice.overrides), topology)
            except ValueError as error:  # a size that the mesh does not divide, a policy that this slice has not
                console.print(f"{said}: {error}", soft_wrap=True, markup=False)
                return Outcome(False, float("inf"), 0)
        seconds = found.speed.step if found.speed else float("inf")
        fits = f"fits, at least {seconds:.3g} s a step" if found.left >= 0 else "does not fit"
        console.print(f"{said}: {found.used / 1e9:.1f} GB, {fits}", soft_wrap=True, markup=False)
        return Outcome(found.left >= 0, seconds, found.used)

    tried, missed = search(choices(config, topology, shape, itemsize, peak), evaluate, limit)
    if missed:
        console.print(f"{missed} more that could be faster were not compiled: give --search a larger number than {limit}.")
    if not tried or not tried[0][1].fits:
        console.print(f"None of {len(tried)} choices fits on {topology}. Take a larger slice.")
        return MISFIT
    overrides = " ".join(f"--config.{key}={value}" for key, value in tried[0][0].overrides.items())
    console.print(f"The fastest that fits, by its roofline: {overrides}", soft_wrap=True, markup=False)
    return 0


def _with(config: ConfigDict, overrides: Mapping[str, object]) -> ConfigDict:
    changed = ConfigDict(config.to_dict())
    for key, value in overrides.items():
        *sections, leaf = key.split(".")
        node = changed
        for section in sections:
            node = node[section]
        node[leaf] = value
    return changed
