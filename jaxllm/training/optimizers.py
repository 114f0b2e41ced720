"""The optimizers: one visible table of optax chains, with decay masks and freezing by parameter name."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxllm.parallel import rules
from jaxllm.training.adafactor import scale_by_adafactor
from jaxllm.training.choices import check_options, choose
from jaxllm.training.masks import by_name, is_hidden_matrix, is_matrix, merge, named_axes, select
from jaxllm.training.muon import scale_by_muon
from jaxllm.training.schedules import Schedule

Axes = dict[str, rules.LogicalAxes] | None
Mask = Callable[[Any], Any]  # parameters -> the same tree of bools


class Optimizer(NamedTuple):
    """An optax transformation that knows its learning rate and what it trains.

    Attributes:
      init: params -> opt_state; frozen parameters have none (None stands in their places).
      update: (grads, opt_state, params, *, step) -> updates, opt_state; None where frozen.
      schedule: step -> learning rate, or None.
      trainable: params -> the same tree of bools.
    """

    init: Callable[[Any], Any]
    update: Callable[..., tuple[Any, Any]]
    schedule: Schedule | None
    trainable: Mask


def adamw(axes: Axes, decay: Any, *, b1=0.9, b2=0.95, eps=1e-8, momentum_dtype=None):
    """AdamW (arXiv 1711.05101) with the b2 of GPT-3 and Llama (arXiv 2005.14165, appendix B)."""
    return optax.chain(optax.scale_by_adam(b1, b2, eps, mu_dtype=momentum_dtype), decay)


def adafactor(axes: Axes, decay: Any, *, decay_rate=0.8, clipping_threshold=1.0, min_dim_size_to_factor=128, parameter_scale=True):
    """Adafactor (arXiv 1804.04235, algorithm 6): no first moment, rates relative to the size of each parameter. A peak of 1e-2 is usual."""
    return optax.chain(scale_by_adafactor(axes, decay_rate, clipping_threshold, min_dim_size_to_factor, parameter_scale), decay)


def lion(axes: Axes, decay: Any, *, b1=0.9, b2=0.99, momentum_dtype=None):
    """Lion (arXiv 2302.06675, algorithm 2): wants 3 to 10 times less learning rate and as much more weight decay than adamw."""
    return optax.chain(optax.scale_by_lion(b1, b2, mu_dtype=momentum_dtype), decay)


def sgd(axes: Axes, decay: Any, *, momentum=0.9, nesterov=False, momentum_dtype=None):
    """SGD with momentum; its weight decay is decoupled like the others' (arXiv 1711.05101, algorithm 1)."""
    return optax.chain(optax.trace(momentum, nesterov, accumulator_dtype=momentum_dtype), decay)


def muon(
    axes: Axes,
    decay: Any,
    *,
    momentum=0.95,
    nesterov=True,
    ns_steps=5,
    ns_dtype="float32",
    rms: float | None = 0.2,
    b1=0.9,
    b2=0.95,
    eps=1e-8,
    momentum_dtype=None,
):
    """Muon for hidden matrices (Jordan et al. 2024, scaled as in arXiv 2502.16982), adamw for embeddings, head, norms and biases."""
    hidden = scale_by_muon(
        axes, momentum=momentum, nesterov=nesterov, ns_steps=ns_steps, ns_dtype=ns_dtype, rms=rms, momentum_dtype=momentum_dtype
    )
    rest = optax.scale_by_adam(b1, b2, eps, mu_dtype=momentum_dtype)
    return optax.chain(_either(lambda tree: _by_axes(is_hidden_matrix, tree, axes), hidden, rest), decay)


OPTIMIZERS: dict[str, Callable[..., optax.GradientTransformation]] = {
    "adamw": adamw,
    "adafactor": adafactor,
    "lion": lion,
    "sgd": sgd,
    "muon": muon,
}
DTYPES = dict.fromkeys(("float32", "bfloat16"))
DTYPE_OPTIONS = {"momentum_dtype": "optimizer.mu_dtype", "ns_dtype": "optimizer.options.ns_dtype"}  # as they are called in a config
WEIGHT_DECAY = {
    "adamw": 0.1,
    "adafactor": 0.0,
    "lion": 1.0,
    "sgd": 0.0,
    "muon": 0.1,
}  # lion: ten times adamw's (arXiv 2302.06675, section 5)


def make_optimizer(
    name: str,
    learning_rate: float | Schedule,
    *,
    axes: Any = None,
    weight_decay: float | None = None,
    decay: str | Sequence[str] | None = None,
    freeze: str | Sequence[str] = (),
    **options,
) -> Optimizer:
    """An optimizer whose rate follows the step of the run, not its own count: a skipped update does not shift the schedule.

    Args:
      name: a row of `OPTIMIZERS`.
      learning_rate: a number, or a schedule from `schedules.make_schedule`.
      axes: tree of the parameters' logical axes. With it, stacks of layers are told from matrices; without, every 2-D leaf is one matrix.
      weight_decay: decoupled, times the learning rate; None: the row of `WEIGHT_DECAY`.
      decay: regular expressions; weights whose name (a/b/c) matches one decay. None: all matrices, embeddings included.
      freeze: regular expressions; parameters whose name matches one get no state and no update, exactly.
      **options: the row's own (b1, b2, eps, momentum, ...). The state is float32, but for the first moment where `momentum_dtype` says so.

    Raises:
      ValueError: an unknown name or option; at `init`, a regular expression that matches nothing.
    """
    maker = choose(OPTIMIZERS, name, "optimizer")
    check_options(maker, options, f"The optimizer {name!r}", fixed=("axes", "decay"))
    for option, key in DTYPE_OPTIONS.items():
        if options.get(option) is not None:
            choose(DTYPES, options[option], key)
    names = None if axes is None else named_axes(axes)
    schedule: Schedule = learning_rate if callable(learning_rate) else lambda step: jnp.asarray(learning_rate, jnp.float32)
    strength = WEIGHT_DECAY[name] if weight_decay is None else weight_decay

    def decays(tree):
        return _by_axes(is_matrix, tree, names) if decay is None else by_name(tree, decay)

    decayed = optax.add_decayed_weights(strength, decays) if strength else optax.identity()
    chain = optax.chain(maker(names, decayed, **options), scale_by_schedule_of_step(schedule))
    return _with_frozen(chain, schedule, freeze)


def scale_by_schedule_of_step(schedule: Schedule) -> optax.GradientTransformationExtraArgs:
    """Times minus the learning rate of the run's step, which `update` is told as an extra argument."""

    def update(updates, state, params=None, *, step, **others):
        rate = schedule(step)
        return jax.tree.map(lambda u: -rate.astype(u.dtype) * u, updates), state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)


def as_optimizer(transformation: "Optimizer | optax.GradientTransformation") -> Optimizer:
    """Any optax transformation as an `Optimizer` that trains everything and has a schedule of its own."""
    if isinstance(transformation, Optimizer):
        return transformation
    full = optax.with_extra_args_support(transformation)
    return Optimizer(full.init, full.update, None, lambda params: jax.tree.map(lambda _: True, params))


def _with_frozen(chain: optax.GradientTransformationExtraArgs, schedule: Schedule, freeze: str | Sequence[str]) -> Optimizer:
    def trainable(params):
        return jax.tree.map(lambda hit: not hit, by_name(params, freeze))

    def wide(params):  # moments are float32 whatever the parameters are: in bfloat16, 0.999 times a number is that number
        return select(jax.tree.map(lambda p: p.astype(jnp.float32), params), trainable(params))

    def init(params):
        return chain.init(wide(params))

    def update(grads, state, params, *, step):
        mask = trainable(params)
        holes = jax.tree.map(lambda keep, g: g if keep else None, mask, grads, is_leaf=lambda x: x is None)
        return chain.update(holes, state, wide(params), step=step)

    return Optimizer(init, update, schedule, trainable)


def _by_axes(rule: Callable, tree: Any, axes: Axes) -> Any:
    """A rule of shape and axes, leaf by leaf."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: rule(leaf.shape, None if axes is None else axes[rules.path_name(path)]), tree
    )


class EitherState(NamedTuple):
    """Attributes: first, second: the two states, with None in each other's places."""

    first: Any
    second: Any


def _either(rule: Mask, first: optax.GradientTransformation, second: optax.GradientTransformation) -> optax.GradientTransformation:
    """`first` where the rule says so, `second` elsewhere."""

    def split(tree, mask):
        return select(tree, mask), select(tree, jax.tree.map(lambda hit: not hit, mask))

    def init(params):
        ours, others = split(params, rule(params))
        return EitherState(first.init(ours), second.init(others))

    def update(grads, state, params=None):
        mask = rule(grads)
        (ours, others), (p, q) = split(grads, mask), split(params, mask)
        ours, first_state = first.update(ours, state.first, p)
        others, second_state = second.update(others, state.second, q)
        return merge(ours, others), EitherState(first_state, second_state)

    return optax.GradientTransformation(init, update)
