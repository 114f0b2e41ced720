"""Over-optimisation: the reward that is trained for rises while a reward that is held out, or an ensemble's agreement, falls."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

WINDOW = 8  # rollouts that are compared with as many others
RISEN, FALLEN = 2.0, 4.0  # standard errors; the second is of the best of many windows, which chance alone lifts
KEPT = 512  # rollouts that are remembered
FORMS = ("length", "overlong", "ended", "format")  # kinds of reward that say nothing of how good an answer is
DISAGREEMENT = "std"  # what a reward model's `of` says where it tells how far its members are apart
PROXY = "proxy"

History = Sequence[Mapping[str, float]]  # of each rollout: "step", `means`


class Watched(NamedTuple):
    """What of the rewards is looked at.

    Attributes:
      weights: component that is trained for -> its factor.
      held_out: component that is logged and not trained for (weight 0) -> 1: more of it is better, -1: it is an ensemble's disagreement.
    """

    weights: Mapping[str, float]
    held_out: Mapping[str, int]


NOTHING = Watched({}, {})


def watched(entries: Sequence[Any]) -> Watched:
    """What there is to look at in `rl.rewards`."""
    weights, held_out = {}, {}
    for entry in entries:
        table = {"kind": entry} if isinstance(entry, str) else dict(entry)
        name, bounds = str(table.get("name", table["kind"])), {"at_least", "at_most"} & set(table)
        if float(table.get("weight", 1.0)) and not bounds:
            weights[name] = float(table.get("weight", 1.0))
        elif not bounds and table["kind"] not in FORMS:
            held_out[name] = -1 if table.get("of") == DISAGREEMENT else 1
    return Watched(weights, held_out)


def means(parts: Mapping[str, np.ndarray], seen: Watched) -> dict[str, float]:
    """The proxy, which is the weighted sum of what is trained for before any normalising, and what is held out; without what is missing."""
    values = {name: float(own.mean()) for name in (*seen.weights, *seen.held_out) if len(own := _there(parts[name]))}
    found = {name: values[name] for name in seen.held_out if name in values}
    if seen.weights and all(name in values for name in seen.weights):
        found[PROXY] = sum(weight * values[name] for name, weight in seen.weights.items())
    return found


def _there(values: np.ndarray) -> np.ndarray:
    return values[np.isfinite(values)]


class Turned(NamedTuple):
    """A reward that fell while the proxy rose: its name and sign, and (before, now) of both; `step` is of the best window's end."""

    name: str
    sign: int
    step: int
    held_out: tuple[float, float]
    proxy: tuple[float, float]


def turned(history: History, seen: Watched) -> Turned | None:
    """Whether something that is held out has fallen from its best window to the present one, by more than chance, while the proxy rose."""
    for name, sign in seen.held_out.items():
        known = [record for record in history if name in record and PROXY in record]
        if len(known) < 2 * WINDOW:
            continue
        gold, proxy = (np.array([record[key] for record in known]) for key in (name, PROXY))
        best = max(range(len(known) - 2 * WINDOW + 1), key=lambda start: sign * gold[start : start + WINDOW].mean())
        then, now = slice(best, best + WINDOW), slice(len(known) - WINDOW, None)
        if -sign * _rise(gold, then, now) > FALLEN and _rise(proxy, then, now) > RISEN:
            both = [(float(values[then].mean()), float(values[now].mean())) for values in (gold, proxy)]
            return Turned(name, sign, int(known[best + WINDOW - 1]["step"]), *both)
    return None


def _rise(values: np.ndarray, then: slice, now: slice) -> float:
    """By how many standard errors the mean of a window is above that of another; the scatter is that from each rollout to the next."""
    error = math.sqrt(np.square(np.diff(values)).mean() / WINDOW)  # variance: half of that; of a difference of two means: twice
    return float(values[now].mean() - values[then].mean()) / error if error else 0.0


def sentence(found: Turned) -> str:
    """It in words."""
    (before, now), (low, high) = found.held_out, found.proxy
    what = f"held-out reward {found.name!r} has fallen" if found.sign > 0 else f"the ensemble's disagreement {found.name!r} has risen"
    return (
        f"the reward that is trained for has risen from {low:.3g} to {high:.3g} since step {found.step}, while {what} from {before:.3g} to"
        f" {now:.3g}: the policy pleases the reward and no longer what it stands for (over-optimisation). Take a checkpoint of about step"
        f" {found.step}, raise rl.kl_coefficient, or train the reward model on samples of today."
    )
