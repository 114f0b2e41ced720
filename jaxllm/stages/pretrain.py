"""Pretraining: token files -> a language model that predicts the next token."""

from argparse import Namespace
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from jaxllm.data.tokenizer_kinds import Tokenizer
from jaxllm.evaluation.perplexity import perplexity
from jaxllm.losses.language import cross_entropy, cross_entropy_totals
from jaxllm.models.model import Model
from jaxllm.stages import door, inputs, setup
from jaxllm.stages.dialogues import open_dialogues
from jaxllm.stages.mixed import MixedData
from jaxllm.stages.recipe import Data, Objective, Recipe, Scorer

OBJECTIVES = ("causal",)  # prefix, masked and span objectives come with their rows


def objective(config: ConfigDict, model: Model, sparse: bool = False) -> Objective:
    """Weighted next-token cross-entropy over packed rows, with the z-loss if asked for.

    Args:
      config: of the run.
      model: what is trained.
      sparse: many targets have weight 0, see `logprobs.fused_cross_entropy`.
    """
    if config.objective not in OBJECTIVES:
        raise ValueError(f"Unknown objective {config.objective!r}. Choose one of: {', '.join(OBJECTIVES)}.")
    kind, z_loss, dropout = config.objective, config.z_loss, setup.has_dropout(model)

    def loss(params, frozen, batch, rng):
        hidden = setup.forward(model, params, batch, kind=kind, rng=rng if dropout else None)
        weights = batch["weights"]
        fused, found = model.fused_cross_entropy(params, hidden, batch["targets"], weights, z_loss=z_loss, sparse=sparse)
        return cross_entropy(found.log_probs, found.log_z, weights, correct=found.correct, z_loss=z_loss, fused=fused)

    return Objective(loss, lambda batch: cross_entropy_totals(batch["weights"]))


def scorer(config: ConfigDict, model: Model, tokenizer: Tokenizer) -> Scorer:
    """What `evaluation.perplexity` makes of the nats, correct, tokens and bytes of the weighted targets of every batch."""
    kind, sizes = config.objective, jnp.asarray(tokenizer.token_bytes(), jnp.float32)

    def sums(params, batch):
        found = model.log_probs(params, setup.forward(model, params, batch, kind=kind), batch["targets"])
        weights = batch["weights"]
        return {
            "nats": -jnp.sum(jnp.where(weights > 0, weights * found.log_probs, 0.0)),
            "correct": jnp.sum(weights * found.correct),
            "tokens": jnp.sum(weights),
            "bytes": jnp.sum(weights * sizes[batch["targets"]]),
        }

    compiled = jax.jit(sums)
    return lambda params, frozen, batches: perplexity(compiled, params, batches)


def open_data(config: ConfigDict) -> Data:
    """Text, with the share of dialogues among it that is asked for (prompt pretraining: arXiv 2211.09085, section 3.3)."""
    text, section = inputs.data(config), config.data
    if not section.dialogues:
        return text
    return MixedData(
        ("text", text), ("dialogues", open_dialogues(config, section.dialogues, tokenizer=text.tokenizer)), section.dialogues_share
    )


RECIPE = Recipe("pretrain", objective, open_data, scorer)


def main(args: Namespace, overrides: Sequence[str]) -> int:
    """`jaxllm pretrain --config F --workdir D`"""
    return door.main(RECIPE, args, overrides)
