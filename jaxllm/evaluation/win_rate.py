"""Two sets of answers before a judge: how often the first wins, how much of that the order did, and how much the length."""

from collections.abc import Callable, Sequence
from statistics import NormalDist
from typing import NamedTuple, SupportsFloat

import numpy as np

from jaxllm.evaluation.intervals import Interval, Values, bootstrap_ratio, scores

Pair = tuple[str, str, str]  # a prompt, the answer that is shown first, the one that is shown second
Judge = Callable[[list[Pair]], Sequence[float | None]]  # for each pair a preference for the first from 0 to 1; None: no judgement
STEPS = 100  # of Newton's method at most; 10 are many


class Judged(NamedTuple):
    """What a judge made of pairs of answers, float64 [pairs]; NaN where a verdict was no number from 0 to 1."""

    forward: np.ndarray  # preference for the first set's answer when it was shown first
    backward: np.ndarray  # the same when it was shown second


class WinRate(NamedTuple):
    """The first set of answers against the second."""

    win_rate: Interval  # mean preference for the first set; a tie is half a win; `num_missing` pairs were not judged
    ties: float  # share of judged pairs that end at 0.5, those where the two orders cancel among them
    disagreement: float  # share of judged pairs whose verdict (first, tie, second) changes with the order
    shown_first: float  # mean preference for whatever was shown first: 0.5 without position bias


class LengthControlled(NamedTuple):
    """A win rate as it might be if all pairs were of equal length."""

    win_rate: float  # logistic(quality)
    low: float  # of `win_rate`, at the level that was asked for
    high: float
    quality: float  # log-odds of the first set at equal length
    length: float  # log-odds per unit of the length feature: above 0 the judge likes it longer
    num_judged: int  # pairs


def judge_both_orders(prompts: Sequence[str], first: Sequence[str], second: Sequence[str], judge: Judge) -> Judged:
    """Shows a judge every pair twice, in one call: first the first set's answer in front, then the second's.

    Args:
      prompts: [pairs].
      first: [pairs], the answers of one model.
      second: [pairs], those of the other.
      judge: see `judges`.

    Raises:
      ValueError: sets of different sizes; a judge that does not answer once for each pair.
    """
    if not len(prompts) == len(first) == len(second):
        raise ValueError(f"{len(prompts)} prompts, {len(first)} and {len(second)} answers are no pairs. Give two answers to each prompt.")
    shown = [*zip(prompts, first, second, strict=True), *zip(prompts, second, first, strict=True)]
    verdicts = list(judge(shown))
    if len(verdicts) != len(shown):
        raise ValueError(
            f"The judge gave {len(verdicts)} verdicts on {len(shown)} pairs. It has to give one for each, None where it has none."
        )
    forward, backward = np.split(np.array([preference(verdict) for verdict in verdicts], np.float64), 2)
    return Judged(forward, 1 - backward)


def preference(verdict: object) -> float:
    """A judge's verdict as a number from 0 to 1, NaN where it is nothing of the kind."""
    if isinstance(verdict, bool) or not isinstance(verdict, SupportsFloat):
        return np.nan
    return float(verdict) if 0 <= verdict <= 1 else np.nan  # type: ignore[operator]


def preferences(judged: Judged) -> np.ndarray:
    """The preference for the first set's answer, the mean of both orders, [pairs]; NaN where either order was not judged.

    One order alone is never taken: it would bring back the bias for a place that two orders cancel.
    """
    return (judged.forward + judged.backward) / 2


def win_rate(judged: Judged, groups: Sequence[int] | None = None, num_resamples: int = 1000, level: float = 0.95, seed: int = 0) -> WinRate:
    """How often the first set wins, with a bootstrap interval; the options are those of `intervals.bootstrap`.

    Pairs without a verdict in both orders are left out and counted; without any, all is NaN.

    Args:
      judged: see `judge_both_orders`.
      groups: [pairs], the number of each pair's prompt where prompts have several pairs: prompts are drawn anew then, with all their pairs;
        None: each pair by itself.
    """
    mean = preferences(judged)
    there = ~np.isnan(mean)
    forward, backward = judged.forward[there], judged.backward[there]
    own = _numbers(groups, len(mean))
    wins, counts = np.bincount(own, np.where(there, mean, 0)), np.bincount(own, there)
    interval = bootstrap_ratio(wins, np.where(counts == 0, np.nan, counts), num_resamples, level, seed)
    return WinRate(
        interval._replace(num_scored=int(there.sum()), num_missing=int((~there).sum())),
        _mean(abs(mean[there] - 0.5) < 1e-9),
        _mean(np.sign(forward - 0.5) != np.sign(backward - 0.5)),
        _mean((forward + 1 - backward) / 2),
    )


def _numbers(groups: Sequence[int] | None, num_pairs: int) -> np.ndarray:
    """The number of each pair's group, from 0, [pairs]."""
    if groups is not None and len(groups) != num_pairs:
        raise ValueError(f"{len(groups)} groups do not go with {num_pairs} pairs. Give one for each.")
    return np.unique(np.arange(num_pairs) if groups is None else np.asarray(groups, np.int64), return_inverse=True)[1]


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else np.nan


def length_controlled(
    preferences: Values,
    first_lengths: Sequence[int],
    second_lengths: Sequence[int],
    level: float = 0.95,
    ridge: float = 0.01,
    groups: Sequence[int] | None = None,
) -> LengthControlled:
    """The win rate that a logistic regression on length predicts where lengths are equal.

    It fits logistic(quality + length * feature) to the preferences and tells it at feature 0. The feature is tanh(d / std(d)), d the length
    of the first answer less that of the second. This is the length-controlled win rate of AlpacaEval 2 (Dubois et al. 2024,
    arXiv:2404.04475) cut down to two models: it has no difficulty of single instructions, which needs the verdicts on many models, is
    fitted to these pairs alone, and its small ridge stands for their regularisation. It does not give the figures of their leaderboard.
    What else goes with length, quality among it, is taken for length.

    Args:
      preferences: [pairs], for the first answer, None or NaN where it was not judged: those pairs are left out.
      first_lengths: [pairs], characters, as theirs are.
      second_lengths: [pairs].
      level: of the interval, which is the normal one of the log-odds (with the sandwich variance: a preference need not be 0 or 1). It is
        too narrow where one side wins nearly always.
      ridge: half of it times quality^2 + length^2 is added to the summed loss, so that a fit exists where one side always wins.
      groups: see `win_rate`; the variance is then the cluster-robust one.

    Raises:
      ValueError: not two lengths for each pair; d is everywhere the same and not 0, so that length cannot be told from quality; a
        preference, a level or a ridge out of range.
    """
    wins = scores(preferences)
    _check(wins, len(first_lengths), len(second_lengths), level, ridge)
    there = ~np.isnan(wins)
    own = _numbers(groups, len(wins))[there]
    wins, longer = wins[there], (np.asarray(first_lengths, np.float64) - np.asarray(second_lengths, np.float64))[there]
    if not len(wins):
        return LengthControlled(np.nan, np.nan, np.nan, np.nan, np.nan, 0)
    if longer.any() and not np.ptp(longer):
        raise ValueError(
            f"Every first answer is {longer[0]:+g} long against its second: length cannot be told from quality. Give more pairs."
        )
    features = np.stack([np.ones(len(wins)), np.tanh(longer / (longer.std() or 1.0))], axis=1)
    weights, variance = _logistic_regression(features, wins, ridge, own)
    low, high = (weights[0] + side * NormalDist().inv_cdf((1 + level) / 2) * np.sqrt(variance[0, 0]) for side in (-1, 1))
    win, low, high = _logistic(np.array([weights[0], low, high])).tolist()
    return LengthControlled(win, low, high, float(weights[0]), float(weights[1]), len(wins))


def _check(wins: np.ndarray, num_first: int, num_second: int, level: float, ridge: float) -> None:
    if not len(wins) == num_first == num_second:
        raise ValueError(f"{num_first} and {num_second} lengths do not go with {len(wins)} pairs. Give two for each.")
    if (odd := wins[(wins < 0) | (wins > 1)]).size:
        raise ValueError(
            f"A preference is {odd[0]:g}. Give numbers from 0 (the second is better) to 1 (the first is), None where not judged."
        )
    if not (ridge > 0 and 0 < level < 1):
        raise ValueError(f"A ridge of {ridge} at the level {level} fits nothing. Give a ridge above 0 and a level between 0 and 1.")


def _logistic_regression(
    features: np.ndarray, targets: np.ndarray, ridge: float, groups: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """The weights [F] of the least loss, by Newton's method, and their sandwich variance [F, F].

    Steps are whole: from 0 none went too far in any of 40,000 drawn sets of pairs, all wins and lone outliers among them.

    Args:
      features: [rows, F], from -1 to 1 or not much beyond.
      targets: [rows], from 0 to 1.
      ridge: above 0: there is one least loss.
      groups: [rows], the number of a row's group; rows of one are not independent. None: each by itself.
    """
    weights = np.zeros(features.shape[1])
    for _ in range(STEPS):
        chances = _logistic(features @ weights)
        gradient = features.T @ (chances - targets) + ridge * weights
        curvature = features.T @ (features * (chances * (1 - chances))[:, None]) + ridge * np.eye(len(weights))
        step = np.linalg.solve(curvature, gradient)
        weights = weights - step
        if abs(step).max() < 1e-9:
            break
    spread = features * (_logistic(features @ weights) - targets)[:, None]
    if groups is not None:
        spread = np.stack([np.bincount(groups, column) for column in spread.T], axis=1)
    inverse = np.linalg.inv(curvature)
    return weights, inverse @ (spread.T @ spread) @ inverse


def _logistic(x: np.ndarray) -> np.ndarray:
    return np.exp(-np.logaddexp(0, -x))
