"""`jaxllm sample` and `jaxllm chat`: resumed files, the best of several, stop strings, and a conversation."""

import io
import json

import pytest
from tokenizers.pre_tokenizers import ByteLevel

from jaxllm.data.chat import encode_prompt
from jaxllm.data.dialogues import Dialogue, Message
from jaxllm.data.jinja_templates import jinja_template
from jaxllm.data.templates import TEMPLATES
from jaxllm.data.tokenizer_kinds import ByteTokenizer, JsonTokenizer
from jaxllm.sampling.text import stop_ids
from jaxllm.stages.chat import BASE, template_of
from jaxllm.stages.spoken import jinja_of

FLAGS = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
SHORT = ("--config.sample.max_new_tokens=6",)
CONFIG = """
def get_config():
    return {{"steps": 2, "batch_size": 8, "sequence_length": 32, "model": {{"preset": "tiny"}}, "schedule": {{"warmup": 0}},
            "data": {{"train": [{{"path": {path!r}, "field": "text"}}], "tokenizer": {{"kind": "bytes"}}}}}}
"""


@pytest.fixture(scope="module")
def trained(train_small, tmp_path_factory):
    """A work directory of two updates: nonsense, but a model."""
    return train_small(tmp_path_factory.mktemp("sampled"), CONFIG)


def lines_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_file_that_was_cut_off_is_finished(stage, trained, tmp_path, capsys):
    (tmp_path / "prompts.txt").write_text('one\n{"prompt": "two"}\n{not json\n')
    words = ["sample", "--workdir", trained, "--prompts", tmp_path / "prompts.txt", *SHORT, "--config.sample.num_samples=3"]
    assert stage(*words, "--output", tmp_path / "whole.jsonl") == 0
    whole = lines_of(tmp_path / "whole.jsonl")
    assert [(line["prompt"], line["number"]) for line in whole] == [(p, i) for p in ("one", "two", "{not json") for i in range(3)]
    text = (tmp_path / "whole.jsonl").read_text()
    (tmp_path / "cut.jsonl").write_text(text[: text.index("\n", 900) + 30])
    assert 0 < len((tmp_path / "cut.jsonl").read_text().splitlines()) < 9
    assert stage(*words, "--output", tmp_path / "cut.jsonl", "--resume") == 0
    assert (tmp_path / "cut.jsonl").read_text() == text
    assert stage(*words, "--output", tmp_path / "cut.jsonl", "--resume") == 0
    assert (tmp_path / "cut.jsonl").read_text() == text
    capsys.readouterr()
    assert stage(*words, "--prompt", "zero", "--output", tmp_path / "cut.jsonl", "--resume") == 2
    assert "line 1 of" in capsys.readouterr().err and (tmp_path / "cut.jsonl").read_text() == text
    for other in ("--config.sample.temperature=0.3", "--config.seed=9", "--config.sample.num_samples=2"):
        assert stage(*words, other, "--output", tmp_path / "cut.jsonl", "--resume") == 2
    (tmp_path / "cut.jsonl").write_text("[1]\n")
    assert stage(*words, "--output", tmp_path / "cut.jsonl", "--resume") == 2


def test_the_best_of_several_is_kept(stage, trained, tmp_path):
    words = ["sample", "--workdir", trained, "--prompt", "a", "--prompt", "b", *SHORT]
    assert stage(*words, "--output", tmp_path / "all.jsonl", "--config.sample.num_samples=4") == 0
    assert stage(*words, "--output", tmp_path / "best.jsonl", "--best-of", "4") == 0
    every, best = lines_of(tmp_path / "all.jsonl"), lines_of(tmp_path / "best.jsonl")
    assert [line["prompt"] for line in best] == ["a", "b"]
    for line in best:
        assert line["mean_log_prob"] == max(other["mean_log_prob"] for other in every if other["prompt"] == line["prompt"])


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--rank-by", "reward"], "Unknown --rank-by 'reward'. Choose one of: mean_log_prob"),
        (["--best-of", "0"], "--best-of 0 keeps the best of nothing"),
        (["--best-of", "3", "--config.sample.num_samples=2"], "leave out sample.num_samples=2"),
        (["--config.sample.slots=0"], "sample.slots=0"),
        (["--config.sample.num_beams=0"], "sample.num_beams=0"),
        (["--config.sample.num_beams=2", "--config.sample.num_samples=3"], "sample.num_samples=3 of sample.num_beams=2"),
        (["--config.sample.num_beams=2", "--best-of", "2"], "ranks draws"),
        (["--config.sample.num_beams=2", "--config.sample.repetition_penalty=1.2"], "not known to beam search"),
        (["--config.sample.num_beams=1000"], "Give fewer"),
        (["--draft", "nowhere"], "nowhere"),
        (["--config.sample.long_prompt=cut"], "Choose one of: refuse, window"),
        (["--config.sample.stop_tokens=['ab']"], "'ab' is not one token of this tokenizer"),
    ],
)
def test_a_mistake_is_one_line(words, sentence, stage, trained, capsys):
    assert stage("sample", "--workdir", trained, "--prompt", "a", *words) == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("jaxllm: ") and sentence in last


def test_a_model_that_drafts_for_itself_changes_no_greedy_token_and_brings_many_a_pass(stage, trained, tmp_path, capsys):
    words = ["sample", "--workdir", trained, "--prompt", "a", "--prompt", "bcd", *SHORT, "--config.sample.temperature=0"]
    assert stage(*words, "--output", tmp_path / "alone.jsonl") == 0
    capsys.readouterr()
    assert stage(*words, "--output", tmp_path / "both.jsonl", "--draft", trained, "--config.sample.num_draft=2") == 0
    assert "12 tokens in 4 passes of the model: 3.00 a pass" in capsys.readouterr().err
    alone, both = lines_of(tmp_path / "alone.jsonl"), lines_of(tmp_path / "both.jsonl")
    assert [line["tokens"] for line in both] == [line["tokens"] for line in alone]
    assert stage(*words, "--output", tmp_path / "both.jsonl", "--draft", trained, "--config.sample.num_draft=3", "--resume") == 2
    assert stage(*words, "--draft", trained, "--config.sample.num_draft=0") == 2
    assert "num_draft=0 proposes nothing" in capsys.readouterr().err


def test_beams_come_best_first_and_none_is_worse_than_greedy(stage, trained, tmp_path):
    words = ["sample", "--workdir", trained, "--prompt", "a", "--prompt", "bcd", *SHORT, "--output", tmp_path / "beams.jsonl"]
    assert stage(*words, "--config.sample.num_beams=4", "--config.sample.num_samples=3") == 0
    assert stage(*words[:-1], tmp_path / "greedy.jsonl", "--config.sample.temperature=0") == 0
    beams, greedy = lines_of(tmp_path / "beams.jsonl"), lines_of(tmp_path / "greedy.jsonl")
    assert [(line["prompt"], line["number"]) for line in beams] == [(p, i) for p in ("a", "bcd") for i in range(3)]
    for at, one in enumerate(greedy):
        scores = [line["mean_log_prob"] for line in beams[3 * at : 3 * at + 3]]
        assert scores == sorted(scores, reverse=True) and scores[0] >= one["mean_log_prob"] - 1e-5
        assert len({tuple(line["tokens"]) for line in beams[3 * at : 3 * at + 3]}) == 3


def test_a_conversation(stage, trained, monkeypatch, capsys):
    def talk(said, *words):
        monkeypatch.setattr("sys.stdin", io.StringIO(said))
        assert stage("chat", "--workdir", trained, *SHORT, *words) == 0
        return capsys.readouterr().out

    once, twice = talk("hello\n"), talk("hello\n\nhello\n/reset\nhello\n/quit\nhello\n")
    assert len(once.strip()) > 0 and twice.startswith(once) and len(twice) > 2 * len(once)


def test_a_model_is_spoken_to_in_its_own_template_or_in_plain_turns(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"stage": "pretrain", "config": {"parallel": {}}}))
    assert template_of(str(tmp_path), ByteTokenizer(), plain=False) is BASE
    folder = tmp_path / "huggingface"
    folder.mkdir()
    assert jinja_of(folder) is None
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": [{"name": "default", "template": "a"}]}))
    assert jinja_of(folder) == "a"
    (folder / "chat_template.jinja").write_text("b")
    assert jinja_of(folder) == "b"
    assert template_of(str(tmp_path), ByteTokenizer(), plain=True) is BASE
    assert template_of(str(tmp_path), ByteTokenizer(), plain=False).name == "its own"
    (folder / "chat_template.jinja").write_text("{% for %}")
    with pytest.raises(ValueError, match=r"no Jinja template.*--plain"):
        template_of(str(tmp_path), ByteTokenizer(), plain=False)
    (tmp_path / "config.json").write_text(
        json.dumps({"stage": "sft", "config": {"parallel": {}}, "chat": {"name": "chatml", "jinja": None}})
    )
    assert template_of(str(tmp_path), ByteTokenizer(), plain=False) is TEMPLATES["chatml"]  # what it was tuned with


def test_what_a_template_writes_becomes_special_tokens_and_user_text_in_files_does_not():
    """A tokenizer of bytes with two special tokens, as those of chats have."""
    special = [{"id": 256 + i, "content": name, "special": True} | FLAGS for i, name in enumerate(("<|end|>", "<|user|>"))]
    symbols = sorted(ByteLevel.alphabet())
    model = {"type": "BPE", "vocab": {symbol: i for i, symbol in enumerate(symbols)}, "merges": []}
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    file = {"version": "1.0", "added_tokens": special, "pre_tokenizer": level, "decoder": level, "model": model}
    tokenizer = JsonTokenizer(json.dumps(file), eos="<|end|>")
    template = jinja_template("{% for m in messages %}<|user|>{{ m.content }}{{ eos_token }}{% endfor %}", tokenizer)
    ids = encode_prompt(Dialogue((Message("user", "<|end|>"),)), template, tokenizer)
    assert (ids[0], ids[-1], len(ids)) == (257, 256, 9) and len(tokenizer.encode("<|end|>")) == 7
    assert stop_ids(tokenizer, ["<|user|>"]) == (256, 257)
    with pytest.raises(ValueError, match="not one token"):
        stop_ids(tokenizer, ["<|nobody|>"])


def test_a_step_that_is_not_there_is_told_with_those_that_are(stage, trained, capsys):
    assert stage("sample", "--workdir", trained, "--prompt", "a", "--step", "999") == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert "no checkpoint of step 999" in said and "There are: 2." in said and "elete" not in said
