"""Dropout by hash: the right share, the mean kept, and draws as of independent coins along every dim."""

import jax
import numpy as np
import pytest

from jaxllm.ops.dropout import drop_channels, token_codes

B, T, D = 16, 64, 64
ROWS = np.arange(B)
POSITIONS = np.tile(np.arange(T, dtype=np.int32), (B, 1))


def drop(rate, seed=0, rows=ROWS, positions=POSITIONS, segments=None):
    codes = token_codes(jax.random.key(seed), rows, segments, positions)
    return np.asarray(drop_channels(np.ones((B, T, D), np.float32), codes, rate))


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_it_has_its_frequency_and_mean(rate):
    y = drop(rate)
    share, error = np.mean(y == 0), 5 * (rate * (1 - rate) / y.size) ** 0.5
    assert abs(share - rate) < error
    np.testing.assert_allclose(y[y != 0], 1 / (1 - rate), rtol=1e-6)


def test_the_draws_are_as_of_independent_coins():
    """Neighbours, and the same element under another key, row or document, agree half of the time; the share is right along each dim."""
    y = drop(0.5) > 0
    others = [np.roll(y, 1, axis) for axis in range(3)]
    others += [drop(0.5, seed=1) > 0, drop(0.5, rows=ROWS + B) > 0, drop(0.5, segments=np.full((B, T), 2, np.int32)) > 0]
    for other in others:
        assert abs(np.mean(y == other) - 0.5) < 5 * 0.5 * y.size**-0.5
    for axis in range(3):
        count = y.size // y.shape[axis]
        means = y.mean(axis=tuple(a for a in range(3) if a != axis))
        assert np.abs(means - 0.5).max() < 5 * 0.5 * count**-0.5


def test_a_token_is_its_position_and_not_its_index():
    order = np.random.RandomState(0).permutation(T)
    np.testing.assert_array_equal(drop(0.5, positions=POSITIONS[:, order]), drop(0.5)[:, order])
