"""Random parameters with which every part of a model shows: also norms and biases are drawn."""

from typing import Any

import jax
import numpy as np

from jaxllm.models.model import Model
from jaxllm.parallel.rules import path_name


def random_params(model: Model, seed: int) -> Any:
    """Float32 parameters of a model, in its own layout, the same on every machine (numpy keeps RandomState's stream frozen)."""
    single, stream = Model(model.config, scan_layers=False), np.random.RandomState(seed)

    def one(path, leaf):
        draw, name = stream.standard_normal(leaf.shape), path_name(path)
        centre = 1.0 if name.endswith("scale") and not model.config.norm_plus_one else 0.0
        return (centre + draw * (0.1 if len(leaf.shape) == 1 or "norm" in name else 1.5 * model.config.width**-0.5)).astype(np.float32)

    return single.relayout(jax.tree_util.tree_map_with_path(one, single.abstract()), model.scan_layers)
