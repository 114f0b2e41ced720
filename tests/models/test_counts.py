"""FLOPs against the compiler's own count, pairs against attention's own mask."""

import jax
import jax.numpy as jnp
import pytest

from jaxllm.models import counts
from jaxllm.models.model import Model
from jaxllm.models.presets import preset
from jaxllm.ops.visibility import Side, visible

T = 1024
# Long and with large heads: attention is more than half of the count. A score costs 12 H = 3072 FLOPs of matrix products and some 25 of
# softmax and mask, forward and backward; norms, activations and the softmax over V are as little beside their products: 2 percent in all.
SIZE = {"vocab_size": 256, "width": 256, "num_heads": 2, "head_dim": 256, "mlp_width": 512, "num_layers": 2, "max_positions": T}
NAMES = ["tiny_llama3", "tiny_gpt2", "tiny_gemma2", "tiny_olmo2", "tiny_pythia"]


def large(name):
    """The preset's choices at that size; one kv head for two query heads where the preset groups them."""
    return preset(name).replace(**SIZE, num_kv_heads=1 if preset(name).num_groups < preset(name).num_heads else 2)


def compiled_flops(config, remat):
    """Of forward and backward, per token, by the compiler."""
    model = Model(config, scan_layers=False, attention="reference", remat=remat)

    def loss(params, tokens):
        log_probs = jax.nn.log_softmax(model.logits(params, model.apply(params, tokens)))
        return -jnp.mean(jnp.take_along_axis(log_probs, tokens[..., None], -1))

    tokens = jax.ShapeDtypeStruct((1, T), jnp.int32)
    compiled = jax.jit(jax.grad(loss)).lower(model.abstract(), tokens).compile({"xla_backend_optimization_level": 0})
    analysis = compiled.cost_analysis()
    return (analysis[0] if isinstance(analysis, list) else analysis)["flops"] / T


@pytest.mark.parametrize("name", NAMES)
def test_flops_against_the_compiler(name):
    """Forward and backward of the unscanned, unchunked model with plain attention, which computes all T * T pairs, windows or not."""
    config = large(name)
    measured = compiled_flops(config, "none")
    expected = counts.training_flops(config, T, causal=False)
    assert expected > 2 * 6 * counts.matmul_parameters(config)  # the other half is attention
    assert 1 < measured / expected < 1.02, measured / expected


@pytest.mark.parametrize(("name", "remat"), [("tiny_llama3", "full"), ("tiny_llama3", "dots"), ("tiny_pythia", "full")])
def test_what_remat_runs_again_against_the_compiler(name, remat):
    """A lower bound: plain attention's softmax and the norms come on top, in the compiler's count."""
    config = large(name)
    more = compiled_flops(config, remat) - compiled_flops(config, "none")
    expected = counts.recomputed_flops(config, T, remat, causal=False)
    assert 0.98 < more / expected < 1.1, more / expected


@pytest.mark.parametrize("name", [*NAMES, "tiny_gemma3"])
def test_causal_and_windowed_counts_are_the_mask_s(name):
    """What is left of all T * T pairs is what attention's own mask lets through, layer by layer."""
    config, index = large(name), jnp.arange(T)[None]
    side = Side(index, jnp.ones_like(index))
    hidden = 0
    for layer in range(config.num_layers):
        window = config.window if config.layer_kind(layer) == "local" else None
        hidden += T * T - int(visible(side, side, "causal", window).sum())
    whole, seen = (counts.forward_flops(config, T, causal=c) for c in (False, True))
    assert whole - seen == pytest.approx(4 * config.num_heads * config.head_size * hidden / T, rel=1e-12)


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
