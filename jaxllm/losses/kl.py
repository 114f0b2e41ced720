"""How far a policy is from another, estimated from the tokens that were sampled, in the loss or in the reward; entropy."""

import jax
import jax.numpy as jnp

from jaxllm.losses.terms import Report, Term, Terms, check_choice, trained, weighted_sum

LIMIT = 20.0  # an exponent is held within: e^20 is 5e8, beyond which a token says nothing but that something is wrong (verl's bound)


def bounded_exp(x: jax.Array) -> jax.Array:
    """exp(x) with x held within +-20, where its gradient ends."""
    return jnp.exp(jnp.clip(x, -LIMIT, LIMIT))


def k1(difference: jax.Array) -> jax.Array:
    """d: unbiased, of either sign."""
    return difference


def k2(difference: jax.Array) -> jax.Array:
    """d^2 / 2: biased, but its gradient is that of the KL when the tokens are the policy's own."""
    return 0.5 * jnp.square(difference)


def k3(difference: jax.Array) -> jax.Array:
    """exp(-d) - 1 + d: unbiased, never negative; d held within +-20."""
    held = jnp.clip(difference, -LIMIT, LIMIT)
    return jnp.expm1(-held) + held


ESTIMATORS = {"k1": k1, "k2": k2, "k3": k3}


def kl_estimate(log_probs: jax.Array, reference: jax.Array, estimator: str = "k3") -> jax.Array:
    """KL(pi || pi_ref) token by token from tokens of pi, d = log pi - log pi_ref (Schulman, "Approximating KL divergence", 2020).

    Raises:
      ValueError: an unknown estimator.
    """
    check_choice("KL estimator", estimator, ESTIMATORS)
    return ESTIMATORS[estimator](log_probs - reference)


def kl_term(
    log_probs: jax.Array,
    reference: jax.Array,
    weights: jax.Array,
    *,
    coefficient: float | jax.Array,
    estimator: str = "k3",
    corrected: bool = False,
    old: jax.Array | None = None,
) -> tuple[Terms, Report]:
    """The KL from the reference as a term of the loss. What is logged under "kl" is what is trained.

    Differentiating an estimate is not estimating the derivative: k1's gradient is 0 on average and is refused, k2's is right on-policy,
    k3's (GRPO, arXiv 2402.03300, eq. 4) is that of the KL the other way round. corrected=True multiplies by pi / pi_old, whose value is 1
    on-policy and whose gradient makes that of k1 and k3 right (arXiv 2506.09477; TRL's use_bias_correction_kl, NeMo-RL); k2 needs none.

    Args:
      log_probs: float [B, T], with the gradient.
      reference: float [B, T].
      weights: float [B, T], of `policy.token_weights`.
      coefficient: beta; it may be an array that a controller moves.
      estimator: "k1", "k2", "k3".
      corrected: whether to multiply by the ratio.
      old: float [B, T], log-probabilities under which tokens were sampled; None: this very policy's.

    Returns:
      terms: "kl", nats a token; its total is the one of "kl" in `policy.policy_totals`.

    Raises:
      ValueError: an unknown estimator; k1 without, or k2 with the correction.
    """
    check_choice("KL estimator", estimator, ESTIMATORS)
    if (estimator, corrected) == ("k1", False):
        raise ValueError(
            "kl estimator 'k1' in the loss has a gradient of 0 on average. Choose 'k2', or corrected=True, or put it in the reward."
        )
    if (estimator, corrected) == ("k2", True):
        raise ValueError("kl estimator 'k2' has the right gradient as it is. Choose corrected=False, or 'k3'.")
    log_probs, reference = trained(log_probs, weights), jax.lax.stop_gradient(trained(reference, weights))
    estimate = kl_estimate(log_probs, reference, estimator)
    if corrected:
        sampled = jax.lax.stop_gradient(log_probs if old is None else trained(old, weights))
        estimate = estimate * bounded_exp(log_probs - sampled)
    return {"kl": Term(weighted_sum(estimate, weights), coefficient)}, {}


def entropy_term(entropies: jax.Array, weights: jax.Array, *, coefficient: float) -> tuple[Terms, Report]:
    """A bonus for entropy: float [B, T] in nats with their gradient; the objective falls by coefficient * mean. Its total: "entropy"."""
    return {"entropy": Term(weighted_sum(entropies, weights), -coefficient)}, {}
