"""LoRA and its kin against ten lines of numpy; dropout; several LoRAs over one base, chosen by row, also in the engine."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxllm.models import peft
from jaxllm.models.adapted import Adapted
from jaxllm.models.layers import Compute, Dense
from jaxllm.models.lora import Dora, Lora, thin
from jaxllm.models.stacks import stack
from jaxllm.models.tokens import Tokens
from jaxllm.sampling.engine import Engine, Request
from jaxllm.sampling.logits import Sampling
from tests.models.tuned import LLAMA, B, T, V, base_of, drawn_of, far, of, program, quick_jit, tokens_of

STREAM = np.random.RandomState(0)
X, W = STREAM.standard_normal((2, 5, 3, 4)), STREAM.standard_normal((3, 4, 6))  # [B, T, N, H], [N, H, D]: two dims are summed over
A, BB, M = STREAM.standard_normal((3, 4, 2)), STREAM.standard_normal((2, 6)), STREAM.standard_normal(6)
DENSE = Dense("btnh,nhd->btd", W.shape, ("heads", "head_dim", "embed"), Compute(), 1.0, name="output")


def dense(adapter, x=X, tokens=None):
    variables = {"params": {"kernel": jnp.float32(W)}, "adapters": {"own": adapter}}
    return DENSE.apply(variables, jnp.float32(x), tokens=tokens)


def by_hand(a, b, m, scale):
    """Equation 5 of arXiv 2402.09353 with whole matrices; the norm's value is given apart."""
    changed = W + scale * np.tensordot(a, b, 1)
    return m * changed / np.sqrt((changed**2).sum((0, 1)))


def test_lora_is_its_equation():
    found = dense(Lora(jnp.float32(A), jnp.float32(BB), 1.5, 0.0))
    np.testing.assert_allclose(found, np.einsum("btnh,nhd->btd", X, W + 1.5 * np.tensordot(A, BB, 1)), rtol=1e-4, atol=1e-4)
    assert thin("btd,dnh->btnh") == ("btd,dr->btr", "btr,rnh->btnh") and thin("btnh,nhd->btd") == ("btnh,nhr->btr", "btr,rd->btd")


def test_dora_is_its_equation_and_stops_the_gradient_of_the_norm():
    given = [jnp.float32(x) for x in (A, BB)]
    found = dense(Dora(*given, 1.5, 0.0, jnp.float32(M)))
    np.testing.assert_allclose(found, np.einsum("btnh,nhd->btd", X, by_hand(A, BB, M, 1.5)), rtol=1e-3, atol=1e-4)
    grad = jax.grad(lambda b: jnp.sum(dense(Dora(given[0], b, 1.5, 0.0, jnp.float32(M)))))(given[1])
    norm = np.sqrt(((W + 1.5 * np.tensordot(A, BB, 1)) ** 2).sum((0, 1)))
    wanted = 1.5 * np.einsum("btnh,nhr->r", X, A)[:, None] * (M / norm)
    np.testing.assert_allclose(grad, wanted, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(("name", "scale"), [("lora", 16 / 4), ("rslora", 16 / 2), ("dora", 16 / 4)])
def test_scales_and_first_draws(name, scale):
    """alpha / r or alpha / sqrt(r); A within fan_in ** -0.5 and as wide as that, B zero."""
    method = peft.make(of(name).model, name, rank=4, alpha=16)
    found = quick_jit(method.init)(jax.random.key(0), base_of())["layers"]["scanned"]["0"]
    entry = found["mlp"]["down"]["lora"]
    assert entry.scale == scale and not np.any(entry.b)
    bound = LLAMA.mlp_width**-0.5
    assert 0.95 * bound < np.abs(entry.a).max() <= bound and abs(np.std(entry.a) - bound / 3**0.5) < 0.1 * bound
    assert np.any(entry.a[0] != entry.a[1]), "every layer draws for itself"


def test_dropout_is_of_x_alone_and_by_the_token_not_its_place():
    positions = np.tile(np.arange(5, dtype=np.int32), (2, 1))
    told = Tokens(positions, None, rows=np.array([7, 8], np.int32), rng=jax.random.key(3))
    plain, ones = Lora(jnp.float32(A), jnp.float32(BB), 1.0, 0.0), np.ones_like(X)
    half = Lora(plain.a, plain.b, 1.0, 0.5)
    found = dense(half, tokens=told)
    assert far(found, dense(plain)) > 0.1
    np.testing.assert_array_equal(dense(half), dense(plain))  # without a key there is none
    swapped = told._replace(rows=told.rows[::-1], positions=positions[:, ::-1])
    np.testing.assert_allclose(dense(half, X[::-1, ::-1], swapped), found[::-1, ::-1], rtol=1e-5, atol=1e-5)
    many = told._replace(positions=np.tile(np.arange(4000, dtype=np.int32), (2, 1)))
    identity = Lora(jnp.ones((3, 4, 1)), jnp.ones((1, 6)), 1.0, 0.5)
    kept = dense(identity, np.ones((2, 4000, 3, 4)), many) - np.einsum("btnh,nhd->btd", ones, W)[0, 0]
    assert abs(float(jnp.mean(kept)) - 12) < 0.1, "the mean is kept"


@functools.cache
def three():
    """Three LoRAs of different ranks, scales and targets, and their stack."""
    first, second = drawn_of("lora"), drawn_of("rslora")
    third = jax.tree.map(lambda x: -0.7 * x, first)
    return (first, second, third), stack([first, second, third])


def test_rows_go_through_their_own_adapters():
    alone, together = three()
    model, tokens, choice = of("lora").model, tokens_of(), np.array([2, 0, -1, 1], np.int32)
    run = quick_jit(lambda params, tokens, adapter: model.logits(params, model.apply(params, tokens, adapter=adapter)))
    found = run(Adapted(base_of(), together), tokens, choice)
    plain = program()
    for row, number in enumerate(choice):
        wanted = plain(base_of() if number < 0 else Adapted(base_of(), alone[number]), tokens)[row]
        assert far(found[row], wanted) < 1e-5 * np.abs(wanted).max()
    with pytest.raises(ValueError, match="of kind Dora"):
        stack([drawn_of("dora")])


def test_the_engine_decodes_each_row_with_its_own():
    """More rows than slots, so that slots change their adapters; token for token as with each adapter alone."""
    alone, together = three()
    model = of("lora").model
    engine = Engine(model, Sampling(temperature=0.0), slots=2, length=T, block=4)
    prompts, numbers = tokens_of(length=6), (0, 1, 2, -1, 1)
    requests = [Request(prompts[i % B], (i,), T - 6, number) for i, number in enumerate(numbers)]
    found = {row.id: row.tokens for row in engine.run(Adapted(base_of(), together), requests, jax.random.key(0))}
    for i, number in enumerate(numbers):
        text = np.concatenate([prompts[i % B], found[i]]).astype(np.int32)
        params = base_of() if number < 0 else Adapted(base_of(), alone[number])
        likeliest = np.argmax(program()(params, np.tile(text, (B, 1)))[0], -1)
        assert found[i] == likeliest[5:-1].tolist()
    with pytest.raises(ValueError, match="adapter=3 where 3 are stacked"):
        engine.check(requests[0]._replace(adapter=3), Adapted(base_of(), together))
    with pytest.raises(ValueError, match=f"the model has 0 to {V - 1}"):
        engine.check(requests[0]._replace(prompt=np.array([V])), Adapted(base_of(), together))
