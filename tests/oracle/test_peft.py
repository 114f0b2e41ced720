"""PEFT's adapters come in and give its logits, and go out and are loaded by it again; also ours, of fused layers."""

import jax
import numpy as np
import pytest

from jaxllm.interop import huggingface, peft_folders, peft_writing, places
from jaxllm.interop.folders import open_folder
from jaxllm.models import peft
from jaxllm.models.adapted import Adapted
from jaxllm.models.model import Model
from jaxllm.parallel.mesh import make_mesh
from tests.interop import made
from tests.oracle import families, peft_cases

pytestmark = pytest.mark.oracle
pytest.importorskip("peft")


def ours(name, path):
    folder = open_folder(made.folder(name, path / "base"))
    family, config = places.read_config(folder)
    model = Model(config)
    return family, model, huggingface.load(folder, family, model, make_mesh(devices=jax.devices()[:1]))


def logits(model, params):
    tokens = families.random_tokens(model.config)
    with jax.default_matmul_precision("highest"):
        return np.asarray(jax.jit(lambda p: model.logits(p, model.apply(p, tokens)))(params))


@pytest.mark.parametrize("case", peft_cases.CASES)
def test_in_and_out_again(case, tmp_path, record_property):
    name = peft_cases.CASES[case][0]
    peft_cases.write(case, tmp_path / "in")
    expected = peft_cases.reference_logits(name, tmp_path / "in")
    family, model, base = ours(name, tmp_path)
    found = peft_folders.read(peft_folders.open_adapters(tmp_path / "in"), family, model)
    params = Adapted(base, peft_folders.place(found, make_mesh(devices=jax.devices()[:1])))
    off = np.abs(logits(model, params) - expected).max()
    record_property("max_difference", float(off))
    assert np.abs(logits(model, base) - expected).max() > 0.1  # the adapters do something
    assert off < 1e-4
    (tmp_path / "out").mkdir()
    peft_writing.save(tmp_path / "out", family, found.method, params.adapters)
    assert np.abs(peft_cases.reference_logits(name, tmp_path / "out") - expected).max() < 1e-4


@pytest.mark.parametrize("name", ["tiny_gpt2", "tiny_pythia", "tiny_phi3", "tiny_qwen2.5"])
@pytest.mark.parametrize("method", ["lora", "rslora", "dora", "ia3"])
def test_our_own_go_out(name, method, tmp_path):
    family, model, base = ours(name, tmp_path)
    maker = peft.make(model, method, **({} if method == "ia3" else {"rank": 2, "alpha": 3.0}))
    adapters = maker.init(jax.random.key(0), base)
    adapters = jax.tree.map(lambda leaf: leaf + 0.1 * jax.random.normal(jax.random.key(leaf.size), leaf.shape), adapters)
    peft_writing.save(tmp_path, family, maker, adapters)
    assert np.abs(peft_cases.reference_logits(name, tmp_path) - logits(model, Adapted(base, adapters))).max() < 1e-4
