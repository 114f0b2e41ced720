"""Divergences of student and teacher against numpy, their limits, and what becomes of the tail."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxllm.losses import distill as dis

rng = np.random.default_rng(8)
S, P = (np.asarray(jax.nn.log_softmax(rng.normal(size=(2, 3, 6)).astype(np.float32) * 2)) for _ in range(2))
WEIGHTS = np.array([[1, 0, 1], [1, 2, 0.5]], np.float32)


def kl(p, q):
    return np.sum(np.exp(p) * (p - q), axis=-1)


def mixture(b):
    return np.log(b * np.exp(P) + (1 - b) * np.exp(S))


NUMPY = {"forward_kl": kl(P, S), "reverse_kl": kl(S, P), "jsd": 0.5 * kl(P, mixture(0.5)) + 0.5 * kl(S, mixture(0.5))}


@pytest.mark.parametrize("name", dis.DIVERGENCES)
def test_equals_numpy(name):
    terms, report = dis.distill(S, P, WEIGHTS, dis.DIVERGENCES[name], coefficient=4.0)
    totals = dis.distill_totals(WEIGHTS)
    assert float(terms["distill"].sum / totals["distill"]) == pytest.approx(np.average(NUMPY[name], weights=WEIGHTS), rel=1e-5)
    assert terms["distill"].coefficient == 4.0
    assert float(report["agreement"]) == np.sum(WEIGHTS * (S.argmax(-1) == P.argmax(-1)))
    assert not np.any(jax.grad(lambda p: dis.distill(S, p, WEIGHTS, dis.DIVERGENCES[name])[0]["distill"].sum)(P))


def test_jsd_of_weights_and_its_limits():
    np.testing.assert_allclose(dis.jsd(S, P, beta=0.1), 0.1 * kl(P, mixture(0.1)) + 0.9 * kl(S, mixture(0.1)), rtol=1e-4)
    np.testing.assert_allclose(dis.jsd(S, P, beta=1e-3) / 1e-3, NUMPY["forward_kl"], rtol=0.05)
    np.testing.assert_allclose(dis.jsd(S, P, beta=0.999) / 1e-3, NUMPY["reverse_kl"], rtol=0.05)
    with pytest.raises(ValueError, match=r"0\.0.*forward_kl"):
        dis.jsd(S, P, beta=0.0)


@pytest.mark.parametrize("name", dis.DIVERGENCES)
def test_tokens_that_the_teacher_cannot_say_add_nothing_of_it(name):
    """A forbidden token (-inf) on both sides is as if it were not in the vocabulary; its gradient is 0."""
    more = [np.concatenate([array, np.full((2, 3, 1), -np.inf, np.float32)], axis=-1) for array in (S, P)]
    np.testing.assert_allclose(dis.DIVERGENCES[name](*more), NUMPY[name], rtol=1e-5)
    assert np.isfinite(jax.grad(lambda s: dis.DIVERGENCES[name](s, more[1]).sum())(more[0])).all()


@pytest.mark.parametrize("tail", dis.TAILS)
def test_the_likeliest_tokens_and_the_rest(tail):
    top, indices = map(np.asarray, jax.lax.top_k(P, 2))
    student = np.take_along_axis(S, indices, -1)

    def whole(x):
        if tail == "renormalise":
            return x - np.log(np.exp(x).sum(-1, keepdims=True))
        return np.concatenate([x, np.log(1 - np.exp(x).sum(-1, keepdims=True))], -1)

    found = dis.likeliest(S, top, indices, tail=tail)
    for array, expected in zip(found, (whole(student), whole(top)), strict=True):
        np.testing.assert_allclose(array, expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match=r"drop.*rest, renormalise"):
        dis.likeliest(S, top, indices, tail="drop")


def test_all_of_the_vocabulary_as_the_likeliest_is_the_divergence_itself():
    top, indices = jax.lax.top_k(P, 6)
    for tail in dis.TAILS:
        np.testing.assert_allclose(dis.forward_kl(*dis.likeliest(jnp.asarray(S), top, indices, tail=tail)), NUMPY["forward_kl"], atol=1e-5)
