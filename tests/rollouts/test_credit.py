"""Credit: every method's advantages over a whole rollout, against numpy; samples without a score train nothing."""

import functools

import jax
import numpy as np
import pytest

from jaxllm.rollouts.credit import Shape, credit
from jaxllm.rollouts.methods import METHODS

RNG = np.random.default_rng(0)
LENGTHS = np.array([3, 2, 4, 1, 3, 2])
MASK = (np.arange(6) >= 1) & (np.arange(6) < 1 + LENGTHS[:, None])
SCORES = np.array([1.0, 0.0, 0.5, 2.0, 1.0, 1.0], np.float32)
GROUPS = np.repeat(np.arange(3, dtype=np.int32), 2)
KNOWN = {
    "weights": MASK.astype(np.float32),
    "scores": SCORES,
    "groups": GROUPS,
    "ended": np.array([True, True, False, True, True, True]),
    "log_probs": np.where(MASK, -RNG.random((6, 6)), 0).astype(np.float32),
    "reference": np.where(MASK, -RNG.random((6, 6)), 0).astype(np.float32),
    "coefficient": np.float32(0.3),
    "greedy": np.repeat(np.array([0.25, 1.0, 0.0], np.float32), 2),
    "values": RNG.standard_normal((6, 6)).astype(np.float32),
}


def found(name, shape=Shape(), **changes):  # noqa: B008
    result = jax.jit(functools.partial(credit, METHODS[name], shape))({**KNOWN, **changes})
    return {key: np.asarray(value) for key, value in result.items()}


def expected(name):
    """The advantages of a method by hand, [6, 6]."""
    method, divergence = METHODS[name], (KNOWN["log_probs"] - KNOWN["reference"]) * MASK
    beta = 0.3 if method.kl == "reward" else 0.0
    outcome = SCORES - beta * divergence.sum(1)
    pairs = outcome.reshape(3, 2)
    by_row = {
        "group_relative": (pairs - pairs.mean(1, keepdims=True)) / (pairs.std(1, ddof=1, keepdims=True) + 1e-4),
        "group_mean": pairs - pairs.mean(1, keepdims=True),
        "leave_one_out": pairs - pairs[:, ::-1],
        "greedy": (outcome - KNOWN["greedy"]).reshape(3, 2),
        "best": (np.arange(2) == pairs.argmax(1)[:, None]).astype(float),
    }
    rewards = -beta * divergence
    rewards[np.arange(6), LENGTHS] += SCORES
    if method.advantages == "to_go":
        found = np.flip(np.cumsum(np.flip(rewards, 1), 1), 1)
    elif method.advantages == "gae":
        found, after = np.zeros((6, 6)), 0
        for i in range(6):
            after = 0.0
            for t in range(LENGTHS[i], 0, -1):
                value_after = KNOWN["values"][i, t + 1] if t < LENGTHS[i] else 0.0
                after = found[i, t] = rewards[i, t] + value_after - KNOWN["values"][i, t] + 0.95 * after
    else:
        found = np.repeat(by_row[method.advantages].reshape(6, 1), 6, 1)
    mask = MASK.copy()
    if method.drop_uninformative:
        mask[4:] = False  # the last group's scores are equal
    if method.advantages == "best":
        mask &= found > 0
    if method.whiten:
        found = (found - found[mask].mean()) / np.sqrt(found[mask].var() + 1e-8)
    return np.where(mask, found, 0), mask


@pytest.mark.parametrize("name", METHODS)
def test_every_method_equals_numpy(name):
    result, (advantages, mask) = found(name), expected(name)
    np.testing.assert_allclose(result["advantages"], advantages, atol=2e-5)
    assert ((result["weights"] != 0) == mask).all()
    assert result["identical"].tolist() == [False] * 4 + [True] * 2
    divergence = ((KNOWN["log_probs"] - KNOWN["reference"]) * MASK).sum(1)
    np.testing.assert_allclose(result["divergence"], divergence, atol=1e-5)  # trap 15: what is logged is what is trained


@pytest.mark.parametrize("name", METHODS)
def test_a_sample_without_a_score_trains_nothing_and_moves_nobody(name):
    scores = SCORES.copy()
    scores[1] = np.nan
    result = found(name, scores=scores)
    assert not result["weights"][1].any() and not result["advantages"][1].any() and np.isfinite(result["advantages"]).all()
    if not METHODS[name].whiten:  # the second group is as it was, the first lost its partner
        np.testing.assert_allclose(result["advantages"][2:], expected(name)[0][2:], atol=2e-5)


def test_what_was_cut_off_trains_nothing_where_that_is_asked():
    assert not found("grpo", Shape(mask_truncated=True))["weights"][2].any()


def test_returns_on_one_scale():
    """Two rollouts: each divided by the deviation of all returns so far; the critic's targets are on that scale."""
    shape, seen, memory, quiet = Shape(normalise_returns=True), [], np.zeros(3, np.float32), {"coefficient": np.float32(0)}
    for factor in (10.0, 30.0):
        result = found("ppo", shape, scores=factor * SCORES, returns_seen=memory, values=np.zeros((6, 6), np.float32), **quiet)
        seen += np.repeat(factor * SCORES, LENGTHS).tolist()
        memory = result["returns_seen"]
        np.testing.assert_allclose(result["returns_scale"], np.std(seen), rtol=1e-5)
        np.testing.assert_allclose(memory, [len(seen), np.mean(seen), np.var(seen) * len(seen)], rtol=1e-5)
        last = result["returns"][np.arange(6), LENGTHS]
        np.testing.assert_allclose(last, factor * SCORES / np.std(seen), rtol=1e-5)
    same = found("ppo", shape, scores=np.ones(6, np.float32), returns_seen=np.zeros(3, np.float32), **quiet)
    assert same["returns_scale"] == 1 and np.isfinite(same["advantages"]).all()
