"""Rows of training from samples, the order of prompts, and the doctor's rules."""

import numpy as np
import pytest

from jaxllm.rollouts import doctor
from jaxllm.rollouts.making import Made
from jaxllm.rollouts.overoptimisation import Watched
from jaxllm.rollouts.rewards import Answer, Rewarded
from jaxllm.rollouts.rollout import Prompt, Samples, drawn, rows_of
from jaxllm.sampling.engine import Finished


def test_prompts_come_once_an_epoch_whatever_the_rollout():
    whole = drawn(3, 0, 21, 7)
    for epoch in whole.reshape(3, 7):
        assert sorted(epoch) == list(range(7))
    assert np.concatenate([drawn(3, first, 3, 7) for first in range(0, 21, 3)]).tolist() == whole.tolist()
    assert drawn(4, 0, 21, 7).tolist() != whole.tolist() and len({tuple(epoch) for epoch in whole.reshape(3, 7)}) > 1


def test_rows_are_the_very_tokens():
    prompts = [Prompt("ab", np.array([5, 6], np.int32), {}), Prompt("c", np.array([7], np.int32), {})]
    finished = [Finished(0, [8, 0, 9], [-1.0, -2.0, -3.0], [-1.5, -2.5, -3.5], True), Finished(1, [4], [-1.0], [-1.0], False)]
    rows = rows_of(Samples(prompts, np.array([0, 1]), finished, [], np.arange(2)), 6)
    assert rows["tokens"].tolist() == [[5, 6, 8, 0, 9, 0], [7, 4, 0, 0, 0, 0]]  # trap 5: a sampled 0 is a token like any other
    assert rows["targets"].tolist() == [[6, 8, 0, 9, 0, 0], [4, 0, 0, 0, 0, 0]]
    assert rows["weights"].tolist() == [[0, 1, 1, 1, 0, 0], [1, 0, 0, 0, 0, 0]]
    assert rows["segments"].tolist() == [[1, 1, 1, 1, 1, 0], [1, 1, 0, 0, 0, 0]]
    assert rows["sampler"].tolist() == [[0, -1.5, -2.5, -3.5, 0, 0], [-1, 0, 0, 0, 0, 0]]


def rollout(rewards, tokens=None, truncated=None, identical=None, kl=None, entropy=2.0, weights=1.0, gold=None):
    count = len(rewards)
    tokens = np.full(count, 4.0) if tokens is None else np.asarray(tokens, float)
    columns = {"reward": np.asarray(rewards, float), "completion_tokens": tokens}
    columns |= {"truncated": np.zeros(count) if truncated is None else truncated}
    columns |= {"identical": np.zeros(count) if identical is None else identical} | ({} if kl is None else {"kl_sequence": kl})
    buffer = {f"stat_{name}": np.asarray(values, np.float32) for name, values in columns.items()}
    buffer |= {"sampler": -entropy * tokens[:, None], "weights": np.full((count, 1), weights)}
    answers = [Answer("p", "text", {}, np.arange(3), True)] * count
    return Made(
        buffer,
        Samples([], np.arange(count) // 4, [], answers, np.arange(count)),
        Rewarded(np.array(rewards), {"proxy": 2 + WELL, "gold": np.full(count, 8.0) if gold is None else gold}, []),
        {},
        None,
    )


DRAWN = np.random.default_rng(0)
WELL = DRAWN.random(16)
WATCHED = Watched({"proxy": 1.0}, {"gold": 1})
PAST = [{"step": i, "entropy": 2.0, "proxy": 0.1 * i, "gold": float(i < 14)} for i in range(21)]
ILL = {
    "truncated": rollout(WELL, truncated=np.ones(16)),
    "nothing_scored": rollout([np.nan] * 16),
    "no_variance": rollout([1.0] * 16, identical=np.ones(16)),
    "no_group_varies": rollout(np.arange(16) // 4, identical=np.ones(16)),
    "negative_kl": rollout(WELL, kl=-1 - WELL),
    "entropy": rollout(WELL, entropy=0.01),
    "length": rollout(2 - WELL, tokens=10 * WELL + 1),
    "nothing_trained": rollout(WELL, weights=0.0),
    "over_optimised": rollout(WELL, gold=-WELL),
}


@pytest.mark.parametrize("name", doctor.RULES)
def test_every_rule_finds_its_own_illness_and_no_other(name):
    seen = doctor.Seen(ILL[name], doctor.entropy(ILL[name]), 4, PAST, WATCHED)
    ill = [other for other, rule in doctor.RULES.items() if rule(seen) is not None]
    assert ill == [name]
    said = []
    asked = doctor.Doctor(4, said.append, WATCHED)
    asked(ILL[name], 3, PAST)
    asked(ILL[name], 4, PAST)  # once is enough
    assert said[0].startswith("doctor, step 3: ") and len(said) == 4 and "sample " in said[1]


def test_a_healthy_rollout_is_left_alone():
    well = rollout(WELL, tokens=1 + DRAWN.random(16), kl=DRAWN.standard_normal(16))
    assert not [name for name, rule in doctor.RULES.items() if rule(doctor.Seen(well, 2.0, 4, (), WATCHED))]


def test_the_doctor_tells_turns_that_ran_out_from_tokens():
    seen = doctor.Seen(rollout(WELL, tokens=[2] * 6 + [4] * 10, truncated=np.ones(16)), 2.0, 4)
    assert "cut off at 4 tokens (6 of them before, at a call in the last of rollout.max_turns)" in doctor.all_truncated(seen)[0]
    seen = doctor.Seen(rollout(WELL, truncated=np.ones(16)), 2.0, 4)
    assert "cut off at 4 tokens, so" in doctor.all_truncated(seen)[0]
