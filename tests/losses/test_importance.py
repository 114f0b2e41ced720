"""Factors for tokens of another policy against numpy, and a batch that is wholly masked shows in the report."""

import numpy as np
import pytest

from jaxllm.losses import policy as pol
from jaxllm.losses.importance import LEVELS, MODES, importance_totals, importance_weights

rng = np.random.default_rng(6)
TRAINER, SAMPLER = (rng.normal(size=(3, 4)).astype(np.float32) for _ in range(2))
MASK = np.array([[1, 1, 1, 0], [0, 1, 1, 0], [1, 1, 1, 1]], bool)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("level", LEVELS)
def test_equals_numpy(level, mode):
    lr = (TRAINER - SAMPLER) * MASK
    if level != "token":
        lr = lr.sum(1, keepdims=True) / (MASK.sum(1, keepdims=True) if level == "geometric" else 1)
    ratio = np.broadcast_to(np.exp(lr), MASK.shape)
    outside = (ratio < 0.5) | (ratio > 2)
    expected = np.where(MASK, np.clip(ratio, 0.5, 2) if mode == "truncate" else np.where(outside, 0, ratio), 0)
    weights, report = importance_weights(TRAINER, SAMPLER, MASK, level=level, mode=mode, floor=0.5, cap=2.0)
    np.testing.assert_allclose(weights, expected, rtol=1e-5)
    assert float(report["importance"]) == pytest.approx(expected.sum(), rel=1e-5)
    assert float(report["importance_bounded"]) == (outside & MASK).sum()
    assert float(report["importance_kept"]) == (expected > 0).sum()


def test_trap_14_a_batch_that_is_wholly_masked_shows_in_the_report():
    weights, report = importance_weights(TRAINER + 5, SAMPLER, MASK, mode="mask", cap=1.001)
    terms, _ = pol.policy(TRAINER, np.ones((3, 1)), MASK.astype(np.float32), importance=weights)
    assert float(terms["policy"].sum) == 0.0
    assert float(report["importance_kept"] / importance_totals(MASK)["importance_kept"]) == 0.0


@pytest.mark.parametrize(
    "options, words", [({"level": "row"}, "row.*token"), ({"mode": "drop"}, "drop.*truncate"), ({"floor": 2.0, "cap": 1.0}, r"2\.0.*1\.0")]
)
def test_errors_name_the_value_and_the_choices(options, words):
    with pytest.raises(ValueError, match=words):
        importance_weights(TRAINER, SAMPLER, MASK, **options)
