"""`jaxllm plan`: a config and a TPU slice that is not there -> what the step will take, from the compiler."""

import html
import json
from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict
from rich.console import Console

from jaxllm.planning import topologies
from jaxllm.planning.compiled import OutOfMemory, compile_program, local_bytes
from jaxllm.planning.roofline import roofline
from jaxllm.planning.search import Choice, Outcome, search
from jaxllm.planning.verdict import HEADINGS, Plan, flow_rows, flow_table, flows, fsdp_minimum, lines, memory, memory_table, record
from jaxllm.stages import origin, page, programs, setup
from jaxllm.stages.config import load, resolve
from jaxllm.stages.recipes import recipe_of

MISFIT = 1
GROUPS = {"params": "parameters", "opt_state": "optimizer", "ema": "moving average"}
SEARCHED = ("none", "minimal", "dots", "offload", "full")  # remat policies, the most memory first


def group(path: str) -> str:
    """The memory group of an argument of a train step: (state, frozen, batch)."""
    argument, _, rest = path.partition("/")
    return {"0": GROUPS.get(rest.partition("/")[0], "other state"), "1": "frozen parameters"}.get(argument, "batch")


def forward_group(path: str) -> str:
    """The memory group of an argument of what runs beside the update."""
    found = group(path)
    return "rows and their cache" if found == "batch" else found


def plan(config: ConfigDict, topology: topologies.Topology) -> list[Plan]:
    """What each program of this config takes on this topology, and how fast it can be."""
    from jaxllm.models.counts import forward_flops, recomputed_flops, training_flops
    from jaxllm.parallel import rules
    from jaxllm.training.step import jit_step

    mesh = topologies.make_mesh(topology, setup.mesh_sizes(config))
    with rules.under(mesh.abstract_mesh):
        found = programs.programs(config, mesh, recipe_of(config))
        shape = setup.model_config(config, setup.vocabulary(config))
        itemsize = jax.numpy.dtype(setup.compute_dtype(config)).itemsize
    peak = _peak(mesh)
    flags, plans = setup.compiler_options(config, mesh), []
    rows = config.batch_size // config.microbatches // (mesh.shape["replica"] * mesh.shape["fsdp"])
    for name, (function, arguments, tokens) in found.items():
        trains = name == programs.TRAIN_STEP
        if trains:
            compute, again = training_flops, recomputed_flops(shape, config.sequence_length, config.remat)
            jitted = jit_step(function, arguments[0], flags)
        else:  # what it does not read lies there all the same
            compute, again = forward_flops, 0.0
            jitted = jax.jit(function, donate_argnums=2, keep_unused=True, compiler_options=flags or None)
        state, read = _bytes(arguments[0]), _bytes(arguments if trains else (arguments[0].params, arguments[1:]))
        asked = (tokens, rows, config.remat)
        try:
            compiled = compile_program(name, jitted, arguments, mesh, group if trains else forward_group)
        except OutOfMemory as error:
            plans.append(Plan(topology, name, error, None, [], flags, state, *asked))
            continue
        minimum = _minimum(arguments[0].params, dict(mesh.shape), itemsize, config.microbatches) if trains else {}
        share = tokens / mesh.size
        speed = roofline(topology, peak, compute(shape, config.sequence_length) * share, again * share, compiled.collectives, read)
        plans.append(Plan(topology, name, compiled, speed, flows(compiled, topology.num_slices, minimum), flags, state, *asked))
    return plans


def _bytes(tree: Any) -> int:
    """Of one device."""
    return sum(local_bytes(leaf) for leaf in jax.tree.leaves(tree))


def _peak(mesh: Any) -> float:
    """Published FLOP/s of one device."""
    from jaxllm.training.throughput import peak_flops

    peak = peak_flops(mesh.devices.flat[0].device_kind)
    assert peak is not None, mesh.devices.flat[0].device_kind
    return peak


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
    jax.config.update("jax_platforms", "cpu")  # the compiler for TPUs is asked for by name
    jax.config.update("jax_enable_compilation_cache", False)  # what was compiled for devices that are not there cannot be read back
    config = origin.complete(load(args.config, overrides))
    console = Console()
    if args.search is not None:
        if args.search < 1:
            raise ValueError(f"--search {args.search} compiles nothing. Give 1 or more.")
        return _search(config, topology, args.search, console)
    console.print(f"Compiling for {topology} ({topology.num_devices} devices) ...")
    plans = plan(config, topology)
    for found in plans:
        for table in (memory_table(found), flow_table(found)):
            console.print(table)
        for line in lines(found):
            console.print(line, soft_wrap=True, markup=False, highlight=False)
    if args.json:
        Path(args.json).write_text(json.dumps([record(found) for found in plans], indent=1) + "\n")
    if args.html:
        page.write(args.html, f"plan for {topology}", "".join(html_section(found) for found in plans))
    return 0 if all(found.left >= 0 for found in plans) else MISFIT


def html_section(found: Plan) -> str:
    """One program: verdict, pictures, tables."""
    hbm = found.topology.chip.hbm / 1e9
    parts = [f"<h1>{html.escape(found.name)} on {found.topology}</h1>", *(f"<p>{html.escape(line)}</p>" for line in lines(found))]
    parts += [
        "<h2>Memory of one device</h2>",
        page.bars(
            {name: size / 1e9 for name, size in memory(found).items()}, {"in use at one time": found.used / 1e9, "there is": hbm}, "GB"
        ),
    ]
    tensors = [[t.shape, t.source, t.operation[-80:], t.num_bytes / 1e9] for t in found.compiled.largest]
    parts += ["<h2>Largest arrays</h2>", page.table(tensors, ["shape", "made by", "operation", "GB"])]
    if found.speed is not None:
        seconds = {"products": found.speed.products, "memory": found.speed.hbm, "ICI": found.speed.ici, "DCN": found.speed.dcn or 0.0}
        parts += ["<h2>Least time of a step</h2>", page.table([[name, value] for name, value in seconds.items()], ["", "seconds"])]
        parts += ["<h2>Sent by one device in a step</h2>", page.table(flow_rows(found), list(HEADINGS))]
    shown = "\n".join(f"{name}={value}" for name, value in found.flags.items()) or "none"
    return "".join([*parts, f"<details><summary>Compiler options</summary><pre>{html.escape(shown)}</pre></details>"])


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

    found, chip, T = [], topology.chip, config.sequence_length
    per_slice, tokens = topology.num_devices // topology.num_slices, config.batch_size * T / topology.num_devices
    stem = shape.vocab_size * shape.width * (1 if shape.tied_embeddings else 2)
    dims = (shape.num_heads, shape.mlp_width, shape.vocab_size, per_slice)
    for tensor in (ways for ways in (1, 2, 4, 8) if all(dim % ways == 0 for dim in dims)):
        ways = per_slice // tensor
        rows = config.batch_size / (topology.num_slices * ways)
        for parts in (parts for parts in (1, 2, 4, 8, 16, 32) if rows >= parts and rows % parts == 0):
            weights = (counts.parameters(shape) - stem) * itemsize // tensor, stem * itemsize // tensor
            sent = sum(fsdp_minimum(*weights, weights[0] + stem * 4 // tensor, ways, parts).values())
            for remat in SEARCHED:
                again = counts.recomputed_flops(shape, T, remat)
                sums = shape.num_layers * (5 if remat in ("full", "offload") and shape.block == "sequential" else 4)
                sent_inside = sent + sums * 2 * (tensor - 1) / tensor * rows * T * shape.width * itemsize
                products = (counts.training_flops(shape, T) + again) * tokens / peak
                sizes = {"replica": topology.num_slices, "fsdp": ways, "tensor": tensor, "context": 1}
                overrides: dict[str, object] = {"remat": remat, "microbatches": parts}
                overrides |= {f"parallel.{axis}": size for axis, size in sizes.items()}
                found.append(Choice(overrides, max(products, sent_inside * chip.devices / chip.ici_rate)))
    return found


def needs_less(choice: Choice, other: Choice) -> bool:
    """Whether a choice may need less memory than another: by its policy, its microbatches, or by other tensor ways."""
    a, b = choice.overrides, other.overrides
    by_policy = SEARCHED.index(str(a["remat"])) > SEARCHED.index(str(b["remat"]))
    return by_policy or int(str(a["microbatches"])) > int(str(b["microbatches"])) or a["parallel.tensor"] != b["parallel.tensor"]


def _search(config: ConfigDict, topology: topologies.Topology, limit: int, console: Console) -> int:
    from jaxllm.parallel import rules

    mesh = topologies.make_mesh(topology, dict.fromkeys(setup.mesh_sizes(config), 1) | {"fsdp": -1, "replica": topology.num_slices})
    with rules.under(mesh.abstract_mesh):
        shape, itemsize = setup.model_config(config, setup.vocabulary(config)), jax.numpy.dtype(setup.compute_dtype(config)).itemsize

    def evaluate(choice: Choice) -> Outcome | None:
        said = " ".join(f"{key}={value}" for key, value in choice.overrides.items())
        with console.status(f"Compiling {said} ..."):
            try:
                plans = plan(resolve(config.to_dict(), choice.overrides), topology)
            except ValueError as error:  # a size that the mesh does not divide, a policy that this slice has not
                console.print(f"{said}: {error}", soft_wrap=True, markup=False)
                return None
        tightest = min(plans, key=lambda found: found.left)
        seconds = plans[0].speed.step if plans[0].speed else float("inf")  # of the update
        fits = f"fits, at least {seconds:.3g} s a step" if tightest.left >= 0 else f"{tightest.name} does not fit"
        console.print(f"{said}: {tightest.used / 1e9:.1f} GB, {fits}", soft_wrap=True, markup=False)
        return Outcome(tightest.left >= 0, seconds)

    tried, missed = search(choices(config, topology, shape, itemsize, _peak(mesh)), evaluate, limit, needs_less)
    if missed:
        console.print(f"{missed} more that could be faster were not compiled: give --search a larger number than {limit}.")
    if not tried:
        console.print("No choice could be compiled: the lines above say why.")
        return MISFIT
    if not tried[0][1].fits:
        console.print(f"None of {len(tried)} choices fits on {topology}." + ("" if missed else " Take a larger slice."))
        return MISFIT
    overrides = " ".join(f"--config.{key}={value}" for key, value in tried[0][0].overrides.items())
    console.print(f"The fastest that fits, by its roofline: {overrides}", soft_wrap=True, markup=False)
    return 0
