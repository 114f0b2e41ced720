"""Parameters at a pace of their own: alone at first, then at their rate; the others are as they would be without them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxllm.training.apart import apart
from jaxllm.training.optimizers import OPTIMIZERS, make_optimizer


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_first_alone_and_at_their_own_rate(name):
    params = {"scores": {"w": jnp.full((4, 4), 0.5)}, "trunk": {"w": jnp.full((4, 4), 0.5)}}
    plain = make_optimizer(name, 0.01, weight_decay=0.1)
    paced, state = apart(plain, "^scores/", factor=3.0, alone=2), plain.init(params)
    steps, step = {"plain": (plain, state, params), "paced": (paced, state, params)}, jnp.int32
    moves = {"plain": [], "paced": []}
    for i in range(3):
        for kind, (optimizer, own, _) in steps.items():
            updates, own = optimizer.update(jax.tree.map(lambda p: 0.1 * p, params), own, params, step=step(i))
            steps[kind] = (optimizer, own, params)
            moves[kind].append(updates)
    for i in range(3):
        np.testing.assert_allclose(moves["paced"][i]["scores"]["w"], 3 * moves["plain"][i]["scores"]["w"], rtol=1e-6)
        expected = moves["plain"][i]["trunk"]["w"] if i >= 2 else np.zeros((4, 4))
        np.testing.assert_array_equal(moves["paced"][i]["trunk"]["w"], expected)


def test_what_joins_after_a_long_wait_moves_at_its_rate():
    """Adam divides by what it has seen: moments that began with nothing when the rest joined would make steps of five times the rate."""
    params = {"scores": {"w": jnp.ones((2, 2))}, "trunk": {"w": jnp.ones((2, 2))}}
    optimizer = apart(make_optimizer("adamw", 0.01, weight_decay=0.0, b2=0.999), "^scores/", alone=400)
    state = optimizer.init(params)
    update = jax.jit(lambda state, step: optimizer.update(params, state, params, step=step))
    steps = []
    for step in range(420):
        updates, state = update(state, jnp.int32(step))
        steps.append(float(-updates["trunk"]["w"][0, 0]))
    assert not any(steps[:400])
    np.testing.assert_allclose(steps[400:], 0.01, rtol=1e-3)
