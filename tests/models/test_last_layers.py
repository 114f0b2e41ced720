"""The last layers alone: whichever layers of whichever layout, the gradient ends where they begin, and decoding goes through them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxllm.models import peft
from jaxllm.models.adapted import Adapted
from jaxllm.models.model import Model
from jaxllm.models.presets import preset
from tests.models.drawn import random_params
from tests.models.tuned import SMALL, far, quick_jit, tokens_of

CONFIG = preset("tiny_gemma2").replace(**SMALL, num_layers=5)  # two places, twice, and one left over


@pytest.mark.parametrize("layers", [2, 5])
def test_replaced_layers_are_used_merged_and_decoded(layers):
    model = Model(CONFIG)
    base = random_params(model, 0)
    method = peft.make(model, "last_n", layers=layers)
    stream = np.random.RandomState(1)
    adapters = jax.tree.map(lambda x: x + 0.1 * stream.standard_normal(x.shape).astype(np.float32), method.init(jax.random.key(0), base))
    assert sorted(adapters["last"].params) == [str(i) for i in range(5 - layers, 5)]
    tokens, params = tokens_of(), Adapted(base, adapters)

    @quick_jit
    def run(params):
        cache = model.init_cache(*tokens.shape, chunk=tokens.shape[1])
        return model.apply(params, tokens), model.decode(params, tokens, cache)[0]

    whole, cached = run(params)
    merged = method.merge(base, adapters)
    assert far(whole, cached) < 1e-5 * np.abs(whole).max()
    assert far(whole, quick_jit(model.apply)(merged, tokens)) < 1e-5 * np.abs(whole).max()
    single, old = model.relayout(merged, False)["layers"], model.relayout(base, False)["layers"]
    for i in range(5 - layers):
        jax.tree.map(np.testing.assert_array_equal, single[str(i)], old[str(i)])


def test_head_and_final_norm_may_learn_too():
    config = preset("tiny_llama3").replace(**SMALL, num_layers=2)
    model = Model(config)
    base, method = random_params(model, 0), peft.make(model, "last_n", head=True)
    adapters = method.init(jax.random.key(0), base)
    assert jax.tree.structure(adapters) == jax.tree.structure(method.axes(), is_leaf=lambda x: isinstance(x, tuple))
    doubled = {**adapters["last"].params, "head": {"kernel": 2 * base["head"]["kernel"]}}
    params = Adapted(base, {"last": type(adapters["last"])(doubled, 1)})
    hidden = jnp.ones((1, 1, config.width))
    np.testing.assert_allclose(model.logits(params, hidden), 2 * model.logits(base, hidden), rtol=1e-6)
    with pytest.raises(ValueError, match="head is its embedding"):
        peft.make(Model(CONFIG), "last_n", head=True)


def test_the_backward_pass_ends_where_the_replaced_layers_begin():
    """FLOPs of one layer's gradient out of four are far fewer than of all four."""
    model = Model(preset("tiny_llama3").replace(**SMALL, num_layers=4), scan_layers=False)

    def flops(layers):
        method = peft.make(model, "last_n", layers=layers)
        gradient = jax.grad(lambda adapters, base: jnp.sum(model.apply(Adapted(base, adapters), tokens_of()) ** 2))
        return jax.jit(gradient).lower(method.abstract(), model.abstract()).cost_analysis()["flops"]

    assert flops(1) < 0.6 * flops(4)
