"""Every preset has the published number of parameters; unknown names are answered with the nearest; depth sets all the rest."""

import itertools
import subprocess
import sys

import pytest

from jaxllm.models import counts
from jaxllm.models.presets import PUBLISHED, TINY, depth, preset

# Exact parameters of the published checkpoints: safetensors' totals on each model's page, tied embeddings once. Gemma 3 from 4B on: that
# total less SigLIP's 416,866,032 and the projector's 1152 (D + 1). GPT-2 and Pythia: without the buffers of attention masks. The shapes
# behind them were compared with github.com/Lightning-AI/litgpt, litgpt/config.py (which lacks GPT-2, Gemma 3 270M, OLMo 2 1B and 32B).
PARAMETERS = {
    "gpt2": 124_439_808,
    "gpt2-medium": 354_823_168,
    "gpt2-large": 774_030_080,
    "gpt2-xl": 1_557_611_200,
    "pythia-14m": 14_067_712,
    "pythia-31m": 30_494_720,
    "pythia-70m": 70_426_624,
    "pythia-160m": 162_322_944,
    "pythia-410m": 405_334_016,
    "pythia-1b": 1_011_781_632,
    "pythia-1.4b": 1_414_647_808,
    "pythia-2.8b": 2_775_208_960,
    "pythia-6.9b": 6_857_302_016,
    "pythia-12b": 11_846_072_320,
    "llama2-7b": 6_738_415_616,
    "llama2-13b": 13_015_864_320,
    "llama2-70b": 68_976_648_192,
    "llama3-8b": 8_030_261_248,
    "llama3-70b": 70_553_706_496,
    "llama3.1-8b": 8_030_261_248,
    "llama3.1-70b": 70_553_706_496,
    "llama3.1-405b": 405_853_388_800,
    "llama3.2-1b": 1_235_814_400,
    "llama3.2-3b": 3_212_749_824,
    "mistral-7b": 7_241_732_096,
    "mistral-7b-v0.3": 7_248_023_552,
    "phi3-mini": 3_821_079_552,
    "smollm2-135m": 134_515_008,
    "smollm2-360m": 361_821_120,
    "smollm2-1.7b": 1_711_376_384,
    "qwen2.5-0.5b": 494_032_768,
    "qwen2.5-1.5b": 1_543_714_304,
    "qwen2.5-3b": 3_085_938_688,
    "qwen2.5-7b": 7_615_616_512,
    "qwen2.5-14b": 14_770_033_664,
    "qwen2.5-32b": 32_763_876_352,
    "qwen2.5-72b": 72_706_203_648,
    "qwen3-0.6b": 596_049_920,
    "qwen3-1.7b": 1_720_574_976,
    "qwen3-4b": 4_022_468_096,
    "qwen3-8b": 8_190_735_360,
    "qwen3-14b": 14_768_307_200,
    "qwen3-32b": 32_762_123_264,
    "gemma2-2b": 2_614_341_888,
    "gemma2-9b": 9_241_705_984,
    "gemma2-27b": 27_227_128_320,
    "gemma3-270m": 268_098_176,
    "gemma3-1b": 999_885_952,
    "gemma3-4b": 4_300_079_472 - 416_866_032 - 1152 * 2561,
    "gemma3-12b": 12_187_325_040 - 416_866_032 - 1152 * 3841,
    "gemma3-27b": 27_432_406_640 - 416_866_032 - 1152 * 5377,
    "olmo2-1b": 1_484_916_736,
    "olmo2-7b": 7_298_617_344,
    "olmo2-13b": 13_716_198_400,
    "olmo2-32b": 32_234_279_936,
}


def test_every_preset_has_a_published_figure():
    assert set(PARAMETERS) == set(PUBLISHED)


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters(name):
    assert counts.parameters(preset(name)) == PARAMETERS[name]


def test_tiny_presets_are_tiny():
    assert all(counts.parameters(config) < 600_000 and config.vocab_size >= 259 for config in TINY.values())


@pytest.mark.parametrize(
    ("wrong", "right"), [("llama3_8b", "llama3-8b"), ("qwen3-8B", "qwen3-8b"), ("gpt-2", "gpt2"), ("tiny-gemma2", "tiny_gemma2")]
)
def test_unknown_preset_names_the_nearest(wrong, right):
    with pytest.raises(ValueError, match=f"Did you mean '{right}'"):
        preset(wrong)


def test_depth_is_one_dial():
    """Deeper is wider, sees more tokens in larger batches, and learns more slowly."""
    dials = [depth(n) for n in (2, 4, 8, 12, 20, 24)]
    for small, large in itertools.pairwise(dials):
        assert small.config.width < large.config.width
        assert small.batch_size <= large.batch_size
        assert small.learning_rate > large.learning_rate
        assert small.tokens < large.tokens
    for dial in dials:
        assert dial.tokens == 20 * counts.parameters(dial.config)
        assert 0 <= dial.steps * dial.batch_size * dial.sequence_length - dial.tokens < dial.batch_size * dial.sequence_length
    compute = counts.training_flops(dials[3].config, 1024) * dials[3].tokens
    assert dials[3].learning_rate == pytest.approx(0.3118 * compute**-0.125)  # DeepSeek LLM, equation 1
    assert 2**-0.5 < dials[3].batch_size * 1024 / (0.2920 * compute**0.3271) < 2**0.5


@pytest.mark.parametrize("wrong", [0, -3, "12", 1.5])
def test_depth_refuses(wrong):
    with pytest.raises(ValueError, match=r"not a number of layers"):
        depth(wrong)


def test_presets_need_no_jax():
    """`jaxllm --help` reads them."""
    program = "import sys, jaxllm.models.presets; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
