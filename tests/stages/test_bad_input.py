"""Whatever a user gets wrong is answered by one line that names the value and the remedy, and exit code 2; nothing is lost."""

import json
import subprocess
import sys
import time

import pytest

CONFIG = """from ml_collections import ConfigDict


def get_config():
    return ConfigDict({{"steps": 2, "batch_size": 8, "sequence_length": 32, "model": {{"preset": "tiny"}}, "schedule": {{"warmup": 0}},
                       "data": {{"train": [{{"path": {path!r}}}], "workers": 1}}, "log": {{"tensorboard": False}}}})
"""


@pytest.fixture
def settings(corpus, tmp_path):
    path = tmp_path / "config.py"
    path.write_text(CONFIG.format(path=str(corpus)))
    return path


@pytest.fixture
def trained(stage, settings, tmp_path):
    assert stage("pretrain", "--config", settings, "--workdir", tmp_path / "run") == 0
    return tmp_path / "run"


MISTAKES = {
    "unknown key": (["--config.optimizer.learning_rat=1"], "Did you mean 'optimizer.learning_rate'?"),
    "unknown preset": (["--config.model.preset=lama3-8b"], "Did you mean 'llama3-8b'?"),
    "unknown optimizer": (["--config.optimizer.name=adam"], "Did you mean 'adamw'?"),
    "unknown schedule": (["--config.schedule.name=cosin"], "Did you mean 'cosine'?"),
    "unknown remat": (["--config.remat=ful"], "Did you mean 'full'?"),
    "unknown axis size": (["--config.parallel.fsdp=3"], "does not fit 8 devices"),
    "an axis that comes later": (["--config.parallel.expert=8"], "not supported yet"),
    "batch does not divide": (["--config.batch_size=12"], "batch_size=12 does not divide by replica*fsdp=8"),
    "heads do not divide": (["--config.parallel.tensor=8", "--config.parallel.fsdp=1"], "does not divide by mesh axis tensor=8"),
    "length does not divide": (
        ["--config.parallel.context=8", "--config.parallel.fsdp=1", "--config.sequence_length=40"],
        "multiple of 16",
    ),
    "missing data": (["--config.data.train=/no/such/file.txt"], "/no/such/file.txt"),
    "no data": (["--config.data.train=[]"], "data.train is empty"),
    "no prepared folder": (["--config.data.train=[]", "--config.data.prepared=/no/such/folder"], "/no/such/folder"),
    "small vocabulary": (["--config.model.vocab_size=100"], "The tokenizer has 259 ids, the model only 100"),
    "wrong type": (["--config.steps=ten"], "steps='ten' is not a whole number"),
    "no parts": (["--config.microbatches=0"], "microbatches=0 must be 1 or more"),
    "a switch that is a word": (["--config.model.tied_embeddings=no"], "model.tied_embeddings='no' is not True or False"),
    "a metric that never comes": (["--config.early_stopping.metric=heldout/loss"], "Choose one of: lines/loss"),
    "a best that is never evaluated": (
        ["--config.checkpoint.best=lines/loss", "--config.checkpoint.every=30", "--config.eval.every=20"],
        "checkpoint.every=30 and eval.every=20 meet only every 60 steps. Make one a multiple of the other: 30 for both",
    ),
    "a best of the last alone": (["--config.checkpoint.best=lines/loss"], "eval.every=0 never meet"),
    "a decay that is none": (["--config.optimizer.b1=1.0"], "optimizer.b1=1.0 must be at least 0 and less than 1. First-moment decay"),
    "a path that is a number": (["--config.data.train=[{'path': 5}]"], "data.train[0] has no path"),
    "a weight that is a word": (
        ["--config.data.train=[{'path': 'a', 'weight': 'x'}]"],
        "data.train[0].weight='x' must be more than 0, as a number",
    ),
    "a seed past 32 bits": ([f"--config.seed={1 << 32}"], "seed=4294967296 must be at least 0 and less than 2**32"),
    "a share of decay past all": (["--config.schedule.name=wsd", "--config.schedule.decay=3"], "schedule.decay=3.0 must be at least 0"),
    "half a step of warm-up": (
        ["--config.schedule.warmup=1.5"],
        "A warm-up of 1.5 steps does not fit a run of 2. Give a whole",
    ),
    "an option of words": (["--config.optimizer.options.b1=x"], "'adamw' has b1='x', which is not a number (default: 0.9)"),
    "an option of nothing": (["--config.optimizer.options.eps=none"], "'adamw' has eps=None, which is not a number (default: 1e-08)"),
    "a threshold of True": (["--config.data.filters={'max_line_length': True}"], "data.filters.max_line_length=True is not a number"),
    "nothing orthogonal": (
        ["--config.optimizer.name=muon", "--config.optimizer.options.ns_steps=0"],
        "Muon with ns_steps=0 makes nothing orthogonal. Give 1 or more",
    ),
    "a vocabulary of words": (
        ["--config.data.tokenizer={'kind': 'sentencepiece', 'vocab_size': 'x'}"],
        "data.tokenizer.vocab_size='x' is not a whole number",
    ),
    "symbols that are no list": (
        ["--config.data.tokenizer={'kind': 'sentencepiece', 'vocab_size': 300, 'user_symbols': 5}"],
        "data.tokenizer.user_symbols=5 is not a list of words",
    ),
    "filters that are a number": (["--config.data.filters=5"], "Unknown data.filters 5. Choose from: none, codex"),
    "a filter without a threshold": (["--config.data.filters={'generated': 'x'}"], "data.filters.generated='x' is not a number"),
    "a cap of words": (["--config.model.attention_softcap=abc"], "model.attention_softcap='abc' is not a number"),
    "an option that no compiler has": (["--config.xla.options.xla_no_such=1"], "No such compile option: 'xla_no_such'"),
    "a compiler option of nothing": (
        ["--config.xla.options={'xla_a': None}"],
        "xla.options.xla_a=None is not a word, a number, True or False",
    ),
    "a set of flags that is none": (["--config.xla.flags=quick"], "Unknown xla.flags='quick'. Choose one of: fast, none"),
    "a chunk below none": (["--config.model.logprobs_chunk=-1"], "model.logprobs_chunk=-1 must be 0 or more"),
    "a base of nothing": (["--config.model.rope_theta=0"], "model.rope_theta=0 is not a base of frequencies"),
    "a second decay that is none": (["--config.optimizer.b2=-0.5"], "optimizer.b2=-0.5 must be at least 0 and less than 1"),
    "an unknown dtype of moments": (
        ["--config.optimizer.mu_dtype=bf16"],
        "Unknown optimizer.mu_dtype 'bf16'. Choose one of: float32, bfloat16",
    ),
    "an unknown dtype of muon": (
        ["--config.optimizer.name=muon", "--config.optimizer.options.ns_dtype=half"],
        "Unknown optimizer.options.ns_dtype 'half'. Choose one of: float32, bfloat16",
    ),
    "an unknown dtype": (["--config.model.dtype=half"], "dtype='half'. Choose one of: float32, bfloat16, float16"),
    "no regex in init_skip": (["--config.init_skip=("], "init_skip has '(', which is no regular expression"),
    "no regex in freeze": (["--config.optimizer.freeze=['a', '*b']"], "optimizer.freeze has '*b', which is no regular expression"),
    "an export that cannot be": (["--config.checkpoint.export_every=5"], "not supported yet"),
    "unknown objective": (["--config.objective=masked"], "Choose one of: causal"),
    "no work directory to start from": (["--config.init_from=/no/such/run"], "/no/such/run is not a work directory"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_line(name, stage, settings, tmp_path, capsys):
    words, sentence = MISTAKES[name]
    assert stage("pretrain", "--config", settings, "--workdir", tmp_path / "run", *words) == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("jaxllm: ") and sentence in last, last


@pytest.mark.parametrize("stage_name", ["pretrain", "prepare", "demo"])
@pytest.mark.parametrize("place", ["file", "file/below"])
def test_a_work_directory_that_is_a_file(stage_name, place, stage, settings, tmp_path, capsys):
    (tmp_path / "file").write_text("kept")
    words = [] if stage_name == "demo" else ["--config", settings]
    assert stage(stage_name, *words, "--workdir", tmp_path / place) == 2
    assert f"{tmp_path / 'file'} is a file. Name a folder" in capsys.readouterr().err.strip().splitlines()[-1]
    assert (tmp_path / "file").read_text() == "kept"


def test_a_mistake_in_the_preset_is_told_before_the_text_is_prepared(stage, settings, tmp_path, capsys):
    words = ["--config.model.preset=tiny_lama3", "--config.data.cache", tmp_path / "cache"]
    assert stage("pretrain", "--config", settings, "--workdir", tmp_path / "run", *words) == 2
    said = capsys.readouterr()
    assert "Unknown preset 'tiny_lama3'" in said.err and "Token files" not in said.out + said.err


def test_nothing_to_score_is_told(stage, settings, tmp_path, capsys):
    assert stage("pretrain", "--config", settings, "--workdir", tmp_path / "run", "--config.data.eval_fraction=0") == 0
    assert stage("evaluate", "--workdir", tmp_path / "run") == 2
    assert "holds no document out. Name text to score: --config.data.eval=FILE" in capsys.readouterr().err


def test_a_work_directory_of_another_config(stage, settings, trained, capsys):
    assert stage("pretrain", "--config", settings, "--workdir", trained, "--config.batch_size=16") == 2
    assert "batch_size was 8, is 16" in capsys.readouterr().err.splitlines()[-1]
    assert stage("pretrain", "--config", settings, "--workdir", trained) == 0
    assert "This run is finished at step 2 of 2: all its steps are done. To go on: more of them" in capsys.readouterr().err


def test_a_second_process_on_the_same_work_directory(stage, settings, trained, capsys):
    hold = (
        f"import time; from jaxllm.training import lock\nwith lock.hold({str(trained)!r}):\n    print('held', flush=True); time.sleep(60)"
    )
    other = subprocess.Popen([sys.executable, "-c", hold], stdout=subprocess.PIPE, text=True)
    assert other.stdout.readline() == "held\n"
    assert stage("pretrain", "--config", settings, "--workdir", trained) == 2
    assert f"is being written by process {other.pid}" in capsys.readouterr().err.splitlines()[-1]
    assert stage("evaluate", "--workdir", trained) == 0  # readers take no lock, and then they do not write
    assert f"Not recorded in evals.jsonl: {trained} is being written by process {other.pid}" in capsys.readouterr().err
    other.kill()
    other.wait()
    assert stage("pretrain", "--config", settings, "--workdir", trained) == 0


def test_a_corrupt_checkpoint_is_passed_over_and_said(stage, settings, tmp_path, capsys):
    words = ["--config.steps=4", "--config.checkpoint.every=2"]
    assert stage("pretrain", "--config", settings, "--workdir", tmp_path / "run", *words) == 0
    largest = max((tmp_path / "run/checkpoints/4").rglob("*"), key=lambda p: p.stat().st_size if p.is_file() else 0)
    data = bytearray(largest.read_bytes())
    data[len(data) // 2] ^= 1
    largest.write_bytes(data)
    capsys.readouterr()
    assert stage("pretrain", "--config", settings, "--workdir", tmp_path / "run", *words) == 0
    said = capsys.readouterr().err
    assert "Checkpoint 4 was altered" in said and "Resuming at step 2 of 4" in said


def test_data_that_changed_since_is_refused(stage, settings, trained, tmp_path, capsys):
    other = tmp_path / "other.jsonl"
    other.write_text('{"text": "something else entirely, and a bit longer than a window"}\n' + '{"text": "' + "and more " * 50 + '"}\n')
    words = [f"--config.data.train={other}", "--config.data.eval_fraction=0.5"]
    assert stage("pretrain", "--config", settings, "--workdir", trained, *words) == 2
    assert "data.train" in capsys.readouterr().err.splitlines()[-1]


LONG = "".join('{"text": "' + "some other text, long enough for a window or two " * 3 + f'{i}"}}\n' for i in range(20))


def test_a_run_goes_on_where_its_unchanged_data_lie_now(stage, settings, corpus, tmp_path, monkeypatch, capsys):
    """Relative paths, another folder, validation sets that come and go: what is trained on is compared by its content."""
    folders = [tmp_path / "here", tmp_path / "there"]
    for folder in folders:
        folder.mkdir()
        (folder / "lines.jsonl").write_bytes(corpus.read_bytes())
    command = ["pretrain", "--config", settings, "--workdir", tmp_path / "run", "--config.data.train=lines.jsonl"]
    command += ["--config.data.eval_fraction=0.02"]
    monkeypatch.chdir(folders[0])
    assert stage(*command) == 0
    assert json.loads((tmp_path / "run/config.json").read_text())["config"]["data"]["train"] == [{"path": str(folders[0] / "lines.jsonl")}]
    monkeypatch.chdir(folders[1])
    (folders[0] / "lines.jsonl").unlink()
    (tmp_path / "more.jsonl").write_text(LONG)
    assert stage(*command, "--config.steps=3", f"--config.data.eval={tmp_path / 'more.jsonl'}", "--config.data.max_bad_share=0.5") == 0
    assert "Resuming at step 2 of 3" in capsys.readouterr().err
    assert [json.loads(line)["name"] for line in (tmp_path / "run/evals.jsonl").read_text().splitlines()].count("more") == 1
    for change, sentence in {
        "tokenizer={'kind': 'sentencepiece', 'vocab_size': 310}": "with another tokenizer: data.tokenizer was None, is {'kind': 'sente",
        "eval_fraction=0.1": "is []; data.eval_fraction was 0.02, is 0.1. Set that back",
        "train=[{'path': 'lines.jsonl', 'weight': 2}]": "with other weights of data.train: they were None, are {'lines': 2.0}",
    }.items():
        assert stage(*command, "--config.steps=3", f"--config.data.{change}") == 2
        assert sentence in capsys.readouterr().err.splitlines()[-1]
    (folders[1] / "lines.jsonl").write_text(LONG)
    assert stage(*command, "--config.steps=3") == 2
    assert "is []. Set that back, or the files of data.train if they were changed" in capsys.readouterr().err.splitlines()[-1]


def test_a_tokenizer_that_is_not_the_prepared_folders_is_refused(stage, settings, tmp_path, capsys):
    (tmp_path / "more.jsonl").write_text(LONG)
    made = [f"--config.data.train={tmp_path / 'more.jsonl'}", f"--config.data.prepared={tmp_path / 'tokens'}"]
    other = ["--config.data.tokenizer.kind=sentencepiece", "--config.data.tokenizer.vocab_size=304", "--config.data.eval_fraction=0.2"]
    assert stage("prepare", "--config", settings, *made, *other) == 0
    bare = ["pretrain", "--config", settings, "--workdir", tmp_path / "run", "--config.data.train=[]", made[1]]
    assert stage(*bare, "--config.data.tokenizer.kind=bytes") == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert "were made with another tokenizer (sentencepiece, 304 ids" in last and "Leave data.tokenizer out (or none)" in last
    assert stage(*bare, "--config.data.tokenizer.kind=bytes", "--config.data.tokenizer=none", "--config.model.vocab_size=320") == 0


def test_fewer_steps_than_were_taken(stage, settings, trained, capsys):
    assert stage("pretrain", "--config", settings, "--workdir", trained, "--config.steps=1") == 2
    assert "the run is at step 2 already" in capsys.readouterr().err.splitlines()[-1]


def test_a_run_is_read_with_its_own_tokenizer_and_without_its_data(stage, settings, trained, tmp_path, monkeypatch, capsys):
    other = tmp_path / "other.jsonl"
    other.write_text("".join('{"text": "' + "some other text, long enough for a window or two " * 3 + f'{i}"}}\n' for i in range(20)))
    assert stage("evaluate", "--workdir", trained, f"--config.data.train={other}", "--config.data.eval_fraction=0.5") == 0
    assert '"name": "other"' in capsys.readouterr().out
    monkeypatch.setenv("JAXLLM_CACHE", str(tmp_path / "empty"))
    assert stage("sample", "--workdir", trained, "--prompt", "a", "--config.sample.max_new_tokens=2") == 0
    changed = trained / "tokenizer" / "tokenizer_info.json"
    changed.write_text(
        changed.read_text().replace('"vocab_size": 259', '"vocab_size": 258').replace('"fingerprint": "', '"fingerprint": "0')
    )
    assert stage("sample", "--workdir", trained, "--prompt", "a") == 2


def test_a_folder_with_somebody_elses_config(stage, tmp_path, capsys):
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    assert stage("evaluate", "--workdir", tmp_path) == 2
    assert "is not one that jaxllm wrote" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("text", ["def get_config(:\n", "def get_config():\n    return 1 / 0\n", "x = 1\n"])
def test_a_config_file_that_does_not_load(text, stage, tmp_path, capsys):
    (tmp_path / "broken.py").write_text(text)
    assert stage("pretrain", "--config", tmp_path / "broken.py", "--workdir", tmp_path / "run") == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert "does not load" in last and "broken.py" in last


def test_prompts_may_begin_with_a_brace(stage, trained, tmp_path, capsys):
    (tmp_path / "prompts.txt").write_text('{ not json\n{"prompt": "is json"}\n{"a": 1}\n')
    assert stage("sample", "--workdir", trained, "--prompts", tmp_path / "prompts.txt", "--config.sample.max_new_tokens=1") == 0
    out = capsys.readouterr().out
    assert "{ not json" in out and "is json" in out and '{"a": 1}' in out and '{"prompt"' not in out


@pytest.mark.parametrize("stage_name", ["evaluate", "sample"])
def test_reading_from_what_is_no_run(stage_name, stage, tmp_path, capsys):
    words = ["--prompt", "a"] if stage_name == "sample" else []
    assert stage(stage_name, "--workdir", tmp_path, *words) == 2
    assert "is not a work directory" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("word", "sentence"),
    [
        ("--config.sample.temperature=-1", "below 0"),
        ("--config.sample.top_p=0", "not a probability"),
        ("--config.sample.max_new_tokens=2000", "less than the context of"),
    ],
)
def test_sampling_options_out_of_range(word, sentence, stage, trained, capsys):
    assert stage("sample", "--workdir", trained, "--prompt", "a", word) == 2
    assert sentence in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(("word", "end"), [("evalute", "Did you mean 'evaluate'?"), ("xyz", "Choose one of: prepare, ")])
def test_an_unknown_stage_is_one_line(word, end, stage, capsys):
    assert stage(word, "--workdir", "x") == 2
    assert capsys.readouterr().err.startswith(f"jaxllm: Unknown stage {word!r}. {end}")


def test_help_is_there_at_once():
    for words in (["--help"], ["pretrain", "--help"]):
        began = time.monotonic()
        out = subprocess.run([sys.executable, "-m", "jaxllm", *words], capture_output=True, text=True)
        assert out.returncode == 0 and "usage" in out.stdout
        assert time.monotonic() - began < 5.0  # the bar of one second is measured by `make bench`, on a quiet machine
    loaded = subprocess.run([sys.executable, "-X", "importtime", "-m", "jaxllm", "--help"], capture_output=True, text=True).stderr
    assert not any(line.rsplit("|", 1)[-1].strip().split(".")[0] in ("jax", "numpy", "flax") for line in loaded.splitlines())
