"""Heads: read at the last real token wherever padding stands, members that differ, priors that stay as they were drawn."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxllm.models import heads
from jaxllm.models.adapted import Adapted
from jaxllm.models.heads import Head

KINDS = {
    "scalar": Head(6),
    "classes": Head(6, num_outputs=3),
    "ensemble": Head(6, num_members=4, hidden=(5,), prior=2.0),
}


def by_hand(head, params, x):
    """[M, C] of one hidden state, member by member."""

    def net(tree, m):
        y = np.asarray(x, np.float64)
        layers = [tree[f"layer_{i}"] for i in range(1 + len(head.hidden))]
        for i, layer in enumerate(layers):
            y = y @ np.asarray(layer["kernel"][m]) + np.asarray(layer["bias"][m])
            y = np.maximum(y, 0) if i + 1 < len(layers) else y
        return y

    return np.stack([net(params, m) + (head.prior * net(params["prior"], m) if head.prior else 0) for m in range(head.num_members)])


@pytest.mark.parametrize("kind", KINDS)
def test_a_head_is_its_members_one_by_one(kind):
    head = KINDS[kind]
    params, x = head.init(jax.random.key(0)), np.random.RandomState(0).randn(2, 3, 6)
    found = head.apply(params, jnp.asarray(x))
    assert found.shape == (2, 3, head.num_members, head.num_outputs) and found.dtype == jnp.float32
    np.testing.assert_allclose(found[1, 2], by_hand(head, params, x[1, 2]), atol=1e-5)
    is_axes = lambda node: isinstance(node, tuple)  # noqa: E731
    assert jax.tree.structure(params) == jax.tree.structure(head.axes(), is_leaf=is_axes)
    gradient = jax.grad(lambda p: jnp.sum(head.apply(p, jnp.asarray(x)) ** 2))(params)
    assert all(not np.any(leaf) for leaf in jax.tree.leaves(gradient.get("prior", {})))
    assert all(np.any(leaf) for name, tree in gradient.items() if name != "prior" for leaf in jax.tree.leaves(tree))


def test_kernels_are_drawn_as_wide_as_published():
    drawn = Head(256, num_outputs=400).init(jax.random.key(1))["layer_0"]
    assert abs(float(jnp.std(drawn["kernel"])) * np.sqrt(257) - 1) < 0.02 and not np.any(drawn["bias"])


def test_the_last_token_of_a_segment_is_read_wherever_padding_stands():
    # [answer 0: 3 tokens][answer 2: 2 tokens], slot 1 is empty; padding left, right, between; a row full to its end
    places = [[1, 1, 1, 3, 3, 0, 0], [0, 0, 1, 1, 1, 3, 3], [1, 1, 1, 0, 0, 3, 3]]
    segments = np.asarray(places, np.int32)
    positions = np.stack([[np.sum(row[:t] == s) if s else 0 for t, s in enumerate(row)] for row in segments]).astype(np.int32)
    hidden = np.random.RandomState(0).randn(3, 7, 2).astype(np.float32)
    lengths = np.tile(np.asarray([3, 0, 2], np.int32), (3, 1))
    found = heads.last_of_segments(hidden, segments, positions, lengths)
    for b, row in enumerate(segments):
        for slot in (0, 2):
            np.testing.assert_array_equal(found[b, slot], hidden[b, np.flatnonzero(row == slot + 1)[-1]])
    sums = heads.sums_of_segments(jnp.asarray(hidden[..., 0]), segments, 3)
    np.testing.assert_allclose(sums[2], [hidden[2, :3, 0].sum(), 0, hidden[2, 5:, 0].sum()], rtol=1e-6)


def test_a_head_is_found_beside_any_trunk():
    head = {"layer_0": 1}
    assert heads.of(heads.joined({"layers": {}}, head)) is head
    both = heads.joined(Adapted({"layers": {}}, {"layers": {"0": {}}}), head)
    assert isinstance(both, Adapted) and heads.of(both) is head and heads.NAME not in both.adapters
