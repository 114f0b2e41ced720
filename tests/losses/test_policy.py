"""Surrogates against numpy, and their gradients against the enumerated policy gradient of a two-step policy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxllm.losses import policy as pol
from jaxllm.losses.language import cross_entropy, cross_entropy_totals
from jaxllm.losses.policy import LEVELS, SURROGATES, policy, policy_totals, token_weights
from jaxllm.training.state import TrainState
from jaxllm.training.step import make_step
from tests.losses import tiny_mdp as mdp

B, T = 4, 5
rng = np.random.default_rng(5)
LOGP, OLD, ADV = (rng.normal(size=(B, T)).astype(np.float32) for _ in range(3))
MASK = np.array([[1, 1, 1, 0, 0], [0, 1, 0, 1, 1], [1, 1, 1, 1, 1], [0, 0, 0, 0, 0]], bool)


def numpy_loss(name, log_ratio, adv):
    r = np.exp(log_ratio)
    if name == "clip":
        return np.maximum(-adv * r, -adv * np.clip(r, 0.8, 1.3))
    return -adv * LOGP * (np.clip(r, 0.5, 1.5) if name == "cispo" else 1)


OPTIONS = {"clip": {"low": 0.2, "high": 0.3}, "cispo": {"floor": 0.5, "cap": 1.5}, "reinforce": {}}


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("name", SURROGATES)
def test_equals_numpy(name, level):
    weights, _ = token_weights(MASK, over="sequence")
    terms, report = policy(LOGP, ADV, weights, SURROGATES[name], old=OLD, level=level, **OPTIONS[name])
    lr = LOGP - OLD
    if level != "token":
        lr = np.broadcast_to((lr * MASK).sum(1, keepdims=True) / np.maximum(MASK.sum(1, keepdims=True), 1), (B, T))
    loss = numpy_loss(name, lr, ADV)
    lengths = np.maximum(MASK.sum(1), 1)
    assert float(terms["policy"].sum) == pytest.approx(np.sum((loss * MASK).sum(1) / lengths), rel=2e-5)
    assert float(report["ratio"]) == pytest.approx(np.sum(np.exp(lr) * MASK), rel=1e-5)
    d = (LOGP - OLD)[MASK]
    assert float(report["approx_kl"]) == pytest.approx(-d.sum(), rel=1e-5)
    assert float(report["approx_kl_k3"]) == pytest.approx((np.exp(d) - 1 - d).sum(), rel=1e-5)
    if name == "clip":
        assert float(report["clipped_high"]) == np.sum(MASK * (np.exp(lr) > 1.3) * (ADV > 0))
        assert float(report["clipped_low"]) == np.sum(MASK * (np.exp(lr) < 0.8) * (ADV < 0))


def test_dual_clip_bounds_the_loss_of_bad_tokens():
    log_ratio, adv = np.array([2.0, 2.0, -2.0, 0.1], np.float32), np.array([-1.0, 1.0, -1.0, -1.0], np.float32)
    loss, report = pol.clip(log_ratio, log_ratio, adv, dual=3.0)
    np.testing.assert_allclose(loss, [3.0, -1.2, 0.8, np.exp(0.1)], rtol=1e-6)
    np.testing.assert_array_equal(report["clipped_dual"], [True, False, False, False])


def test_clipped_tokens_have_no_gradient_where_the_clip_holds_them():
    log_ratio, adv = np.log([1.5, 0.5, 1.5, 0.5]).astype(np.float32), np.array([1.0, -1.0, -1.0, 1.0], np.float32)
    grad = jax.grad(lambda x: pol.clip(x, x, adv)[0].sum())(log_ratio)
    np.testing.assert_allclose(grad, [0, 0, 1.5, -0.5], rtol=1e-6)
    kept = jax.grad(lambda x: pol.cispo(x, x, adv, floor=0.8, cap=1.2)[0].sum())(log_ratio)
    np.testing.assert_allclose(kept, [-1.2, 0.8, 1.2, -0.8], rtol=1e-6)  # CISPO's all have one


@pytest.mark.parametrize("name, level", [("clip", level) for level in LEVELS] + [("cispo", "token"), ("reinforce", "token")])
def test_at_ratio_1_it_is_the_plain_policy_gradient(name, level):
    """Every completion weighed by its chance: the expected gradient is the enumerated one, and the value of the ratio is 1."""
    weights, _ = token_weights(np.ones((9, 2)), over="constant")
    chances = jnp.tile(mdp.chances(mdp.THETA)[:, None], (1, 2))

    def loss(theta):
        terms, report = policy(mdp.log_probs(theta), mdp.REWARDS[:, None], weights, SURROGATES[name], level=level, importance=chances)
        return terms["policy"].sum, report

    grad, report = jax.jit(jax.grad(loss, has_aux=True))(mdp.THETA)
    mdp.assert_same(grad, mdp.policy_gradient(), -1.0)
    assert float(report["ratio"]) == 18.0 and float(report["approx_kl"]) == 0.0


def test_trap_3_one_temperature_everywhere():
    """The gradient at temperature 2 is right if log_probs and old are of that temperature, and another if the new ones are not."""
    tempered = lambda theta: mdp.log_probs(jax.tree.map(lambda x: x / 2, theta))  # noqa: E731
    old = tempered(mdp.THETA)
    chances = jnp.tile(jnp.exp(old.sum(1, keepdims=True)), (1, 2))
    exact = jax.grad(lambda theta: jnp.sum(jnp.exp(tempered(theta).sum(1)) * mdp.REWARDS))(mdp.THETA)
    ratios = []
    for new in (tempered, mdp.log_probs):

        def loss(theta, new=new):
            terms, report = policy(new(theta), mdp.REWARDS[:, None], jnp.ones((9, 2)), old=old, importance=chances, low=9.0, high=9.0)
            return terms["policy"].sum, report

        grad, report = jax.jit(jax.grad(loss, has_aux=True))(mdp.THETA)
        ratios.append(float(report["ratio"]) / 18)
        off = max(float(jnp.abs(a + b).max()) for a, b in zip(jax.tree.leaves(grad), jax.tree.leaves(exact), strict=True))
        assert (off < 3e-6) == (new is tempered)
    assert ratios[0] == 1.0 and abs(ratios[1] - 1) > 0.01  # and the log shows it


def test_trap_7_denominators():
    """Three means by name, against numpy; halves of the batch give the sums that the whole gives."""
    loss = -ADV * LOGP
    expected = {
        "token": loss[MASK].mean(),
        "sequence": np.mean([loss[i][MASK[i]].mean() for i in range(3)]),  # the fourth row trains nothing and is no row
        "constant": np.sum(loss * MASK) / 7 / 3,
    }
    for over, mean in expected.items():
        weights, shares = token_weights(MASK, over=over, constant=7.0 if over == "constant" else 1.0)
        total = float(policy_totals(weights, shares)["policy"])
        halves = [float(policy(LOGP[h], ADV[h], weights[h], pol.reinforce)[0]["policy"].sum) for h in (slice(0, 1), slice(1, 4))]
        assert sum(halves) / total == pytest.approx(mean, rel=1e-5), over


def test_trap_7_and_8_microbatches_and_the_pretraining_mix_are_one_update():
    """Through the training step: PPO-ptx is one summed gradient, the same for the whole batch and for four microbatches."""
    weights, shares = token_weights(MASK, over="sequence")
    batch = {"old": OLD, "advantages": ADV, "weights": weights, "shares": shares, "text": np.abs(LOGP), "text_weights": MASK * 0.5}
    batch = {name: jnp.asarray(array, jnp.float32) for name, array in batch.items()}
    params = {"w": jnp.asarray(LOGP[0])}

    def loss(params, frozen, part, rng):
        terms, report = policy(part["old"] + 0.1 * params["w"], part["advantages"], part["weights"], old=part["old"])
        ptx = cross_entropy(-part["text"] * params["w"], jnp.zeros_like(part["text"]), part["text_weights"])[0]["cross_entropy"]
        return terms | {"ptx": ptx._replace(coefficient=27.8)}, report

    def totals(batch):
        text = cross_entropy_totals(batch["text_weights"])["cross_entropy"]
        return policy_totals(batch["weights"], batch["shares"]) | {"ptx": text}

    def objective(params):
        known, (terms, _) = totals(batch), loss(params, None, batch, None)
        return sum(term.coefficient * term.sum / known[name] for name, term in terms.items())

    step = make_step(loss, totals, optax.sgd(1.0), microbatches=4, clip_norm=None)
    after, report = step(TrainState(jnp.zeros((), jnp.int32), params, optax.sgd(1.0).init(params)), None, batch)
    value, grad = jax.value_and_grad(objective)(params)  # of the whole batch
    np.testing.assert_allclose(params["w"] - after.params["w"], grad["w"], rtol=2e-5, atol=1e-6)
    assert float(report["loss"]) == pytest.approx(float(value), rel=1e-5)
    assert 0 <= float(report["clipped_high"]) <= 1


def test_trap_9_the_cap_of_cispo_is_of_the_ratio():
    """TRL's epsilon_high=5 is cap=5; verl's and NeMo-RL's epsilon_high=0.28, epsilon_low=0.2 are cap=1.28, floor=0.8."""
    log_ratio = np.log([0.1, 3.0, 9.0]).astype(np.float32)
    loss = lambda **options: np.asarray(pol.cispo(-np.ones(3), log_ratio, np.ones(3), **options)[0])  # noqa: E731
    np.testing.assert_allclose(loss(cap=5.0), [0.1, 3.0, 5.0], rtol=1e-6)
    np.testing.assert_allclose(loss(floor=0.8, cap=1.28), [0.8, 1.28, 1.28], rtol=1e-6)


def test_trap_16_low_precision_is_summed_in_float32():
    ones = jnp.ones((1, 4096), jnp.bfloat16)
    terms, report = policy(-ones, ones, jnp.ones((1, 4096)), pol.reinforce)
    assert terms["policy"].sum.dtype == jnp.float32 and float(terms["policy"].sum) == 4096 and float(report["ratio"]) == 4096


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: token_weights(MASK, over="batch"), "batch.*token, sequence, constant"),
        (lambda: token_weights(MASK, over="constant", constant=0), "0"),
        (lambda: policy(LOGP, ADV, MASK, level="row"), "row.*token, sequence"),
    ],
)
def test_errors_name_the_value_and_the_choices(call, words):
    with pytest.raises(ValueError, match=words):
        call()
