"""Parity with transformers without transformers: its folders and its logits of every family (made by tests/oracle/make_golden.py)."""

import jax
import numpy as np
import pytest

from jaxllm.interop import huggingface, places
from jaxllm.interop.folders import open_folder
from jaxllm.models.model import Model
from jaxllm.parallel.mesh import make_mesh
from tests.interop import made
from tests.oracle import families
from tests.oracle.make_golden import COLUMNS, LOGITS


@pytest.mark.parametrize("name", families.FAMILIES)
def test_logits_equal_the_stored_ones(name, tmp_path):
    folder = open_folder(made.folder(name, tmp_path / "model"))
    family, config = places.read_config(folder)
    model = Model(config)
    params = huggingface.load(folder, family, model, make_mesh(devices=jax.devices()[:1]))
    with jax.default_matmul_precision("highest"):
        forward = jax.jit(lambda p, t: model.logits(p, model.apply(p, t)), compiler_options={"xla_backend_optimization_level": 0})
        logits = forward(params, families.random_tokens(config))
    expected = np.load(LOGITS)[name]
    assert expected.std() > 0.5
    assert np.abs(np.asarray(logits)[..., COLUMNS] - expected).max() < 1e-4
