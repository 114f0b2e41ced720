"""Over-optimisation is told from chance: what is held out must fall, and the proxy rise, by more than they scatter."""

import numpy as np
import pytest

from jaxllm.rollouts.overoptimisation import PROXY, Watched, means, sentence, turned, watched

STEPS = np.arange(48)
RISING = 1 - np.exp(-STEPS / 12)
SEEN = Watched({"rm": 1.0}, {"gold": 1, "spread": -1})


def run(gold, spread=0.0, proxy=RISING, seed=0, noise=0.1):
    draw = np.random.default_rng(seed)
    columns = {PROXY: proxy, "gold": gold, "spread": spread + np.zeros(48)}
    drawn = {name: values + draw.normal(0, noise, 48) for name, values in columns.items()}
    return [{"step": 2 * i, **{name: float(values[i]) for name, values in drawn.items()}} for i in range(48)]


def share(**columns):
    """Of runs that are ever said to be over-optimised."""
    found = [any(turned(history[:stop], SEEN) for stop in range(16, 49, 4)) for history in (run(seed=s, **columns) for s in range(60))]
    return np.mean(found)


def test_only_what_falls_while_the_proxy_rises():
    falls = RISING - 0.03 * np.maximum(STEPS - 20, 0)
    assert share(gold=RISING) <= 0.05 and share(gold=np.zeros(48)) <= 0.05, "what rises or stays is left alone"
    assert share(gold=falls, proxy=-RISING) <= 0.05, "everything falls: another illness"
    assert share(gold=falls) >= 0.95 and share(gold=RISING, spread=0.03 * np.maximum(STEPS - 10, 0)) >= 0.95


def test_it_is_said_with_the_numbers():
    gold = np.where(STEPS < 24, 1.0, 0.25)
    found = turned(run(gold, proxy=STEPS / 10, noise=0.0), SEEN)
    assert found.name == "gold" and found.held_out == (1.0, 0.25) and found.proxy == pytest.approx((0.35, 4.35))
    assert (
        found.step == 14 and "'gold' has fallen from 1 to 0.25" in sentence(found) and "from 0.35 to 4.35 since step 14" in sentence(found)
    )
    spread = turned(run(np.ones(48), spread=STEPS / 10, noise=0.01), SEEN)
    assert spread.name == "spread" and "disagreement 'spread' has risen" in sentence(spread)
    assert turned(run(gold)[:15], SEEN) is None


def test_what_of_a_config_is_watched():
    model = {"kind": "model", "path": "x"}
    held = [{**model, "name": "gold", "weight": 0}, {**model, "name": "spread", "of": "std", "weight": 0.0}, {"kind": "ended", "weight": 0}]
    trained = ["task", {**model, "weight": 2.0}, {"kind": "length", "cost": 1, "at_most": 3}]
    seen = watched([*trained, *held])
    assert seen == Watched({"task": 1.0, "model": 2.0}, {"gold": 1, "spread": -1})
    parts = {"task": np.array([1.0, np.nan]), "model": np.ones(2), "gold": np.array([np.nan, 4.0]), "spread": np.full(2, np.nan)}
    assert means(parts, seen) == {"gold": 4.0, PROXY: 3.0}
    assert PROXY not in means({**parts, "task": np.full(2, np.nan)}, seen)
