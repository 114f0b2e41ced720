"""Perplexity is the exact weighted mean over batches of any size; the unigram baseline is the cross-entropy of its counts."""

import math

import numpy as np
import pytest

from jaxllm.evaluation.perplexity import perplexity, unigram


def sums(params, batch):
    return {
        "nats": batch["nats"].sum(),
        "correct": batch["correct"].sum(),
        "tokens": float(batch["nats"].size),
        "bytes": 3.0 * batch["nats"].size,
    }


def test_uneven_batches_are_one_mean():
    draw = np.random.default_rng(0)
    nats, correct = draw.gamma(2.0, size=50), draw.integers(0, 2, 50)
    batches = [{"nats": nats[a:b], "correct": correct[a:b]} for a, b in ((0, 7), (7, 8), (8, 50))]
    found = perplexity(sums, None, batches)
    assert found["loss"] == pytest.approx(nats.mean()) and found["perplexity"] == pytest.approx(math.exp(nats.mean()))
    assert found["accuracy"] == pytest.approx(correct.mean()) and found["tokens"] == 50
    assert found["bits_per_byte"] == pytest.approx(nats.sum() / math.log(2) / 150)


def test_an_empty_set_is_refused():
    with pytest.raises(ValueError, match="holds no token"):
        perplexity(sums, None, [])


def test_unigram():
    train, held_out, sizes = np.array([8, 1, 0]), np.array([2, 1, 1]), np.array([1, 2, 0])
    probs = np.array([9, 2, 1]) / 12
    nats = -(2 * np.log(probs[0]) + np.log(probs[1]) + np.log(probs[2]))
    assert unigram(train, held_out, sizes) == {
        "unigram_loss": pytest.approx(nats / 4),
        "unigram_bits_per_byte": pytest.approx(nats / math.log(2) / 4),
    }
