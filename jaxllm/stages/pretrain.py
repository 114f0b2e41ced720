"""Pretraining: token files -> a language model that predicts the next token."""

from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from jaxllm.losses.language import cross_entropy, cross_entropy_totals
from jaxllm.models.model import Model
from jaxllm.stages import origin, setup, train
from jaxllm.stages.canary import canary
from jaxllm.stages.config import load

OBJECTIVES = ("causal",)  # prefix, masked and span objectives come with their rows


def objective(config: ConfigDict, model: Model) -> train.Objective:
    """Weighted next-token cross-entropy over packed rows, with the z-loss if asked for."""
    if config.objective not in OBJECTIVES:
        raise ValueError(f"Unknown objective {config.objective!r}. Choose one of: {', '.join(OBJECTIVES)}.")
    kind, z_loss, dropout = config.objective, config.z_loss, setup.has_dropout(model)

    def loss(params, frozen, batch, rng):
        hidden = setup.forward(model, params, batch, kind=kind, rng=rng if dropout else None)
        weights = batch["weights"]
        fused, found = model.fused_cross_entropy(params, hidden, batch["targets"], weights, z_loss=z_loss)
        return cross_entropy(found.log_probs, found.log_z, weights, correct=found.correct, z_loss=z_loss, fused=fused)

    return train.Objective(loss, lambda batch: cross_entropy_totals(batch["weights"]))


def eval_sums(config: ConfigDict, model: Model, token_bytes: Any) -> Callable[[Any, Mapping[str, jax.Array]], dict[str, jax.Array]]:
    """The sums that `evaluation.perplexity` adds up: nats, correct, tokens and bytes of the weighted targets of one batch."""
    kind, sizes = config.objective, jnp.asarray(token_bytes, jnp.float32)

    def sums(params, batch):
        found = model.log_probs(params, setup.forward(model, params, batch, kind=kind), batch["targets"])
        weights = batch["weights"]
        return {
            "nats": -jnp.sum(jnp.where(weights > 0, weights * found.log_probs, 0.0)),
            "correct": jnp.sum(weights * found.correct),
            "tokens": jnp.sum(weights),
            "bytes": jnp.sum(weights * sizes[batch["targets"]]),
        }

    return jax.jit(sums)


def programs(config: ConfigDict, mesh: Any) -> dict[str, tuple[Callable, tuple]]:
    """name -> (function, abstract arguments): what this stage compiles; `--check`, planning and tests use nothing else."""
    model = setup.model(config)
    return train.programs(config, mesh, model, objective(config, model))


def main(args: Namespace, overrides: Sequence[str]) -> int:
    """`jaxllm pretrain --config F --workdir D`"""
    config = origin.complete(load(args.config, overrides), args.workdir)
    if args.check:
        return train.check(config, programs)
    if args.canary is not None:
        return canary(config, objective, args.canary)
    return train.run("pretrain", config, args.workdir, objective, eval_sums)
