"""Preference tuning: comparisons or labels -> a model that answers as people prefer, with no reward model: DPO, KTO and their kin."""

import functools
import inspect
from argparse import Namespace
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from jaxllm.data.group_rows import OTHER, Shape, shape_of
from jaxllm.data.pipeline import FIELDS
from jaxllm.data.tokenizer_kinds import Tokenizer
from jaxllm.evaluation import calibration
from jaxllm.losses import preference as losses
from jaxllm.losses import unpaired
from jaxllm.losses.preference import LOSSES, Pairs, Preference, preference, preference_totals
from jaxllm.losses.terms import check_choice
from jaxllm.models.heads import sums_of_segments
from jaxllm.models.model import Model
from jaxllm.stages import comparisons, door, setup
from jaxllm.stages.comparisons import Wants
from jaxllm.stages.recipe import Beside, Objective, Recipe, Scorer

ALONE = {"kto": unpaired.kto}  # losses of single answers; bco's running shift and apo_zero's paired namesake are not among them
OPTIONS = ("beta", "label_smoothing", "gamma", "margin", "reduction", "desirable_weight", "undesirable_weight")
BASELINE = "baseline"  # the field of a batch that holds KTO's z0
SCORES = ("loss", "accuracy", "margin", "preference", "nll", "reward_chosen", "reward_rejected", "reward_desirable", "reward_undesirable")


def options(config: ConfigDict) -> dict[str, Any]:
    """What the config gives the loss.

    Raises:
      ValueError: an unknown loss, or an option that it does not take.
    """
    section = config.preference
    check_choice("preference.loss", section.loss, (*LOSSES, *ALONE))
    loss = ALONE.get(section.loss) or LOSSES[section.loss].loss
    given = {name: section[name] for name in OPTIONS if section[name] is not None}
    known = [name for name in inspect.signature(loss).parameters if name in OPTIONS]
    for name in given:
        if name not in known:
            raise ValueError(
                f"preference.{name}={given[name]!r} is no option of the loss {section.loss!r}. It takes: {', '.join(known) or 'none'}."
            )
    if section.nll is not None and section.loss in ALONE:
        raise ValueError(f"preference.nll={section.nll} is the likelihood of the chosen of a pair, and {section.loss!r} has no pairs.")
    if section.loss in LOSSES and losses.NLL_REDUCTIONS:
        check_choice("preference.nll_over", section.nll_over, losses.NLL_REDUCTIONS)
    return given


def has_reference(config: ConfigDict) -> bool:
    """Whether the loss reads a reference policy."""
    section = config.preference
    return not section.reference_free and (section.loss in ALONE or LOSSES[section.loss].reference)


def shape(config: ConfigDict) -> Shape:
    """Of batches."""
    options(config)
    if config.preference.loss in ALONE:
        return Shape(config.batch_size, config.sequence_length, 1, 1)
    return shape_of(config.batch_size, config.sequence_length, 2, config.data.packing)


def wants(config: ConfigDict) -> Wants:
    """What the loss needs of its data."""
    name, section = f"preference.loss={config.preference.loss!r}", config.preference
    if section.loss not in ALONE:
        return Wants(name, shape(config))
    if config.data.packing != "padded":
        raise ValueError(f"{name} lends each row the answer of another: set data.packing=padded, one answer in a row.")
    if config.batch_size < 2:
        raise ValueError(f"batch_size={config.batch_size} has no other answer to lend, and {name} needs one. Give 2 or more.")
    return Wants(name, shape(config), compared=False, alone=True, partners=unpaired.mismatched)


def fields(config: ConfigDict) -> dict[str, tuple[tuple[int, ...], Any]]:
    """The fields of a batch beside those of every one."""
    found: dict[str, tuple[tuple[int, ...], Any]] = dict(shape(config).arrays())
    if config.preference.loss in ALONE:
        found |= {f"{OTHER}{name}": ((config.batch_size, config.sequence_length), dtype) for name, dtype in FIELDS.items()}
    return found


def beside(config: ConfigDict, model: Model) -> Beside:
    """The weights that the run starts from, where the loss reads them."""
    options(config)
    return Beside(reference=has_reference(config))


def log_probs(model: Model, params: Any, batch: Mapping[str, jax.Array], slots: int, rng: Any = None) -> jax.Array:
    """Float32 [B, S]: the log-probability of the answer in each segment, the sum over its tokens."""
    hidden = setup.forward(model, params, batch, rng=rng if setup.has_dropout(model) else None)
    found = model.log_probs(params, hidden, batch["targets"], batch["weights"]).log_probs
    return sums_of_segments(found, batch["segments"], slots)


def reference_log_probs(model: Model, frozen: Mapping[str, Any], batch: Mapping[str, jax.Array], slots: int) -> jax.Array:
    """The same under the reference, without a gradient: the frozen start, or the base with its adapters off.

    Soft tokens, which the base does not know, are padding to it: positions are counted from behind them.
    """
    soft = batch["tokens"] >= model.config.vocab_size
    length = jnp.max(jnp.where(soft, batch["positions"] + 1, 0))
    alone = {
        "tokens": jnp.where(soft, 0, batch["tokens"]),
        "segments": jnp.where(soft, 0, batch["segments"]),
        "positions": jnp.maximum(batch["positions"] - length, 0),
    }
    params = frozen["reference"] if "reference" in frozen else frozen["base"]
    return jax.lax.stop_gradient(log_probs(model, params, {**batch, **alone}, slots))


def lengths(batch: Mapping[str, jax.Array], slots: int) -> jax.Array:
    """Float32 [B, S]: how many tokens each answer has, its prompt's left out."""
    return sums_of_segments((batch["weights"] > 0).astype(jnp.float32), batch["segments"], slots)


def _whole(batch: Mapping[str, jax.Array]) -> jax.Array:
    """Float32 [P]: 1 for a group, 0 for a place without one; pairs that tie have nothing to prefer."""
    ranks = batch["ranks"].reshape(-1, batch["ranks"].shape[-1])
    there = (batch["lengths"][..., 0] > 0).reshape(-1)
    return (there & (ranks[:, 0] != ranks[:, -1]) if ranks.shape[1] > 1 else there).astype(jnp.float32)


def objective(config: ConfigDict, model: Model) -> Objective:
    """The loss of `preference.loss`."""
    given = options(config)
    return _alone(config, model, given) if config.preference.loss in ALONE else _paired(config, model, given)


def _paired(config: ConfigDict, model: Model, given: Mapping[str, Any]) -> Objective:
    section, slots = config.preference, 2 * shape(config).groups
    row: Preference = LOSSES[section.loss]
    reads = has_reference(config)

    def loss(params, frozen, batch, rng):
        policy = log_probs(model, params, batch, slots, rng).reshape(-1, 2)
        reference = reference_log_probs(model, frozen, batch, slots).reshape(-1, 2) if reads else jnp.zeros_like(policy)
        counts = lengths(batch, slots).reshape(-1, 2)
        pairs = Pairs(policy[:, 0], policy[:, 1], reference[:, 0], reference[:, 1], counts[:, 0], counts[:, 1])
        return preference(pairs, _whole(batch), row, nll=section.nll, nll_over=section.nll_over, **given)

    def totals(batch):
        return preference_totals(_whole(batch), lengths(batch, slots).reshape(-1, 2)[:, 0], nll_over=section.nll_over)

    return Objective(loss, totals)


def _alone(config: ConfigDict, model: Model, given: Mapping[str, Any]) -> Objective:
    section, reads = config.preference, has_reference(config)

    def ratio_parts(params, frozen, batch, rng):
        policy = log_probs(model, params, batch, 1, rng)[:, 0]
        return policy, reference_log_probs(model, frozen, batch, 1)[:, 0] if reads else jnp.zeros_like(policy)

    def before(params, frozen, batch):
        # z0 is a mean over mismatched pairs of the whole batch: no split of it may change what a row is compared with.
        other = {**batch, **{name: batch[f"{OTHER}{name}"] for name in FIELDS}}
        there = jnp.any(other["weights"] > 0, axis=1).astype(jnp.float32)

        def part(rows):
            return ratio_parts(params, frozen, rows, None)

        policy, reference = _in_parts(part, other, config.microbatches)
        z0 = unpaired.kto_baseline(policy, reference, there)
        kept = {name: array for name, array in batch.items() if not name.startswith(OTHER)}
        return {**kept, BASELINE: jnp.broadcast_to(z0, there.shape)}

    def loss(params, frozen, batch, rng):
        policy, reference = ratio_parts(params, frozen, batch, rng)
        good = batch["values"].reshape(-1) > 0.5
        return unpaired.unpaired(policy, reference, good, batch[BASELINE][0], _whole(batch), ALONE[section.loss], **given)

    def totals(batch):
        return unpaired.unpaired_totals(_whole(batch), batch["values"].reshape(-1) > 0.5)

    return Objective(loss, totals, before)


def _in_parts(function: Callable, rows: Mapping[str, jax.Array], parts: int) -> Any:
    """A function of rows, of `parts` parts of them one after the other, so that no more memory is needed than in an update."""
    if parts == 1:
        return function(rows)
    B = len(rows["row"])
    cut = {name: array.reshape(B // parts, parts, *array.shape[1:]).swapaxes(0, 1) for name, array in rows.items()}  # as updates are cut
    found = jax.lax.map(function, cut)
    return jax.tree.map(lambda array: array.swapaxes(0, 1).reshape(B), found)


def scorer(config: ConfigDict, model: Model, tokenizer: Tokenizer) -> Scorer:
    """The objective's means on a validation set."""
    aim = objective(config, model)

    @jax.jit
    def sums(params, frozen, batch):
        batch = batch if aim.before is None else aim.before(params, frozen, batch)
        terms, report = aim.loss(params, frozen, batch, None)
        found = {name: term.coefficient * term.sum for name, term in terms.items()}
        return {"terms": found, "report": report, "totals": aim.totals(batch)}

    def score(params: Any, frozen: Any, batches: Iterable[Mapping[str, Any]]) -> dict[str, float]:
        return calibration.means(calibration.total_of(lambda batch: sums(params, frozen, batch), batches))

    return score


RECIPE = Recipe(
    "preference",
    objective,
    functools.partial(comparisons.open_data, wants=wants),
    scorer,
    scores=SCORES,
    beside=beside,
    fields=fields,
)


def main(args: Namespace, overrides: Sequence[str]) -> int:
    """`jaxllm preference --config F --workdir D`"""
    return door.main(RECIPE, args, overrides)
