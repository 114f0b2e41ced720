"""One update: loss over microbatches, gradients into one accumulator, clipping, skipping, the optimizer, the moving average."""

import zlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding, PartitionSpec

from jaxllm.losses.terms import Report, Term, Terms
from jaxllm.parallel import rules
from jaxllm.training import spikes
from jaxllm.training.masks import merge, named_axes, select
from jaxllm.training.optimizers import Optimizer, as_optimizer
from jaxllm.training.state import TrainState

__all__ = ["Step", "Term", "jit_step", "make_step", "purpose_key"]

Batch = dict[str, jax.Array]
Loss = Callable[[Any, Any, Batch, jax.Array], tuple[Terms, Report]]
Totals = Callable[[Batch], Report]
Step = Callable[[TrainState, Any, Batch], tuple[TrainState, Report]]


def purpose_key(seed: int, purpose: str, step: int | jax.Array) -> jax.Array:
    """The key of all random draws for one purpose ("loss", "rollout", ...) at one step; the same on every mesh and after every resume."""
    key = jax.random.fold_in(jax.random.key(seed), zlib.crc32(purpose.encode()))
    return jax.random.fold_in(key, step)


def make_step(
    loss: Loss,
    totals: Totals,
    optimizer: Optimizer | optax.GradientTransformation,
    *,
    axes: Any = None,
    microbatches: int = 1,
    seed: int = 0,
    clip_norm: float | None = 1.0,
    spike_sigma: float | None = 6.0,
    ema_decay: float | None = None,
) -> Step:
    """The pure function of one update, to be handed to `jit_step`.

    Args:
      loss: (params, frozen, microbatch, rng) -> terms, report: sums over the microbatch.
      totals: batch -> what each term is divided by, and each name of the report that is a mean; seen once, on the whole batch.
      optimizer: from `optimizers.make_optimizer`, or any optax transformation. Its update is told `step` as an extra argument.
      axes: logical axes of the parameters; gradients are pinned to where those are stored.
      microbatches: how many parts the batch is split into; it changes memory and nothing else.
      seed: the run's seed; the loss draws from a key folded from it, "loss" and the step.
      clip_norm: gradients of a larger global norm are scaled down to it; None: never.
      spike_sigma: see `spikes.judge`; it acts when the state has a guard.
      ema_decay: of the moving average, when the state has one; at step t it is at most (1 + t) / (10 + t).

    Returns:
      step(state, frozen, batch) -> state, report. The report holds "loss", each term as its mean, the loss's own report (a mean where a
      total is known, otherwise a sum), "grad_norm" (before clipping), "param_norm", "update_norm", "skipped" (0 or 1), "skipped_<reason>"
      (so far), "tokens" (positions that are not padding, for a batch with segments), "learning_rate" (if the optimizer has a schedule).
    """
    if microbatches < 1:
        raise ValueError(f"microbatches={microbatches} is not a number of parts. Give 1 or more.")
    optimizer = as_optimizer(optimizer)
    pin = _pin_to(axes)

    def step(state: TrainState, frozen: Any, batch: Batch) -> tuple[TrainState, Report]:
        # The totals are of the whole batch: no split of it can change what a token weighs.
        known = totals(batch)
        mask = optimizer.trainable(state.params)
        rng = purpose_key(seed, "loss", state.step)

        def objective(learned, part):
            terms, report = loss(merge(learned, state.params), frozen, part, rng)
            _check_totals(terms, known)
            value = sum(t.coefficient * t.sum.astype(jnp.float32) / _nonzero(known[name]) for name, t in terms.items())
            return value, {"loss": value, **{name: t.sum for name, t in terms.items()}, **report}

        grads, sums = _accumulate(objective, select(state.params, mask), batch, microbatches, pin)
        report = {name: value / _nonzero(known[name]) if name in known else value for name, value in sums.items()}

        # Skipping is a choice between old and new, leaf by leaf: the old ones come back bit for bit.
        grad_norm = optax.tree.norm(grads)
        skip, guard = spikes.judge(state.guard, report["loss"], grad_norm, spike_sigma)
        if clip_norm is not None:
            scale = clip_norm / jnp.maximum(grad_norm, clip_norm)
            grads = jax.tree.map(lambda g: g * scale, grads)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params, step=state.step)
        updates = jax.tree.map(lambda u: jnp.where(skip, 0, u), updates)
        params = merge(optax.apply_updates(select(state.params, mask), updates), state.params)
        params, opt_state = _keep(skip, state.params, params), _keep(skip, state.opt_state, opt_state)
        ema = state.ema
        if ema is not None and ema_decay is not None:
            ema = _keep(skip, ema, _average(ema, params, ema_decay, state.step))

        report |= {"grad_norm": grad_norm, "param_norm": optax.tree.norm(params), "update_norm": optax.tree.norm(updates)}
        report["skipped"] = skip.astype(jnp.float32)
        if guard is not None:
            report |= {f"skipped_{reason}": guard.skipped[i] for i, reason in enumerate(spikes.REASONS)}
        if "segments" in batch:
            report["tokens"] = jnp.sum(batch["segments"] != 0, dtype=jnp.float32)
        if optimizer.schedule is not None:
            report["learning_rate"] = jnp.asarray(optimizer.schedule(state.step), jnp.float32)
        return TrainState(state.step + 1, params, opt_state, ema, guard), report

    return step


def jit_step(step: Step, state: TrainState, compiler_options: Mapping[str, Any] | None = None) -> Step:
    """The compiled step: it takes the old state's memory, keeps the state where it is, and reports the same scalars to every process.

    Args:
      step: from `make_step`.
      state: a real or abstract state; only its shardings are read. Call the result under `jax.set_mesh(mesh)`.
      compiler_options: by name, for this program alone.
    """
    shardings = jax.tree.map(lambda leaf: leaf.sharding, state)
    mesh = getattr(state.step.sharding, "mesh", None)
    whole = NamedSharding(mesh, PartitionSpec()) if mesh is not None else state.step.sharding
    return jax.jit(step, donate_argnums=0, out_shardings=(shardings, whole), compiler_options=dict(compiler_options or {}) or None)


def _accumulate(objective: Callable, learned: Any, batch: Batch, microbatches: int, pin: Callable) -> tuple[Any, Report]:
    """Gradients (float32, pinned) and sums of the report over all microbatches."""

    def one(part):
        (_, sums), grads = jax.value_and_grad(objective, has_aux=True)(learned, part)
        return pin(jax.tree.map(lambda g: g.astype(jnp.float32), grads)), jax.tree.map(lambda s: jnp.asarray(s, jnp.float32), sums)

    if microbatches == 1:
        return one(batch)
    parts = {name: _split(name, array, microbatches) for name, array in batch.items()}
    shapes = jax.eval_shape(one, {name: array[0] for name, array in parts.items()})
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)

    def add(total, part):
        grads, sums = jax.tree.map(jnp.add, total, one(part))
        return (pin(grads), sums), None

    return jax.lax.scan(add, (pin(zeros[0]), zeros[1]), parts)[0]


def _split(name: str, array: jax.Array, microbatches: int) -> jax.Array:
    """[B, ...] -> [M, B/M, ...] so that every device keeps its own rows: row i goes to microbatch i mod M."""
    rows, shards = array.shape[0], rules.ways("batch")
    if rows % (microbatches * shards):
        raise ValueError(
            f"A batch of {rows} rows ({name}) cannot be split into microbatches={microbatches} over {shards} data-parallel devices. "
            f"Choose a batch_size that is a multiple of {microbatches * shards}, or fewer microbatches."
        )
    parts = array.reshape(rows // microbatches, microbatches, *array.shape[1:]).swapaxes(0, 1)
    if shards == 1:
        return parts
    rest = [PartitionSpec.UNCONSTRAINED] * (array.ndim - 1)
    return jax.lax.with_sharding_constraint(parts, PartitionSpec(None, rules.COMPUTE["batch"], *rest))


def _pin_to(axes: Any) -> Callable[[Any], Any]:
    """A function that pins a tree like the parameters (None where frozen) to where those are stored."""
    if axes is None:
        return lambda tree: tree
    names = named_axes(axes)
    return lambda tree: jax.tree_util.tree_map_with_path(
        lambda path, leaf: rules.constrain(leaf, *names[rules.path_name(path)], rules=rules.STORED), tree
    )


def _check_totals(terms: Terms, known: Report) -> None:
    missing = [name for name in terms if name not in known]
    if missing:
        raise ValueError(f"The loss has a term {missing[0]!r} but totals(batch) does not. It knows: {', '.join(known) or 'nothing'}.")


def _nonzero(total: jax.Array) -> jax.Array:
    """A total to divide by; where nothing is trained (0) the sum is 0 as well."""
    return jnp.where(total == 0, 1.0, total)


def _keep(skip: jax.Array, old: Any, new: Any) -> Any:
    """The old leaves or the new ones, in the old ones' dtypes: the state of step 1 is of the same kind as that of step 0."""
    return jax.tree.map(lambda o, n: jnp.where(skip, o, n.astype(o.dtype)), old, new)


def _average(ema: Any, params: Any, decay: float, step: jax.Array) -> Any:
    rate = 1 - jnp.minimum(decay, (1 + step) / (10 + step))
    return jax.tree.map(lambda e, p: e + rate * (p - e), ema, params)
