"""Parity with PEFT without PEFT: its folders and logits (tests/oracle/make_golden_peft.py), what goes out again, what is refused."""

import json
import math

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jaxllm.interop import huggingface, peft_folders, peft_writing, places
from jaxllm.interop.folders import open_folder
from jaxllm.models import peft
from jaxllm.models.adapted import Adapted
from jaxllm.models.model import Model
from jaxllm.models.presets import preset
from jaxllm.parallel.mesh import make_mesh
from tests.interop import made
from tests.oracle import families, peft_cases
from tests.oracle.make_golden import COLUMNS
from tests.oracle.make_golden_peft import FOLDERS, LOGITS

GOLDEN = json.loads(FOLDERS.read_text())
QUICK = {"xla_backend_optimization_level": 0}


def folder(case, path, tensors=None, **config):
    """Writes a golden folder of PEFT's, with other tensors or other entries of its config where they are given."""
    path.mkdir(exist_ok=True)
    (path / peft_folders.CONFIG).write_text(json.dumps(GOLDEN[case]["config"] | config))
    save_file(peft_cases.drawn(GOLDEN[case]["tensors"]) if tensors is None else tensors, path / peft_folders.WEIGHTS)
    return path


def mesh():
    return make_mesh(devices=jax.devices()[:1])


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """preset -> family, Model, parameters, logits by parameters; each made once."""
    kept = {}

    def base(name):
        if name not in kept:
            opened = open_folder(made.folder(name, tmp_path_factory.mktemp(name)))
            family, config = places.read_config(opened)
            model = Model(config)
            tokens = families.random_tokens(config)
            kept[name] = family, model, huggingface.load(opened, family, model, mesh()), lambda p: _logits(model, p, tokens)
        return kept[name]

    return base


def _logits(model, params, tokens):
    with jax.default_matmul_precision("highest"):
        return np.asarray(jax.jit(lambda p: model.logits(p, model.apply(p, tokens)), compiler_options=QUICK)(params))


@pytest.mark.parametrize("case", GOLDEN)
def test_logits_equal_the_stored_ones_and_what_goes_out_is_the_same(case, bases, tmp_path):
    family, model, base, logits = bases(peft_cases.CASES[case][0])
    found = peft_folders.read(peft_folders.open_adapters(folder(case, tmp_path / "in")), family, model)
    adapters = peft_folders.place(found, mesh())
    expected = np.load(LOGITS)[case]
    assert np.abs(logits(Adapted(base, adapters))[..., COLUMNS] - expected).max() < 1e-4
    (tmp_path / "out").mkdir()
    peft_writing.save(tmp_path / "out", family, found.method, adapters)
    before, after = (load_file(tmp_path / side / peft_folders.WEIGHTS) for side in ("in", "out"))
    if "pattern" not in case and "one layer" not in case and not GOLDEN[case]["config"].get("rank_pattern"):
        assert before.keys() <= after.keys()  # an IA3 that leaves keys and values alone has ones there now
        for name, tensor in after.items():
            np.testing.assert_array_equal(tensor, before.get(name, np.ones_like(tensor)))
    again = peft_folders.read(peft_folders.open_adapters(tmp_path / "out"), family, model)
    back = peft_folders.place(again, mesh())
    assert jax.tree.structure(back) == jax.tree.structure(adapters)
    for a, b in zip(jax.tree.leaves(back), jax.tree.leaves(adapters), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(("name", "method"), [("tiny_gpt2", "dora"), ("tiny_pythia", "rslora"), ("tiny_phi3", "lora")])
def test_our_own_adapters_of_fused_layers_go_out_exactly(name, method, bases, tmp_path):
    """q, k and v with As of their own are one layer of theirs, at three times the rank."""
    family, model, base, logits = bases(name)
    maker = peft.make(model, method, rank=2, alpha=3.0)
    adapters = jax.jit(maker.init, compiler_options=QUICK)(jax.random.key(0), base)
    adapters = jax.tree.map(lambda leaf: leaf + 0.1 * jax.random.normal(jax.random.key(leaf.size), leaf.shape), adapters)
    peft_writing.save(tmp_path, family, maker, adapters)
    found = peft_folders.read(peft_folders.open_adapters(tmp_path), family, model)
    assert found.method.rank == 6 and math.isclose(found.method.scale, maker.scale, rel_tol=1e-6)
    expected = logits(Adapted(base, adapters))
    assert np.abs(expected - logits(base)).max() > 0.1
    np.testing.assert_allclose(logits(Adapted(base, peft_folders.place(found, mesh()))), expected, atol=2e-5)


def test_one_by_one_and_on_a_mesh(bases, tmp_path):
    family, model, _, _ = bases("tiny_gemma3")
    opened = peft_folders.open_adapters(folder("tiny_gemma3 lora", tmp_path / "in"))
    single = Model(model.config, scan_layers=False)
    apart = peft_folders.place(peft_folders.read(opened, family, single), mesh())
    stacked = peft_folders.place(peft_folders.read(opened, family, model), make_mesh({"fsdp": 2, "tensor": 2}, devices=jax.devices()[:4]))
    for a, b in zip(jax.tree.leaves(apart), jax.tree.leaves(single.relayout(stacked, False)), strict=True):
        np.testing.assert_array_equal(a, b)
    up = stacked["layers"]["scanned"]["0"]["mlp"]["up"]["lora"]
    assert tuple(up.a.sharding.spec) == (None, "fsdp", None) and tuple(up.b.sharding.spec) == (None, None, "tensor")


Q = "base_model.model.model.layers.0.self_attn.q_proj"
REFUSED = {  # what of the folder is changed -> the message
    "expression": ({"alpha_pattern": {"(a+)+": 3}}, r"alpha_pattern='\(a\+\)\+' is not supported"),
    "bias": ({"bias": "all"}, "bias='all' is not supported; jaxllm reads: none"),
    "pissa": ({"init_lora_weights": "pissa"}, "init_lora_weights='pissa' is not supported"),
    "modules": ({"modules_to_save": ["lm_head"]}, "modules_to_save=.*is not a key that jaxllm knows"),
    "kind": ({"peft_type": "VERA"}, "peft_type='VERA' is not supported; jaxllm reads: LORA, IA3"),
    "dora": (
        {"use_dora": True},
        "should have lora_A.weight and lora_B.weight and lora_magnitude_vector, and lora_magnitude_vector is missing",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_settings_that_are_refused(what, bases, tmp_path):
    config, message = REFUSED[what]
    family, model, _, _ = bases("tiny_llama3")
    opened = peft_folders.open_adapters(folder("tiny_llama3 lora", tmp_path / "in", **config))
    with pytest.raises(ValueError, match=message) as error:
        peft_folders.read(opened, family, model)
    assert "\n" not in str(error.value)


def read_with(tensors, bases, path):
    family, model, _, _ = bases("tiny_llama3")
    return peft_folders.read(peft_folders.open_adapters(folder("tiny_llama3 lora", path, tensors=tensors)), family, model)


def test_tensors_that_are_refused(bases, tmp_path):
    tensors, path = peft_cases.drawn(GOLDEN["tiny_llama3 lora"]["tensors"]), tmp_path / "in"
    renamed = {name.replace("q_proj", "q_prj"): tensor for name, tensor in tensors.items()}
    message = r"no linear layer 'model.layers.0.self_attn.q_prj' \(2 of 14 adapted ones\)\. Did you mean 'model.layers.0.self_attn.q_proj'"
    with pytest.raises(ValueError, match=message):
        read_with(renamed, bases, path)
    with pytest.raises(ValueError, match=r"lm_head.lora_embedding_A' is none that jaxllm has a place for"):
        read_with({**tensors, "base_model.model.lm_head.lora_embedding_A": tensors[f"{Q}.lora_A.weight"]}, bases, path)
    with pytest.raises(
        ValueError, match=r"q_proj.lora_A.weight' is \(2, 32\), and this base makes it \(2, 64\)\. They are adapters of another"
    ):
        read_with({**tensors, f"{Q}.lora_A.weight": tensors[f"{Q}.lora_A.weight"][:, :32].copy()}, bases, path)
    with pytest.raises(ValueError, match=r"layers/0/attention/query/lora/b has nan among its numbers"):
        read_with({**tensors, f"{Q}.lora_B.weight": np.full_like(tensors[f"{Q}.lora_B.weight"], np.nan)}, bases, path)
    with pytest.raises(ValueError, match=r"q_proj should have lora_A.weight and lora_B.weight, and lora_B.weight is missing"):
        read_with({name: tensor for name, tensor in tensors.items() if name != f"{Q}.lora_B.weight"}, bases, path)
    with pytest.raises(ValueError, match=r"holds no adapters"):
        read_with({}, bases, path)


def test_what_our_methods_cannot_say_is_refused(bases, tmp_path):
    family, model, base, _ = bases("tiny_pythia")
    fused = {
        f"base_model.model.gpt_neox.layers.{layer}.attention.query_key_value.ia3_l": np.full((192, 1), 2.0, np.float32) for layer in (0, 1)
    }
    opened = peft_folders.open_adapters(folder("llama ia3", tmp_path / "ia3", tensors=fused))
    with pytest.raises(ValueError, match=r"scales layers/0/attention/query \(out\), and jaxllm's ia3 has only: key \(out\)"):
        peft_folders.read(opened, family, model)
    tensors = peft_cases.drawn(GOLDEN["pythia dora"]["tensors"])
    some = {name: tensor for name, tensor in tensors.items() if ".layers.0." in name}
    found = peft_folders.read(peft_folders.open_adapters(folder("pythia dora", tmp_path / "dora", tensors=some)), family, model)
    with pytest.raises(ValueError, match=r"adapts key in some layers and not in layers/1/attention/key"):
        peft_folders.place(found, mesh())
    part = peft.make(model, "dora", targets=("query",))
    with pytest.raises(ValueError, match=r"is one layer, and this DoRA adapts only a part of it, not layers/0/attention/key"):
        peft_writing.save(tmp_path, family, part, part.init(jax.random.key(0), base))
    with pytest.raises(ValueError, match=r"Bitfit has no place in a PEFT folder. Write adapters of: lora, rslora, dora, ia3"):
        peft_writing.save(tmp_path, family, peft.make(model, "bitfit"), {})


def test_folders_that_are_refused(tmp_path):
    path = folder("tiny_llama3 lora", tmp_path / "in", base_model_name_or_path="meta/Tiny-Llama")
    assert peft_folders.open_adapters(path, base="/models/tiny-llama/").fingerprint is None  # the same name in another place
    with pytest.raises(ValueError, match=r"adapters of the base 'meta/Tiny-Llama', not of 'meta/other'"):
        peft_folders.open_adapters(path, base="meta/other")
    with pytest.raises(ValueError, match=r"has no adapter_config.json"):
        peft_folders.open_adapters(tmp_path)
    (path / peft_folders.WEIGHTS).rename(path / peft_folders.PICKLE)
    with pytest.raises(ValueError, match=r"adapter_model.bin is a pickle, which can run any code and is never opened"):
        peft_folders.open_adapters(path)


def test_fingerprints_of_bases(tmp_path):
    model = Model(preset("tiny_llama3"))
    method = peft.make(model, "ia3")
    adapters = jax.tree.map(lambda leaf: jax.numpy.ones(leaf.shape), method.abstract())
    peft_writing.save(tmp_path, "llama", method, adapters, "bfloat16", base="runs/a", fingerprint="12ab")
    assert peft_folders.open_adapters(tmp_path, "elsewhere/b", "12ab").fingerprint == "12ab"  # the fingerprint decides
    with pytest.raises(ValueError, match=r"adapters of another base \(runs/a, 12ab\), not of runs/a \(34cd\)"):
        peft_folders.open_adapters(tmp_path, "runs/a", "34cd")
