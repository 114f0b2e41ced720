"""Layers join from the last to the first, and until then nothing of them moves."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxllm.training.optimizers import make_optimizer
from jaxllm.training.unfreezing import unfreezing


def tree(value):
    """Five layers: two places in the pattern, twice, and one left over."""
    stack, one = {"w": jnp.full((2, 3, 3), value)}, {"w": jnp.full((3, 3), value)}
    return {
        "embedding": {"tokens": jnp.full((4, 3), value)},
        "layers": {"scanned": {"0": stack, "1": stack}, "4": one},
        "head": {"w": one["w"]},
    }


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_layers_join_one_after_the_other(name):
    optimizer = unfreezing(make_optimizer(name, 0.1, weight_decay=0.1), every=2)
    params, moves = tree(1.0), []
    state = optimizer.init(params)
    update = jax.jit(lambda state, step: optimizer.update(tree(1.0), state, params, step=step))
    for step in range(12):
        updates, state = update(state, jnp.int32(step))
        moves.append(jax.tree.map(lambda x: np.asarray(x != 0), updates))
    begins = lambda leaf: np.argmax(np.stack([leaf(move).all() for move in moves]))  # noqa: E731
    layers = [begins(lambda m, i=i: m["layers"]["scanned"][str(i % 2)]["w"][i // 2]) for i in range(4)]
    assert [*layers, begins(lambda m: m["layers"]["4"]["w"])] == [8, 6, 4, 2, 0]
    assert begins(lambda m: m["head"]["w"]) == 0 and begins(lambda m: m["embedding"]["tokens"]) == 10
    for step, move in enumerate(moves):
        assert move["layers"]["scanned"]["1"]["w"][0].any() == (step >= 6), "before its step nothing of a layer moves"


def test_what_is_frozen_for_good_stays_so():
    optimizer = unfreezing(make_optimizer("adamw", 0.1, freeze="head"), every=1)
    updates, _ = optimizer.update(tree(1.0), optimizer.init(tree(1.0)), tree(1.0), step=jnp.int32(99))
    assert updates["head"]["w"] is None and np.all(updates["layers"]["4"]["w"])


def test_moments_start_when_a_layer_joins():
    """Its first update is that of a first gradient, and not of what went by before."""
    optimizer = unfreezing(make_optimizer("sgd", 0.1, momentum=0.9), every=3)
    params = tree(0.0)
    state = optimizer.init(params)
    for step in range(4):
        updates, state = optimizer.update(tree(1.0), state, params, step=jnp.int32(step))
    np.testing.assert_allclose(updates["layers"]["scanned"]["1"]["w"][1], -0.1, rtol=1e-6)  # layer 3, from step 3 on


def test_what_cannot_be_done_is_refused():
    with pytest.raises(ValueError, match="every=0"):
        unfreezing(make_optimizer("sgd", 0.1), every=0)
    optimizer, flat = unfreezing(make_optimizer("sgd", 0.1), every=1), {"w": jnp.ones((2, 2))}
    with pytest.raises(ValueError, match="needs parameters with layers"):
        optimizer.update(flat, optimizer.init(flat), flat, step=jnp.int32(0))
