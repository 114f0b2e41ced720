"""`jaxllm convert`: a Hugging Face folder goes in, is sampled from, trained and scored, and goes out; whatever is wrong is one line."""

import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file

from jaxllm.data.tokenizers import make_tokenizer
from jaxllm.models.presets import preset
from jaxllm.stages import convert, origin, workdir
from jaxllm.stages.config import load
from jaxllm.stages.opened import check_same
from tests.interop import made
from tests.interop.test_tokenizer_files import NAMED, byte_level, folder_of

NAME = "tiny_llama3"
TRAIN = [
    "--config.steps=1",
    "--config.optimizer.learning_rate=0",
    "--config.batch_size=8",
    "--config.sequence_length=32",
    "--config.schedule.warmup=0",
    "--config.model.preset=none",
]


@pytest.fixture
def theirs(tmp_path):
    """A tiny Llama with a tokenizer, as transformers writes it."""
    ends = {"eos_token_id": [318, 316], "bos_token_id": 317}
    path = folder_of(made.folder(NAME, tmp_path / "theirs"), byte_level(adds_bos=True), NAMED, generation_config=ends)
    (path / "chat_template.jinja").write_text("{{ messages }}")
    return path


@pytest.fixture
def ours(stage, theirs, tmp_path):
    assert stage("convert", "--from", theirs, "--to", tmp_path / "ours") == 0
    return tmp_path / "ours"


@pytest.fixture
def config(corpus, tmp_path):
    path = tmp_path / "config.py"
    path.write_text(
        "from ml_collections import ConfigDict\n\n\ndef get_config():\n"
        f"    return ConfigDict({{'model': {{'preset': 'tiny'}},"
        f" 'data': {{'train': [{str(corpus)!r}], 'workers': 1, 'eval_fraction': 0.0}},"
        " 'log': {'tensorboard': False}})\n"
    )
    return path


def last(capsys):
    return capsys.readouterr().err.strip().split("\n")[-1]


def test_in_and_out_again_is_the_same_folder(stage, theirs, ours, tmp_path, capsys):
    assert stage("convert", "--from", ours, "--to", tmp_path / "again") == 0
    one, other = (load_file(path / "model.safetensors") for path in (theirs, tmp_path / "again"))
    assert one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json", "chat_template.jinja"):
        assert (tmp_path / "again" / name).read_bytes() == (theirs / name).read_bytes(), name
    written = json.loads((tmp_path / "again" / "config.json").read_text())
    assert (written["model_type"], written["eos_token_id"], written["bos_token_id"]) == ("llama", [316, 318], 317)
    assert stage("checkpoints", ours, "--verify") == 0
    assert workdir.own_tokenizer(ours).stop_ids == (316, 318)


def test_it_is_sampled_from(stage, ours):
    assert stage("sample", "--workdir", ours, "--prompt", "anna", "--config.sample.max_new_tokens=2") == 0
    assert json.loads((ours / "samples.jsonl").read_text())["step"] == 0


def test_it_is_trained_and_goes_out(stage, theirs, config, tmp_path, capsys):
    """From the folder itself; at a learning rate of 0 the weights go out as they came in. The run stands on its own afterwards."""
    run = ["pretrain", "--config", config, "--workdir", tmp_path / "run", f"--config.init_from={theirs}", *TRAIN]
    assert stage(*run) == 0
    assert "(llama): 21 of 21 parameters" in " ".join(capsys.readouterr().err.split())
    record, before = workdir.read(tmp_path / "run"), load_file(theirs / "model.safetensors")
    assert record["config"]["model"]["width"] == 64 and record["vocab_size"] == 320
    shutil.rmtree(theirs)
    assert stage(*run) == 0 and "Resuming at step 1" in capsys.readouterr().err
    assert stage("convert", "--from", tmp_path / "run", "--to", tmp_path / "out", "--dtype", "float32") == 0
    after = load_file(tmp_path / "out" / "model.safetensors")
    assert before.keys() == after.keys() and all(np.array_equal(before[name], after[name]) for name in before)
    assert (tmp_path / "out" / "chat_template.jinja").exists()
    assert stage("convert", "--from", tmp_path / "run", "--to", tmp_path / "qwen", "--family", "qwen3") == 2
    assert "The family 'qwen3' cannot say what this model is: it has no model.qk_norm=None" in last(capsys)


def test_a_work_directory_brings_its_shape_and_tokenizer_too(ours, config):
    said = [*TRAIN, f"--config.init_from={ours}"]
    complete = origin.complete(load(str(config), said))
    assert (complete.model.width, complete.data.tokenizer.kind) == (64, "tokenizer.json")
    assert make_tokenizer(complete.data.tokenizer.to_dict()).fingerprint == workdir.read(ours)["tokenizer"]
    named = origin.complete(load(str(config), [*said, "--config.model.preset=tiny", "--config.data.tokenizer.kind=bytes"]))
    assert "width" not in named.model and named.data.tokenizer.to_dict() == {"kind": "bytes"}


def test_scored_by_any_text(stage, ours, corpus, capsys):
    assert stage("evaluate", "--workdir", ours) == 2
    assert "was converted, not trained: it has no text of its own. Name text to score: --config.data.eval=FILE" in last(capsys)
    text = ["--config.sequence_length=64", "--config.eval.batches=1"]
    assert stage("evaluate", "--workdir", ours, f"--config.data.eval={corpus}", *text) == 0
    assert json.loads(capsys.readouterr().out)["loss"] > 1


def test_a_folder_of_another_model_names_what_differs(stage, theirs, config, tmp_path, capsys):
    shape = [f"--config.model.preset={NAME}", "--config.model.rope_theta=1000"]
    assert stage("pretrain", "--config", config, "--workdir", tmp_path / "run", f"--config.init_from={theirs}", *TRAIN, *shape) == 2
    assert "is another model: model.rope_theta is 1000 here, 500000.0 there. Set these as they are there" in last(capsys)


def test_what_may_differ_from_the_folder():
    mine = preset(NAME)
    check_same(mine, mine.replace(vocab_size=400, max_positions=9, residual_dropout=0.1, init_std=None), "there")
    with pytest.raises(ValueError, match=r"model.norm_epsilon is 1e-05 here, 0.1 there; model.tied_embeddings is False here, True there"):
        check_same(mine, mine.replace(norm_epsilon=0.1, tied_embeddings=True), "there")
    with pytest.raises(ValueError, match=r"model.max_positions is 256 here, 9 there"):
        check_same(preset("tiny_gpt2"), preset("tiny_gpt2").replace(max_positions=9), "there")


MISTAKES = {
    "nothing there": (
        ["--from", "nowhere", "--to", "x"],
        "--from nowhere: there is no config.json. Give a Hugging Face folder or a work directory",
    ),
    "no dtype": (["--from", "theirs", "--to", "x", "--dtype", "float8"], "param_dtype='float8'. Choose one of: float32, bfloat16"),
    "a step of a folder": (["--from", "theirs", "--to", "x", "--step", "3"], "--step is for work directories"),
    "a place that is taken": (["--from", "theirs", "--to", "theirs"], "is there already and not empty. Name a new folder, or delete it"),
    "a place elsewhere": (["--from", "theirs", "--to", "gs://b/x"], "a conversion is written to a disk"),
    "an override": (["--from", "theirs", "--to", "x", "--config.steps=3"], "jaxllm convert does not know '--config.steps=3'"),
    "no such step": (["--from", "ours", "--to", "x", "--step", "3"], "There is no checkpoint of step 3 in ours/checkpoints. There are: "),
    "an unknown family": (["--from", "ours", "--to", "x", "--family", "lama"], "Unknown model family 'lama'. Choose one of: gpt2"),
    "an unknown dtype out": (["--from", "ours", "--to", "x", "--dtype", "int8"], "Unknown dtype 'int8'. Choose one of: float32, bfloat16"),
}


@pytest.mark.parametrize(("words", "message"), MISTAKES.values(), ids=MISTAKES)
def test_mistakes_are_one_line_and_leave_nothing(stage, theirs, words, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    if "ours" in words:
        assert stage("convert", "--from", "theirs", "--to", "ours") == 0
    capsys.readouterr()
    there = sorted(path.name for path in tmp_path.iterdir())
    assert stage("convert", *words) == 2
    assert message in last(capsys) and sorted(path.name for path in tmp_path.iterdir()) == there


def test_a_tokenizer_that_does_not_fit_the_weights(stage, theirs, tmp_path, capsys):
    model = byte_level()
    model.add_tokens([f"word {i}" for i in range(50)])
    model.save(str(theirs / "tokenizer.json"))
    assert stage("convert", "--from", theirs, "--to", tmp_path / "ours") == 2
    assert "its weights only 320 rows" in last(capsys) and not (tmp_path / "ours").exists()


def test_an_interrupted_conversion_leaves_nothing_that_looks_whole(stage, theirs, tmp_path, monkeypatch):
    def interrupted(*words, **more):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(convert, "write_once", interrupted)
        assert stage("convert", "--from", theirs, "--to", tmp_path / "ours") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["theirs"]
    killed = tmp_path / ".ours.partial" / "checkpoints"
    killed.mkdir(parents=True)
    assert stage("convert", "--from", theirs, "--to", tmp_path / "ours") == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ours", "theirs"]
