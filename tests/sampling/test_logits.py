"""Filters against numpy, and drawn frequencies against the distribution they are drawn from."""

import jax
import numpy as np
import pytest

from jaxllm.sampling.logits import filter_logits, row_keys, sample_token

LOGITS = np.log(np.array([0.4, 0.25, 0.15, 0.1, 0.06, 0.04], np.float32))


def expected(temperature=1.0, top_k=0, top_p=1.0, min_p=0.0):
    """The filtered distribution in plain numpy."""
    probs = np.exp(LOGITS / temperature)
    probs /= probs.sum()
    order = np.argsort(-probs)
    keep = np.zeros(6, bool)
    keep[order[: top_k or 6]] = True
    probs = np.where(keep, probs, 0) / probs[keep].sum()
    before = np.cumsum(probs[order]) - probs[order]
    keep[order[before >= top_p]] = False
    keep &= probs >= min_p * probs.max()
    return np.where(keep, probs, 0) / probs[keep].sum()


FILTERS = [
    {},
    {"temperature": 0.5},
    {"top_k": 2},
    {"top_p": 0.7},
    {"temperature": 2.0, "top_k": 4, "top_p": 0.8},
    {"top_p": 1e-6},
    {"min_p": 0.3},
    {"temperature": 1.5, "top_p": 0.95, "min_p": 0.2},
]


@pytest.mark.parametrize("options", FILTERS, ids=str)
def test_filters_are_those_of_numpy(options):
    found = np.exp(filter_logits(jax.numpy.asarray(LOGITS), **{"temperature": 1.0, **options}))
    np.testing.assert_allclose(found, expected(**options), atol=1e-6)


@pytest.mark.parametrize("options", FILTERS, ids=str)
def test_frequencies_follow_the_distribution(options):
    number = 20_000
    log_probs = filter_logits(jax.numpy.asarray(LOGITS), **{"temperature": 1.0, **options})
    rows = np.arange(number, dtype=np.int32)
    keys = row_keys(jax.random.key(1), rows)
    drawn = np.asarray(sample_token(jax.numpy.broadcast_to(log_probs, (number, 6)), keys, rows % 7))
    counts, probs = np.bincount(drawn, minlength=6), expected(**options)
    assert counts[probs == 0].sum() == 0
    kept = probs > 0
    chi_square = np.sum((counts[kept] - number * probs[kept]) ** 2 / (number * probs[kept]))
    assert chi_square < 25  # 5 degrees of freedom: exceeded once in 7000 draws of a right sampler
