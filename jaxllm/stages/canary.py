"""`--canary N`: the first N updates of a config, compiled with the fast flags and with none: do they compute the same?"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
from rich.console import Console
from rich.table import Table

from jaxllm.parallel import hosts, rules
from jaxllm.parallel.mesh import make_mesh
from jaxllm.stages import opened, programs, setup, tuning
from jaxllm.stages.recipe import Objective, Recipe
from jaxllm.training import state as states
from jaxllm.training.step import jit_step

# How far losses and gradient norms may lie apart, by compute dtype: other flags sum in another order, and nothing more.
TOLERANCE = {"float32": 1e-4, "bfloat16": 2e-2, "float16": 2e-2}


class Update(NamedTuple):
    """What one update reported."""

    loss: float
    grad_norm: float


def canary(config: ConfigDict, recipe: Recipe, num_steps: int) -> int:
    """Compares `num_steps` updates on random tokens, from the same weights; returns 0 if they agree, 1 if not.

    Args:
      config: resolved.
      recipe: the stage.
      num_steps: updates.

    Raises:
      ValueError: no steps, or no flags to compare with none.
    """
    if recipe.fields(config):
        raise ValueError(f"--canary draws rows of text, which `jaxllm {recipe.name}` cannot train on. Try it with a config for pretrain.")
    if num_steps < 1:
        raise ValueError(f"--canary {num_steps} compares nothing. Give 1 or more updates; 5 is usual.")
    setup.backend_flags(config)
    section = config.parallel
    hosts.start(section.coordinator, section.num_processes, section.process_id)
    mesh = make_mesh(setup.mesh_sizes(config))
    options = setup.compiler_options(config, mesh)
    if not options:
        kind = mesh.devices.flat[0].device_kind
        raise ValueError(f"There are no flags for {kind} to compare with none. Give some by xla.options, or run without --canary.")
    with rules.under(mesh):
        model = setup.model(config)
    programs.check_batch(config, dict(mesh.shape))
    runs = [_updates(config, model, mesh, recipe.objective(config, model), num_steps, chosen) for chosen in (options, {})]
    hosts.finish()
    table, apart = compare(*runs)
    if hosts.is_first():
        Console().print(table)
        print("With " + " ".join(f"{name}={value}" for name, value in options.items()))
    allowed = TOLERANCE[model.dtype]
    hosts.say(f"Fast and safe flags lie at most {apart:.2g} apart, relatively; {allowed:g} is allowed for {model.dtype}.")
    return 0 if apart <= allowed else 1


def compare(fast: list[Update], safe: list[Update]) -> tuple[Table, float]:
    """The updates side by side, and the largest relative difference; one that is not a number is infinite."""
    table, worst = Table(title="fast flags beside none"), 0.0
    for heading in ("update", "loss, fast", "loss, none", "grad_norm, fast", "grad_norm, none", "apart"):
        table.add_column(heading, justify="right")
    for number, (a, b) in enumerate(zip(fast, safe, strict=True), 1):
        gaps = [abs(x - y) / max(abs(y), 1e-12) for x, y in zip(a, b, strict=True)]
        apart = max(gap if gap == gap else float("inf") for gap in gaps)
        worst = max(worst, apart)
        table.add_row(str(number), *(f"{x:.6g}" for pair in zip(a, b, strict=True) for x in pair), f"{apart:.2g}")
    return table, worst


def _updates(config: ConfigDict, model: Any, mesh: Any, objective: Objective, num_steps: int, options: dict) -> list[Update]:
    tuned = tuning.make(config, model)
    optimizer = setup.optimizer(config, tuned.axes())
    with jax.set_mesh(mesh):
        frozen = opened.frozen(config, mesh, tuned, None)
        state = states.create(tuned.init(config), optimizer, mesh, tuned.axes(), **programs.state_options(config))
        update = jit_step(programs.make_update(config, tuned, objective, optimizer), state, options)
        found = []
        for step in range(num_steps):
            state, report = update(state, frozen, _batch(config, model.config.vocab_size, step))
            found.append(Update(float(report["loss"]), float(report["grad_norm"])))
    return found


def _batch(config: ConfigDict, vocab_size: int, step: int) -> dict[str, jax.Array]:
    """Random tokens in whole rows; the same on every process."""
    B, T = config.batch_size, config.sequence_length

    def draw():
        tokens = jax.random.randint(jax.random.fold_in(jax.random.key(config.seed), step), (B, T + 1), 0, vocab_size, jnp.int32)
        rows = {"tokens": tokens[:, :-1], "targets": tokens[:, 1:], "weights": jnp.ones((B, T), jnp.float32)}
        rows |= {"segments": jnp.ones((B, T), jnp.int32), "positions": jnp.broadcast_to(jnp.arange(T, dtype=jnp.int32), (B, T))}
        cut = {name: rules.constrain(row, "batch", "sequence") for name, row in rows.items()}
        return cut | {"row": rules.constrain(jnp.arange(B, dtype=jnp.int32), "batch")}

    return jax.jit(draw)()
