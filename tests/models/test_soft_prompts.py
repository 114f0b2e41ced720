"""Soft tokens: the four beginnings of a prompt, several tasks over one model, prefixes against numpy, the MLP folded away."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxllm.models import peft
from jaxllm.models.adapted import Adapted
from jaxllm.models.model import Model
from jaxllm.models.prefixes import MadePrefix, Prefix, Source
from jaxllm.models.tokens import Tokens
from jaxllm.sampling.engine import Engine, Request
from jaxllm.sampling.logits import Sampling
from tests.models.tuned import LLAMA, B, V, base_of, drawn_of, far, of, program, tokens_of

MODEL = Model(LLAMA)
ROWS = base_of()["embedding"]["tokens"]


def table(**options):
    return peft.make(MODEL, "prompt", **options).init(jax.random.key(4), base_of())["embedding"]["prompt"].table


def is_row(vectors, ids):
    return [any(np.array_equal(vector, ROWS[id]) for id in ids) for vector in np.asarray(vectors)]


def test_default_is_a_hundred_between_minus_half_and_half():
    found = table()
    assert found.shape == (100, LLAMA.width) and -0.5 <= found.min() < -0.49 and 0.49 < found.max() <= 0.5


def test_rows_of_the_vocabulary_are_drawn_from_the_frequent_ones_without_repeats():
    found = table(start="vocab", length=6, frequent=[3, 5, 8, 13, 21, 34])
    assert all(is_row(found, [3, 5, 8, 13, 21, 34])) and len(np.unique(found, axis=0)) == 6
    assert all(is_row(table(start="vocab", length=3), range(V)))


def test_labels_come_first_as_the_mean_of_their_tokens():
    found = table(start="labels", length=4, labels=[[1, 2], [9]], frequent=[30, 31, 32])
    np.testing.assert_allclose(found[0], (ROWS[1] + ROWS[2]) / 2, rtol=1e-6)
    np.testing.assert_array_equal(found[1], ROWS[9])
    assert all(is_row(found[2:], [30, 31, 32]))


def test_a_prompt_that_starts_as_text_is_the_text():
    """Bit for bit the logits of the same words in front, and with a shorter text the words again and again."""
    prompt = {"embedding": {"prompt": of("prompt").init(jax.random.key(0), base_of())["embedding"]["prompt"]}}
    text = np.array([7, 11, 7], np.int32)
    prompt["embedding"]["prompt"] = dataclasses.replace(
        prompt["embedding"]["prompt"], table=jnp.tile(table(start="text", length=3, text=[7, 11]), (2, 1))
    )
    soft = tokens_of(3)
    words = np.concatenate([np.broadcast_to(text, (B, 3)), soft[:, 3:]], 1)
    np.testing.assert_array_equal(program()(Adapted(base_of(), prompt), soft), program()(base_of(), words))


@pytest.mark.parametrize("name", ["prompt", "prefix"])
def test_tasks_have_their_own_soft_tokens(name):
    """Rows of one batch with different tasks; an id of no task is no number."""
    params = Adapted(base_of(), drawn_of(name))
    second = tokens_of(3)
    first = np.where(second >= V, second - 3, second)
    mixed = np.concatenate([first[:2], second[2:]])
    a, b, both = (program()(params, tokens) for tokens in (first, second, mixed))
    np.testing.assert_array_equal(both, np.concatenate([a[:2], b[2:]]))
    assert far(a[:, 3:], b[:, 3:]) > 0.01
    beyond = np.where(second >= V, second + 3, second)
    assert np.isnan(program()(params, beyond)).all()


def test_prefixes_stand_in_the_places_of_soft_tokens():
    stream = np.random.RandomState(0)
    k, v, keys, values = (stream.standard_normal(shape).astype(np.float32) for shape in [(2, 4, 2, 3)] * 2 + [(5, 2, 3)] * 2)
    soft = np.array([[0, 4, -3, -1], [-60, -2, 2, -5]], np.int32)
    new = Prefix(keys, values).replaced(jnp.asarray(k), jnp.asarray(v), Tokens(soft, None, soft=jnp.asarray(soft)))
    for found, own, table in zip(new, (k, v), (keys, values), strict=True):
        wanted = own.copy()
        for row, place in np.argwhere(soft >= 0):
            wanted[row, place] = table[soft[row, place]]
        np.testing.assert_array_equal(found, wanted)


def test_the_mlp_is_its_equation():
    stream = np.random.RandomState(0)
    table, kernel, bias, keys, key_bias = (
        stream.standard_normal(shape).astype(np.float32) for shape in [(5, 4), (4, 6), (6,), (6, 2, 3), (2, 3)]
    )
    inner = Source(table, kernel, bias).inner()
    found, _ = MadePrefix(keys, keys, key_bias, key_bias).rows(inner)
    np.testing.assert_allclose(found, np.einsum("sm,mkh->skh", np.tanh(table @ kernel + bias), keys) + key_bias, rtol=1e-5, atol=1e-5)


def test_what_a_soft_token_of_a_prefix_holds_is_seen_by_nobody():
    """Only its keys and values are: other words before it change nothing after it but by their own keys."""
    adapters, tokens = drawn_of("prefix"), tokens_of(3)
    folded = of("prefix").folded(adapters)
    plain = dataclasses.replace(of("prefix"), inner=0)
    assert jax.tree.structure(folded) == jax.tree.structure(plain.abstract())
    found, wanted = program()(Adapted(base_of(), folded), tokens), program()(Adapted(base_of(), adapters), tokens)
    assert far(found, wanted) < 1e-5 * np.abs(wanted).max()


@pytest.mark.parametrize("name", ["prompt", "prefix"])
def test_the_engine_goes_on_after_soft_tokens(name):
    """Greedy tokens, each the likeliest after the whole text before it."""
    params, prompt = Adapted(base_of(), drawn_of(name)), tokens_of(3)[0, :7]
    engine = Engine(MODEL, Sampling(temperature=0.0), slots=1, length=15, block=8)
    (found,) = engine.run(params, [Request(prompt, (0,), 8)], jax.random.key(0))
    text = np.concatenate([prompt, found.tokens])[None].astype(np.int32)
    whole = program()(params, np.repeat(text, B, 0))[0]
    assert found.tokens == np.argmax(whole[len(prompt) - 1 : -1], -1).tolist()
    with pytest.raises(ValueError, match=f"the model has 0 to {V + 5}"):
        engine.check(Request(np.array([V + 6]), (0,), 1), params)
