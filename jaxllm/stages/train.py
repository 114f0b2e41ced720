"""One training run in a work directory: the same for every stage that trains; a stage brings its objective and its data."""

import contextlib
import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from ml_collections import ConfigDict

from jaxllm.evaluation.perplexity import SCORES, perplexity, unigram
from jaxllm.parallel import hosts, rules
from jaxllm.parallel.mesh import AXES, make_mesh, resolve_sizes
from jaxllm.parallel.stops import StopRequests
from jaxllm.stages import inputs, origin, setup, tasks, workdir
from jaxllm.stages.config import as_dict
from jaxllm.stages.init_from import initial_weights
from jaxllm.training import lock
from jaxllm.training import state as states
from jaxllm.training.checkpoints import Checkpoints
from jaxllm.training.loop import EarlyStopping, Ended, Eval, fit
from jaxllm.training.metrics import Writer
from jaxllm.training.step import Step, jit_step, make_step

BASELINE_TOKENS = 2_000_000  # of each source, for the unigram baseline
GUARD_WINDOW = 128  # finite updates that spike skipping remembers


class Objective(NamedTuple):
    """What a stage trains for.

    Attributes:
      loss: (params, frozen, microbatch, rng) -> terms, report.
      totals: batch -> what each term is divided by.
    """

    loss: Callable
    totals: Callable


def abstract_batch(config: ConfigDict, mesh: Any) -> dict[str, jax.ShapeDtypeStruct]:
    """The shapes of a packed batch of rows, and where they lie."""
    shape, shardings = (config.batch_size, config.sequence_length), inputs.row_shardings(mesh)
    kinds = {"tokens": jnp.int32, "targets": jnp.int32, "weights": jnp.float32, "segments": jnp.int32, "positions": jnp.int32}
    batch = {name: jax.ShapeDtypeStruct(shape, dtype, sharding=shardings[2]) for name, dtype in kinds.items()}
    return batch | {"row": jax.ShapeDtypeStruct(shape[:1], jnp.int32, sharding=shardings[1])}


def init_params(config: ConfigDict, model: Any) -> Callable[[], Any]:
    """Draws the initial parameters; a pure function of the seed."""
    return lambda: model.init(jax.random.key(config.seed))


def make_update(config: ConfigDict, model: Any, objective: Objective, optimizer: Any) -> Step:
    """The pure function of one update."""
    return make_step(
        objective.loss,
        objective.totals,
        optimizer,
        axes=model.axes(),
        microbatches=config.microbatches,
        seed=config.seed,
        clip_norm=config.optimizer.clip_norm or None,
        spike_sigma=config.optimizer.spike_sigma or None,
        ema_decay=config.optimizer.ema_decay or None,
    )


def state_options(config: ConfigDict) -> dict[str, Any]:
    """Which optional parts the state has."""
    return {"ema": config.optimizer.ema_decay > 0, "guard": GUARD_WINDOW}


def programs(config: ConfigDict, mesh: Any, model: Any, objective: Objective) -> dict[str, tuple[Callable, tuple]]:
    """name -> (function, abstract arguments) of what a training stage compiles; arguments carry their shardings on a real mesh."""
    check_batch(config, dict(mesh.shape))
    axes = model.axes()
    optimizer = setup.optimizer(config, axes)
    step = make_update(config, model, objective, optimizer)
    state = states.abstract(init_params(config, model), optimizer, mesh, axes, **state_options(config))
    return {"train_step": (step, (state, {}, abstract_batch(config, mesh)))}


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


def check(config: ConfigDict, programs: Callable[[ConfigDict, Any], dict[str, tuple[Callable, tuple]]]) -> int:
    """`--check`: traces every program of a stage by shapes alone, on the config's own mesh, which need not exist; returns 0."""
    setup.backend_flags(config)
    sizes = setup.mesh_sizes(config)
    known = math.prod(size for size in sizes.values() if size != -1)
    sizes = resolve_sizes(sizes, known if -1 in sizes.values() else math.prod(sizes.values()))
    mesh = jax.sharding.AbstractMesh(tuple(sizes.values()), AXES, axis_types=(jax.sharding.AxisType.Auto,) * len(AXES))
    for name, (function, arguments) in programs(config, mesh).items():
        with rules.under(mesh):
            jax.eval_shape(function, *arguments)
        shape = " x ".join(f"{axis}={size}" for axis, size in sizes.items() if size > 1) or "one device"
        count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(arguments[0].params))
        print(f"{name}: {count:,} parameters, batch {config.batch_size} x {config.sequence_length}, {shape}: ok")
    return 0


class Run(NamedTuple):
    """Everything a training run is made of."""

    config: ConfigDict
    mesh: jax.sharding.Mesh
    prepared: Any  # the token files
    model: Any
    optimizer: Any
    objective: Objective


def run(stage: str, config: ConfigDict, folder: str, make_objective: Callable, make_eval_sums: Callable) -> int:
    """Trains in a work directory, from the start or from where it was left; returns the exit code.

    Args:
      stage: its name, for config.json.
      config: resolved.
      folder: the work directory.
      make_objective: (config, model) -> Objective.
      make_eval_sums: (config, model, token_bytes) -> what `evaluation.perplexity` calls on each batch.
    """
    flags = setup.backend_flags(config)
    section = config.parallel
    hosts.start(section.coordinator, section.num_processes, section.process_id)
    setup.keep_compiled_programs()
    with StopRequests() as stop, lock.hold(folder):
        for line in workdir.enter(stage, config, folder):
            hosts.say(line)
        made = build(config, make_objective)
        sums = make_eval_sums(config, made.model, made.prepared.tokenizer.token_bytes())
        with contextlib.closing(make_writer(made, folder)) as writer:
            ended = _train(stage, made, folder, sums, stop, flags, writer)
    stopped = ended.reason == "stopped"
    if stopped:
        hosts.say(f"Stopped and saved at step {ended.step}. Run the same command again to go on from there.")
    hosts.finish()
    return 75 if stopped else 0


def check_metric(key: str, metric: str | None, sets: Sequence[str]) -> None:
    """Refuses a metric that no evaluation of this run will report: it would be waited for in silence.

    Raises:
      ValueError: names the metrics there will be.
    """
    known = [f"{name}/{metric}" for name in sets for metric in SCORES]
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


def build(config: ConfigDict, make_objective: Callable) -> Run:
    """Mesh, data, model, optimizer: everything that needs no memory on a device yet."""
    if config.checkpoint.export_every:
        raise ValueError("checkpoint.export_every is not supported yet: exports come with `jaxllm convert`. Leave it at 0.")
    check_best(config)
    setup.optimizer(config, None)  # a mistake in it, or in the model's preset, is told before any text is prepared
    if config.model.preset:
        setup.model_config(config)
    mesh = make_mesh(setup.mesh_sizes(config))
    check_batch(config, dict(mesh.shape))
    prepared = inputs.data(config)
    for key, metric in (("checkpoint.best", config.checkpoint.best), ("early_stopping.metric", config.early_stopping.metric)):
        check_metric(key, metric, list(prepared.streams("eval")))
    model = setup.model(config, prepared.tokenizer.vocab_size)
    return Run(config, mesh, prepared, model, setup.optimizer(config, model.axes()), make_objective(config, model))


def _train(stage: str, made: Run, folder: str, sums: Callable, stop: Callable[[int], bool], flags: str, writer: Writer) -> Ended:
    """Restores or creates the state, says what is about to run, and fits."""
    config, mesh, model, prepared = made.config, made.mesh, made.model, made.prepared
    known = {"tokenizer": prepared.tokenizer.fingerprint, "data": prepared.content, "train_data": prepared.train_content}
    metadata = {**known, "scan_layers": model.scan_layers}
    inputs.check_data(config, prepared, folder)
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
        state, feed_state = start_state(made, checkpoints, {name: known[name] for name in ("tokenizer", "train_data")})
    checkpoints.prepare(state)
    reader = inputs.reader(config, prepared)
    feed = inputs.feed(config, mesh, reader)
    if feed_state is not None:
        feed.restore(feed_state)
    baseline = unigram_baseline(prepared)
    if hosts.is_first():
        more = {"vocab_size": prepared.tokenizer.vocab_size, "prepared": prepared.folder, "baselines": baseline}
        workdir.record(stage, config, folder, {**known, **more})
        workdir.keep_tokenizer(prepared.tokenizer, folder)
        if config.init_from:
            origin.keep(config.init_from, folder, prepared.tokenizer.fingerprint)
    for line in startup_lines(made, state, flags, resumed=feed_state is not None):
        hosts.say(line)
    update = jit_step(make_update(config, model, made.objective, made.optimizer), state, setup.compiler_options(config, mesh))
    every, early = config.eval.every or config.steps, config.early_stopping
    evals = [
        Eval(name, every, functools.partial(_score, made, sums, stream), at_start=True) for name, stream in prepared.streams("eval").items()
    ]
    for name, ask in tasks.evals(config, model, prepared.tokenizer):
        evals.append(Eval(name, config.tasks.every or every, functools.partial(_ask, ask), at_start=True))
    evals.append(Eval("epochs", every, lambda state: reader.epochs(int(state.step))))
    began = int(state.step)
    with jax.set_mesh(mesh), contextlib.closing(feed):
        ended = fit(
            state,
            {},
            feed,
            update,
            until=config.steps,
            writer=writer,
            checkpoints=checkpoints,
            evals=evals,
            stop=stop,
            early=EarlyStopping(early.metric, early.patience, early.mode) if early.metric else None,
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


def start_state(made: Run, checkpoints: Checkpoints, expect: Mapping[str, Any]) -> tuple[Any, Any]:
    """The state to begin with: the last whole checkpoint's, weights of another run, or a new one; and where the feed was, if anywhere.

    A checkpoint written with the other layout of the layers is turned into this run's, exactly.
    """
    config, mesh, model, optimizer = made.config, made.mesh, made.model, made.optimizer
    found = checkpoints.newest_whole()
    if found is not None:
        saved_model = dataclasses.replace(model, scan_layers=found.metadata["scan_layers"])
        saved_optimizer = setup.optimizer(config, saved_model.axes())
        like = states.abstract(init_params(config, saved_model), saved_optimizer, mesh, saved_model.axes(), **state_options(config))
        if found.step > config.steps:
            raise ValueError(f"steps={config.steps}, but the run is at step {found.step} already. Give more steps, or another --workdir.")
        known = {name: value for name, value in expect.items() if name in found.metadata}  # older ones do not say "train_data"
        restored = checkpoints.restore(like, step=found, expect=known)
        assert restored is not None
        state = restored.state
        if saved_model.scan_layers != model.scan_layers:
            shapes = states.abstract(init_params(config, model), optimizer, mesh, model.axes(), **state_options(config))
            state = jax.jit(lambda tree: model.relayout(tree, model.scan_layers), out_shardings=jax.tree.map(lambda s: s.sharding, shapes))(
                state
            )
        return state, restored.feed_state
    if config.init_from:
        params = initial_weights(config, mesh, model, made.prepared.tokenizer.fingerprint)
        return states.from_params(params, optimizer, mesh, model.axes(), **state_options(config)), None
    return states.create(init_params(config, model), optimizer, mesh, model.axes(), **state_options(config)), None


def startup_lines(made: Run, state: Any, flags: str, resumed: bool) -> list[str]:
    """What is about to run: mesh, parameters, bytes per device, and what is left replicated."""
    config, mesh = made.config, made.mesh
    shape = " x ".join(f"{axis}={size}" for axis, size in mesh.shape.items() if size > 1) or "one device"
    device = mesh.devices.flat[0].device_kind
    with rules.under(mesh):
        computes = ", ".join(filter(None, (made.model.dtype, f"{made.model.attention_kernel()} attention", flags)))
    rows = f"batch {config.batch_size} x {config.sequence_length}" + (
        f" in {config.microbatches} microbatches" if config.microbatches > 1 else ""
    )
    return [
        f"{'Resuming at' if resumed else 'Starting at'} step {int(state.step)} of {config.steps}, {rows}.",
        f"mesh: {shape}; {mesh.size} x {device}; {jax.process_count()} process(es); {computes}",
        *states.report(state, mesh).lines(),
    ]


def unigram_baseline(prepared: Any) -> dict[str, float]:
    """What knowing only how often each token occurs would score on the held-out text (counted on the first tokens of each).

    As in training, the first token of a document (its beginning-of-text token, where there is one) is never predicted: it does not count.
    """
    size = prepared.tokenizer.vocab_size

    def targets(stream: Any) -> np.ndarray:
        stop = min(stream.num_tokens, BASELINE_TOKENS)
        return np.delete(stream.read(0, stop), [0, *stream.ends(0, stop - 1)])

    def counts(split: str) -> np.ndarray:
        parts = [np.bincount(targets(stream), minlength=size) for stream in prepared.streams(split).values()]
        return sum(parts, np.zeros(size, np.int64))

    held_out = counts("eval")
    return unigram(counts("train"), held_out, prepared.tokenizer.token_bytes()) if held_out.sum() else {}


def _score(made: Run, sums: Callable, stream: Any, state: Any) -> dict[str, float]:
    """Perplexity of the state's weights (the moving average if there is one) on one validation set."""
    return perplexity(sums, weights(state), inputs.eval_batches(made.config, made.mesh, stream))


def _ask(scores: Callable[[Any], dict[str, float]], state: Any) -> dict[str, float]:
    return scores(weights(state))


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
        flops_per_token=made.model.flops_per_token(config.sequence_length),
        devices=list(made.mesh.devices.flat),
        tensorboard=config.log.tensorboard,
        wandb=config.log.wandb,
        config=as_dict(config),
        profile=(config.profile.start, config.profile.steps),
    )
