"""Generation: greedy decoding is the argmax of the full forward, and a draw depends on nothing but key, row and position."""

import jax
import numpy as np
import pytest

from jaxllm.models.model import Model
from jaxllm.models.presets import preset
from jaxllm.sampling.decode import generate
from jaxllm.sampling.logits import Sampling

MODEL = Model(preset("tiny_llama3").replace(vocab_size=64, init_std=0.3))


@pytest.fixture(scope="module")
def params():
    return jax.jit(MODEL.init)(jax.random.key(0))


def run(params, prompts, rows, width=8, **options):
    tokens = np.zeros((len(prompts), width), np.int32)
    for i, prompt in enumerate(prompts):
        tokens[i, : len(prompt)] = prompt
    lengths = np.array([len(p) for p in prompts], np.int32)
    how = {"max_new_tokens": options.pop("max_new_tokens"), "sampling": Sampling(**options)}
    call = jax.jit(lambda p, t, n, r: generate(MODEL, p, t, n, jax.random.key(5), r, **how))
    return jax.device_get(call(params, tokens, lengths, np.array(rows, np.int32)))


PROMPTS = [[3, 1, 4], [1, 5, 9, 2, 6], [7]]


def test_greedy_is_the_argmax_of_the_full_forward(params):
    out = run(params, PROMPTS, [0, 1, 2], max_new_tokens=6, temperature=0)
    for prompt, new, log_probs in zip(PROMPTS, out.tokens, out.log_probs, strict=True):
        text = np.array([prompt + new.tolist()], np.int32)
        logits = jax.device_get(MODEL.logits(params, MODEL.apply(params, text)))[0]
        at = np.arange(len(prompt) - 1, len(prompt) + 5)
        np.testing.assert_array_equal(np.argmax(logits[at], axis=-1), new)
        np.testing.assert_allclose(jax.nn.log_softmax(logits)[at, new], log_probs, atol=2e-4)


def test_neighbours_padding_and_order_change_no_draw(params):
    options = {"max_new_tokens": 6, "temperature": 1.0, "top_k": 20}
    together = run(params, PROMPTS, [10, 11, 12], **options)
    for i in (2, 0, 1):
        alone = run(params, [PROMPTS[i]], [10 + i], width=16, **options)
        np.testing.assert_array_equal(alone.tokens[0], together.tokens[i])
    other = run(params, PROMPTS, [20, 21, 22], **options)
    assert (other.tokens != together.tokens).any()


def test_a_stop_token_ends_its_own_row_and_is_kept(params):
    free = run(params, PROMPTS, [0, 1, 2], max_new_tokens=6, temperature=0)
    stop = int(free.tokens[0, 2])
    out = run(params, PROMPTS, [0, 1, 2], max_new_tokens=6, temperature=0, stop_ids=(stop,))
    for before, after, length in zip(free.tokens, out.tokens, out.lengths, strict=True):
        ends = np.flatnonzero(before == stop)
        expected = ends[0] + 1 if len(ends) else 6
        assert length == expected and (after[:expected] == before[:expected]).all() and (after[expected:] == 0).all()
    assert out.lengths.min() < 6
