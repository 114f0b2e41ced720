"""Reward models: what people said of answers -> a model that scores them; full weights or any PEFT, with a head that is trained beside."""

import functools
from argparse import Namespace
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from jaxllm.data.group_rows import Shape, shape_of
from jaxllm.data.tokenizer_kinds import Tokenizer
from jaxllm.evaluation import calibration
from jaxllm.losses import reward as losses
from jaxllm.losses import verdicts
from jaxllm.losses.terms import Report, Term, Terms, check_choice
from jaxllm.models import heads
from jaxllm.models.heads import Head
from jaxllm.models.model import Model
from jaxllm.parallel import hosts
from jaxllm.parallel.mesh import make_mesh
from jaxllm.stages import comparisons, door, opened, scored, setup, workdir
from jaxllm.stages.comparisons import Wants
from jaxllm.stages.config import resolve
from jaxllm.stages.recipe import Beside, Objective, Recipe, Scorer


class Said(NamedTuple):
    """What was said of P groups of a batch: ranks [P, K]; values, margins, weights (0: there is no group) [P]; tied bool [P]."""

    ranks: jax.Array
    values: jax.Array
    margins: jax.Array
    weights: jax.Array
    tied: jax.Array


def said(batch: Mapping[str, jax.Array]) -> Said:
    """What was said, of the fields of a batch (see `group_rows.group_row`)."""
    ranks = batch["ranks"].reshape(-1, batch["ranks"].shape[-1])
    weights = (batch["lengths"][..., 0] > 0).reshape(-1).astype(jnp.float32)
    tied = (ranks[:, 0] == ranks[:, -1]) if ranks.shape[1] > 1 else jnp.zeros(len(ranks), bool)
    return Said(ranks, batch["values"].reshape(-1), batch["margins"].reshape(-1), weights, tied)


class Loss(NamedTuple):
    """A row of `LOSSES`.

    Attributes:
      loss: (scores [P, K, C], said, section of the config) -> terms, report.
      totals: said -> what those are divided by.
      sums: (scores, said) -> what `metrics` needs of a batch.
      metrics: of a whole set, beside the loss's own report.
      compared: whether answers are compared, or each has a value.
    """

    loss: Callable[[jax.Array, Said, ConfigDict], tuple[Terms, Report]]
    totals: Callable[[Said], Report]
    sums: Callable[[jax.Array, Said], Any]
    metrics: Callable[[Any], dict[str, float]]
    compared: bool = True


def _bradley_terry(scores: jax.Array, told: Said, section: ConfigDict) -> tuple[Terms, Report]:
    options = {"ties": section.ties, "tie_width": section.tie_width, "centering": section.centering}
    first, second = scores[:, 0, 0], scores[:, 1, 0]  # the better one stands first
    return losses.bradley_terry(first, second, told.weights, margins=told.margins, tied=told.tied, **options)


def _ranking(scores: jax.Array, told: Said, section: ConfigDict) -> tuple[Terms, Report]:
    return losses.ranking(scores[:, :, 0], told.ranks, told.weights, centering=section.centering)


def _pick_best(scores: jax.Array, told: Said, section: ConfigDict) -> tuple[Terms, Report]:
    there = told.ranks >= 0
    return losses.pick_best(scores[:, :, 0], jnp.zeros(len(scores), jnp.int32), there, told.weights)  # the best one stands first


def _pairs(scores: jax.Array, told: Said) -> Any:
    return calibration.pair_sums(scores[:, :, 0], told.ranks)


LOSSES: dict[str, Loss] = {
    "bradley_terry": Loss(_bradley_terry, lambda told: losses.pair_totals(told.weights, told.tied), _pairs, calibration.pair_metrics),
    "ranking": Loss(_ranking, lambda told: losses.ranking_totals(told.ranks, told.weights), _pairs, calibration.pair_metrics),
    "pick_best": Loss(_pick_best, lambda told: verdicts.totals(told.weights), _pairs, calibration.pair_metrics),
    "rating": Loss(
        lambda scores, told, _: verdicts.rating(scores[:, 0, 0], told.values, told.weights),
        lambda told: verdicts.totals(told.weights),
        lambda scores, told: calibration.rating_sums(scores[:, 0, 0], told.values, told.weights),
        calibration.rating_metrics,
        compared=False,
    ),
    "binary": Loss(
        lambda scores, told, _: verdicts.binary(scores[:, 0, 0], told.values, told.weights),
        lambda told: verdicts.totals(told.weights),
        lambda scores, told: calibration.verdict_sums(jax.nn.sigmoid(scores[:, 0, 0]), told.values, told.weights),
        calibration.verdict_metrics,
        compared=False,
    ),
    "multiclass": Loss(
        lambda scores, told, _: verdicts.multiclass(scores[:, 0], told.values.astype(jnp.int32), told.weights),
        lambda told: verdicts.totals(told.weights),
        lambda scores, told: calibration.class_sums(jax.nn.softmax(scores[:, 0]), told.values.astype(jnp.int32), told.weights),
        calibration.class_metrics,
        compared=False,
    ),
}
SCORES = ("loss", "accuracy", "ece", "margin", "pairs", "auc", "correlation", "disagreement")


def loss_of(config: ConfigDict) -> Loss:
    """The row of `LOSSES` that a config asks for."""
    check_choice("reward.loss", config.reward.loss, LOSSES)
    check_choice("reward.ties", config.reward.ties, losses.TIES)
    check_choice("reward.scale", config.reward.scale, ("none", "mean", "unit"))
    return LOSSES[config.reward.loss]


def shape(config: ConfigDict) -> Shape:
    """Of batches."""
    answers = config.reward.answers if loss_of(config).compared else 1
    return shape_of(config.batch_size, config.sequence_length, answers, config.data.packing)


def wants(config: ConfigDict) -> Wants:
    """What the loss needs of its data."""
    row, answers = loss_of(config), config.reward.answers
    if row.compared and answers < 2:
        raise ValueError(f"reward.answers={answers} leaves nothing to compare. Give 2 or more.")
    if config.reward.loss == "bradley_terry" and answers != 2:
        raise ValueError(f"reward.answers={answers}, and bradley_terry compares two. Choose reward.loss=ranking, or reward.answers=2.")
    return Wants(f"reward.loss={config.reward.loss!r}", shape(config), compared=row.compared, alone=config.reward.loss == "binary")


def head(config: ConfigDict, model: Model) -> Head:
    """What scores."""
    section = config.reward
    outputs = section.classes if section.loss == "multiclass" else 1
    return Head(model.config.width, outputs, section.members, tuple(section.hidden), section.prior)


def beside(config: ConfigDict, model: Model) -> Beside:
    """A head; of the model itself the map to the vocabulary is of no use, and stays as it is."""
    return Beside(head(config, model), still=() if model.config.tied_embeddings else ("^head/",))


def scores_of(model: Model, scorer: Head, params: Any, batch: Mapping[str, jax.Array], rng: Any = None) -> jax.Array:
    """Float32 [P, K, M, C]: what each member says of every answer, read at its last token."""
    hidden = setup.forward(model, params, batch, rng=rng if setup.has_dropout(model) else None)
    B, _, K = batch["lengths"].shape
    last = heads.last_of_segments(hidden, batch["segments"], batch["positions"], batch["lengths"].reshape(B, -1))
    found = scorer.apply(heads.of(params), last)
    return found.reshape(-1, K, *found.shape[2:])


def objective(config: ConfigDict, model: Model) -> Objective:
    """The loss of `reward.loss`, the mean over the members of an ensemble."""
    row, scorer, section = loss_of(config), head(config, model), config.reward

    def loss(params, frozen, batch, rng):
        scores, told = scores_of(model, scorer, params, batch, rng), said(batch)
        coefficients = {}

        def of_member(own):
            terms, report = row.loss(own, told, section)
            coefficients.update({name: term.coefficient for name, term in terms.items()})
            return {name: term.sum for name, term in terms.items()}, report

        sums, report = jax.tree.map(lambda leaf: jnp.mean(leaf, axis=0), jax.vmap(of_member, in_axes=2)(scores))
        return {name: Term(value, coefficients[name]) for name, value in sums.items()}, report

    return Objective(loss, lambda batch: row.totals(said(batch)))


def scorer(config: ConfigDict, model: Model, tokenizer: Tokenizer) -> Scorer:
    """The objective's means on a validation set, and accuracy by margin, calibration and what `LOSSES` says; ensembles by their mean."""
    row, net, aim = loss_of(config), head(config, model), objective(config, model)

    @jax.jit
    def sums(params, frozen, batch):
        terms, report = aim.loss(params, frozen, batch, None)
        scores, told = scores_of(model, net, params, batch), said(batch)
        there = told.weights[:, None] * (told.ranks >= 0)
        apart = jnp.sum(there[..., None] * jnp.std(scores, axis=2)) / scores.shape[3]
        return {
            "terms": {name: term.coefficient * term.sum for name, term in terms.items()},
            "report": {**report, "disagreement": apart},
            "totals": {**aim.totals(batch), "disagreement": jnp.sum(there)},
            "more": row.sums(jnp.mean(scores, axis=2), told),
        }

    def score(params: Any, frozen: Any, batches: Iterable[Mapping[str, Any]]) -> dict[str, float]:
        found = calibration.total_of(lambda batch: sums(params, frozen, batch), batches)
        scores = row.metrics(found["more"]) | calibration.means(found)
        return scores if config.reward.members > 1 else {name: value for name, value in scores.items() if name != "disagreement"}

    return score


open_data = functools.partial(comparisons.open_data, wants=wants)
RECIPE = Recipe(
    "reward",
    objective,
    open_data,
    scorer,
    scores=SCORES,
    beside=beside,
    fields=lambda config: shape(config).arrays(),
)


def main(args: Namespace, overrides: Sequence[str]) -> int:
    """`jaxllm reward --config F --workdir D`; at its end the scale of the scores is set, if asked for."""
    code = door.main(RECIPE, args, overrides)
    if code == 0 and not args.check and args.canary is None:
        set_scale(args.workdir)
    return code


def set_scale(folder: str) -> None:
    """Sets the bias, or gain and bias, of a finished reward model on the best answers of its training data, evenly drawn."""
    config = resolve(workdir.read(folder)["config"])
    if config.reward.scale == "none":
        return
    if jax.process_count() > 1:
        hosts.say(f"reward.scale={config.reward.scale} is set by one process: run the same command once more with one.")
        return
    opening = list(opened.open_tokenizer(folder).opening)
    samples = []
    for groups in open_data(config).train.values():
        firsts = np.concatenate([[0], groups.said.ends[:-1]])
        samples += [np.asarray([*opening, *groups.answers.example(int(i)).tokens]) for i in firsts]
    chosen = np.unique(np.linspace(0, len(samples) - 1, config.reward.reference_samples).astype(int))
    scored.set_scale(folder, make_mesh(), [samples[i] for i in chosen], config.reward.scale)
