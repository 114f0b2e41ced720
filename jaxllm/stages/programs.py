"""What a stage compiles: its update, and what else it runs, by shapes and places alone."""

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from jaxllm.parallel import rules
from jaxllm.parallel.mesh import AXES, resolve_sizes
from jaxllm.stages import inputs, setup, tuning
from jaxllm.stages.recipe import Objective, Program, Recipe
from jaxllm.stages.tuning import Tuned
from jaxllm.training import state as states
from jaxllm.training.step import Step, make_step

GUARD_WINDOW = 128  # finite updates that spike skipping remembers
TRAIN_STEP = "train_step"


def abstract_batch(config: ConfigDict, mesh: Any, recipe: Recipe) -> dict[str, jax.ShapeDtypeStruct]:
    """The shapes of a packed batch of rows, and where they lie."""
    shape, shardings = (config.batch_size, config.sequence_length), inputs.row_shardings(mesh)
    kinds = {"tokens": jnp.int32, "targets": jnp.int32, "weights": jnp.float32, "segments": jnp.int32, "positions": jnp.int32}
    batch = {name: jax.ShapeDtypeStruct(shape, dtype, sharding=shardings[2]) for name, dtype in kinds.items()}
    more = {name: jax.ShapeDtypeStruct(size, dtype, sharding=shardings[len(size)]) for name, (size, dtype) in recipe.fields(config).items()}
    return batch | more | {"row": jax.ShapeDtypeStruct(shape[:1], jnp.int32, sharding=shardings[1])}


def make_update(config: ConfigDict, tuned: Tuned, objective: Objective, optimizer: Any) -> Step:
    """The pure function of one update."""

    def loss(trained, frozen, batch, rng):
        return objective.loss(tuned.whole(trained, frozen), frozen, batch, rng)

    step = make_step(
        loss,
        objective.totals,
        optimizer,
        axes=tuned.axes(),
        microbatches=config.microbatches,
        seed=config.seed,
        clip_norm=config.optimizer.clip_norm or None,
        spike_sigma=config.optimizer.spike_sigma or None,
        ema_decay=config.optimizer.ema_decay or None,
    )
    before = objective.before
    if before is None:
        return step
    return lambda state, frozen, batch: step(state, frozen, before(tuned.whole(state.params, frozen), frozen, batch))


def state_options(config: ConfigDict) -> dict[str, Any]:
    """Which optional parts the state has."""
    return {"ema": config.optimizer.ema_decay > 0, "guard": GUARD_WINDOW}


def abstract_state(config: ConfigDict, tuned: Tuned, mesh: Any) -> states.TrainState:
    """The shapes of a run's state, and where they lie."""
    axes = tuned.axes()
    return states.abstract(tuned.init(config), tuned.optimizer(config), mesh, axes, **state_options(config))


def programs(config: ConfigDict, mesh: Any, recipe: Recipe) -> dict[str, Program]:
    """name -> what a training stage compiles; arguments carry their shardings on a real mesh. The update comes first."""
    check_batch(config, dict(mesh.shape))
    model = setup.model(config)
    tuned = tuning.make(config, model, beside=recipe.beside(config, model))
    step = make_update(config, tuned, recipe.objective(config, model), tuned.optimizer(config))
    state, frozen = abstract_state(config, tuned, mesh), tuned.abstract_frozen(mesh)
    update = Program(step, (state, frozen, abstract_batch(config, mesh, recipe)), config.batch_size * config.sequence_length)
    return {TRAIN_STEP: update, **recipe.forwards(config, tuned, mesh, (state, frozen))}


def check_batch(config: ConfigDict, sizes: Mapping[str, int]) -> None:
    """Refuses a batch that the mesh or the microbatches would not cut into equal parts.

    Raises:
      ValueError: which size, which axis, and what would divide.
    """
    rows = sizes["replica"] * sizes["fsdp"]
    if config.batch_size % (rows * config.microbatches):
        good = rows * config.microbatches
        raise ValueError(
            f"batch_size={config.batch_size} does not divide by replica*fsdp={rows} times microbatches={config.microbatches}."
            f" Choose a multiple of {good}: {', '.join(str(good * k) for k in (1, 2, 4, 8))}, ..."
        )
    ways = sizes["context"] * (2 if sizes["context"] > 1 else 1)
    if config.sequence_length % ways:
        raise ValueError(
            f"sequence_length={config.sequence_length} does not divide by {ways} (2 x context={sizes['context']}: zigzag order)."
            f" Choose a multiple of {ways}."
        )


def check(config: ConfigDict, recipe: Recipe, devices: int | None = None) -> int:
    """`--check`: traces every program of a stage by shapes alone, on the config's own mesh, which need not exist; returns 0.

    Args:
      config: resolved.
      recipe: of the stage.
      devices: that the mesh must cover; None: as many as its sizes come to.
    """
    setup.backend_flags(config)
    sizes = setup.mesh_sizes(config)
    known = math.prod(size for size in sizes.values() if size != -1)
    sizes = resolve_sizes(sizes, devices or (known if -1 in sizes.values() else math.prod(sizes.values())))
    mesh = jax.sharding.AbstractMesh(tuple(sizes.values()), AXES, axis_types=(jax.sharding.AxisType.Auto,) * len(AXES))
    found = programs(config, mesh, recipe)
    for name, (function, arguments, _) in found.items():
        with rules.under(mesh):
            jax.eval_shape(function, *arguments)
        shape = " x ".join(f"{axis}={size}" for axis, size in sizes.items() if size > 1) or "one device"
        trained, still = (sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree)) for tree in (arguments[0].params, arguments[1]))
        counted = f"{trained:,} parameters" + (f" beside {still:,} frozen ones" if still else "")
        print(f"{name}: {counted}, batch {config.batch_size} x {config.sequence_length}, {shape}: ok")
    return 0
