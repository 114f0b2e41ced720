"""The objective of policy optimisation: a method's surrogate, the KL, the entropy, and text beside them, as one sum of terms."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from jaxllm.losses.importance import importance_totals, importance_weights
from jaxllm.losses.kl import entropy_term, k1, k3, kl_term
from jaxllm.losses.policy import SURROGATES, policy, policy_totals, token_weights
from jaxllm.losses.terms import Report, Term, trained
from jaxllm.losses.value import value_loss, value_totals
from jaxllm.models.model import Model
from jaxllm.rollouts.scoring import forward, token_entropies, token_log_probs
from jaxllm.stages import critics, methods, rewarded, tools
from jaxllm.stages.critics import values_of
from jaxllm.stages.methods import estimator_of, method_of, place_of_kl
from jaxllm.stages.prompted import asked_of
from jaxllm.stages.recipe import Objective

TEXT = "text_"  # before the names of the text's rows in a batch


class Rows(NamedTuple):
    """What the terms of an update are made of.

    Attributes:
      batch: a microbatch.
      params: the policy's.
      hidden: [B, T, D].
      log_probs: float32 [B, T], of the targets, with their gradient.
      weights: float32 [B, T], of `token_weights`.
    """

    batch: Mapping[str, jax.Array]
    params: Any
    hidden: jax.Array
    log_probs: jax.Array
    weights: jax.Array


def check(config: ConfigDict) -> None:
    """Refuses what cannot be trained, before anything is opened (ValueError)."""
    methods.check(config)
    critics.check(config)
    tools.check(config)
    rewarded.check(config)


def objective(config: ConfigDict, model: Model) -> Objective:
    """The terms of an update: "policy", and "kl", "entropy", "value", "ptx" where they are asked for."""
    check(config)
    section, method, temperature = config.rl, method_of(config), config.rollout.temperature
    divisor = section.constant or (float(longest(config)) if (method.over, method.surrogate) == ("constant", "clip") else 1.0)
    summands = _summands(config, model)

    def weighted(batch: Mapping[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
        return token_weights(batch["weights"], over=method.over, constant=divisor)

    def loss(params, frozen, batch, rng):
        hidden = forward(model, params, batch)
        log_probs = token_log_probs(model, params, hidden, batch["targets"], batch["weights"], temperature)
        rows, terms, report = Rows(batch, params, hidden, log_probs, weighted(batch)[0]), dict[str, Term](), dict[str, jax.Array]()
        for summand in summands:
            more, said = summand(rows)
            terms, report = terms | more, report | said
        return terms, report | _token_report(log_probs, batch) | _statistics(batch)

    def totals(batch):
        weights, shares = weighted(batch)
        known = policy_totals(weights, shares) | value_totals(weights, shares) | importance_totals(batch["weights"])
        known |= _token_totals(batch) | _statistic_totals(batch)
        return known | ({"ptx": jnp.sum(batch[f"{TEXT}weights"])} if section.ptx_rows else {})

    return Objective(loss, totals)


Summand = Callable[[Rows], tuple[dict[str, Term], dict[str, jax.Array]]]


def _summands(config: ConfigDict, model: Model) -> list[Summand]:
    """The terms that a config asks for, each a function of the rows."""
    section, method, temperature = config.rl, method_of(config), config.rollout.temperature
    estimator, values = estimator_of(config), values_of(config, model)

    def surrogate(rows: Rows):
        batch, factors = rows.batch, None
        said: Report = {}
        if section.importance_cap:
            own_ratio = method.surrogate != "reinforce"  # it holds what happened since the samples were looked at; the rest is for factors
            now = jax.lax.stop_gradient(batch.get("old", rows.log_probs) if own_ratio else rows.log_probs)
            factors, said = importance_weights(now, batch["sampler"], batch["weights"], cap=section.importance_cap)
        how = {"old": batch.get("old"), "level": method.level, "importance": factors, **method.options}
        terms, report = policy(rows.log_probs, batch["advantages"], rows.weights, SURROGATES[method.surrogate], **how)
        return terms, report | said

    def divergence(rows: Rows):
        coefficient = rows.batch["stat_kl_coefficient"][0]
        how = {"coefficient": coefficient, "estimator": estimator, "corrected": section.kl_corrected, "old": rows.batch.get("old")}
        return kl_term(rows.log_probs, rows.batch["reference"], rows.weights, **how)

    def entropy(rows: Rows):
        found = token_entropies(model, rows.params, rows.hidden, temperature)
        return entropy_term(found, rows.weights, coefficient=section.entropy_coefficient)

    def critic(rows: Rows):
        assert values is not None
        found = values(rows.params, rows.batch, jax.lax.stop_gradient(rows.hidden) if section.value_detached else rows.hidden)
        how = {"clip": section.value_clip or None, "coefficient": section.value_coefficient}
        return value_loss(found, rows.batch["old_values"], rows.batch["returns"], rows.weights, **how)

    def text(rows: Rows):
        return {"ptx": Term(_text_loss(model, rows.params, rows.batch), section.ptx_coefficient)}, {}

    asked = [place_of_kl(config) == "loss", section.entropy_coefficient, values is not None, section.ptx_rows]
    return [surrogate, *(one for one, wanted in zip((divergence, entropy, critic, text), asked, strict=True) if wanted)]


def longest(config: ConfigDict) -> int:
    """Tokens of a completion at most."""
    return config.rollout.max_new_tokens or asked_of(config).max_new_tokens


def _text_loss(model: Model, params: Any, batch: Mapping[str, jax.Array]) -> jax.Array:
    """The sum of nats over the text's weighted targets."""
    text = {name.removeprefix(TEXT): values for name, values in batch.items() if name.startswith(TEXT)}
    return model.fused_cross_entropy(params, forward(model, params, text), text["targets"], text["weights"])[0]


def _token_report(log_probs: jax.Array, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """Sums over trained tokens: -log p as an estimate of the entropy, how far the sampler's numbers lie from this graph's, the KL."""
    mask = batch["weights"]
    now = jax.lax.stop_gradient(trained(log_probs, mask))
    found = {"entropy_sampled": -now, "sampler_gap": jnp.abs(trained(batch.get("old", now), mask) - trained(batch["sampler"], mask))}
    if "reference" in batch:
        difference = now - trained(batch["reference"], mask)
        found |= {"kl_k1": k1(difference), "kl_k3": k3(difference)}
    return {name: jnp.sum(values, dtype=jnp.float32) for name, values in found.items()}


def _token_totals(batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    names = ("entropy_sampled", "sampler_gap", *(("kl_k1", "kl_k3") if "reference" in batch else ()))
    return dict.fromkeys(names, jnp.sum(batch["weights"] != 0, dtype=jnp.float32))


def _statistics(batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """Sums over the batch's rows of what each says of its sample; a NaN says nothing."""
    found = {name.removeprefix("stat_"): values for name, values in batch.items() if name.startswith("stat_")}
    return {name: jnp.sum(jnp.where(jnp.isnan(values), 0.0, values), dtype=jnp.float32) for name, values in found.items()}


def _statistic_totals(batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    found = {name.removeprefix("stat_"): values for name, values in batch.items() if name.startswith("stat_")}
    counts = {name: jnp.sum(~jnp.isnan(values), dtype=jnp.float32) for name, values in found.items()}
    return {name: jnp.where(count == 0, jnp.nan, count) for name, count in counts.items()}  # a mean of nothing is no 0
