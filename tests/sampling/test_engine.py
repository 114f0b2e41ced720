"""The engine: the same tokens as one prompt at a time, whatever arrives when and wherever the cache lies."""

import jax
import numpy as np
import pytest

from jaxllm.models.model import Model
from jaxllm.models.presets import preset
from jaxllm.parallel import rules
from jaxllm.parallel.mesh import make_mesh
from jaxllm.sampling.decode import generate
from jaxllm.sampling.engine import Engine, Request
from jaxllm.sampling.logits import Sampling

CONFIG = preset("tiny_gemma3").replace(num_layers=3, layer_pattern=("local", "global"), vocab_size=64, window=8, init_std=0.3)
MODEL = Model(CONFIG)
RNG = jax.random.key(5)
SAMPLING = Sampling(temperature=0.9, top_k=30, stop_ids=(3,), repetition_penalty=1.1)


@pytest.fixture(scope="module")
def params():
    return jax.jit(MODEL.init)(jax.random.key(0))


def requests():
    draw = np.random.RandomState(0)
    sizes = [5, 1, 20, 9, 33, 3, 17, 2]
    return [
        Request(draw.randint(4, 64, size).astype(np.int32), (10 * i, 10 * i + 1)[: 1 + i % 2], int(draw.randint(2, 14)))
        for i, size in enumerate(sizes)
    ]


@pytest.fixture(scope="module")
def one_by_one(params):
    found = {}
    run = jax.jit(lambda p, t, n, r: generate(MODEL, p, t, n, RNG, r, max_new_tokens=13, sampling=SAMPLING))
    for request in requests():
        for id in request.ids:
            width = 16 if len(request.prompt) <= 16 else 64
            tokens = np.zeros((1, width), np.int32)
            tokens[0, : len(request.prompt)] = request.prompt
            out = jax.device_get(run(params, tokens, np.array([len(request.prompt)], np.int32), np.array([id], np.int32)))
            found[id] = out.tokens[0, : min(out.lengths[0], request.max_new_tokens)].tolist(), out.log_probs[0], out.filtered_log_probs[0]
    return found


KINDS = {
    "slots": {"slots": 3},
    "one slot": {"slots": 1, "block": 1},
    "chunks": {"slots": 4, "chunk": 8, "prefill": 2},
    "pages": {"slots": 4, "page": 8},
    "a pool that is too small": {"slots": 4, "page": 4, "num_pages": 14, "block": 4},
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_engine_is_one_by_one(kind, params, one_by_one):
    engine = Engine(MODEL, SAMPLING, length=52, **KINDS[kind])
    found = {done.id: done for done in engine.run(params, requests(), RNG)}
    assert found.keys() == one_by_one.keys()
    for id, (tokens, log_probs, filtered) in one_by_one.items():
        assert found[id].tokens == tokens, id
        np.testing.assert_allclose(found[id].log_probs, log_probs[: len(tokens)], atol=2e-4)
        np.testing.assert_allclose(found[id].filtered_log_probs, filtered[: len(tokens)], atol=2e-4)
        assert found[id].stopped == (tokens[-1] == 3)
    assert (engine.evictions > 0) == (kind == "a pool that is too small")


def test_what_else_ends_a_row(params, one_by_one):
    """As a stop string would: the row keeps so many tokens, and its slot is free."""
    engine = Engine(MODEL, SAMPLING, slots=2, length=52, block=4)
    found = {done.id: done for done in engine.run(params, requests(), RNG, ends=lambda id, tokens: 2 if len(tokens) >= 2 else None)}
    for id, (tokens, *_) in one_by_one.items():
        assert found[id].tokens == tokens[:2] and found[id].stopped == (len(tokens) >= 2 or tokens[-1] == 3)


def test_nothing_is_compiled_again_as_requests_come_and_go(params):
    engine = Engine(MODEL, SAMPLING, slots=3, length=52)
    first = list(engine.run(params, requests(), RNG))
    programs = [engine._first, engine._admit, engine._steps]
    before = [program._cache_size() for program in programs]
    again = list(engine.run(params, reversed(requests()), RNG))
    assert [program._cache_size() for program in programs] == before
    assert {done.id: done.tokens for done in again} == {done.id: done.tokens for done in first}
    assert before[-1] == 1 and before[0] == 3  # one for each bucket of prompts


@pytest.mark.parametrize(
    ("request_", "says"),
    [
        (Request(np.zeros(0, np.int32), (0,), 4), "An empty prompt"),
        (Request(np.ones(50, np.int32), (0,), 4), "at most 2 new tokens"),
        (Request(np.ones(3, np.int32), (), 4), "Give at least one id"),
        (Request(np.array([1, 64], np.int32), (0,), 4), "the model has 0 to 63"),
    ],
)
def test_what_does_not_fit_is_refused(request_, says, params):
    with pytest.raises(ValueError, match=says):
        list(Engine(MODEL, SAMPLING, slots=2, length=52).run(params, [request_], RNG))
    with pytest.raises(ValueError, match="Give at least 13 pages"):
        Engine(MODEL, SAMPLING, slots=2, length=52, page=4, num_pages=12)


def test_eight_devices_sample_what_one_does(params, one_by_one):
    mesh = make_mesh({"fsdp": 4, "tensor": 2})
    with jax.set_mesh(mesh):
        cut = jax.device_put(params, rules.shardings(MODEL.axes(), mesh, MODEL.abstract()))
        engine = Engine(MODEL, SAMPLING, slots=4, length=52, page=8, num_pages=24)
        found = {done.id: done.tokens for done in engine.run(cut, requests(), RNG)}
    assert found == {id: tokens for id, (tokens, *_) in one_by_one.items()}
    with jax.set_mesh(mesh), pytest.raises(ValueError, match=r"multiples of replica\*fsdp=4"):
        Engine(MODEL, SAMPLING, slots=3, length=52)


def test_weights_that_are_no_numbers_are_told(params):
    broken = params | {"final_norm": {"scale": params["final_norm"]["scale"] * np.nan}}
    with pytest.raises(ValueError, match="a log-probability that is no number"):
        list(Engine(MODEL, SAMPLING, slots=3, length=52).run(broken, requests()[:2], RNG))
