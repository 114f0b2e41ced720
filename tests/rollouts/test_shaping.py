"""Penalties, rewards of tokens and the controller of the KL against numpy."""

import numpy as np
import pytest

from jaxllm.rollouts import shaping

rng = np.random.default_rng(10)
MASK = np.array([[1, 1, 0, 0], [0, 1, 0, 1], [1, 1, 1, 1], [0, 0, 0, 0]], bool)
SCORES = np.array([0.5, -1.5, 2.25, 9.0])
LOGP, REF = (rng.normal(size=MASK.shape).astype(np.float32) for _ in range(2))


def test_missing_ends_are_set_or_subtracted():
    ended = np.array([1, 0, 1, 0], bool)
    np.testing.assert_allclose(shaping.missing_end(SCORES, ended, value=-1.0), [0.5, -1, 2.25, -1])
    np.testing.assert_allclose(shaping.missing_end(SCORES, ended, value=1.0, how="subtract"), [0.5, -2.5, 2.25, 8])
    np.testing.assert_allclose(shaping.missing_end(np.array([1, 0]), ended[:2], value=-0.5), [1, -0.5])  # trap 1: whole scores
    with pytest.raises(ValueError, match=r"drop.*set, subtract"):
        shaping.missing_end(SCORES, ended, value=1.0, how="drop")


def test_penalties_for_length():
    lengths = np.array([10, 80, 90, 100, 120])
    np.testing.assert_allclose(shaping.soft_overlong(lengths, longest=100, buffer=20), [0, 0, -0.5, -1, -1])
    np.testing.assert_allclose(shaping.length_penalty(lengths, cost=0.01, free=85), [0, 0, -0.05, -0.15, -0.35], rtol=1e-5)
    with pytest.raises(ValueError, match=r"101.*100"):
        shaping.soft_overlong(lengths, longest=100, buffer=101)


def test_trap_11_the_score_stands_at_the_last_token_also_of_a_full_window():
    """Short of the window, with holes, filling it, and empty: from the mask, not from an end token that may not be there."""
    np.testing.assert_array_equal(shaping.last_token(MASK), [[0, 1, 0, 0], [0, 0, 0, 1], [0, 0, 0, 1], [0, 0, 0, 0]])
    rewards, divergence = shaping.token_rewards(SCORES, MASK)
    np.testing.assert_allclose(rewards, [[0, 0.5, 0, 0], [0, 0, 0, -1.5], [0, 0, 0, 2.25], [0, 0, 0, 0]])
    assert not np.any(divergence)


@pytest.mark.parametrize("estimator", ["k1", "k3"])
def test_trap_15_the_kl_in_the_reward_is_the_kl_that_is_reported(estimator):
    poisoned = np.where(MASK, LOGP, np.nan).astype(np.float32)
    rewards, divergence = shaping.token_rewards(SCORES, MASK, log_probs=poisoned, reference=REF, coefficient=0.2, estimator=estimator)
    d = LOGP - REF
    expected = np.where(MASK, d if estimator == "k1" else np.exp(-d) - 1 + d, 0)
    plain, _ = shaping.token_rewards(SCORES, MASK)
    np.testing.assert_allclose(rewards, plain - 0.2 * expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(divergence, expected.sum(1), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(np.asarray(plain - rewards).sum(1), 0.2 * np.asarray(divergence), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "observed, factor", [(6.0, 1.0), (60.0, 1 + 0.2 * 512 / 1e4), (0.0, 1 - 0.2 * 512 / 1e4), (6.6, 1 + 0.1 * 512 / 1e4)]
)
def test_the_adaptive_controller_moves_towards_the_target(observed, factor):
    assert float(shaping.adaptive_kl(0.15, observed, 512)) == pytest.approx(0.15 * factor, rel=1e-6)
