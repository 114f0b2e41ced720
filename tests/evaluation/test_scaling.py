"""Scaling laws: losses that follow a law give the law back, with intervals that hold its numbers, and the best N and D are the best."""

import numpy as np
import pytest

from jaxllm.evaluation import scaling

LAWS = list(scaling.LAWS)


def grid(num=6):
    N, D = np.meshgrid(np.geomspace(4e7, 1e10, num), np.geomspace(1e9, 3e11, num))
    return N.ravel(), D.ravel()


def losses(name, N, D):
    return scaling.LAWS[name].loss(scaling.PUBLISHED[name], N, D)


@pytest.mark.parametrize("name", LAWS)
def test_the_published_numbers_come_back_from_the_losses_they_give(name):
    N, D = grid()
    found = scaling.fit(name, N, D, losses(name, N, D), num_resamples=5)
    assert found.numbers == pytest.approx(scaling.PUBLISHED[name], rel=1e-6) and found.error < 1e-9
    assert found.idle() == []


@pytest.mark.parametrize("name", LAWS)
def test_intervals_hold_the_truth_in_most_draws_of_the_noise(name):
    N, D = grid(5)
    held, width = [], []
    for seed in range(12):
        noise = np.random.default_rng(seed).normal(size=N.size) * 0.003
        found = scaling.fit(name, N, D, losses(name, N, D) * np.exp(noise), num_resamples=60, seed=seed)
        held += [low <= scaling.PUBLISHED[name][key] <= high for key, (low, high) in found.intervals.items()]
        width += [(high - low) / abs(found.numbers[key]) for key, (low, high) in found.intervals.items()]
        assert found.error == pytest.approx(0.003, rel=0.5)
    assert 0.75 < np.mean(held) <= 1.0 and 0.005 < np.median(width) < 0.6


@pytest.mark.parametrize("name", LAWS)
@pytest.mark.parametrize("budget", [1e18, 1e22])
def test_the_best_n_and_d_of_a_budget_are_those_of_a_search(name, budget):
    N, D = grid()
    found = scaling.fit(name, N, D, losses(name, N, D), num_resamples=5)
    best = found.best(budget)
    tried = np.geomspace(1e5, 1e14, 40001)
    at = scaling.LAWS[name].loss(scaling.PUBLISHED[name], tried, budget / 6 / tried)
    assert best["N"][0] == pytest.approx(tried[np.argmin(at)], rel=2e-3)
    assert best["loss"][0] == pytest.approx(at.min(), rel=1e-6) and 6 * best["N"][0] * best["D"][0] == pytest.approx(budget)
    assert all(low <= middle * (1 + 1e-6) and middle <= high * (1 + 1e-6) for middle, low, high in best.values())


@pytest.mark.parametrize("name", LAWS)
def test_one_wild_run_in_many_hardly_moves_the_law(name):
    N, D = grid()
    wild = losses(name, N, D)
    wild[7] *= 1.5
    found = scaling.fit(name, N, D, wild, num_resamples=5)
    assert found.numbers == pytest.approx(scaling.PUBLISHED[name], rel=0.02)


@pytest.mark.parametrize("name", LAWS)
def test_where_larger_models_are_not_better_it_is_said(name):
    N, D = grid()
    assert scaling.fit(name, N, D, 2.0 + 300 / D**0.3 + N * 1e-12, num_resamples=5).idle() == ["N"]


@pytest.mark.parametrize(
    "N, D, L, said",
    [
        ([1, 2, 3], [1, 2, 3], [3, 2, 1], "3 points; chinchilla's 5 numbers need at least 6"),
        ([5] * 9, range(1, 10), [1] * 9, "1 sizes and 9 numbers of tokens"),
        ([1, 2, 3] * 3, [1, 2, 3] * 3, [1] * 9, "3 sizes and 3 numbers of tokens, 3 pairs"),
        (range(1, 8), range(1, 8), [1, 2, 3, 0, 1, 1, 1], "above 0"),
        (range(1, 8), range(1, 8), [1, 2, 3, float("nan"), 1, 1, 1], "above 0"),
    ],
)
def test_points_that_tell_no_law_are_refused(N, D, L, said):
    with pytest.raises(ValueError, match=said):
        scaling.fit("chinchilla", list(N), list(D), list(L))


def test_an_unknown_law_is_refused():
    with pytest.raises(ValueError, match="Choose one of: chinchilla, kaplan"):
        scaling.fit("chincilla", [1], [1], [1])
