"""FLOPs against the compiler's own count, and windows against a sum."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxllm.models import counts
from jaxllm.models.model import Model
from jaxllm.models.presets import preset

T, B = 32, 2
# Wide enough that matrix products are nearly everything; what is left are norms, activations, softmax and rotations.
SIZE = {"vocab_size": 512, "width": 256, "num_heads": 8, "head_dim": 32, "mlp_width": 768, "num_layers": 2}


@pytest.mark.parametrize("name", ["tiny_llama3", "tiny_gpt2", "tiny_gemma2", "tiny_olmo2", "tiny_pythia"])
def test_flops_against_the_compiler(name):
    """Forward and backward of the unscanned, unchunked model with plain attention, all T * T pairs, within 5 percent."""
    kv_heads = 2 if preset(name).num_groups < preset(name).num_heads else 8
    config = preset(name).replace(**SIZE, num_kv_heads=kv_heads)
    model = Model(config, scan_layers=False, attention="reference")

    def loss(params, tokens):
        log_probs = jax.nn.log_softmax(model.logits(params, model.apply(params, tokens)))
        return -jnp.mean(jnp.take_along_axis(log_probs, tokens[..., None], -1))

    tokens = jax.ShapeDtypeStruct((B, T), jnp.int32)
    compiled = jax.jit(jax.grad(loss)).lower(model.abstract(), tokens).compile({"xla_backend_optimization_level": 0})
    analysis = compiled.cost_analysis()
    measured = (analysis[0] if isinstance(analysis, list) else analysis)["flops"] / (B * T)
    expected = counts.training_flops(config, T, causal=False)
    assert 0.99 < measured / expected < 1.05, measured / expected


@pytest.mark.parametrize("window", [None, 1, 3, 7, 50])
def test_visible_pairs(window):
    expected = sum(min(t + 1, window or 10**9) for t in range(20))
    assert counts.visible_pairs(20, window) == expected


def test_w1_as_published():
    """The benchmark's 262.7 MFLOP a token: 6 times 41.7M matrix parameters and causal attention."""
    config = preset("llama2-7b").replace(vocab_size=32000, num_layers=8, width=512, num_heads=8, mlp_width=1376)
    assert counts.matmul_parameters(config) == pytest.approx(41.7e6, rel=1e-3)
    assert counts.training_flops(config, 512) == pytest.approx(262.7e6, rel=2e-3)
    assert Model(config).flops_per_token(512) == counts.training_flops(config, 512)


def test_causal_counts_half_in_the_limit():
    config = preset("tiny_llama3")
    extra = [counts.forward_flops(config, T, causal=c) - 2 * counts.matmul_parameters(config) for c in (True, False)]
    np.testing.assert_allclose(extra[0] / extra[1], (T + 1) / (2 * T))
