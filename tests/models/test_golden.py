"""Parity with transformers without transformers: stored logits of every family (made by tests/oracle/make_golden.py)."""

import jax
import numpy as np
import pytest

from jaxllm.models.model import Model
from jaxllm.models.presets import preset
from tests.oracle import families
from tests.oracle.make_golden import COLUMNS, PATH, SEED


@pytest.mark.parametrize("name", families.FAMILIES)
def test_logits_equal_the_stored_ones(name):
    config = preset(name)
    model = Model(config)
    params = families.random_params(config, Model(config, scan_layers=False).abstract(), SEED)
    with jax.default_matmul_precision("highest"):
        forward = jax.jit(lambda p, t: model.logits(p, model.apply(p, t)), compiler_options={"xla_backend_optimization_level": 0})
        logits = forward(model.relayout(families.nest(params), True), families.random_tokens(config))
    expected = np.load(PATH)[name]
    assert np.abs(np.asarray(logits)[..., COLUMNS] - expected).max() < 1e-4
