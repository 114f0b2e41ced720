"""Dynamic sampling: dull groups give way, the others stay where they are, and tries end."""

import numpy as np
import pytest

from jaxllm.rollouts.resampling import Judged, dull, resample
from jaxllm.rollouts.rewards import Rewarded
from jaxllm.rollouts.rollout import Samples

NAN = np.nan


def judged(rewards, prompts):
    """Groups of two, whose prompts, answers and ids are told by numbers."""
    groups = np.repeat(np.arange(len(prompts), dtype=np.int32), 2)
    rows = [10 * prompt + i for prompt in prompts for i in range(2)]
    total = np.array(rewards, float).reshape(-1)
    return Judged(Samples(np.repeat(prompts, 2).tolist(), groups, rows, rows, np.array(rows)), Rewarded(total, {"a": 2 * total}, ["p"]))


def test_which_groups_are_dull():
    total = np.array([0, 1, 1, 1, NAN, 1, NAN, NAN, 0, NAN])
    assert dull(total, np.repeat(np.arange(5), 2)).tolist() == [1, 2, 3, 4]


@pytest.mark.parametrize("tries", [0, 1, 2, 5])
def test_they_give_way_to_the_next_prompts_a_few_times_at_most(tries):
    script, asked = {1: [[1, 1], [0, 1]], 2: [[2, 3]]}, []

    def more(places, number):
        asked.append((places.tolist(), number))
        return judged(script[number], [4 * number + i for i in range(len(places))])

    found, thrown = resample(judged([[0, 1], [1, 1], [1, 0], [0, 0]], [0, 1, 2, 3]), more, tries)
    assert asked == [([1, 3], 1), ([1], 2)][:tries]
    kept = {0: [0, 1, 2, 3], 1: [0, 4, 2, 5]}.get(tries, [0, 8, 2, 5])
    assert found.samples.prompts == np.repeat(kept, 2).tolist() and found.samples.groups.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    rows = [10 * prompt + i for prompt in kept for i in range(2)]
    assert found.samples.answers == found.samples.finished == found.samples.ids.tolist() == rows
    assert thrown.tolist() == [0, min(tries, 2), 0, min(tries, 1)] and len(found.rewarded.problems) == 1 + min(tries, 2)
    assert (found.rewarded.parts["a"] == 2 * found.rewarded.total).all()
    if tries >= 2:
        assert found.rewarded.total.tolist() == [0, 1, 2, 3, 1, 0, 0, 1]
