"""Contracts over every family: what goes in comes out bit for bit, in every dtype, layout and cut; what does not fit is named."""

import json
import re

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file

from jaxllm.interop import huggingface, places, settings
from jaxllm.interop.folders import open_folder
from jaxllm.models import quantized
from jaxllm.models.model import Model
from jaxllm.models.presets import preset
from jaxllm.parallel.mesh import make_mesh
from tests.interop import made
from tests.oracle import families

DTYPES = {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16, "float16": np.float16}


def imported(path, scan_layers=True, param_dtype="float32", mesh=None, lines=None):
    folder = open_folder(path)
    family, config = places.read_config(folder)
    model = Model(config, scan_layers=scan_layers, param_dtype=param_dtype)
    say = (lambda line: None) if lines is None else lines.append
    return family, model, huggingface.load(folder, family, model, mesh or make_mesh(devices=jax.devices()[:1]), say=say)


def exported(path, family, model, params, dtype="float32", **more):
    path.mkdir()
    huggingface.save(path, family, model.config, params, dtype, **more)
    return path


def same(one, other):
    return one.keys() == other.keys() and all(a.dtype == (b := other[name]).dtype and a.tobytes() == b.tobytes() for name, a in one.items())


@pytest.mark.parametrize("name", families.FAMILIES)
def test_what_goes_in_comes_out_bit_for_bit(name, tmp_path):
    family, model, params = imported(made.folder(name, tmp_path / "in"))
    assert settings.differences(model.config, preset(name)) == [] and family == families.FAMILIES[name]
    out = exported(tmp_path / "out", family, model, params)
    assert same(load_file(out / "model.safetensors"), made.weights(name))
    assert settings.read(json.loads((out / "config.json").read_text()), "")[1] == settings.read(made.GOLDEN[name]["config"], "")[1]


@pytest.mark.parametrize("name", families.FAMILIES)
def test_eight_devices_hold_what_one_does(name, tmp_path):
    """The layers also one by one, and the files in three."""
    path = made.folder(name, tmp_path / "in")
    _, model, alone = imported(path)
    _, _, cut = imported(made.sharded(path), mesh=make_mesh({"fsdp": 4, "tensor": 2}))
    _, _, apart = imported(path, scan_layers=False)
    for one, other in ((alone, cut), (alone, model.relayout(apart, True))):
        jax.tree.map(np.testing.assert_array_equal, one, other)
    parts = [leaf for leaf in jax.tree.leaves(cut) if not leaf.sharding.is_fully_replicated]
    assert sum(leaf.size for leaf in parts) > 0.9 * model.num_params() and parts[0].addressable_shards[0].data.size < parts[0].size


def test_a_base_is_quantised_while_it_is_read(tmp_path):
    folder = open_folder(made.folder("tiny_llama3", tmp_path / "in"))
    family, config = places.read_config(folder)
    model, mesh = Model(config), make_mesh(devices=jax.devices()[:1])
    base = huggingface.load(folder, family, model, mesh, then=lambda name, leaf: quantized.quantize_leaf(name, leaf, "int8"))
    expected = quantized.quantize_params(huggingface.load(folder, family, model, mesh), "int8")
    assert jax.tree.structure(base) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, base, expected)
    with pytest.raises(ValueError, match="layers/scanned/0/attention/key/kernel is quantised"):
        huggingface.save(tmp_path, family, config, base, "float32")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["tiny_gpt2", "tiny_phi3"])
def test_every_dtype_comes_back_from_float32(name, dtype, tmp_path):
    path = made.folder(name, tmp_path / "in", tensors=made.weights(name, DTYPES[dtype]))
    family, model, params = imported(path)
    out = exported(tmp_path / "out", family, model, params, dtype, shard_bytes=50_000)
    index = json.loads((out / "model.safetensors.index.json").read_text())
    files = sorted(out.glob("*.safetensors"))
    assert len(files) > 2 and set(index["weight_map"].values()) == {file.name for file in files}
    assert index["metadata"]["total_size"] == sum(array.nbytes for array in made.weights(name, DTYPES[dtype]).values())
    assert same({key: array for file in files for key, array in load_file(file).items()}, made.weights(name, DTYPES[dtype]))
    assert json.loads((out / "config.json").read_text())["dtype"] == dtype


def test_bfloat16_stays_bfloat16(tmp_path):
    path = made.folder("tiny_llama3", tmp_path / "in", tensors=made.weights("tiny_llama3", ml_dtypes.bfloat16))
    folder = open_folder(path)
    assert places.stored_dtype(folder, *places.read_config(folder)) == "bfloat16"
    family, model, params = imported(path, param_dtype="bfloat16")
    assert {leaf.dtype.name for leaf in jax.tree.leaves(params)} == {"bfloat16"}
    out = exported(tmp_path / "out", family, model, params, "bfloat16")
    assert same(load_file(out / "model.safetensors"), made.weights("tiny_llama3", ml_dtypes.bfloat16))


def test_older_names_and_buffers_are_known(tmp_path):
    """GPT-2 as it was first published: no prefix, masks among the weights; a tied head that was written all the same."""
    plain = {key.removeprefix("transformer."): value for key, value in made.weights("tiny_gpt2").items()}
    masks = {"h.0.attn.bias": np.ones((1, 1, 4, 4), np.uint8), "h.0.attn.masked_bias": np.full((1,), -1e9, np.float32)}
    more = {"lm_head.weight": plain["wte.weight"].copy()}
    _, _, params = imported(made.folder("tiny_gpt2", tmp_path / "old", tensors=plain | masks | more))
    _, _, expected = imported(made.folder("tiny_gpt2", tmp_path / "new"))
    jax.tree.map(np.testing.assert_array_equal, params, expected)


def test_the_text_part_of_a_model_with_images(tmp_path):
    text, config = made.weights("tiny_gemma3"), made.GOLDEN["tiny_gemma3"]["config"]
    tensors = {f"language_model.{key}": value for key, value in text.items()} | {"vision_tower.patch.weight": np.ones((2, 2), np.float32)}
    lines = []
    path = made.folder("tiny_gemma3", tmp_path / "whole", tensors=tensors)
    (path / "config.json").write_text(json.dumps({"model_type": "gemma3", "text_config": config, "vision_config": {}}))
    _, _, params = imported(path, lines=lines)
    _, _, expected = imported(made.folder("tiny_gemma3", tmp_path / "text"))
    jax.tree.map(np.testing.assert_array_equal, params, expected)
    assert lines == ["Only the text model is read: 1 tensors are left out (vision_tower)."]


def without(tensors, name):
    return {key: value for key, value in tensors.items() if key != name}


NORM = "model.norm.weight"
WRONG = {
    "missing": (lambda w: without(w, NORM), r"lacks the weight 'model.norm.weight' \(1 of 21 missing\)"),
    "left over": (
        lambda w: w | {"model.layers.0.self_attn.q_proj.bias": np.ones(64, np.float32)},
        r"'model.layers.0.self_attn.q_proj.bias', for",
    ),
    "another shape": (lambda w: w | {NORM: np.ones(3, np.float32)}, r"'model.norm.weight' is \(3,\), and config.json makes it \(64,\)"),
    "not a number": (lambda w: w | {NORM: np.full(64, np.nan, np.float32)}, "weight 'model.norm.weight' has nan among its numbers"),
    "infinite": (lambda w: w | {NORM: np.full(64, np.inf, np.float32)}, "weight 'model.norm.weight' has inf among its numbers"),
    "of whole numbers": (
        lambda w: w | {NORM: np.ones(64, np.int8)},
        "weight 'model.norm.weight' has dtype I8. Weights are read from: F32, BF16",
    ),
}


@pytest.mark.parametrize(("change", "message"), WRONG.values(), ids=WRONG)
def test_weights_that_do_not_fit_are_named(change, message, tmp_path):
    with pytest.raises(ValueError, match=message) as caught:
        imported(made.folder("tiny_llama3", tmp_path / "in", tensors=change(made.weights("tiny_llama3"))))
    assert "\n" not in str(caught.value)


def test_a_head_that_is_not_the_embedding_it_is_tied_to(tmp_path):
    tensors = made.weights("tiny_smollm2")
    head = {"lm_head.weight": tensors["model.embed_tokens.weight"] + 1}
    with pytest.raises(ValueError, match=r"tie_word_embeddings is true, but 'lm_head.weight' is not 'model.embed_tokens.weight'"):
        imported(made.folder("tiny_smollm2", tmp_path / "in", tensors=tensors | head))


def test_what_float16_cannot_hold_is_refused(tmp_path):
    tensors = made.weights("tiny_llama3") | {NORM: np.full(64, 1e6, np.float32)}
    family, model, params = imported(made.folder("tiny_llama3", tmp_path / "in", tensors=tensors))
    with pytest.raises(ValueError, match=re.escape("Weight 'model.norm.weight' has inf among its numbers")):
        exported(tmp_path / "out", family, model, params, "float16")
    with pytest.raises(ValueError, match=r"Unknown dtype 'int8'. Choose one of: float32, bfloat16, float16"):
        exported(tmp_path / "other", family, model, params, "int8")
