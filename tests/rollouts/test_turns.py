"""Turns of a model and its tools: what is asked of the engine, what rows say of whose tokens, and advantages that pass over results."""

import functools

import jax
import numpy as np
import pytest

from jaxllm.data.tokenizer_kinds import ByteTokenizer
from jaxllm.rollouts.credit import Shape, credit
from jaxllm.rollouts.methods import METHODS
from jaxllm.rollouts.protocol import Between
from jaxllm.rollouts.rollout import Prompt, rows_of
from jaxllm.rollouts.tools import DONE, ERROR, make
from jaxllm.rollouts.turns import MODEL, Talking, TurnSampler, TurnTexts, statistics
from jaxllm.sampling.endings import Endings
from jaxllm.sampling.engine import Finished

BYTES = ByteTokenizer()
PLAYS = {  # sample -> what it writes in its turns
    0: ["[1+2]", " 3\n"],
    1: ["no call\n"],
    2: ["[1/0]", "[2*2]", "[3*3]"],  # the last is not answered
    3: ["[10**30]", "12345678901"],  # cut off by its length
}
ENDINGS = Endings(BYTES, ("\n",), BYTES.stop_ids)


class Scripted:
    """An engine whose model writes what it is told to, a turn for each request, two rows at a time."""

    length = 80

    def __init__(self):
        self.asked = []

    def run(self, params, requests, key, ends):
        turns, held = dict.fromkeys(PLAYS, 0), []
        while True:
            while len(held) < 2 and (request := next(requests)) is not None:
                held += [(id, request) for id in request.ids]
                self.asked.append((request.ids, BYTES.decode(request.prompt), request.max_new_tokens))
            if not held:
                return
            id, request = held.pop(0)
            tokens = BYTES.encode(PLAYS[id][turns[id]]).tolist()[: request.max_new_tokens]
            turns[id] += 1
            assert ends(id, tokens[:-1]) is None
            probs = [-float(token) for token in tokens]
            yield Finished(id, tokens, probs, [2 * p for p in probs], ends(id, tokens) == len(tokens))


@pytest.fixture(scope="module")
def played():
    talk = Between(make([{"kind": "calculator", "open": "[", "close": "]"}]), ENDINGS, ("{", "}"), 30)
    how = {"sequence_length": 80, "max_new_tokens": 16, "temperature": 1.0, "seed": 0}
    sampler = TurnSampler(None, ENDINGS, talk=talk, max_turns=3, **how)
    engine = Scripted()
    sampler._engine = Talking(engine, talk, 3, 0)
    prompts = [Prompt("p", BYTES.encode("pp"), {"n": 0}), Prompt("q", BYTES.encode("q"), {"n": 1})]
    return sampler({}, prompts, 2, 0), engine


def test_a_call_is_answered_behind_the_models_own_tokens_and_it_writes_on(played):
    samples, engine = played
    texts = [BYTES.decode(done.tokens) for done in samples.finished]
    assert texts == ["[1+2]{3} 3\n", "no call\n", "[1/0]{error: division by zero}[2*2]{4}[3*3]", "[10**30]{1" + "0" * 27 + "}12345678"]
    assert [done.stopped for done in samples.finished] == [True, True, False, False] == [answer.ended for answer in samples.answers]
    assert [answer.text for answer in samples.answers] == [" 3", "no call", "[3*3]", "12345678"]
    assert [len(answer.tokens) for answer in samples.answers] == [8, 8, 15, 16]  # the model's own
    assert samples.answers[2].turns[1:4] == (
        ("calculator", "error: division by zero", ERROR),
        (MODEL, "[2*2]", ""),
        ("calculator", "4", DONE),
    )
    first = [asked for asked in engine.asked if asked[0] == (0,)]
    assert first == [((0,), "pp[1+2]{3}", 11)] and ((0, 1), "pp", 16) in engine.asked
    assert samples.answers[3].row["n"] == 1 and samples.groups.tolist() == [0, 0, 1, 1]


def test_rows_weigh_the_models_tokens_alone(played):
    rows = rows_of(played[0], 80)
    for i, done in enumerate(played[0].finished):
        at = np.flatnonzero(rows["weights"][i])
        own = np.array(done.tokens)[np.array(done.own)]
        assert rows["targets"][i, at].tolist() == own.tolist() and (rows["sampler"][i, at] == -2.0 * own).all()
        assert BYTES.decode(own) == "".join(PLAYS[i])[: len(own)]
        assert not np.delete(rows["sampler"][i], at).any()
    found = {name: values.tolist() for name, values in statistics(played[0]).items()}
    assert found == {
        "stat_turns": [2, 1, 3, 2],
        "stat_tool_calls": [1, 0, 2, 1],
        "stat_tool_errors": [0, 0, 1, 0],
        "stat_tool_timeouts": [0, 0, 0, 0],
        "stat_tool_truncated": [0, 0, 0, 1],
    }


def numpy_gae(rewards, values, own, discount, decay):
    """A step is a token of the model: what lies between two of them is passed over."""
    found = np.zeros_like(rewards)
    for i in range(len(rewards)):
        value_after = advantage_after = 0.0
        for t in np.flatnonzero(own[i])[::-1]:
            error = rewards[i, t] + discount * value_after - values[i, t]
            found[i, t] = advantage_after = error + discount * decay * advantage_after
            value_after = values[i, t]
    return found


@pytest.mark.parametrize("name", ["ppo", "grpo"])
def test_advantages_are_those_of_the_models_tokens_side_by_side(name, played):
    """With results between the turns or without them: the same advantages, token by token; and those of ten lines of numpy."""
    own = rows_of(played[0], 80)["weights"] != 0
    width, draw = int(own.sum(1).max()), np.random.default_rng(0)
    tight = np.arange(width) < own.sum(1, keepdims=True)
    known = {"scores": np.array([1.0, 0.25, -0.5, 0.75], np.float32), "groups": np.array([0, 0, 1, 1], np.int32)}
    known |= {"ended": np.ones(4, bool), "coefficient": np.float32(0.1)}
    short = {key: np.where(tight, -draw.random(tight.shape), 0).astype(np.float32) for key in ("log_probs", "reference", "values")}
    long = {key: draw.standard_normal(own.shape).astype(np.float32) for key in short}  # between them, whatever there is
    for key, values in short.items():
        long[key][own] = values[tight]
    how = jax.jit(functools.partial(credit, METHODS[name]._replace(whiten=False), Shape(discount=0.9, decay=0.8)))
    apart = how({**known, **long, "weights": own.astype(np.float32)})
    beside = how({**known, **short, "weights": tight.astype(np.float32)})
    np.testing.assert_allclose(np.asarray(apart["advantages"])[own], np.asarray(beside["advantages"])[tight], rtol=1e-5, atol=1e-6)
    assert not np.asarray(apart["advantages"])[~own].any() and (np.asarray(apart["weights"]) == own).all()
    np.testing.assert_allclose(apart["divergence"], beside["divergence"], rtol=1e-5)
    if name == "ppo":
        rewards = np.where(own, -0.1 * (long["log_probs"] - long["reference"]), 0)
        rewards[np.arange(4), [np.flatnonzero(row)[-1] for row in own]] += known["scores"]
        np.testing.assert_allclose(apart["advantages"], numpy_gae(rewards, long["values"], own, 0.9, 0.8), rtol=1e-4, atol=1e-5)


def test_the_mean_log_probability_is_of_the_models_tokens(played):
    """A tool's tokens, whose log-probability is said to be 0, make no sample likelier."""
    done = played[0].finished[2]
    own = np.array(done.log_probs)[np.array(done.own)]
    assert TurnTexts.mean(None, done) == pytest.approx(own.mean()) and len(own) < len(done.log_probs)
