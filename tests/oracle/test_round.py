"""The whole way: a tiny Llama of transformers goes in, is sampled from, trained a few steps, goes out, and transformers loads it."""

import json

import pytest

from jaxllm.__main__ import main
from jaxllm.stages import workdir
from tests.interop.test_tokenizer_files import NAMED, byte_level
from tests.oracle import families

pytestmark = pytest.mark.oracle
transformers = pytest.importorskip("transformers")

CONFIG = """from ml_collections import ConfigDict


def get_config():
    return ConfigDict({{"steps": 8, "batch_size": 8, "sequence_length": 64, "optimizer": {{"learning_rate": 1e-2}},
                       "data": {{"train": [{path!r}], "workers": 1, "eval_fraction": 0.0}}, "log": {{"tensorboard": False, "every": 1}}}})
"""


def run(*words):
    assert main([str(word) for word in words]) == 0


def test_in_sampled_trained_out_and_loaded(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXLLM_CACHE", str(tmp_path / "cache"))
    theirs, ours, tuned, out = (tmp_path / name for name in ("theirs", "ours", "tuned", "out"))
    reference = families.reference_model("tiny_llama3.1")
    reference.generation_config.temperature = 0.6
    reference.generation_config.do_sample = True
    reference.save_pretrained(theirs)
    byte_level(adds_bos=True).save(str(theirs / "tokenizer.json"))
    (theirs / "tokenizer_config.json").write_text(
        json.dumps(NAMED | {"tokenizer_class": "PreTrainedTokenizerFast"} | {"chat_template": "{{ messages }}"})
    )
    (tmp_path / "text.txt").write_text("the quick brown fox jumps over the lazy dog\n" * 400)
    (tmp_path / "config.py").write_text(CONFIG.format(path=str(tmp_path / "text.txt")))

    run("convert", "--from", theirs, "--to", ours)
    run("sample", "--workdir", ours, "--prompt", "the quick", "--config.sample.max_new_tokens=8")
    run("pretrain", "--config", tmp_path / "config.py", "--workdir", tuned, f"--config.init_from={ours}")
    run("convert", "--from", tuned, "--to", out)

    assert len(json.loads((ours / "samples.jsonl").read_text())["tokens"]) in range(1, 9)
    losses = [json.loads(line)["loss"] for line in (tuned / "metrics.jsonl").read_text().splitlines()]
    assert losses[-1] < losses[0] - 0.5  # it learns
    again, tokenizer = transformers.AutoModelForCausalLM.from_pretrained(out), transformers.AutoTokenizer.from_pretrained(out)
    assert type(again) is type(reference) and again.generation_config.temperature == 0.6
    assert tokenizer("the quick")["input_ids"][1:] == workdir.own_tokenizer(ours).encode("the quick").tolist()
    assert tokenizer.chat_template == "{{ messages }}"
    import torch

    ids = torch.tensor([tokenizer("the quick brown fox jumps over the lazy dog\n" * 3)["input_ids"]])
    nats = [float(model(input_ids=ids, labels=ids).loss) for model in (reference, again)]
    assert nats[1] < nats[0] - 0.5  # what was learnt is what transformers loads
