"""Likelihoods of continuations: shared beginnings and batches change no number."""

import functools

import jax
import numpy as np
import pytest

from jaxllm.evaluation.likelihood import Likelihoods, width
from jaxllm.models.model import Model
from jaxllm.models.presets import preset
from jaxllm.parallel.mesh import make_mesh
from tests.models.drawn import random_params

MODELS = {
    "rotary": Model(preset("tiny_llama3").replace(num_layers=1, vocab_size=98)),
    "windows": Model(
        preset("tiny_gemma3").replace(num_layers=2, layer_pattern=("local", "global"), vocab_size=98, window=7), scan_layers=False
    ),
    "learned": Model(preset("tiny_gpt2").replace(num_layers=1, vocab_size=98, max_positions=160)),
}


def pairs(seed, shared, length):
    """Texts of all lengths, some with several continuations, all with the same first tokens."""
    stream = np.random.default_rng(seed)
    draw = lambda n: stream.integers(1, 97, n).tolist()  # noqa: E731
    beginning, found = draw(shared), []
    for size in (1, 2, 17, 20, length - shared - 30):
        before = beginning + draw(size)
        found += [(before, draw(n)) for n in stream.integers(1, 30, stream.integers(2, 5))]
    return [found[i] for i in stream.permutation(len(found))]


@functools.partial(jax.jit, static_argnums=0)
def full(model, params, ids):
    return jax.nn.log_softmax(model.logits(params, model.apply(params, ids))[0])


def alone(model, params, before, after):
    """By definition: one full forward pass (what is behind a token changes nothing of it)."""
    ids = np.array([[*before, *after, *[0] * (150 - len(before) - len(after))]], np.int32)
    log_probs = np.asarray(full(model, params, ids))
    places = range(len(before) - 1, len(before) + len(after) - 1)
    return sum(log_probs[i, ids[0, i + 1]] for i in places), all(log_probs[i].argmax() == ids[0, i + 1] for i in places)


@pytest.mark.parametrize(("name", "shared"), [("rotary", 50), ("windows", 50), ("learned", 0)])
def test_a_batch_equals_one_by_one(name, shared):
    model, asked = MODELS[name], pairs(1, shared, 140)
    params = random_params(model, 0)
    scorer = Likelihoods(model, length=150, rows=6, tokens=256)
    told = []
    found = scorer(params, asked, told.append)
    for (before, after), like in zip(asked, found, strict=True):
        log_prob, greedy = alone(model, params, before, after)
        np.testing.assert_allclose(like.log_prob, log_prob, rtol=1e-4, atol=2e-3)
        assert like.greedy == greedy
    assert sum(told) == len(asked) and all(program[-1] == shared for program in scorer.programs)


def test_the_likeliest_tokens_are_greedy():
    model = MODELS["rotary"]
    params = random_params(model, 0)
    before, after = [3, 4, 5], []
    for _ in range(4):
        hidden = model.apply(params, np.array([before + after], np.int32))
        after.append(int(model.logits(params, hidden)[0, -1].argmax()))
    wrong = [*after[:-1], (after[-1] + 1) % 97]
    assert [like.greedy for like in Likelihoods(model)(params, [(before, after), (before, wrong)])] == [True, False]


def test_a_mesh_changes_no_number():
    model, asked = MODELS["rotary"], pairs(2, 40, 140)
    params = random_params(model, 0)
    one = Likelihoods(model, length=150)(params, asked)
    with jax.set_mesh(make_mesh({"fsdp": 4, "tensor": 2})):
        eight = Likelihoods(model, length=150)(params, asked)
    np.testing.assert_allclose([x.log_prob for x in eight], [x.log_prob for x in one], rtol=1e-4)


def test_widths_are_few_and_close():
    assert [width(n) for n in (1, 5, 16, 17, 128, 129, 256, 257, 1000)] == [4, 8, 16, 32, 128, 160, 256, 320, 1024]
    assert len({width(n) for n in range(1, 4097)}) < 40 and all(n <= width(n) < max(n + 16, 1.26 * n) for n in range(1, 4097))


@pytest.mark.parametrize(
    ("pair", "sentence"),
    [(([], [1]), "Pair 0 has an empty part"), (([1], []), "empty part"), (([1] * 149, [1] * 3), "model reads 150")],
)
def test_what_cannot_be_scored_is_refused(pair, sentence):
    with pytest.raises(ValueError, match=sentence):
        Likelihoods(MODELS["rotary"], length=150)({}, [pair])


def test_nan_is_told():
    model = MODELS["rotary"]
    params = jax.tree.map(lambda x: x * np.nan, random_params(model, 0))
    with pytest.raises(ValueError, match="NaN"):
        Likelihoods(model)(params, [([1], [2])])
