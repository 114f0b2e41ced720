"""Losses of pairs against numpy, what they are at the reference, and the numbers that differ under one name."""

import jax
import numpy as np
import pytest

from jaxllm.losses import preference as pref
from jaxllm.losses.preference import LOSSES, Pairs, preference, preference_totals
from jaxllm.losses.terms import Term

B = 6
rng = np.random.default_rng(0)
W, L, RW, RL = (np.asarray(-3 * rng.random(B) - 0.2, np.float64) for _ in range(4))
NW, NL = (rng.integers(1, 9, B).astype(np.float64) for _ in range(2))
PAIRS = Pairs(*(array.astype(np.float32) for array in (W, L, RW, RL, NW, NL)))
WEIGHTS = np.array([1, 1, 0, 2, 1, 1], np.float32)
w, l, d = W - RW, L - RL, (W - RW) - (L - RL)


def sig(x):
    return 1 / (1 + np.exp(-x))


def nls(x):
    return -np.log(sig(x))


def odds(mean):
    return np.log(np.exp(mean) / (1 - np.exp(mean)))


NUMPY = {
    "dpo": lambda b: nls(b * d),
    "spin": lambda b: nls(b * d),
    "robust": lambda b: (0.9 * nls(b * d) - 0.1 * nls(-b * d)) / 0.8,
    "ipo": lambda b: (w / NW - l / NL - 1 / (2 * b)) ** 2,
    "hinge": lambda b: np.maximum(0, 1 - b * d),
    "slic": lambda b: np.maximum(0, 1 - W + L),
    "cpo": lambda b: nls(b * (W - L)),
    "simpo": lambda b: nls(b * (W / NW - L / NL) - 1.0),
    "orpo": lambda b: b * nls(odds(W / NW) - odds(L / NL)),
    "apo_zero": lambda b: 1 - sig(b * w) + sig(b * l),
    "apo_down": lambda b: sig(b * w) + 1 - sig(b * (w - l)),
    "sppo": lambda b: (w - 0.5 / b) ** 2 + (l + 0.5 / b) ** 2,
    "nca": lambda b: nls(b * w) + 0.5 * nls(-b * w) + 0.5 * nls(-b * l),
    "bco": lambda b: nls(b * w) + nls(-b * l),
    "exo": lambda b: sig(b * d) * np.log(sig(b * d) / 0.999) + sig(-b * d) * np.log(sig(-b * d) / 0.001),
}


@pytest.mark.parametrize("name", LOSSES)
def test_equals_numpy(name):
    options = {} if name == "slic" else {"beta": 0.7}
    np.testing.assert_allclose(LOSSES[name].loss(PAIRS, **options), NUMPY[name](0.7), rtol=3e-5, atol=1e-6)


@pytest.mark.parametrize("name", LOSSES)
def test_the_terms_are_weighted_sums_and_the_nll_is_of_the_chosen(name):
    options = {} if name == "slic" else {"beta": 0.7}
    terms, report = preference(PAIRS, WEIGHTS, LOSSES[name], **options)
    totals = preference_totals(WEIGHTS, PAIRS.chosen_lengths)
    mean = {key: float(term.sum) / float(totals[key]) for key, term in terms.items()}
    assert mean["preference"] == pytest.approx(np.average(NUMPY[name](0.7), weights=WEIGHTS), rel=3e-5)
    assert ("nll" in terms) == bool(LOSSES[name].nll)
    if "nll" in terms:
        assert terms["nll"].coefficient == LOSSES[name].nll
        assert mean["nll"] == pytest.approx(np.sum(WEIGHTS * -W) / np.sum(WEIGHTS * NW), rel=1e-5)
    rewards = (w, l) if LOSSES[name].reference else (W / NW, L / NL) if LOSSES[name].reward == "mean" else (W, L)
    beta = options.get("beta", 1.0)
    assert float(report["accuracy"] / totals["accuracy"]) == pytest.approx(np.average(rewards[0] > rewards[1], weights=WEIGHTS))
    assert float(report["margin"] / totals["margin"]) == pytest.approx(
        beta * np.average(rewards[0] - rewards[1], weights=WEIGHTS), rel=1e-4
    )


@pytest.mark.parametrize("over", pref.NLL_REDUCTIONS)
def test_three_means_of_the_nll(over):
    term = preference(PAIRS, WEIGHTS, nll=0.5, nll_over=over)[0]["nll"]
    total = preference_totals(WEIGHTS, PAIRS.chosen_lengths, nll_over=over)["nll"]
    expected = {"token": np.sum(WEIGHTS * -W) / np.sum(WEIGHTS * NW), "sequence": np.average(-W / NW, weights=WEIGHTS)}
    assert isinstance(term, Term) and term.coefficient == 0.5
    assert float(term.sum / total) == pytest.approx(expected.get(over, np.average(-W, weights=WEIGHTS)), rel=1e-5)


def test_at_the_reference_dpo_is_log_2_and_its_gradient_is_half_beta():
    same = PAIRS._replace(reference_chosen=PAIRS.chosen, reference_rejected=PAIRS.rejected)
    np.testing.assert_array_equal(pref.dpo(same), np.full(B, np.log(2), np.float32))
    grad = jax.grad(lambda chosen: pref.dpo(same._replace(chosen=chosen), beta=0.3).sum())(same.chosen)
    np.testing.assert_allclose(grad, -0.15, rtol=1e-6)


def test_smoothed_labels_have_their_optimum_where_the_labels_are():
    """cDPO's loss is least where s(d) = 1 - e; the robust one, averaged over flipped labels, is the loss of clean ones."""
    optimum = np.log(0.9 / 0.1)
    pairs = Pairs(*np.array([optimum, 0, 0, 0, 1, 1], np.float32))
    assert abs(jax.grad(lambda c: pref.dpo(pairs._replace(chosen=c), beta=1.0, label_smoothing=0.1))(pairs.chosen)) < 1e-6
    flipped = PAIRS._replace(chosen=PAIRS.rejected, rejected=PAIRS.chosen, reference_chosen=PAIRS.reference_rejected,
                             reference_rejected=PAIRS.reference_chosen)  # fmt: skip
    np.testing.assert_allclose(0.8 * pref.robust(PAIRS, label_smoothing=0.2) + 0.2 * pref.robust(flipped, label_smoothing=0.2),
                               pref.dpo(PAIRS), rtol=2e-6)  # fmt: skip


def test_losses_without_a_reference_never_read_one():
    for name, row in LOSSES.items():
        moved = PAIRS._replace(reference_chosen=PAIRS.reference_chosen + 1, reference_rejected=PAIRS.reference_rejected - 1)
        here, there = (preference(pairs, WEIGHTS, row)[0]["preference"].sum for pairs in (PAIRS, moved))
        assert (float(here) != float(there)) == row.reference, name


def test_trap_9_ipo_of_sums_and_of_means_are_two_losses():
    np.testing.assert_allclose(pref.ipo(PAIRS, beta=0.2, reduction="sum"), (d - 2.5) ** 2, rtol=1e-5)
    np.testing.assert_allclose(pref.ipo(PAIRS, beta=0.2, reduction="mean"), (w / NW - l / NL - 2.5) ** 2, rtol=1e-5)
    np.testing.assert_allclose(pref.dpo(PAIRS, beta=0.2, reduction="mean"), nls(0.2 * (w / NW - l / NL)), rtol=1e-5)


def test_identical_pairs_have_no_gradient_and_half_an_accuracy():
    """Chosen equal to rejected (after truncation) trains nothing; accuracy shows it."""
    same = PAIRS._replace(rejected=PAIRS.chosen, reference_rejected=PAIRS.reference_chosen)
    _, report = preference(same, WEIGHTS)
    assert float(report["accuracy"]) == WEIGHTS.sum() / 2


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: pref.ipo(PAIRS, reduction="total"), "total.*sum, mean"),
        (lambda: preference(PAIRS, WEIGHTS, nll_over="row"), "row.*token, sequence, sum"),
        (lambda: pref.robust(PAIRS, label_smoothing=0.5), "0.5"),
        (lambda: pref.exo(PAIRS, label_smoothing=0.0), "0.0"),
    ],
)
def test_errors_name_the_value_and_the_choices(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def test_the_reference_is_never_trained():
    """Also where it comes out of the same parameters, with an adapter switched off."""

    def loss(shared):
        pairs = PAIRS._replace(chosen=2 * shared, reference_chosen=shared)
        return preference(pairs, WEIGHTS)[0]["preference"].sum

    constant = jax.grad(lambda x: preference(PAIRS._replace(chosen=2 * x, reference_chosen=PAIRS.chosen), WEIGHTS)[0]["preference"].sum)
    np.testing.assert_array_equal(jax.grad(loss)(PAIRS.chosen), constant(PAIRS.chosen))
