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
        assert (moves["paced"][i]["trunk"]["w"] != 0).all() == (i >= 2)
    if name != "muon":  # whose other parameters count on in their own state
        fresh = plain.update(jax.tree.map(lambda p: 0.1 * p, params), plain.init(params), params, step=step(2))[0]["trunk"]["w"]
        assert np.sign(moves["paced"][2]["trunk"]["w"]).tolist() == np.sign(fresh).tolist()
