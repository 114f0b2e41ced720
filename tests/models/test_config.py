"""ModelConfig refuses what makes no model, by name and with the remedy, and is otherwise a plain hashable record."""

import numpy as np
import pytest

from jaxllm.models.config import ModelConfig

BASE = {"vocab_size": 64, "num_layers": 4, "width": 32, "num_heads": 4, "mlp_width": 64}

WRONG = [
    ({"num_heads": 5}, "does not divide by model.num_heads=5.*Choose num_heads from"),
    ({"num_kv_heads": 3}, r"num_kv_heads=3 does not divide model.num_heads=4.*\[1, 2, 4\]"),
    ({"vocab_size": 0}, "model.vocab_size=0 is not a size"),
    ({"num_layers": 2.5}, "model.num_layers=2.5 is not a whole number"),
    ({"num_layers": True}, "model.num_layers=True is not a whole number"),
    ({"attention_softcap": "abc"}, "model.attention_softcap='abc' is not a number"),
    ({"tied_embeddings": 1}, "model.tied_embeddings=1 is not True or False"),
    ({"layer_pattern": "local"}, "model.layer_pattern='local' is not a list of layer kinds"),
    ({"rope_scaling": (1, 2)}, "is not a table or None"),
    ({"rope_scaling": 5}, "model.rope_scaling=5 is not a table or None"),
    ({"layer_pattern": ("local",), "window": 1.5}, "model.window=1.5 is not a whole number"),
    ({"activation": "swish"}, "Unknown model.activation='swish'. Choose one of: silu"),
    ({"activation": "gelu_tan"}, "Did you mean 'gelu_tanh'"),
    ({"norm": "rms_norm"}, "Did you mean 'rmsnorm'"),
    ({"qk_norm": "heads"}, "Choose one of: None, head, projection"),
    ({"block": "parallel", "norm_placement": "sandwich"}, "not a published block"),
    ({"rope_theta": -1.0}, "rope_theta=-1.0 is not a base of frequencies"),
    ({"local_rope_theta": 0}, "local_rope_theta=0 is not a base"),
    ({"rope_scaling": {"rope_type": "linear", "factor": 0}}, "factor=0. Give a number above 0"),
    ({"rope_scaling": {"rope_type": "linear", "factor": "x"}}, "factor='x'. Give a number above 0"),
    ({"rope_fraction": 0.4}, "rotates 3.2 dims"),
    ({"rope_scaling": {"rope_type": "ntk"}}, "Unknown rope_type 'ntk'.*linear, dynamic, yarn, llama3"),
    ({"rope_scaling": {"rope_type": "linear", "factor": 2.0}, "positions": "learned"}, "Set positions='rope'"),
    ({"layer_pattern": ("local",)}, "model.window=None must be >= 1"),
    ({"layer_pattern": ("sliding",)}, "non-empty list of: global, local"),
    ({"layer_pattern": ()}, "non-empty list"),
    ({"window": 8}, "no 'local' layer"),
    ({"residual_dropout": 1.0}, "not a probability"),
    ({"logit_softcap": 0.0}, "must be positive. None turns it off"),
]


@pytest.mark.parametrize(("fields", "message"), WRONG)
def test_wrong_fields_are_explained(fields, message):
    with pytest.raises(ValueError, match=message):
        ModelConfig(**{**BASE, **fields})


def test_what_is_left_out_is_derived():
    config = ModelConfig(**BASE)
    assert (config.num_kv_heads, config.head_dim) == (4, 8)
    wider = config.replace(width=64, num_heads=2)
    assert (wider.num_kv_heads, wider.head_dim) == (2, 32)
    grouped = ModelConfig(**BASE, num_kv_heads=2, head_dim=16).replace(num_layers=8)
    assert (grouped.num_kv_heads, grouped.head_dim) == (2, 16)


def test_replace_names_the_nearest_field():
    with pytest.raises(ValueError, match=r"Unknown model field 'num_layer'. Did you mean 'num_layers'"):
        ModelConfig(**BASE).replace(num_layer=3)


def test_equal_configs_hash_equal():
    """It is part of what is compiled; rope_scaling and layer_pattern may come as dict and list."""
    scaling = {"rope_type": "linear", "factor": 4.0}
    a = ModelConfig(**BASE, rope_scaling=scaling, layer_pattern=["local", "global"], window=4)
    b = ModelConfig(**BASE, rope_scaling=dict(reversed(scaling.items())), layer_pattern=("local", "global"), window=4)
    assert a == b
    assert hash(a) == hash(b)
    assert a.rope_scaling_dict == scaling
    assert a.replace(width=64).rope_scaling_dict == scaling


@pytest.mark.parametrize("name", ["rope_type", "type"])
def test_rope_scaling_says_what_hugging_face_leaves_out(name):
    assert ModelConfig(**BASE, rope_scaling={name: "default"}) == ModelConfig(**BASE)
    dynamic = {name: "dynamic", "factor": 2.0}
    filled = ModelConfig(**BASE, max_positions=512, rope_scaling=dynamic)
    assert filled.rope_scaling_dict == {**dynamic, "original_max_position_embeddings": 512}
    longer = filled.replace(max_positions=1024)  # stretched: what it was made for stays
    assert longer.rope_scaling_dict == filled.rope_scaling_dict
    given = {**dynamic, "original_max_position_embeddings": 256}
    assert ModelConfig(**BASE, rope_scaling=given).rope_scaling_dict == given


@pytest.mark.parametrize(("layers", "repeats", "rest"), [(1, 0, (0,)), (6, 2, ()), (8, 2, (6, 7))])
def test_layers_follow_the_pattern(layers, repeats, rest):
    config = ModelConfig(**{**BASE, "num_layers": layers}, layer_pattern=("local", "local", "global"), window=4)
    assert (config.num_repeats, config.remainder) == (repeats, rest)
    assert [config.layer_kind(i) for i in range(layers)] == (["local", "local", "global"] * 3)[:layers]


def test_numbers_of_numpy_and_tables_from_json_are_taken():
    config = ModelConfig(
        **{**BASE, "width": np.int64(32)}, norm_epsilon=np.float64(1e-5), rope_scaling=[["rope_type", "linear"], ["factor", 2]]
    )
    assert config.width == 32 and config.rope_scaling_dict == {"rope_type": "linear", "factor": 2}
    assert ModelConfig(**BASE, rope_scaling=[]).rope_scaling is None
