"""Weights of another run by name: loaded, renamed, skipped, resized along the vocabulary and nowhere else; and every fate is told."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxllm.stages.init_from import merge, renames

AXES = {"embedding/tokens": ("vocab", "embed"), "layers/0/up": ("embed", "mlp"), "layers/1/up": ("embed", "mlp")}


def tree(rows, width=2, value=1.0):
    return {"embedding/tokens": jnp.full((rows, width), value), "layers/0/up": jnp.full((width, 3), value)}


def test_loaded_resized_fresh_and_unused_are_told_apart():
    mine = {**tree(5, value=0.0), "layers/1/up": jnp.zeros((2, 3))}
    merged, rows = merge(mine, {**tree(3), "old/head": jnp.ones(4)}, AXES, {}, [])
    assert np.asarray(merged["embedding/tokens"]).sum(1).tolist() == [2, 2, 2, 0, 0]
    assert merged["layers/0/up"].sum() == 6 and merged["layers/1/up"].sum() == 0
    assert dict(rows) == {
        "embedding/tokens": "loaded, vocabulary 3 -> 5",
        "layers/0/up": "loaded",
        "layers/1/up": "fresh: no layers/1/up there",
        "old/head": "not used",
    }


def test_renamed_and_skipped():
    theirs = {"embedding/tokens": jnp.ones((5, 2)), "blocks/0/up": jnp.ones((2, 3))}
    merged, rows = merge(tree(5, value=0.0), theirs, AXES, renames([r"layers/(\d+)/up=blocks/\1/up"]), ["embedding/.*"])
    assert merged["layers/0/up"].sum() == 6 and merged["embedding/tokens"].sum() == 0
    assert dict(rows)["layers/0/up"] == "loaded from blocks/0/up" and dict(rows)["embedding/tokens"] == "fresh (init_skip)"


def test_another_size_is_refused_but_for_the_vocabulary():
    with pytest.raises(ValueError, match="Only the vocabulary may differ"):
        merge(tree(5, width=2), tree(5, width=4), AXES, {}, [])


@pytest.mark.parametrize("pair", ["no equals sign", "(=b"])
def test_a_rename_that_is_none(pair):
    with pytest.raises(ValueError, match="init_rename"):
        renames([pair])
