"""The order of rows is a formula: a permutation of any size at once, and a mixture whose every element is known on its own."""

import time

import numpy as np
import pytest

from jaxllm.data.mixtures import Mixture, shuffle_key, shuffled


@pytest.mark.parametrize("length", [1, 2, 3, 5, 16, 17, 1000, 4096, 5000])
def test_shuffled_is_a_permutation(length):
    order = shuffled(np.arange(length), length, shuffle_key(0, "a", 0))
    np.testing.assert_array_equal(np.sort(order), np.arange(length))
    one_by_one = [shuffled(np.asarray([i]), length, shuffle_key(0, "a", 0))[0] for i in range(0, length, max(1, length // 7))]
    np.testing.assert_array_equal(one_by_one, order[:: max(1, length // 7)])


def test_shuffles_of_epochs_seeds_and_sources_have_nothing_in_common():
    length = 2000
    keys = [shuffle_key(0, "a", 0), shuffle_key(0, "a", 1), shuffle_key(1, "a", 0), shuffle_key(0, "b", 0), shuffle_key(1, "a", 1)]
    orders = np.stack([shuffled(np.arange(length), length, key) for key in keys] + [np.arange(length)])
    for i in range(len(orders)):
        for j in range(i):
            assert (orders[i] == orders[j]).sum() < 15, (i, j)  # 1 is expected
            assert abs(np.corrcoef(orders[i], orders[j])[0, 1]) < 0.1
        if i < len(keys):  # neighbours do not stay neighbours
            assert (np.abs(np.diff(orders[i])) == 1).sum() < 15


def test_shuffled_spreads_every_place_evenly():
    length, keys = 10, 4000
    counts = np.zeros((length, length))
    for key in range(keys):
        counts[np.arange(length), shuffled(np.arange(length), length, shuffle_key(key))] += 1
    chi2 = ((counts - keys / length) ** 2 / (keys / length)).sum()
    assert chi2 < 130, chi2  # 81 degrees of freedom: mean 81, deviation 13


@pytest.mark.parametrize("length", [10**9, 2**32 + 1, 10**12, 2**62])
def test_a_shuffle_of_any_size_starts_at_once(length):
    began = time.perf_counter()
    index = np.asarray([0, 1, length // 2, length - 1])
    order = shuffled(index, length, shuffle_key(7))
    assert time.perf_counter() - began < 0.5
    assert len(set(order.tolist())) == 4 and order.min() >= 0 and order.max() < length


def test_the_mixture_meets_its_shares_everywhere_and_uses_every_place_once():
    weights = [0.5, 0.3, 0.15, 0.05]
    mixture = Mixture(weights)
    for start in (0, 10**12):
        drawn = [mixture[start + i] for i in range(4000)]
        shares = np.bincount([source for source, _ in drawn], minlength=4) / 4000
        np.testing.assert_allclose(shares, weights, atol=2e-3)
        for source in range(4):
            places = [place for s, place in drawn if s == source]
            np.testing.assert_array_equal(places, np.arange(places[0], places[0] + len(places)))
    np.testing.assert_allclose(mixture.counts(4000), np.asarray(weights) * 4000)


def test_the_mixture_is_a_function_of_the_index_alone():
    forward, backward = Mixture([3, 1]), Mixture([3, 1])
    ahead = [forward[i] for i in range(300)]
    behind = [backward[i] for i in reversed(range(300))][::-1]
    assert ahead == behind == [Mixture([0.75, 0.25])[i] for i in range(300)]
    assert ahead[:8] == GOLDEN  # a library that changes this changes every resumed run: then pin it, or write our own


def test_each_index_can_have_a_shuffle_of_its_own():
    lengths = np.array([1, 2, 3, 7, 64, 65, 10**6, 2**53 + 1, 2**62] * 3)
    keys = np.array([shuffle_key("each", number) for number in range(len(lengths))], np.uint64)
    index = lengths // 2
    alone = [shuffled(index[[i]], int(lengths[i]), int(keys[i]))[0] for i in range(len(lengths))]
    np.testing.assert_array_equal(shuffled(index, lengths, keys), alone)
    assert shuffled(np.arange(5), 5, shuffle_key("golden")).tolist() == SHUFFLED  # another order changes every resumed run


@pytest.mark.parametrize("weights", [[1], [3, 1], [0.3, 0.123, 0.04, 0.0007], [1] * 20, [i + 1 for i in range(50)]])
def test_thousands_of_places_are_those_of_one_after_the_other(weights):
    mixture = Mixture(weights)
    for start in (0, 12_345, 10**12):
        sources, places = mixture.places(start, start + 700)
        assert list(zip(sources.tolist(), places.tolist(), strict=True)) == [mixture[start + i] for i in range(700)]


SHUFFLED = [1, 3, 4, 2, 0]
GOLDEN = [(0, 0), (0, 1), (0, 2), (1, 0), (0, 3), (0, 4), (0, 5), (1, 1)]


def test_one_source_is_itself():
    mixture = Mixture([0.2])
    assert [mixture[i] for i in (0, 5, 10**15)] == [(0, 0), (0, 5), (0, 10**15)]
