"""How the parts of a reward become one number: sums, products, with running statistics, or under constraints with learnt multipliers."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

EPS = 1e-4  # beside the deviation of a group, as in `advantages.group_relative`
Parts = Mapping[str, np.ndarray]  # component -> its values, float64 [R]; NaN: missing
Memory = dict[str, Any]  # what a rule remembers from rollout to rollout: plain numbers and lists of them, as checkpoints keep them
NOTHING = (0.0, 0.0, 0.0)  # moments of nothing


class Bound(NamedTuple):
    """What the mean of a component shall be: at least `least`, or at most `most`; the other is None."""

    least: float | None = None
    most: float | None = None

    def violation(self, values: np.ndarray) -> np.ndarray:
        """How far values are on the wrong side; below 0 on the right one."""
        return self.least - values if self.least is not None else values - self.most


class Weighing(NamedTuple):
    """What a config says of the parts.

    Attributes:
      weights: component -> its factor; those that count.
      bounds: component -> its bound; those are in no sum.
      multiplier: what every multiplier begins as.
      rate: at which multipliers learn.
    """

    weights: Mapping[str, float]
    bounds: Mapping[str, Bound] = {}
    multiplier: float = 1.0
    rate: float = 0.1


def weighted_sum(parts: Parts, weighing: Weighing, groups: np.ndarray, memory: Memory) -> np.ndarray:
    """sum of weight * value."""
    return sum((weight * parts[name] for name, weight in weighing.weights.items()), np.zeros(len(groups)))


def normalised_sum(parts: Parts, weighing: Weighing, groups: np.ndarray, memory: Memory) -> np.ndarray:
    """sum of weight * (value - mean) / (deviation + 1e-4), mean and deviation (ddof 1) of the component's values in the group: no component
    drowns another (GDPO as NeMo-RL and TRL have it, without its last division by the deviation of the batch)."""
    return weighted_sum({name: normalised(parts[name], groups) for name in weighing.weights}, weighing, groups, memory)


def product(parts: Parts, weighing: Weighing, groups: np.ndarray, memory: Memory) -> np.ndarray:
    """The product of the values, each to the power of its weight (Sparrow's rules, arXiv 2209.14375, are factors so)."""
    powers = [np.power(parts[name], weight) for name, weight in weighing.weights.items()]
    return np.prod(powers, axis=0, initial=1.0) * np.ones(len(groups))


def normalised(values: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Each value by the mean and the deviation of those of its group that are there, float64 [R]."""
    found = np.full(len(values), np.nan)
    for group in np.unique(groups):
        rows = (groups == group) & np.isfinite(values)
        own = values[rows]
        found[rows] = (own - own.mean()) / (own.std(ddof=1) + EPS) if len(own) > 1 else 0.0
    return found


def running_sum(parts: Parts, weighing: Weighing, groups: np.ndarray, memory: Memory) -> np.ndarray:
    """sum of weight * (value - mean) / (deviation + 1e-4), mean and deviation (ddof 1) of all that the run has seen of the component, this
    rollout included: components on one scale, and a scale that moves less and less."""
    scaled = {}
    for name in weighing.weights:
        moments = merged(memory.get(name, NOTHING), parts[name])
        scaled[name] = (parts[name] - moments[1]) / (deviation(moments) + EPS)
    return weighted_sum(scaled, weighing, groups, memory)


def merged(moments: Any, values: np.ndarray) -> list[float]:
    """Number, mean and sum of squared distances from it, with more values (Chan, Golub and LeVeque 1979); those that are missing aside."""
    count, mean, squares = moments
    own = values[np.isfinite(values)]
    if not len(own):
        return [count, mean, squares]
    total, apart = count + len(own), float(own.mean()) - mean
    squares += float(np.square(own - own.mean()).sum()) + apart**2 * count * len(own) / total
    return [total, mean + apart * len(own) / total, squares]


def deviation(moments: Any) -> float:
    """The standard deviation (ddof 1); 0 of fewer than two values."""
    count, _, squares = moments
    return float(np.sqrt(squares / (count - 1))) if count > 1 else 0.0


def constrained_sum(parts: Parts, weighing: Weighing, groups: np.ndarray, memory: Memory) -> np.ndarray:
    """(sum of weight * value - sum of multiplier * violation) / (1 + sum of multipliers): the Lagrangian of a reward under bounds on the
    means of other components, on the scale of one reward (arXiv 1805.11074; divided as in Safe RLHF, arXiv 2310.12773)."""
    multipliers = {name: memory.get(name, weighing.multiplier) for name in weighing.bounds}
    penalty = sum((multipliers[name] * bound.violation(parts[name]) for name, bound in weighing.bounds.items()), np.zeros(len(groups)))
    return (weighted_sum(parts, weighing, groups, memory) - penalty) / (1 + sum(multipliers.values()))


def raised(memory: Memory, parts: Parts, weighing: Weighing) -> Memory:
    """Multipliers after a rollout: each rises by rate * mean violation, and never below 0."""
    found = {}
    for name, bound in weighing.bounds.items():
        now, wrong = memory.get(name, weighing.multiplier), bound.violation(parts[name][np.isfinite(parts[name])])
        found[name] = max(0.0, now + weighing.rate * float(wrong.mean())) if len(wrong) else now
    return found


class Rule(NamedTuple):
    """A row of `RULES`.

    Attributes:
      join: (parts, weighing, groups [R], memory) -> the reward, float64 [R].
      learn: (memory, parts, weighing) -> the memory after a rollout.
      says: (memory, weighing) -> what is logged of it.
    """

    join: Callable[[Parts, Weighing, np.ndarray, Memory], np.ndarray]
    learn: Callable[[Memory, Parts, Weighing], Memory] = lambda memory, parts, weighing: memory
    says: Callable[[Memory, Weighing], dict[str, float]] = lambda memory, weighing: {}


RULES = {
    "sum": Rule(weighted_sum),
    "normalised_sum": Rule(normalised_sum),
    "product": Rule(product),
    "running_sum": Rule(
        running_sum,
        lambda memory, parts, weighing: {name: merged(memory.get(name, NOTHING), parts[name]) for name in weighing.weights},
        lambda memory, weighing: {f"deviation_{name}": deviation(memory.get(name, NOTHING)) for name in weighing.weights},
    ),
    "constraint": Rule(
        constrained_sum,
        raised,
        lambda memory, weighing: {f"multiplier_{name}": memory.get(name, weighing.multiplier) for name in weighing.bounds},
    ),
}
