"""Every family against transformers: its random model goes in and gives the same logits, goes out and is loaded again; all bit for bit."""

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from jaxllm.interop import huggingface, places
from jaxllm.interop.folders import open_folder
from jaxllm.models.model import Model
from jaxllm.models.presets import preset
from jaxllm.parallel.mesh import make_mesh
from tests.oracle import families

pytestmark = pytest.mark.oracle
pytest.importorskip("transformers")

PROMPT = 25  # tokens of 40 that are prefilled, the rest is decoded one by one
PADDING = 7  # tokens of padding before the second row


@pytest.fixture(scope="module", params=families.FAMILIES)
def both(request, tmp_path_factory):
    """A model that transformers made and wrote, and what we read: (name, theirs, folder, family, ours, params)."""
    theirs = families.reference_model(request.param)
    path = tmp_path_factory.mktemp(request.param)
    theirs.save_pretrained(path)
    folder = open_folder(path)
    family, config = places.read_config(folder)
    model = Model(config)
    params = huggingface.load(folder, family, model, make_mesh(devices=jax.devices()[:1]))
    return request.param, theirs, path, family, model, params


def logits(model, params, tokens, **more):
    with jax.default_matmul_precision("highest"):
        return np.asarray(jax.jit(lambda p, t: model.logits(p, model.apply(p, t, **more)))(params, tokens))


def decoded(model, params, tokens, padding):
    """Logits of a prefill and then of single tokens, through the cache; the second row lacks its first tokens, which are padding."""
    first = jax.jit(lambda p, t, c, n: model.decode(p, t, c, counts=n, fresh=True))
    step = jax.jit(lambda p, t, c, n: model.decode(p, t, c, counts=n))
    cache, counts, prompts = model.init_cache(*tokens.shape), np.array([PROMPT, PROMPT - padding], np.int32), tokens[:, :PROMPT].copy()
    prompts[1] = np.roll(prompts[1], -padding)
    with jax.default_matmul_precision("highest"):
        hidden, cache = first(params, prompts, cache, counts)
        found = [np.stack([np.roll(row, shift, axis=0) for row, shift in zip(model.logits(params, hidden), (0, padding), strict=True)])]
        for i in range(PROMPT, tokens.shape[1]):
            hidden, cache = step(params, tokens[:, i : i + 1], cache, np.ones(2, np.int32))
            found.append(np.asarray(model.logits(params, hidden)))
    return np.concatenate(found, axis=1)


def test_logits_equal_transformers(both, record_property):
    name, theirs, _, family, model, params = both
    assert family == families.FAMILIES[name]
    tokens = families.random_tokens(model.config)
    expected = families.reference_logits(theirs, tokens)
    assert expected.std() > 0.5  # logits that say something
    off = np.abs(logits(model, params, tokens) - expected).max()
    record_property("max_difference", float(off))
    assert off < 1e-4


@pytest.mark.parametrize("padding", [0, PADDING])
def test_prefill_and_cached_decode_equal_transformers(both, padding, record_property):
    _, theirs, _, _, model, params = both
    tokens, mask = families.random_tokens(model.config), np.ones((2, 40), np.int64)
    mask[1, :padding] = 0
    expected = families.reference_logits(theirs, tokens, mask if padding else None)
    found = decoded(model, params, tokens, padding)
    off = np.abs(found - expected)[mask > 0].max()
    record_property("max_difference", float(off))
    assert off < 1e-4


def test_what_goes_out_is_loaded_by_transformers(both, tmp_path):
    import transformers

    _, theirs, path, family, model, params = both
    huggingface.save(tmp_path, family, model.config, params, "float32", shard_bytes=200_000)
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager")
    assert type(again) is type(theirs) and next(again.parameters()).dtype.is_floating_point
    tokens = families.random_tokens(model.config)
    np.testing.assert_array_equal(families.reference_logits(again, tokens), families.reference_logits(theirs, tokens))
    written = {key: array for file in tmp_path.glob("*.safetensors") for key, array in load_file(file).items()}
    before = load_file(path / "model.safetensors")
    assert written.keys() == before.keys() and all(written[key].tobytes() == before[key].tobytes() for key in before)


@pytest.mark.parametrize("name", ["tiny_llama3.1", "tiny_gemma3", "tiny_pythia"])
def test_the_comparison_sees_a_wrong_position(name, tmp_path):
    theirs = families.reference_model(name)
    theirs.save_pretrained(tmp_path)
    folder = open_folder(tmp_path)
    family, config = places.read_config(folder)
    wrong = Model(config.replace(rope_theta=config.rope_theta * 1.5))
    params = huggingface.load(folder, family, wrong, make_mesh(devices=jax.devices()[:1]))
    tokens = families.random_tokens(config)
    assert np.abs(logits(wrong, params, tokens) - families.reference_logits(theirs, tokens)).max() > 1e-3


SCALINGS = {
    "linear": {"rope_type": "linear", "factor": 4.0},
    "dynamic": {"rope_type": "dynamic", "factor": 4.0},
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64},
    "yarn of its own factor": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "attention_factor": 0.8},
}


@pytest.mark.parametrize("scaling", SCALINGS.values(), ids=SCALINGS)
@pytest.mark.parametrize("old", [False, True], ids=["rope_parameters", "rope_scaling"])
def test_other_scalings_of_positions(scaling, old, tmp_path):
    import json

    theirs = families.reference_model("tiny_llama3")
    theirs.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    said = json.loads(path.read_text())
    said.pop("rope_parameters")
    more = {"rope_scaling": scaling, "rope_theta": 10_000.0} if old else {"rope_parameters": {**scaling, "rope_theta": 10_000.0}}
    path.write_text(json.dumps(said | more))
    import transformers

    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager")
    folder = open_folder(tmp_path)
    family, config = places.read_config(folder)
    model = Model(config)
    params = huggingface.load(folder, family, model, make_mesh(devices=jax.devices()[:1]))
    tokens = families.random_tokens(preset("tiny_llama3"))
    assert np.abs(logits(model, params, tokens) - families.reference_logits(theirs, tokens)).max() < 1e-4
