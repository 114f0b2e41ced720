"""Learning from pairs of completions, one preferred to the other: DPO and its family."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.nn import log_sigmoid, sigmoid

from jaxllm.losses.terms import Report, Term, Terms, check_choice, trained, weighted_sum


class Pairs(NamedTuple):
    """Two completions y_w, y_l of each prompt x, y_w preferred.

    Attributes:
      chosen: float [B], log pi(y_w | x): the sum over the completion's tokens, the prompt's left out.
      rejected: float [B], log pi(y_l | x).
      reference_chosen: float [B], the same under the reference policy; losses that read none (see `LOSSES`) take any number.
      reference_rejected: float [B].
      chosen_lengths: [B], tokens summed in `chosen`.
      rejected_lengths: [B].
    """

    chosen: jax.Array
    rejected: jax.Array
    reference_chosen: jax.Array | float
    reference_rejected: jax.Array | float
    chosen_lengths: jax.Array
    rejected_lengths: jax.Array


REDUCTIONS = ("sum", "mean")
NLL_REDUCTIONS = ("token", "sequence", "sum")


def log_ratios(pairs: Pairs, reduction: str = "sum") -> tuple[jax.Array, jax.Array]:
    """log pi / pi_ref of the chosen and of the rejected, [B] each: sums over tokens, or means (`reduction`: "sum", "mean")."""
    check_choice("reduction", reduction, REDUCTIONS)
    chosen, rejected = pairs.chosen - pairs.reference_chosen, pairs.rejected - pairs.reference_rejected
    if reduction == "mean":
        return chosen / jnp.maximum(pairs.chosen_lengths, 1), rejected / jnp.maximum(pairs.rejected_lengths, 1)
    return chosen, rejected


def _delta(pairs: Pairs, beta: float, reduction: str = "sum") -> jax.Array:
    """beta * (log ratio of the chosen - log ratio of the rejected), [B]."""
    chosen, rejected = log_ratios(pairs, reduction)
    return beta * (chosen - rejected)


def dpo(pairs: Pairs, *, beta: float = 0.1, label_smoothing: float = 0.0, reduction: str = "sum") -> jax.Array:
    """-(1 - e) log s(d) - e log s(-d), d = beta * difference of the log-ratios (Rafailov et al., arXiv 2305.18290, eq. 7).

    With label_smoothing e > 0 it is cDPO (Mitchell 2023), of labels that are wrong with probability e. reduction="mean" divides each
    log-ratio by its completion's length (Tulu 3's dpo_norm, TRL's sigmoid_norm). SPIN (arXiv 2401.01335, eq. 4.7) is this loss with
    people's answers chosen, the last iterate's samples rejected and the last iterate as reference.
    """
    delta = _delta(pairs, beta, reduction)
    return -(1 - label_smoothing) * log_sigmoid(delta) - label_smoothing * log_sigmoid(-delta)


def robust(pairs: Pairs, *, beta: float = 0.1, label_smoothing: float = 0.1) -> jax.Array:
    """The unbiased loss under labels flipped with probability e: ((1 - e) L(d) - e L(-d)) / (1 - 2e) (rDPO, arXiv 2403.00409).

    Raises:
      ValueError: e is not below 1/2.
    """
    if not 0 <= label_smoothing < 0.5:
        raise ValueError(f"label_smoothing={label_smoothing} of the robust loss is not in [0, 0.5). Give the share of flipped labels.")
    delta = _delta(pairs, beta)
    return (-(1 - label_smoothing) * log_sigmoid(delta) + label_smoothing * log_sigmoid(-delta)) / (1 - 2 * label_smoothing)


def ipo(pairs: Pairs, *, beta: float = 0.1, reduction: str = "mean") -> jax.Array:
    """(h - 1 / (2 beta))^2, h the difference of the log-ratios (Azar et al., arXiv 2310.12036, eq. 17; beta is their tau).

    reduction="mean" divides each log-ratio by its length, as TRL does and says its authors did; "sum" is the equation as it is printed, the
    reference code of DPO, and OpenRLHF. The two are of other scales: choose beta with it.
    """
    return jnp.square(_delta(pairs, 1.0, reduction) - 1 / (2 * beta))


def hinge(pairs: Pairs, *, beta: float = 0.1) -> jax.Array:
    """max(0, 1 - d), SLiC's hinge on DPO's log-ratios (RSO, arXiv 2309.06657, "hinge-norm"; TRL's hinge)."""
    return jax.nn.relu(1 - _delta(pairs, beta))


def slic(pairs: Pairs, *, margin: float = 1.0) -> jax.Array:
    """max(0, margin - log pi(y_w) + log pi(y_l)), no reference (SLiC-HF, arXiv 2305.10425); its regulariser is the NLL term."""
    return jax.nn.relu(margin - pairs.chosen + pairs.rejected)


def cpo(pairs: Pairs, *, beta: float = 0.1) -> jax.Array:
    """-log s(beta * (log pi(y_w) - log pi(y_l))), DPO under a uniform reference (arXiv 2401.08417, eq. 3); with an NLL term."""
    return -log_sigmoid(beta * (pairs.chosen - pairs.rejected))


def simpo(pairs: Pairs, *, beta: float = 2.0, gamma: float = 1.0) -> jax.Array:
    """-log s(beta * (m_w - m_l) - gamma), m the mean log-probability of a token (arXiv 2405.14734, eq. 6).

    gamma is the paper's own margin; TRL's simpo_gamma is the same number, other code states gamma / beta.
    """
    chosen, rejected = _means(pairs)
    return -log_sigmoid(beta * (chosen - rejected) - gamma)


def orpo(pairs: Pairs, *, beta: float = 0.1) -> jax.Array:
    """-beta log s(log odds(y_w) - log odds(y_l)) of the mean log-probabilities (arXiv 2403.07691, eq. 7; beta: their lambda).

    A mean above -1e-6 counts as -1e-6: the odds of a certain completion are infinite.
    """
    chosen, rejected = (jnp.minimum(mean, -1e-6) for mean in _means(pairs))
    return -beta * log_sigmoid((chosen - _log1mexp(chosen)) - (rejected - _log1mexp(rejected)))


def apo_zero(pairs: Pairs, *, beta: float = 0.1) -> jax.Array:
    """1 - s(beta r_w) + s(beta r_l): the chosen up, the rejected down (arXiv 2408.06266, eq. 7)."""
    chosen, rejected = log_ratios(pairs)
    return sigmoid(-beta * chosen) + sigmoid(beta * rejected)


def apo_down(pairs: Pairs, *, beta: float = 0.1) -> jax.Array:
    """s(beta r_w) + 1 - s(beta (r_w - r_l)): both down, the rejected more (arXiv 2408.06266, eq. 8)."""
    chosen, rejected = log_ratios(pairs)
    return sigmoid(beta * chosen) + sigmoid(-beta * (chosen - rejected))


def sppo(pairs: Pairs, *, beta: float = 0.001) -> jax.Array:
    """(r_w - 1 / (2 beta))^2 + (r_l + 1 / (2 beta))^2: SPPO with win rates 1 and 0 (arXiv 2405.00675, eq. 4.7, eta = 1 / beta)."""
    chosen, rejected = log_ratios(pairs)
    return jnp.square(chosen - 0.5 / beta) + jnp.square(rejected + 0.5 / beta)


def nca(pairs: Pairs, *, beta: float = 0.1) -> jax.Array:
    """-log s(b r_w) - (log s(-b r_w) + log s(-b r_l)) / 2, noise contrastive alignment of two (arXiv 2402.05369)."""
    chosen, rejected = (beta * ratio for ratio in log_ratios(pairs))
    return -log_sigmoid(chosen) - 0.5 * (log_sigmoid(-chosen) + log_sigmoid(-rejected))


def bco(pairs: Pairs, *, beta: float = 0.1) -> jax.Array:
    """-log s(b r_w) - log s(-b r_l), a binary classifier of pairs (arXiv 2404.04656) without its shift (see `unpaired.bco`)."""
    chosen, rejected = (beta * ratio for ratio in log_ratios(pairs))
    return -log_sigmoid(chosen) - log_sigmoid(-rejected)


def exo(pairs: Pairs, *, beta: float = 0.1, label_smoothing: float = 1e-3) -> jax.Array:
    """KL((s(d), s(-d)) || (1 - e, e)): of the policy's preference from the labels', where DPO has the reverse (arXiv 2402.00856, eq. 16).

    Raises:
      ValueError: e is not inside (0, 1): the divergence from certain labels is infinite.
    """
    if not 0 < label_smoothing < 1:
        raise ValueError(f"label_smoothing={label_smoothing} of the exo loss is not in (0, 1): its divergence would be infinite. Try 1e-3.")
    delta = _delta(pairs, beta)
    chosen = sigmoid(delta) * (log_sigmoid(delta) - jnp.log1p(-label_smoothing))
    return chosen + sigmoid(-delta) * (log_sigmoid(-delta) - jnp.log(label_smoothing))


class Preference(NamedTuple):
    """A row of `LOSSES`.

    Attributes:
      loss: (pairs, *, options) -> float32 [B].
      reference: whether it reads the reference policy's log-probabilities.
      reward: "sum" or "mean", how the implied reward of a completion is reduced over its tokens.
      nll: the coefficient of the NLL of the chosen that belongs to the method; 0: none.
    """

    loss: Callable[..., jax.Array]
    reference: bool = True
    reward: str = "sum"
    nll: float = 0.0


LOSSES: dict[str, Preference] = {
    "dpo": Preference(dpo),
    "spin": Preference(dpo),
    "robust": Preference(robust),
    "ipo": Preference(ipo),
    "hinge": Preference(hinge),
    "slic": Preference(slic, reference=False, nll=0.1),
    "cpo": Preference(cpo, reference=False, nll=1.0),
    "simpo": Preference(simpo, reference=False, reward="mean"),
    "orpo": Preference(orpo, reference=False, reward="mean", nll=1.0),
    "apo_zero": Preference(apo_zero),
    "apo_down": Preference(apo_down),
    "sppo": Preference(sppo),
    "nca": Preference(nca),
    "bco": Preference(bco),
    "exo": Preference(exo),
}


def preference(
    pairs: Pairs, weights: jax.Array, row: Preference = LOSSES["dpo"], *, nll: float | None = None, nll_over: str = "token", **options: Any
) -> tuple[Terms, Report]:
    """The loss of pairs, and the NLL of the chosen that keeps their likelihood up.

    Args:
      pairs: sums of log-probabilities; gradients go through the policy's.
      weights: float [B], 0 where a pair is dropped or padding.
      row: from `LOSSES`.
      nll: coefficient of the NLL of the chosen; None: the row's own. RPO (arXiv 2404.19733, eq. 1) is dpo with nll=1, nll_over="sequence".
      nll_over: what the NLL is a mean over: "token", all chosen tokens of the batch (TRL); "sequence", the mean of the rows' means; "sum",
        the mean over rows of the sum (as CPO's paper has it).
      options: of the row's loss.

    Returns:
      terms: "preference" and, if asked for, "nll", in nats.
      report: "accuracy" (ties count half), "margin", "reward_chosen", "reward_rejected": the implied rewards times beta, where the loss has
        one. All have totals in `preference_totals`.
    """
    check_choice("nll_over", nll_over, NLL_REDUCTIONS)
    pairs = Pairs(*(trained(field, weights) for field in pairs))
    first, second = (jax.lax.stop_gradient(field) if row.reference else 0.0 for field in pairs[2:4])
    pairs = pairs._replace(reference_chosen=first, reference_rejected=second)
    terms = {"preference": Term(weighted_sum(row.loss(pairs, **options), weights))}
    if coefficient := row.nll if nll is None else nll:
        each = pairs.chosen / jnp.maximum(pairs.chosen_lengths, 1) if nll_over == "sequence" else pairs.chosen
        terms["nll"] = Term(-weighted_sum(each, weights), coefficient)
    beta = options.get("beta", (row.loss.__kwdefaults__ or {}).get("beta", 1.0))
    chosen, rejected = (beta * jax.lax.stop_gradient(ratio) for ratio in log_ratios(pairs, row.reward))
    return terms, {
        "accuracy": weighted_sum((jnp.sign(chosen - rejected) + 1) / 2, weights),
        "margin": weighted_sum(chosen - rejected, weights),
        "reward_chosen": weighted_sum(chosen, weights),
        "reward_rejected": weighted_sum(rejected, weights),
    }


def preference_totals(weights: jax.Array, chosen_lengths: jax.Array, *, nll_over: str = "token") -> Report:
    """What the sums of `preference` are divided by, of the whole batch: its weight, and for nll_over="token" its weighted chosen tokens."""
    check_choice("nll_over", nll_over, NLL_REDUCTIONS)
    rows = jnp.sum(weights, dtype=jnp.float32)
    names = ("preference", "accuracy", "margin", "reward_chosen", "reward_rejected")
    return dict.fromkeys(names, rows) | {"nll": weighted_sum(chosen_lengths, weights) if nll_over == "token" else rows}


def _means(pairs: Pairs) -> tuple[jax.Array, jax.Array]:
    """The policy's mean log-probability of a token of the chosen and of the rejected, [B] each."""
    return pairs.chosen / jnp.maximum(pairs.chosen_lengths, 1), pairs.rejected / jnp.maximum(pairs.rejected_lengths, 1)


def _log1mexp(x: jax.Array) -> jax.Array:
    """log(1 - exp(x)) for x < 0, without loss of digits on either side of -log 2."""
    near, far = jnp.maximum(x, -0.693), jnp.minimum(x, -0.693)
    return jnp.where(x > -0.693, jnp.log(-jnp.expm1(near)), jnp.log1p(-jnp.exp(far)))
