"""Advantages against numpy loops, and against the enumerated policy gradient of a two-step policy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxllm.losses.policy import policy, reinforce
from jaxllm.rollouts import advantages as adv
from jaxllm.rollouts.shaping import token_rewards
from tests.losses import tiny_mdp as mdp

rng = np.random.default_rng(9)
B, T = 4, 6
REWARDS, VALUES = (rng.normal(size=(B, T)).astype(np.float32) for _ in range(2))
OWN = np.array([[1, 1, 1, 1, 1, 1], [1, 1, 0, 0, 1, 1], [0, 1, 0, 1, 0, 0], [0, 0, 0, 0, 0, 0]], bool)
GROUPS = np.array([7, 3, 7, 3, 3, 9, 7, 7])
SCORES = rng.normal(size=8).astype(np.float32)


def numpy_gae(rewards, values, own, g, l, bootstrap):
    """The textbook's loop over the policy's own tokens alone, as if the others were not there; their rewards go to the one before."""
    advantages = np.zeros(rewards.shape)
    for b in range(len(rewards)):
        at = np.flatnonzero(own[b])
        after_value, after = bootstrap[b], 0.0
        for i in reversed(range(len(at))):
            end = at[i + 1] if i + 1 < len(at) else rewards.shape[1]
            delta = rewards[b, at[i] : end].sum() + g * after_value - values[b, at[i]]
            after = delta + g * l * after
            after_value, advantages[b, at[i]] = values[b, at[i]], after
    return advantages


@pytest.mark.parametrize("g, l", [(1.0, 0.95), (0.9, 0.5), (1.0, 1.0)])
def test_gae_equals_the_loop(g, l):
    bootstrap = np.array([0, 0.5, -1, 2], np.float32)
    advantages, returns = jax.jit(lambda *a, **k: adv.gae(*a, **k))(REWARDS, VALUES, OWN, discount=g, decay=l, bootstrap=bootstrap)
    expected = numpy_gae(REWARDS, VALUES, OWN, g, l, bootstrap)
    np.testing.assert_allclose(advantages, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(returns, np.where(OWN, expected + VALUES, 0), rtol=1e-5, atol=1e-6)


def test_trap_6_a_tools_tokens_change_nothing():
    """Observations between the policy's tokens, of any value, leave the advantages as they were; multiplying by the mask does not."""
    order = [0, 1, 4, 5]
    short, _ = adv.gae(REWARDS[1:2, order], VALUES[1:2, order], np.ones((1, 4)), discount=0.9)
    rewards, values = np.where(OWN[1:2], REWARDS[1:2], 0), np.where(OWN[1:2], VALUES[1:2], np.nan)
    long, _ = adv.gae(rewards, values, OWN[1:2], discount=0.9)
    np.testing.assert_allclose(long[:, order], short, rtol=1e-6)
    assert not np.any(np.asarray(long)[:, [2, 3]])
    multiplied, _ = adv.gae(rewards, np.where(OWN[1:2], values, 0), np.ones((1, 6)), discount=0.9)
    assert np.abs(np.asarray(multiplied)[:, order] - short).max() > 0.1


def test_a_reward_behind_a_tools_tokens_belongs_to_the_call():
    rewards = np.array([[0, 0, 5.0, 0]], np.float32)
    own = np.array([[1, 1, 0, 1]])
    np.testing.assert_array_equal(adv.returns_to_go(rewards, own), [[5, 5, 0, 0]])


def test_trap_1_rewards_of_whole_numbers_and_fractions():
    """Fractions stay, and rewards in an integer array are numbers like others."""
    rewards, _ = token_rewards(np.array([0.7, -1.6]), np.ones((2, 3), int))
    np.testing.assert_allclose(rewards[:, -1], [0.7, -1.6], rtol=1e-6)
    a, _ = adv.gae(np.array([[0, 1]]), np.array([[0.25, 0.5]], np.float32), np.ones((1, 2), int))
    np.testing.assert_allclose(a, [[0.25 + 0.95 * 0.5, 0.5]])
    np.testing.assert_allclose(adv.group_mean(np.array([0, 1]), np.array([4, 4])), [-0.5, 0.5])


@pytest.mark.parametrize("ddof, shift", [(0, True), (1, False)])
def test_whiten_equals_numpy(ddof, shift):
    x = REWARDS[OWN]
    expected = (x - x.mean()) / np.sqrt(x.var(ddof=ddof) + 1e-8) + (0 if shift else x.mean())
    white = np.asarray(adv.whiten(np.where(OWN, REWARDS, np.nan), OWN, ddof=ddof, shift_mean=shift))
    np.testing.assert_allclose(white[OWN], expected, rtol=1e-5, atol=1e-6)
    assert not np.any(white[~OWN])


def test_whitening_is_over_the_whole_batch_on_any_number_of_devices():
    rows = NamedSharding(Mesh(np.array(jax.devices()[:4]), "x"), PartitionSpec("x"))
    spread = jax.jit(adv.whiten)(jax.device_put(REWARDS, rows), jax.device_put(OWN, rows))
    np.testing.assert_allclose(spread, adv.whiten(REWARDS, OWN), rtol=1e-5, atol=1e-6)


def by_group(function):
    out = np.zeros(8)
    for g in set(GROUPS):
        out[g == GROUPS] = function(SCORES[g == GROUPS])
    return out


@pytest.mark.parametrize("ddof, eps", [(1, 1e-4), (0, 1e-6)])
def test_trap_9_group_relative_names_its_deviation(ddof, eps):
    expected = by_group(lambda r: (r - r.mean()) / (r.std(ddof=ddof) + eps) if len(r) > 1 else 0)
    np.testing.assert_allclose(adv.group_relative(SCORES, GROUPS, ddof=ddof, eps=eps), expected, rtol=1e-4, atol=1e-6)


def test_the_other_baselines_equal_numpy():
    np.testing.assert_allclose(adv.group_mean(SCORES, GROUPS), by_group(lambda r: r - r.mean()), rtol=1e-5, atol=1e-6)
    others = by_group(lambda r: r - (r.sum() - r) / (len(r) - 1) if len(r) > 1 else 0)
    np.testing.assert_allclose(adv.leave_one_out(SCORES, GROUPS), others, rtol=1e-5, atol=1e-6)
    whole = by_group(lambda r: r - r.mean()) / (SCORES.std(ddof=1) + 1e-4)
    np.testing.assert_allclose(adv.group_relative(SCORES, GROUPS, scale="batch"), whole, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(adv.against_greedy(SCORES, SCORES[::-1]), SCORES - SCORES[::-1])
    np.testing.assert_array_equal(adv.informative(np.array([1, 0, 1, 2, 0, 5, 1, 1]), GROUPS), GROUPS == 3)
    with pytest.raises(ValueError, match=r"prompt.*group, batch, none"):
        adv.group_relative(SCORES, GROUPS, scale="prompt")


@pytest.mark.parametrize("name", adv.OUTCOME)
def test_trap_12_unscorable_is_not_0_and_trap_13_0_is_a_reward(name):
    """A row that nothing could score gets no advantage and moves nobody's; a row that was given 0 does both."""
    scored = np.array([1, 1, 1, 1, 1, 1, 0, 1], bool)
    found = np.asarray(adv.OUTCOME[name](np.where(scored, SCORES, np.nan), GROUPS, scored))
    elsewhere = np.asarray(adv.OUTCOME[name](SCORES, np.where(scored, GROUPS, 99)))  # as if the row were another prompt's
    np.testing.assert_allclose(found[scored], elsewhere[scored], rtol=1e-5, atol=1e-6)
    assert found[6] == 0
    zero = np.asarray(adv.OUTCOME[name](np.where(scored, SCORES, 0.0), GROUPS))
    assert zero[6] != 0 and np.abs(np.delete(zero - found, 6)).max() > 1e-3


@pytest.mark.parametrize("name", adv.OUTCOME)
def test_trap_17_shuffled_rows_keep_their_group(name):
    order = rng.permutation(8)
    shuffled = adv.OUTCOME[name](SCORES[order], GROUPS[order])
    np.testing.assert_allclose(shuffled, np.asarray(adv.OUTCOME[name](SCORES, GROUPS))[order], rtol=1e-5, atol=1e-6)


def expected_gradient(advantages, paths, chances):
    """The gradient of REINFORCE with these advantages [n, 2] for samples `paths` [n], each weighed by its chance [n]."""
    weights = np.broadcast_to(np.asarray(chances)[:, None], (len(paths), 2))

    def loss(theta):
        return policy(mdp.log_probs(theta)[paths], advantages, weights, reinforce)[0]["policy"].sum

    return jax.jit(jax.grad(loss))(mdp.THETA)


def test_leave_one_out_is_unbiased_and_a_baseline_with_oneself_is_not():
    """All 81 pairs of completions: RLOO has the enumerated gradient; minus the group's mean it is half of it, by the factor 1 - 1/G."""
    first, second = (grid.ravel() for grid in np.meshgrid(np.arange(9), np.arange(9), indexing="ij"))
    paths, groups = np.stack([first, second], 1).ravel(), np.repeat(np.arange(81), 2)
    p = np.asarray(mdp.chances(mdp.THETA))
    chances = np.repeat(p[first] * p[second], 2) / 2
    rewards = np.asarray(mdp.REWARDS)[paths]
    for function, factor in ((adv.leave_one_out, -1.0), (adv.group_mean, -0.5)):
        grad = expected_gradient(np.asarray(function(rewards, groups))[:, None], paths, chances)
        mdp.assert_same(grad, mdp.policy_gradient(), factor)


def test_gae_with_any_critic_is_unbiased_at_decay_1_and_biased_below():
    value = np.array([[0.3, v] for v in (0.9, -0.4, 1.7)], np.float32)[mdp.PATHS[:, 0]]  # of the prompt, and of the first token
    rewards, _ = token_rewards(mdp.REWARDS, np.ones((9, 2)))
    p = mdp.chances(mdp.THETA)
    unbiased = expected_gradient(adv.gae(rewards, value, np.ones((9, 2)), decay=1.0)[0], np.arange(9), p)
    mdp.assert_same(unbiased, mdp.policy_gradient(), -1.0)
    biased = expected_gradient(adv.gae(rewards, value, np.ones((9, 2)), decay=0.5)[0], np.arange(9), p)
    assert np.abs(np.asarray(biased["first"] + mdp.policy_gradient()["first"])).max() > 1e-2


def test_the_kl_in_the_reward_has_the_gradient_of_the_penalised_objective():
    """E[R] - beta KL(pi || ref) of whole completions, by enumeration; a reward one token early is caught."""
    logp, ref = mdp.log_probs(mdp.THETA), mdp.log_probs(mdp.REFERENCE)

    def objective(theta):
        new = mdp.log_probs(theta)
        return jnp.sum(jnp.exp(new.sum(1)) * (mdp.REWARDS - 0.3 * (new - ref).sum(1)))

    exact = jax.jit(jax.grad(objective))(mdp.THETA)
    rewards, divergence = token_rewards(mdp.REWARDS, np.ones((9, 2)), log_probs=logp, reference=ref, coefficient=0.3)
    np.testing.assert_allclose(divergence, (logp - ref).sum(1), rtol=1e-5)
    to_go = adv.returns_to_go(rewards, np.ones((9, 2)))
    mdp.assert_same(expected_gradient(to_go, np.arange(9), mdp.chances(mdp.THETA)), exact, -1.0)
    early = expected_gradient(np.roll(to_go, -1, axis=1), np.arange(9), mdp.chances(mdp.THETA))
    assert np.abs(np.asarray(early["first"] + exact["first"])).max() > 1e-2
