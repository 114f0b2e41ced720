"""What policy optimisation keeps between rollouts: stopped anywhere and resumed is never stopped, bit for bit."""

import functools

import jax
import numpy as np
import pytest

from jaxllm.stages import rl, train
from jaxllm.stages.config import resolve
from tests.stages import rl_session
from tests.stages.rl_session import Session, saved_and_loaded

COARSE = """
def coarse(prompts, completions, rows):
    return [float(any(c in "abcdefghijklmnopqrstuvwxyz" for c in text[:2])) for text in completions]
"""


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rl")
    rl_session.write(folder)
    (folder / "coarse.py").write_text(COARSE)
    rewards = [{"kind": "function", "path": f"{folder}/coarse.py:coarse", "name": "coarse"}]
    rewards += [{"kind": "function", "path": f"{folder}/reward.py:share", "name": "share", **SAYS}]
    return functools.partial(rl_session.settings_in, folder, rl__rewards=rewards)


@pytest.fixture(scope="module")
def kept():
    """What one stopped and one whole run of a case were, for the tests that look at them."""
    return {}


SAYS = {"at_least": 0.5}
CONSTRAINT = {"rl__reward_rule": "constraint", "rl__multiplier_rate": 0.5}
CASES = {
    "resampled": {
        "rl__method": "dapo",
        "rollout__resample": 2,
        "batch_size": 16,
        "rollout__prompts": 8,
        "rollout__samples_per_prompt": 4,
        **CONSTRAINT,
    },
    "critic": {
        "rl__method": "ppo",
        "rl__critic": "own",
        "rl__critic_warmup": 3,
        "rl__normalise_returns": True,
        "batch_size": 16,
        **CONSTRAINT,
    },
}


def whole_run(kept, settings, name, folder, steps=7):
    if name not in kept:
        kept[name] = Session(settings(**CASES[name]), folder).run(steps)
    return kept[name]


@pytest.mark.parametrize("name", CASES)
def test_stopped_and_resumed_is_never_stopped(name, settings, kept, tmp_path):
    whole = whole_run(kept, settings, name, tmp_path)
    session = Session(settings(**CASES[name]), tmp_path)
    for _ in range(3):  # a new process after 2 and after 5 steps: between rollouts and within them
        session.run(min(3 - (len(session.batches) == 0), 7 - int(session.state.step)))
        state, batches, feed = session.state, session.batches, saved_and_loaded(session.feed.state())
        session = Session(settings(**CASES[name]), tmp_path)
        session.state, session.batches = state, batches
        session.feed.restore(feed)
    assert len(session.batches) == len(whole.batches) == 7
    for ours, theirs in zip(session.batches, whole.batches, strict=True):
        assert ours.keys() == theirs.keys()
        assert all(np.array_equal(ours[key], theirs[key], equal_nan=True) for key in theirs)
    assert all(np.array_equal(a, b) for a, b in zip(session.params(), whole.params(), strict=True))
    assert session.feed._carry == whole.feed._carry


def test_dull_groups_gave_way_and_what_stayed_is_the_policys_own(settings, kept, tmp_path):
    whole = whole_run(kept, settings, "resampled", tmp_path)
    assert sum(report["resampled"] for report in whole.reports) > 0.5 and whole.feed._carry.prompts > 4 * 8
    plain = Session(settings(**{**CASES["resampled"], "rollout__resample": 0}), tmp_path)
    with jax.set_mesh(plain.made.mesh):
        unsorted = plain.feed(plain.state, plain.frozen)["stat_identical"].mean()
    assert whole.batches[0]["stat_identical"].mean() < unsorted
    assert all(report["coupled_mismatch"] == 0 for report in whole.reports)
    multipliers = [report["multiplier_share"] for report in whole.reports]
    assert multipliers[0] == multipliers[1] == 1 != multipliers[2] == multipliers[3] and min(multipliers) > 0
    with pytest.raises(ValueError, match="compares none"):
        train.build(resolve(settings(rl__method="ppo", rollout__resample=1, **CONSTRAINT)), rl.RECIPE)
