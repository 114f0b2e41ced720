"""The rules that join rewards: equal to numpy, with what they remember from rollout to rollout."""

import json

import numpy as np

from jaxllm.rollouts.rules import RULES, Bound, Weighing, merged, normalised

GROUPS = np.array([0, 0, 1, 1])
PARTS = {"a": np.array([1.0, 2.0, 3.0, 5.0]), "b": np.array([0.5, 0.5, 2.0, 1.0])}
WEIGHING = Weighing({"a": 2.0, "b": -1.0})


def joined(rule, parts=PARTS, weighing=WEIGHING, memory=()):
    return RULES[rule].join(parts, weighing, GROUPS, dict(memory))


def test_the_rules_without_memory_equal_numpy():
    np.testing.assert_allclose(joined("sum"), 2 * PARTS["a"] - PARTS["b"])
    np.testing.assert_allclose(joined("product"), PARTS["a"] ** 2 / PARTS["b"])
    halves = [(x - x.mean()) / (x.std(ddof=1) + 1e-4) for x in (PARTS["a"][:2], PARTS["a"][2:])]
    np.testing.assert_allclose(normalised(PARTS["a"], GROUPS), np.concatenate(halves))
    np.testing.assert_allclose(joined("normalised_sum"), 2 * np.concatenate(halves) - normalised(PARTS["b"], GROUPS))
    assert np.abs(normalised(1000 * PARTS["a"], GROUPS) - normalised(PARTS["a"], GROUPS)).max() < 1e-3


def test_running_moments_are_those_of_all_that_was_seen():
    draw, rule, memory, seen = np.random.default_rng(0), RULES["running_sum"], {}, {"a": [], "b": []}
    for rollout in range(6):
        parts = {"a": 1000 + draw.normal(0, 50, 4), "b": draw.normal(rollout, 0.01, 4)}
        if rollout == 3:
            parts["b"][1] = np.nan
        for name in parts:
            seen[name] += parts[name].tolist()
        scaled = {name: (parts[name] - np.nanmean(seen[name])) / (np.nanstd(seen[name], ddof=1) + 1e-4) for name in parts}
        np.testing.assert_allclose(joined("running_sum", parts, memory=memory), 2 * scaled["a"] - scaled["b"], rtol=1e-9)
        memory = json.loads(json.dumps(rule.learn(memory, parts, WEIGHING)))
    said = rule.says(memory, WEIGHING)
    np.testing.assert_allclose([said["deviation_a"], said["deviation_b"]], [np.nanstd(seen[name], ddof=1) for name in "ab"])
    assert merged([3, 2.0, 1.0], np.array([np.nan])) == [3, 2.0, 1.0]


def test_a_multiplier_rises_until_its_bound_is_kept_and_falls_to_zero_where_it_is():
    """A policy that may be long for reward or short: it answers to the multiplier, which finds the length that is allowed."""
    rule, memory, length = RULES["constraint"], {}, 8.0
    weighing = Weighing({"a": 1.0}, {"long": Bound(most=4.0), "kept": Bound(least=0.5)}, multiplier=0.3, rate=0.05)
    assert rule.says({}, weighing) == {"multiplier_long": 0.3, "multiplier_kept": 0.3}
    rewards = rule.join({"a": np.array([1.0]), "long": np.array([6.0]), "kept": np.array([1.0])}, weighing, GROUPS[:1], {})
    np.testing.assert_allclose(rewards, (1.0 - 0.3 * 2 - 0.3 * -0.5) / 1.6)
    for _ in range(400):
        memory = rule.learn(memory, {"a": np.zeros(2), "long": np.array([length, np.nan]), "kept": np.ones(2)}, weighing)
        length += 0.1 * ((8 - length) / 4 - memory["long"])  # the fourth token is worth 1 more, and costs the multiplier
    assert abs(length - 4) < 0.2 and abs(memory["long"] - 1) < 0.1 and memory["kept"] == 0
