"""Scaling laws: how the loss falls with parameters N and tokens D, fitted with intervals, and the best N and D for a budget."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

PUBLISHED = {  # the numbers of the papers, to hold ours against: other text, other tokenizers
    "chinchilla": {"E": 1.69, "A": 406.4, "B": 410.7, "alpha": 0.34, "beta": 0.28},
    "kaplan": {"N_c": 8.8e13, "D_c": 5.4e13, "alpha_N": 0.076, "alpha_D": 0.095},
}
DELTA = 1e-3  # of the Huber loss, on the logarithm of the loss (Hoffmann et al., appendix D.2)
FLOPS = 6.0  # training operations per parameter and token (Kaplan et al., section 2.1)


class Law(NamedTuple):
    """A form of L(N, D).

    Attributes:
      formula: for people.
      names: of its numbers.
      fit: (log N, log D, log L, start or None) -> vector of what is fitted; log N and log D about a centre, where it is well conditioned.
      numbers: (that vector, centre of log N, of log D) -> the numbers by name.
      loss: (numbers, N, D) -> nats a token.
      optimum: (numbers, C) -> the N that is best for C operations.
    """

    formula: str
    names: tuple[str, ...]
    fit: Callable[..., np.ndarray]
    numbers: Callable[[np.ndarray, float, float], dict[str, float]]
    loss: Callable[..., np.ndarray]
    optimum: Callable[[Mapping[str, float], float], float]


class Fitted(NamedTuple):
    """A law with its numbers.

    Attributes:
      numbers: name -> value.
      intervals: name -> (low, high), of bootstrap resamples of the points.
      draws: the numbers of each resample.
      error: root of the mean squared residual of log L.
      middle: the geometric means of the points' N and D.
    """

    law: Law
    numbers: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    draws: list[dict[str, float]]
    error: float
    middle: tuple[float, float]

    def idle(self) -> list[str]:
        """Of N and D those of which ten times as many, in the middle of the points, lower the loss by less than 0.1 %."""
        N, D = self.middle
        loss = self.law.loss(self.numbers, N, D)
        more = {"N": self.law.loss(self.numbers, 10 * N, D), "D": self.law.loss(self.numbers, N, 10 * D)}
        return [name for name, value in more.items() if loss - value < 1e-3 * loss]

    def best(self, budget: float, level: float = 0.95) -> dict[str, tuple[float, float, float]]:
        """The compute-optimal point for this many operations: "N", "D" and "loss", each with the ends of its interval."""

        def at(numbers: Mapping[str, float]) -> tuple[float, float, float]:
            N = self.law.optimum(numbers, budget)
            return N, budget / FLOPS / N, float(self.law.loss(numbers, np.float64(N), np.float64(budget / FLOPS / N)))

        with np.errstate(over="ignore"):  # a law of no effect of N or D
            middle, drawn = at(self.numbers), np.array([at(numbers) for numbers in self.draws])
        ends = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2], axis=0)
        return {name: (middle[i], float(ends[0, i]), float(ends[1, i])) for i, name in enumerate(("N", "D", "loss"))}


def _softmax(*logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The logarithm of the sum of exponentials, and each one's share of it."""
    stacked = np.stack(logits)
    total = np.logaddexp.reduce(stacked)
    return total, np.exp(stacked - total)


def _chinchilla_curve(x: np.ndarray, n: np.ndarray, d: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """log L [points] and its derivatives [points, 5] by log A, log B, log E, alpha, beta."""
    a, b, e, alpha, beta = x
    total, w = _softmax(a - alpha * n, b - beta * d, np.full_like(n, e))
    return total, np.stack([*w, -w[0] * n, -w[1] * d], axis=1)


def _kaplan_curve(x: np.ndarray, n: np.ndarray, d: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """log L [points] and its derivatives [points, 4] by ratio * log N_c, log D_c, ratio = alpha_N / alpha_D, alpha_D."""
    p, q, ratio, alpha = x
    total, w = _softmax(p - ratio * n, q - d)
    return alpha * total, np.stack([alpha * w[0], alpha * w[1], -alpha * w[0] * n, total], axis=1)


LEAST = 1e-3  # of an exponent
CHINCHILLA_BOUNDS = [(-30.0, 30.0)] * 3 + [(LEAST, 3.0)] * 2  # the first are logarithms, about the middle of the points
KAPLAN_BOUNDS = [(-300.0, 300.0)] * 2 + [(0.05, 20.0), (LEAST, 3.0)]


def _fit(curve: Callable, starts: list, bounds: list, n: np.ndarray, d: np.ndarray, y: np.ndarray, start: Any = None) -> np.ndarray:
    """The best of the minima of the Huber loss of log L from these starts, or from one."""
    from scipy.optimize import least_squares

    ends = np.array(bounds).T
    found = [
        least_squares(
            lambda x: curve(x, n, d)[0] - y,
            np.clip(x, ends[0] + 1e-9, ends[1] - 1e-9),
            jac=lambda x: curve(x, n, d)[1],
            bounds=ends,
            loss="huber",
            f_scale=DELTA,
            x_scale="jac",
            max_nfev=200,
        )
        for x in (starts if start is None else [start])
    ]
    return min(found, key=lambda result: result.cost).x


def _chinchilla_fit(n: np.ndarray, d: np.ndarray, y: np.ndarray, start: Any = None) -> np.ndarray:
    least, spread = y.min(), max(np.ptp(y), 1e-3)
    starts = [
        [least - spread, least - spread, least + np.log(share), alpha, beta]
        for alpha in (0.1, 0.3, 0.8)
        for beta in (0.1, 0.3, 0.8)
        for share in (0.2, 0.6, 0.9)
    ]
    return _fit(_chinchilla_curve, starts, CHINCHILLA_BOUNDS, n, d, y, start)


def _kaplan_fit(n: np.ndarray, d: np.ndarray, y: np.ndarray, start: Any = None) -> np.ndarray:
    starts = [
        [y.mean() / alpha - 0.7, y.mean() / alpha - 0.7, ratio, alpha] for alpha in (0.05, 0.1, 0.3, 0.6) for ratio in (0.3, 0.8, 1.5, 3.0)
    ]
    return _fit(_kaplan_curve, starts, KAPLAN_BOUNDS, n, d, y, start)


def _chinchilla_numbers(x: np.ndarray, n: float, d: float) -> dict[str, float]:
    return {"E": _exp(x[2]), "A": _exp(x[0] + x[3] * n), "B": _exp(x[1] + x[4] * d), "alpha": x[3], "beta": x[4]}


def _kaplan_numbers(x: np.ndarray, n: float, d: float) -> dict[str, float]:
    return {"N_c": _exp(x[0] / x[2] + n), "D_c": _exp(x[1] + d), "alpha_N": x[2] * x[3], "alpha_D": x[3]}


def _exp(x: float) -> float:
    """Within 1e-87 and 1e87: points on which N or D has no effect put its number as far away as it can go."""
    return float(np.exp(np.clip(x, -200.0, 200.0)))


def _chinchilla_optimum(k: Mapping[str, float], budget: float) -> float:
    ratio = k["alpha"] * k["A"] / (k["beta"] * k["B"])  # equation 4 of Hoffmann et al.
    return _exp((np.log(ratio) + k["beta"] * np.log(budget / FLOPS)) / (k["alpha"] + k["beta"]))


def _kaplan_optimum(k: Mapping[str, float], budget: float) -> float:
    r = k["alpha_N"] / k["alpha_D"]  # where the derivative of (N_c/N)^r + D_c FLOPS N / C by N is 0
    return _exp((np.log(r * budget / (FLOPS * k["D_c"])) + r * np.log(k["N_c"])) / (1 + r))


LAWS = {
    # Hoffmann et al., arXiv 2203.15556, equation 2; fitted as in appendix D.2
    "chinchilla": Law(
        "L = E + A / N^alpha + B / D^beta",
        ("E", "A", "B", "alpha", "beta"),
        _chinchilla_fit,
        _chinchilla_numbers,
        lambda k, N, D: k["E"] + k["A"] / N ** k["alpha"] + k["B"] / D ** k["beta"],
        _chinchilla_optimum,
    ),
    # Kaplan et al., arXiv 2001.08361, equation 1.5
    "kaplan": Law(
        "L = ((N_c / N)^(alpha_N / alpha_D) + D_c / D)^alpha_D",
        ("N_c", "D_c", "alpha_N", "alpha_D"),
        _kaplan_fit,
        _kaplan_numbers,
        lambda k, N, D: ((k["N_c"] / N) ** (k["alpha_N"] / k["alpha_D"]) + k["D_c"] / D) ** k["alpha_D"],
        _kaplan_optimum,
    ),
}


def too_few(name: str, parameters: Any, tokens: Any) -> str | None:
    """Why this law cannot be fitted to these points, or None: it needs more points than numbers, and two sizes and two lengths apart."""
    need = len(LAWS[name].names) + 1
    if len(parameters) < need:
        return f"{len(parameters)} points; {name}'s {need - 1} numbers need at least {need}"
    apart = len(set(zip(parameters, tokens, strict=True)))
    if len(set(parameters)) < 2 or len(set(tokens)) < 2 or apart < need:
        return f"{len(set(parameters))} sizes and {len(set(tokens))} numbers of tokens, {apart} pairs; it needs 2, 2 and {need}"
    return None


def fit(name: str, parameters: Any, tokens: Any, losses: Any, *, num_resamples: int = 100, level: float = 0.95, seed: int = 0) -> Fitted:
    """Fits a law to points, by the Huber loss of log L, with percentile intervals over resampled points.

    Args:
      name: a row of `LAWS`.
      parameters: N of each point.
      tokens: D of each point.
      losses: nats a token of each point.
      num_resamples: bootstrap draws of points with replacement, as many as there are.
      level: the share of the draws between the ends of an interval.
      seed: of the draws.

    Raises:
      ValueError: too few points (see `too_few`), or one that is not above 0.
    """
    if name not in LAWS:
        raise ValueError(f"Unknown scaling law {name!r}. Choose one of: {', '.join(LAWS)}.")
    if why := too_few(name, parameters, tokens):
        raise ValueError(f"There is no {name} law of {why}.")
    points = np.stack([np.asarray(values, np.float64) for values in (parameters, tokens, losses)])
    if not (np.isfinite(points) & (points > 0)).all():
        raise ValueError("A scaling law needs parameters, tokens and losses above 0. Leave out the runs that have none.")
    law, (n, d, y) = LAWS[name], np.log(points)
    centre = float(n.mean()), float(d.mean())
    n, d = n - centre[0], d - centre[1]
    best = law.fit(n, d, y)
    draw, draws = np.random.default_rng(seed), list[dict[str, float]]()
    while len(draws) < num_resamples:
        rows = draw.integers(0, len(y), len(y))
        if len(set(zip(n[rows], d[rows], strict=True))) < len(law.names) or not np.ptp(n[rows]) or not np.ptp(d[rows]):
            continue  # fewer points than numbers: any would go through them
        draws.append(law.numbers(law.fit(n[rows], d[rows], y[rows], best), *centre))
    tails = [(1 - level) / 2, (1 + level) / 2]
    intervals = {key: tuple(map(float, np.quantile([one[key] for one in draws], tails))) for key in law.names}
    numbers = {key: float(value) for key, value in law.numbers(best, *centre).items()}
    residual = np.log(law.loss(numbers, points[0], points[1])) - y
    return Fitted(law, numbers, intervals, draws, float(np.sqrt(np.mean(residual**2))), (_exp(centre[0]), _exp(centre[1])))  # type: ignore[arg-type]
