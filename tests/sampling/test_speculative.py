"""Speculative decoding: the model's own distribution, whatever proposes; fewer passes where the draft is good."""

import collections

import jax
import numpy as np
import pytest

from jaxllm.models.model import Model
from jaxllm.models.presets import preset
from jaxllm.sampling import decode, speculative
from jaxllm.sampling.logits import Sampling

CONFIG = preset("tiny_gemma3").replace(num_layers=2, layer_pattern=("local", "global"), vocab_size=4, window=3, init_std=0.1)
MODEL, DRAFT = Model(CONFIG), Model(preset("tiny_llama3").replace(num_layers=1, vocab_size=4, init_std=0.2))
NEW, ROWS = 4, 6000
HOW = {"plain": Sampling(), "filtered": Sampling(temperature=1.3, top_k=3, min_p=0.05), "stop": Sampling(stop_ids=(2,))}


@pytest.fixture(scope="module")
def params():
    return jax.jit(MODEL.init)(jax.random.key(0)), jax.jit(DRAFT.init)(jax.random.key(1))


def batch(rows):
    return np.tile(np.array([[1, 3, 0]], np.int32), (rows, 1)), np.full(rows, 2, np.int32), np.arange(rows, dtype=np.int32)


def speculated(params, draft, draft_params, rows, sampling, num_draft):
    tokens, lengths, ids = batch(rows)
    call = jax.jit(
        lambda p, d: speculative.generate(
            MODEL, p, draft, d, tokens, lengths, jax.random.key(7), ids, max_new_tokens=NEW, num_draft=num_draft, sampling=sampling
        )
    )
    return jax.device_get(call(params, draft_params))


def counted(out):
    return collections.Counter(tuple(row[:size].tolist()) for row, size in zip(out.tokens, out.lengths, strict=True))


@pytest.mark.parametrize("num_draft", [1, 3])
@pytest.mark.parametrize("how", HOW)
def test_whole_continuations_have_the_same_frequencies(how, num_draft, params):
    """Two samples of many continuations of four tokens, by chi-square: as far apart as two samples of one distribution are."""
    tokens, lengths, ids = batch(ROWS)
    plain = jax.jit(lambda p: decode.generate(MODEL, p, tokens, lengths, jax.random.key(5), ids, max_new_tokens=NEW, sampling=HOW[how]))
    ours, _ = speculated(params[0], DRAFT, params[1], ROWS, HOW[how], num_draft)
    one, two = counted(jax.device_get(plain(params[0]))), counted(ours)
    cells = [(one[way], two[way]) for way in one | two if one[way] + two[way] >= 20]
    rare = ROWS - sum(a for a, _ in cells), ROWS - sum(b for _, b in cells)
    cells += [rare] if sum(rare) >= 20 else []
    chi_square, freedom = sum((a - b) ** 2 / (a + b) for a, b in cells), len(cells) - 1
    assert freedom > 5 and chi_square < freedom + 4.5 * np.sqrt(2 * freedom), (chi_square, freedom)


def test_log_probs_are_those_of_the_model(params):
    out, passes = speculated(params[0], DRAFT, params[1], 50, HOW["filtered"], 3)
    rows = np.concatenate([np.tile([[1, 3]], (50, 1)), out.tokens], axis=1).astype(np.int32)
    logits = MODEL.logits(params[0], MODEL.apply(params[0], rows))[:, 1:-1]
    expected = np.take_along_axis(np.asarray(jax.nn.log_softmax(logits)), out.tokens[:, :, None], axis=-1)[:, :, 0]
    np.testing.assert_allclose(out.log_probs, expected, atol=2e-4)
    assert (out.lengths == NEW).all() and passes.max() <= NEW and (out.filtered_log_probs <= 0).all()


def test_the_likeliest_tokens_are_the_same_and_a_perfect_draft_saves_passes(params):
    tokens, lengths, ids = batch(3)
    greedy = Sampling(temperature=0.0)
    plain = decode.generate(MODEL, params[0], tokens, lengths, jax.random.key(0), ids, max_new_tokens=NEW, sampling=greedy)
    for draft, weights, most in ((DRAFT, params[1], NEW), (MODEL, params[0], 1)):
        out, passes = speculated(params[0], draft, weights, 3, greedy, 3)
        np.testing.assert_array_equal(out.tokens, plain.tokens)
        assert (passes <= most).all()


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"draft": Model(CONFIG.replace(vocab_size=8))}, "The draft model has 8 tokens, the model 4"),
        ({"num_draft": 0}, "num_draft=0 proposes nothing"),
        ({"sampling": Sampling(repetition_penalty=1.2)}, "cannot be used with a draft model"),
    ],
)
def test_what_cannot_be_speculated_is_refused(more, says, params):
    tokens, lengths, ids = batch(2)
    draft = more.pop("draft", DRAFT)
    with pytest.raises(ValueError, match=says):
        speculative.generate(MODEL, params[0], draft, params[1], tokens, lengths, jax.random.key(0), ids, max_new_tokens=NEW, **more)
