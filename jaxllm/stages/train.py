"""One training run in a work directory: the same for every stage that trains; a stage brings its `Recipe`."""

import contextlib
import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
from etils import epath
from ml_collections import ConfigDict

from jaxllm.parallel import hosts, rules
from jaxllm.parallel.mesh import make_mesh
from jaxllm.parallel.stops import StopRequests
from jaxllm.stages import inputs, opened, origin, programs, setup, tasks, tuning, workdir
from jaxllm.stages.config import as_dict
from jaxllm.stages.recipe import Data, Objective, Recipe, Scorer, Soft
from jaxllm.stages.tuning import Tuned
from jaxllm.training import lock
from jaxllm.training import state as states
from jaxllm.training.checkpoints import Checkpoints
from jaxllm.training.loop import EarlyStopping, Ended, Eval, fit
from jaxllm.training.metrics import Writer
from jaxllm.training.step import jit_step


class Run(NamedTuple):
    """Everything a training run is made of."""

    recipe: Recipe
    config: ConfigDict
    mesh: jax.sharding.Mesh
    data: Data
    tuned: Tuned
    optimizer: Any
    objective: Objective
    scorer: Scorer


def run(recipe: Recipe, config: ConfigDict, folder: str) -> int:
    """Trains in a work directory, from the start or from where it was left; returns the exit code.

    Args:
      recipe: the stage.
      config: resolved.
      folder: the work directory.
    """
    flags = setup.backend_flags(config)
    section = config.parallel
    hosts.start(section.coordinator, section.num_processes, section.process_id)
    setup.keep_compiled_programs()
    with StopRequests() as stop, lock.hold(folder):
        for line in workdir.enter(recipe.name, config, folder):
            hosts.say(line)
        made = build(config, recipe)
        config = made.config
        with contextlib.closing(make_writer(made, folder)) as writer:
            ended = _train(made, folder, stop, flags, writer)
    stopped = ended.reason == "stopped"
    if stopped:
        hosts.say(f"Stopped and saved at step {ended.step}. Run the same command again to go on from there.")
    hosts.finish()
    return 75 if stopped else 0


def check_metric(key: str, metric: str | None, sets: Sequence[str], scores: Sequence[str]) -> None:
    """Refuses a metric that no evaluation of this run will report: it would be waited for in silence.

    Raises:
      ValueError: names the metrics there will be.
    """
    known = [f"{name}/{metric}" for name in sets for metric in scores]
    if metric and metric not in known:
        raise ValueError(
            f"{key}={metric!r} will never be reported. Choose one of: {', '.join(known) or 'none, there is no validation set'}."
        )


def check_best(config: ConfigDict) -> None:
    """Refuses to keep the best of checkpoints whose steps are not evaluated: only one that was has a metric to be chosen by.

    Raises:
      ValueError: names the two intervals.
    """
    saves, evals = config.checkpoint.every, config.eval.every
    if config.checkpoint.best and (not saves or not evals or (saves % evals and evals % saves)):
        meet = f"meet only every {math.lcm(saves, evals)} steps" if saves and evals else "never meet"
        raise ValueError(
            f"checkpoint.best={config.checkpoint.best!r} chooses among checkpoints whose step was evaluated, but checkpoint.every={saves}"
            f" and eval.every={evals} {meet}. Make one a multiple of the other: {saves or evals or 100} for both, say."
        )


def build(config: ConfigDict, recipe: Recipe) -> Run:
    """Mesh, data, model, optimizer: everything that needs no memory on a device yet."""
    if config.checkpoint.export_every:
        raise ValueError("checkpoint.export_every is not supported yet: exports come with `jaxllm convert`. Leave it at 0.")
    check_best(config)
    setup.optimizer(config, None)  # a mistake in it, or in the model's preset, is told before any text is prepared
    if config.model.preset:
        setup.model_config(config)
    mesh = make_mesh(setup.mesh_sizes(config))
    programs.check_batch(config, dict(mesh.shape))
    data = recipe.open_data(config)
    for key, metric in (("checkpoint.best", config.checkpoint.best), ("early_stopping.metric", config.early_stopping.metric)):
        check_metric(key, metric, data.eval_names(), recipe.scores)
    model = setup.model(config, data.tokenizer.vocab_size)
    tuned = tuning.make(config, model, data.tokenizer, recipe.beside(config, model))
    scorer = recipe.scorer(config, model, data.tokenizer)
    check_soft(tuned.soft(), data.tasks())
    if (steps := data.steps(config, tuned.soft())) is not None:
        config = config.copy_and_resolve_references()
        config.steps = steps
    return Run(
        recipe, config, mesh, data, tuned, setup.optimizer(config, tuned.axes(), tuned.still()), recipe.objective(config, model), scorer
    )


def check_soft(soft: Soft | None, tasks: Sequence[str]) -> None:
    """Refuses soft prompts that are neither one for all sources nor one for each.

    Raises:
      ValueError: names both numbers.
    """
    if soft is not None and soft.num_tasks not in (1, len(tasks)):
        raise ValueError(
            f"peft.options.num_tasks={soft.num_tasks}, and data.train has {len(tasks)} sources ({', '.join(tasks)})."
            f" Give 1 (one soft prompt for all) or {len(tasks)} (one for each)."
        )


def _train(made: Run, folder: str, stop: Callable[[int], bool], flags: str, writer: Writer) -> Ended:
    """Restores or creates the state, says what is about to run, and fits."""
    recipe, config, mesh, data, tuned = made.recipe, made.config, made.mesh, made.data, made.tuned
    known = {"tokenizer": data.tokenizer.fingerprint, "data": data.content, "train_data": data.train_content}
    metadata = {**known, "scan_layers": tuned.model.scan_layers} | opened.source(config, tuned)
    data.check(config, folder)
    saves = config.checkpoint
    checkpoints = Checkpoints(
        epath.Path(folder) / "checkpoints",
        every=saves.every or None,
        every_minutes=saves.every_minutes or None,
        keep=saves.keep,
        best=(saves.best, saves.mode) if saves.best else None,
        metadata=metadata,
    )
    with writer.timed("restore"):
        frozen = opened.frozen(config, mesh, tuned, data.tokenizer.fingerprint)
        expect = {name: value for name, value in metadata.items() if name in ("tokenizer", "train_data", "base", "reference")}
        state, feed_state = start_state(made, frozen, checkpoints, expect)
    checkpoints.prepare(state)
    reader = data.reader(config, tuned.soft())
    feed = recipe.feed(made, folder) if recipe.feed else inputs.feed(config, mesh, reader)
    if feed_state is not None:
        feed.restore(feed_state)
    baselines = data.baselines()
    if hosts.is_first():
        more = {"vocab_size": data.tokenizer.vocab_size, "baselines": baselines, **data.record()}
        workdir.record(recipe.name, config, folder, {**known, **more})
        workdir.keep_tokenizer(data.tokenizer, folder)
        if config.init_from:
            origin.keep(config.init_from, folder, data.tokenizer.fingerprint)
    for line in [*startup_lines(made, state, frozen, flags, resumed=feed_state is not None), *data.lines(config, tuned.soft())]:
        hosts.say(line)
    update = jit_step(programs.make_update(config, tuned, made.objective, made.optimizer), state, setup.compiler_options(config, mesh))
    began = int(state.step)
    with jax.set_mesh(mesh), contextlib.closing(feed):
        ended = fit(
            state,
            frozen,
            feed,
            update,
            until=config.steps,
            writer=writer,
            checkpoints=checkpoints,
            evals=evals(made, frozen, reader),
            stop=stop,
            early=early_stopping(config),
        )
    if feed_state is not None and ended.step == began and ended.reason != "stopped":
        hosts.say(finished(ended, config))
    return ended


def finished(ended: Ended, config: ConfigDict) -> str:
    """What to say of a run that was started again and had nothing left to do."""
    if ended.reason == "early":
        why = f"it stopped early, as {config.early_stopping.metric} no longer improved. To go on: a larger early_stopping.patience"
    else:
        why = f"all its steps are done. To go on: more of them, --config.steps={2 * config.steps} say"
    return f"This run is finished at step {ended.step} of {config.steps}: {why}."


def early_stopping(config: ConfigDict) -> EarlyStopping | None:
    """What ends the run for lack of progress, where the config says so."""
    early = config.early_stopping
    return EarlyStopping(early.metric, early.patience, early.mode) if early.metric else None


def evals(made: Run, frozen: Any, reader: Any) -> list[Eval]:
    """Every validation set, the tasks that are asked while training, and how often each source has been gone through."""
    config, every = made.config, made.config.eval.every or made.config.steps
    found = [Eval(name, every, functools.partial(_score, made, frozen, name), at_start=True) for name in made.data.eval_names()]
    for name, ask in tasks.evals(config, made.tuned.model, made.data.tokenizer):
        found.append(Eval(name, config.tasks.every or every, functools.partial(_ask, made, frozen, ask), at_start=True))
    return [*found, Eval("epochs", every, lambda state: reader.epochs(int(state.step)))]


def start_state(made: Run, frozen: Any, checkpoints: Checkpoints, expect: Mapping[str, Any]) -> tuple[Any, Any]:
    """The state to begin with: the last whole checkpoint's, weights of another run, or a new one; and where the feed was, if anywhere.

    A checkpoint written with the other layout of the layers is turned into this run's, exactly.
    """
    config, mesh, tuned, optimizer = made.config, made.mesh, made.tuned, made.optimizer
    found = checkpoints.newest_whole()
    if found is not None:
        if found.step > config.steps:
            raise ValueError(f"steps={config.steps}, but the run is at step {found.step} already. Give more steps, or another --workdir.")
        model = dataclasses.replace(tuned.model, scan_layers=found.metadata["scan_layers"])
        saved = tuning.make(config, model, beside=tuned.beside)
        known = {name: value for name, value in expect.items() if name in found.metadata}  # older ones do not say "train_data"
        restored = checkpoints.restore(programs.abstract_state(config, saved, mesh), step=found, expect=known)
        assert restored is not None
        state = restored.state
        if saved.model.scan_layers != tuned.model.scan_layers:
            places = jax.tree.map(lambda s: s.sharding, programs.abstract_state(config, tuned, mesh))
            state = jax.jit(lambda tree: tuned.relayout(tree, tuned.model.scan_layers), out_shardings=places)(state)
        return state, restored.feed_state
    params = opened.start(config, mesh, tuned, frozen, made.data.tokenizer.fingerprint)
    if params is not None:
        return states.from_params(params, optimizer, mesh, tuned.axes(), **programs.state_options(config)), None
    return states.create(tuned.init(config), optimizer, mesh, tuned.axes(), **programs.state_options(config)), None


def startup_lines(made: Run, state: Any, frozen: Any, flags: str, resumed: bool) -> list[str]:
    """What is about to run: mesh, parameters, bytes per device, and what is left replicated."""
    config, mesh, model = made.config, made.mesh, made.tuned.model
    shape = " x ".join(f"{axis}={size}" for axis, size in mesh.shape.items() if size > 1) or "one device"
    device = mesh.devices.flat[0].device_kind
    with rules.under(mesh):
        computes = ", ".join(filter(None, (model.dtype, f"{model.attention_kernel()} attention", flags)))
    rows = f"batch {config.batch_size} x {config.sequence_length}" + (
        f" in {config.microbatches} microbatches" if config.microbatches > 1 else ""
    )
    return [
        f"{'Resuming at' if resumed else 'Starting at'} step {int(state.step)} of {config.steps}, {rows}.",
        f"mesh: {shape}; {mesh.size} x {device}; {jax.process_count()} process(es); {computes}",
        *states.report(state, mesh).lines(),
        *tuning.lines(made.tuned, state, frozen),
    ]


def _score(made: Run, frozen: Any, name: str, state: Any) -> dict[str, float]:
    """The metrics of the state's weights (the moving average if there is one) on one validation set."""
    rows = made.data.eval_reader(made.config, name, made.tuned.soft())
    return made.scorer(made.tuned.whole(weights(state), frozen), frozen, inputs.eval_batches(made.config, made.mesh, rows))


def _ask(made: Run, frozen: Any, scores: Callable[[Any], dict[str, float]], state: Any) -> dict[str, float]:
    return scores(made.tuned.whole(weights(state), frozen))


def weights(state: Any) -> Any:
    """The parameters that are evaluated: the moving average, if there is one."""
    return state.params if state.ema is None else state.ema


def make_writer(made: Run, folder: str) -> Writer:
    """The writer of metrics, with what it needs to know of the model and the machine."""
    config = made.config
    return Writer(
        folder,
        every=config.log.every,
        until=config.steps,
        flops_per_token=made.tuned.model.flops_per_token(config.sequence_length),
        devices=list(made.mesh.devices.flat),
        tensorboard=config.log.tensorboard,
        wandb=config.log.wandb,
        config=as_dict(config),
        profile=(config.profile.start, config.profile.steps),
    )
