"""Log-probabilities and entropies at a temperature, against the logits themselves."""

import jax
import numpy as np
import pytest

from jaxllm.models.config import ModelConfig
from jaxllm.models.model import Model
from jaxllm.rollouts.scoring import Scorer, forward, token_entropies, token_log_probs

SHAPE = ModelConfig(vocab_size=40, num_layers=1, width=16, num_heads=2, num_kv_heads=1, mlp_width=32)


@pytest.fixture(scope="module", params=[None, 3.0], ids=["plain", "softcap"])
def found(request):
    """Model, parameters, rows, hidden states and logits."""
    model = Model(SHAPE.replace(logit_softcap=request.param), scan_layers=False)
    params = jax.tree.map(lambda leaf: 3 * leaf, model.init(jax.random.key(0)))
    tokens = np.random.default_rng(0).integers(0, 40, (2, 7)).astype(np.int32)
    batch = {"tokens": tokens, "segments": np.ones_like(tokens), "positions": np.broadcast_to(np.arange(7, dtype=np.int32), (2, 7))}
    hidden = forward(model, params, batch)
    return model, params, np.roll(tokens, -1, 1), hidden, np.asarray(model.logits(params, hidden), np.float64)


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_trap_3_the_temperature_is_in_everything(found, temperature):
    model, params, targets, hidden, logits = found
    cooled = logits / temperature
    expected = cooled - np.log(np.exp(cooled).sum(-1, keepdims=True))
    weights = np.arange(7) % 3 * np.ones((2, 1), np.float32)
    log_probs = token_log_probs(model, params, hidden, targets, weights, temperature)
    np.testing.assert_allclose(log_probs, np.where(weights, np.take_along_axis(expected, targets[..., None], -1)[..., 0], 0), atol=1e-5)
    entropies = token_entropies(model, params, hidden, temperature)
    np.testing.assert_allclose(entropies, -(np.exp(expected) * expected).sum(-1), atol=1e-5)


def test_the_gradient_of_the_entropy_is_its_own(found):
    model, params, _, hidden, _ = found
    step = 0.01 * np.asarray(jax.random.normal(jax.random.key(1), hidden.shape))
    total = lambda x: token_entropies(model, params, x).sum()  # noqa: E731
    slope = float((jax.grad(total)(hidden) * step).sum())
    assert slope == pytest.approx(float(total(hidden + step) - total(hidden - step)) / 2, rel=2e-2)


def test_rows_that_do_not_divide_are_looked_at_all_the_same():
    """Five rows, four at a time: the last part is filled up, so nothing compiles twice, and what fills it is nobody's."""
    model = Model(SHAPE, scan_layers=False)
    params, tokens = model.init(jax.random.key(0)), np.random.default_rng(1).integers(0, 40, (5, 7)).astype(np.int32)
    rows = {"tokens": tokens, "targets": np.roll(tokens, -1, 1), "segments": np.ones_like(tokens), "weights": np.ones((5, 7), np.float32)}
    rows["positions"] = np.broadcast_to(np.arange(7, dtype=np.int32), (5, 7))
    shapes = []

    def place(part):
        shapes.append(part["tokens"].shape[0])
        return dict(part)

    found = Scorer(model, 1.0, place, 4).log_probs(params, rows)
    whole = Scorer(model, 1.0, dict, 5).log_probs(params, rows)
    np.testing.assert_allclose(found, whole, atol=1e-6)
    assert found.shape == (5, 7) and shapes == [4, 4]
