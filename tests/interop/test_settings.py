"""config.json in both directions: what is published gives the published presets, and nothing that changes a number is passed over."""

import pytest

from jaxllm.interop import settings
from jaxllm.interop.names import NAMES
from jaxllm.models.config import ModelConfig
from jaxllm.models.presets import PRESETS, preset
from tests.interop.published import PUBLISHED

LLAMA = PUBLISHED["llama3.2-1b"]


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_file_gives_the_published_preset(name):
    assert settings.differences(settings.read(PUBLISHED[name], "config.json")[1], preset(name)) == []


def test_every_family_has_a_published_file():
    assert {settings.read(given, "config.json")[0] for given in PUBLISHED.values()} == set(NAMES) == set(settings.SETTINGS)


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_written_and_read_back(name):
    family = settings.family_of(preset(name))
    written = settings.write(family, preset(name))
    again, config = settings.read(written, "config.json")
    assert again == family and settings.differences(config, preset(name)) == []


@pytest.mark.parametrize(
    ("change", "field", "value"),
    [
        ({"attention_bias": True}, "output_bias", True),
        ({"mlp_bias": True}, "mlp_bias", True),
        ({"hidden_act": "gelu_pytorch_tanh"}, "activation", "gelu_tanh"),
        ({"rope_theta": 7}, "rope_theta", 7.0),
        ({"rope_scaling": {"type": "linear", "factor": 2}}, "rope_scaling", (("factor", 2), ("rope_type", "linear"))),
        ({"rope_scaling": None}, "rope_scaling", None),
        ({"rope_scaling": None, "rope_parameters": {"rope_type": "default", "rope_theta": 9.0}}, "rope_theta", 9.0),
        ({"num_key_value_heads": None}, "num_kv_heads", 32),
        ({"tie_word_embeddings": False}, "tied_embeddings", False),
    ],
)
def test_a_key_reaches_its_field(change, field, value):
    assert getattr(settings.read(LLAMA | change, "config.json")[1], field) == value


def test_layers_with_and_without_windows():
    qwen = PUBLISHED["qwen2.5-0.5b"] | {"num_hidden_layers": 6, "use_sliding_window": True, "max_window_layers": 4}
    config = settings.read(qwen, "config.json")[1]
    assert [config.layer_kind(i) for i in range(6)] == ["global"] * 4 + ["local"] * 2 and config.window == 32768
    listed = PUBLISHED["gemma2-2b"] | {"num_hidden_layers": 3, "layer_types": ["full_attention", "full_attention", "sliding_attention"]}
    assert settings.read(listed, "config.json")[1].layer_pattern == ("global", "global", "local")


REFUSED = {
    "an unknown family": ({"model_type": "lama"}, "Unknown model family 'lama'.*Did you mean 'llama'"),
    "no family": ({"model_type": None}, "Unknown model family None. Choose one of: gpt2, gpt_neox, llama"),
    "an unknown rotation": (
        {"rope_scaling": {"rope_type": "longrope", "factor": 2}},
        "rope_type='longrope' is not supported; jaxllm computes",
    ),
    "an unknown entry of it": ({"rope_scaling": {"rope_type": "linear", "factor": 2, "x": 1}}, r"rope_parameters.x=1 is not supported"),
    "part of a head": ({"partial_rotary_factor": 0.5}, "partial_rotary_factor=0.5 is not supported"),
    "an unusual activation": ({"hidden_act": "quick_gelu"}, "hidden_act='quick_gelu' is not supported; jaxllm computes: silu"),
    "pairs that alternate": ({"rope_interleaved": True}, "rope_interleaved=True is not supported"),
    "a key of another family": ({"logits_scaling": 8.0}, "logits_scaling='8.0' is not a key that jaxllm knows.*take it out"),
    "numbers of few bits": ({"quantization_config": {"bits": 4}}, "quantization_config=.* is not a key that jaxllm knows"),
    "a misspelt key": ({"mlp_bais": True}, "Did you mean 'mlp_bias'"),
    "a size that is none": ({"hidden_size": "big"}, "config.json: model.width='big' is not a whole number"),
    "no size": ({"hidden_size": None}, "config.json has no hidden_size, which a llama model needs"),
    "a thousand million layers": ({"num_hidden_layers": 10**9}, "a model has 1 to 10000 layers"),
    "a table that is a word": ({"rope_scaling": "linear"}, "config.json: a value is not of the kind that its key wants"),
    "a base that is a word": ({"rope_theta": "big"}, "config.json: model.rope_theta='big' is not a number"),
    "heads that do not divide": ({"num_attention_heads": 31, "head_dim": None}, "config.json: model.width=2048 does not divide"),
}


@pytest.mark.parametrize(("change", "message"), REFUSED.values(), ids=REFUSED)
def test_what_is_not_computed_is_refused_by_name(change, message):
    with pytest.raises(ValueError, match=message) as caught:
        settings.read(LLAMA | change, "config.json")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "jaxllm computes False alone"),
        ("gemma2-2b", {"use_bidirectional_attention": True}, "use_bidirectional_attention=True"),
        ("gemma2-2b", {"query_pre_attn_scalar": 0}, "a value is not of the kind"),
        ("gemma3-1b", {"sliding_window_pattern": "x"}, "a value is not of the kind"),
        ("gemma2-2b", {"layer_types": ["full_attention"]}, "each of the 26 layers is one of"),
        ("qwen3-0.6b", {"layer_types": ["chunked_attention"] * 28}, "layer_types='chunked_attention' is not supported"),
    ],
)
def test_what_other_families_may_say(name, change, message):
    with pytest.raises(ValueError, match=message):
        settings.read(PUBLISHED[name] | change, "config.json")


def test_a_model_that_no_family_holds_names_the_nearest_and_what_it_lacks():
    odd = preset("tiny_llama3").replace(norm_placement="post")
    with pytest.raises(ValueError, match=r"No family of Hugging Face.*The nearest: .*has no model.norm_placement='post'"):
        settings.family_of(odd)


def test_a_model_of_ones_own_finds_its_family():
    assert settings.family_of(preset("tiny")) == "llama"
    assert settings.family_of(preset("tiny").replace(qk_norm="head")) == "qwen3"
    assert settings.family_of(preset("tiny").replace(layer_pattern=("local",), window=8)) == "mistral"


def test_differences_are_of_what_is_computed():
    one = preset("tiny_gemma3")
    assert settings.differences(one, one.replace(residual_dropout=0.1, init_std=0.1, layer_pattern=one.layer_pattern * 2)) == []
    assert settings.differences(one, one.replace(rope_theta=5.0)) == ["rope_theta"]
    assert isinstance(settings.canonical(one), ModelConfig)
