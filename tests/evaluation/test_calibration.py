"""Calibration against ten-line numpy versions, and sums over batches that are those of the whole."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxllm.evaluation import calibration as c


def expected_calibration(sure, right):
    bins = np.clip(((sure * 2 - 1) * c.BINS).astype(int), 0, c.BINS - 1)
    parts = [(bins == b) for b in range(c.BINS)]
    return sum(p.sum() * abs(right[p].mean() - sure[p].mean()) for p in parts if p.any()) / len(sure)


def test_pairs_are_counted_as_by_hand_whatever_the_batches():
    random = np.random.RandomState(0)
    rewards, ranks = random.randn(30, 3) * 2, random.randint(-1, 3, (30, 3))
    pairs = [(rewards[p, i] - rewards[p, j]) for p in range(30) for i in range(3) for j in range(3) if 0 <= ranks[p, i] < ranks[p, j]]
    difference = np.asarray(pairs)
    right, sure = (difference > 0).astype(float), 1 / (1 + np.exp(-np.abs(difference)))
    batches = [slice(0, 7), slice(7, 30)]
    found = c.pair_metrics(c.total_of(lambda s: c.pair_sums(jnp.asarray(rewards[s]), jnp.asarray(ranks[s])), batches))
    assert found["pairs"] == len(pairs)
    assert found["accuracy"] == pytest.approx(right.mean(), abs=1e-6)
    assert found["ece"] == pytest.approx(expected_calibration(sure, right), abs=1e-5)
    near = (np.abs(difference) >= 0.5) & (np.abs(difference) < 1)
    assert found["accuracy_margin_0.5_1"] == pytest.approx(right[near].mean(), abs=1e-6)
    assert sum(value for name, value in found.items() if name.startswith("share_")) == pytest.approx(1)
    assert c.pair_metrics(c.pair_sums(jnp.zeros((1, 2)), jnp.asarray([[0, 1]])))["accuracy"] == 0.5
    assert c.pair_metrics(c.pair_sums(jnp.zeros((1, 2)), jnp.asarray([[0, 0]]))) == {"pairs": 0.0}


def test_verdicts_have_the_area_and_the_error_of_their_definitions():
    random = np.random.RandomState(1)
    p = np.round(random.rand(200), 3)
    y = (random.rand(200) < p**2).astype(float)
    weights = np.where(np.arange(200) < 190, 1.0, 0.0)
    found = c.verdict_metrics(c.verdict_sums(jnp.asarray(p), jnp.asarray(y), jnp.asarray(weights)))
    p, y = p[:190], y[:190]
    area = np.mean([(a > b) + 0.5 * (a == b) for a in p[y == 1] for b in p[y == 0]])
    assert found["auc"] == pytest.approx(area, abs=2e-3)
    bins = np.minimum((p * c.BINS).astype(int), c.BINS - 1)
    error = sum(abs(y[bins == b].sum() - p[bins == b].sum()) for b in range(c.BINS)) / 190
    assert found["ece"] == pytest.approx(error, abs=1e-5)


def test_classes_ratings_and_means():
    random = np.random.RandomState(2)
    logits, labels = random.randn(50, 4), random.randint(0, 4, 50)
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    sure, right = p.max(1), (p.argmax(1) == labels).astype(float)
    bins = np.minimum((sure * c.BINS).astype(int), c.BINS - 1)
    error = sum(abs(right[bins == b].sum() - sure[bins == b].sum()) for b in range(c.BINS)) / 50
    assert c.class_metrics(c.class_sums(jnp.asarray(p), jnp.asarray(labels), jnp.ones(50)))["ece"] == pytest.approx(error, abs=1e-5)
    x, y = random.randn(40), random.randn(40)
    found = c.rating_metrics({"moments": np.asarray(c.rating_sums(jnp.asarray(x), jnp.asarray(y), jnp.ones(40))["moments"], float)})
    assert found["correlation"] == pytest.approx(np.corrcoef(x, y)[0, 1], abs=1e-5)
    means = c.means({"terms": {"a": 6.0, "b": 1.0}, "report": {"r": 3.0}, "totals": {"a": 3.0, "b": 4.0, "r": 0.0}})
    assert means == {"loss": 2.25, "a": 2.0, "b": 0.25}
    with pytest.raises(ValueError, match="validation set is empty"):
        c.total_of(lambda batch: batch, [])
