"""Every family against transformers: a tiny random model, the same weights, the same logits."""

import jax
import numpy as np
import pytest

from jaxllm.models.model import Model
from jaxllm.models.presets import preset
from tests.oracle import families

pytestmark = pytest.mark.oracle
pytest.importorskip("transformers")


def ours(name: str, params: families.Arrays, tokens: np.ndarray) -> np.ndarray:
    model = Model(preset(name), scan_layers=False)
    with jax.default_matmul_precision("highest"):
        tree = families.nest(params)
        return np.asarray(jax.jit(lambda p, t: model.logits(p, model.apply(p, t)))(tree, tokens))


@pytest.mark.parametrize("name", families.FAMILIES)
def test_logits_equal_transformers(name):
    config = preset(name)
    params = families.random_params(config, Model(config, scan_layers=False).abstract(), seed=3)
    tokens = families.random_tokens(config)
    expected = families.reference_logits(name, params, tokens)
    assert expected.std() > 0.5  # logits that say something
    assert np.abs(ours(name, params, tokens) - expected).max() < 1e-4


@pytest.mark.parametrize("name", ["tiny_llama3.1", "tiny_gemma3", "tiny_pythia"])
def test_the_comparison_sees_a_wrong_position(name):
    config = preset(name)
    params = families.random_params(config, Model(config, scan_layers=False).abstract(), seed=3)
    tokens = families.random_tokens(config)
    wrong = Model(config.replace(rope_theta=config.rope_theta * 1.5), scan_layers=False)
    logits = wrong.logits(families.nest(params), wrong.apply(families.nest(params), tokens))
    assert np.abs(np.asarray(logits) - families.reference_logits(name, params, tokens)).max() > 1e-3
