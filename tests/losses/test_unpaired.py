"""Losses of single completions against numpy, and the baseline of KTO."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxllm.losses.unpaired import LOSSES, kto, kto_baseline, mismatched, unpaired, unpaired_totals

B = 8
rng = np.random.default_rng(1)
R = rng.normal(size=B).astype(np.float32) * 3
GOOD = rng.random(B) < 0.5
WEIGHTS = np.array([1, 0, 1, 1, 2, 1, 1, 1], np.float32)


def sig(x):
    return 1 / (1 + np.exp(-x))


NUMPY = {
    "kto": np.where(GOOD, 1 - sig(0.5 * (R - 0.7)), 1 - sig(0.5 * (0.7 - R))),
    "bco": np.where(GOOD, -np.log(sig(0.5 * R - 0.7)), -np.log(sig(-(0.5 * R - 0.7)))),
    "apo_zero": np.where(GOOD, 1 - sig(0.5 * R), sig(0.5 * R)),
}


@pytest.mark.parametrize("name", LOSSES)
def test_equals_numpy(name):
    terms, report = unpaired(R - 4, np.full(B, -4, np.float32), GOOD, 0.7, WEIGHTS, LOSSES[name], beta=0.5)
    totals = unpaired_totals(WEIGHTS, GOOD)
    assert float(terms["preference"].sum / totals["preference"]) == pytest.approx(np.average(NUMPY[name], weights=WEIGHTS), rel=1e-5)
    for key, kind in (("reward_desirable", GOOD), ("reward_undesirable", ~GOOD)):
        assert float(report[key] / totals[key]) == pytest.approx(np.average(0.5 * R, weights=WEIGHTS * kind), rel=1e-4)


def test_the_two_kinds_have_their_own_weights():
    plain, weighed = kto(R, GOOD, 0.0), kto(R, GOOD, 0.0, desirable_weight=1.5, undesirable_weight=0.5)
    np.testing.assert_allclose(weighed, plain * np.where(GOOD, 1.5, 0.5), rtol=1e-6)


def test_trap_10_the_baseline_is_global_clamped_and_without_gradient():
    """The mean over the whole batch, on any number of devices; the mean of means clamped per device is another number."""
    logp, ref = R * 2 - 0.5, np.zeros(B, np.float32)
    expected = max(0.0, np.average(logp, weights=WEIGHTS))
    rows = NamedSharding(Mesh(np.array(jax.devices()[:4]), "x"), PartitionSpec("x"))
    spread = [jax.device_put(array, rows) for array in (logp, ref, WEIGHTS)]
    assert float(jax.jit(kto_baseline)(*spread)) == pytest.approx(expected, rel=1e-5)
    per_device = np.mean([max(0.0, np.average(logp[i : i + 2], weights=WEIGHTS[i : i + 2])) for i in range(0, B, 2)])
    assert abs(per_device - expected) > 0.1
    assert float(kto_baseline(-np.abs(logp), ref, WEIGHTS)) == 0.0
    assert not np.any(jax.grad(lambda x: jnp.sum(kto(R, GOOD, kto_baseline(x, ref, WEIGHTS))))(np.abs(logp)))
    assert not np.any(jax.grad(kto_baseline)(np.abs(logp), ref, WEIGHTS))
    assert not np.any(jax.grad(lambda z: jnp.sum(kto(R, GOOD, z)))(0.3))


@pytest.mark.parametrize("prompts", [[1, 2, 3, 4], [5, 5, 9, 9], [3, 1, 3, 1, 2, 2], [7, 0, 7, 0, 7, 0]])
def test_trap_10_every_row_borrows_another_prompts_completion(prompts):
    prompts = np.array(prompts)
    lent = mismatched(prompts)
    assert sorted(lent) == list(range(len(prompts)))
    assert np.all(prompts[lent] != prompts)


@pytest.mark.parametrize("prompts", [[1], [2, 2, 2, 1], []])
def test_trap_10_a_batch_that_would_keep_its_own_completions_is_refused(prompts):
    with pytest.raises(ValueError, match="batch_size"):
        mismatched(np.array(prompts, int))
