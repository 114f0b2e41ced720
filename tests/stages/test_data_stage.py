"""`jaxllm data show`: every token of a row with its weight, role, segment and position; what is a target alone is shown as such."""

import io
import re

import numpy as np
import pytest
from rich.console import Console

from jaxllm.__main__ import main
from jaxllm.data.chat import encode
from jaxllm.data.dialogues import Dialogue, Message
from jaxllm.data.pipeline import empty_row
from jaxllm.data.templates import TEMPLATES
from jaxllm.data.tokenizer_kinds import ByteTokenizer
from jaxllm.data.tokenizer_training import train_sentencepiece
from jaxllm.stages.data import heading, row_html, runs, show_row, tokens_of

ROLES = [("user", "assistant"), ("user", "assistant")]


def packed(tokenizer, length=64):
    """Two dialogues in one row, as a reader of tuning data gives it."""
    row = {**empty_row(length), "turns": np.full(length, -1, np.int16)}
    at = 0
    for segment, answer in enumerate(("yes", "no"), 1):
        found = encode(Dialogue((Message("user", "q"), Message("assistant", answer, weight=segment / 2))), TEMPLATES["plain"], tokenizer)
        size = len(found.tokens)
        place = slice(at, at + size)
        row["tokens"][place], row["turns"][place], row["segments"][place] = found.tokens, found.turns, segment
        row["positions"][place] = np.arange(size)
        row["targets"][place], row["weights"][place] = np.append(found.tokens[1:], 0), np.append(found.weights[1:], 0)
        at += size
    return row


def test_a_token_is_shown_with_the_weight_it_has_as_a_target():
    tokenizer = ByteTokenizer()
    row = packed(tokenizer)
    found = tokens_of(row, tokenizer, ROLES)
    for segment, (answer, weight) in enumerate((("yes", 0.5), ("no", 1.0)), 1):
        own = [token for token in found if token.segment == segment]
        learnt = [token for token in own if token.weight]
        assert "".join(token.text for token in learnt) == f" {answer}<258>" and {token.weight for token in learnt} == {weight}
        assert {token.role for token in learnt} == {"assistant"} and [token.position for token in own] == list(range(len(own)))
        assert own[0].weight is None and own[0].turn == -1 and own[1].role == "user"
    assert len(found) == int((row["segments"] > 0).sum()) and not any(token.predicted for token in found)
    heads = [heading(run) for run in runs(found)]
    assert heads[0] == "segment 1, positions 0 to 0, 0 of 1 tokens trained on"
    assert "segment 1, assistant, positions 9 to 24, 5 of 16 tokens trained on, weights 0.5" in heads


def test_the_last_target_of_a_window_is_shown_though_it_is_no_input():
    tokenizer = ByteTokenizer()
    row = empty_row(4)
    row["tokens"][:], row["targets"][:] = tokenizer.encode("abcd"), tokenizer.encode("bcde")
    row["weights"][:], row["segments"][:], row["positions"][:] = 1, 1, np.arange(4)
    found = tokens_of(row, tokenizer)
    assert [(t.text, t.weight, t.predicted) for t in found[-2:]] == [("d", 1.0, False), ("e", 1.0, True)]
    row["targets"][1] = ord("x")  # an objective that asks for something else than what comes next
    assert [t.text for t in tokens_of(row, tokenizer)] == ["a", "b", "x", "c", "d", "e"]


def test_on_the_terminal_and_on_a_page_the_same_is_trained_on():
    tokenizer = ByteTokenizer()
    row = packed(tokenizer)
    shown = show_row(row, tokenizer, ROLES)
    reverse = "".join(shown.plain[s.start : s.end] for s in shown.spans if "reverse" in str(s.style))
    assert reverse == " yes<258> no<258>" and "⟦ yes<258>⟧" in shown.plain
    page = row_html(row, tokenizer, ROLES)
    spans = re.findall(r'<span class="([^"]*)" title="([^"]*)">(.*?)</span>', page, re.S)
    assert "".join(text for kinds, _, text in spans if "trained" in kinds) == " yes&lt;258&gt; no&lt;258&gt;"
    assert ("green trained", "id 121 · assistant · weight 0.5 · segment 1 · position 20", "y") in spans
    assert "64 places, 9 trained on" in page and "2 segments" in shown.plain
    out = io.StringIO()
    Console(file=out, soft_wrap=True).print(shown)
    assert "⏎" in out.getvalue()


def test_spaces_are_shown_where_a_tokenizer_would_drop_them():
    tokenizer = train_sentencepiece(["hello world " * 20], vocab_size=310)
    ids = tokenizer.encode("hello world hello")
    row = empty_row(len(ids))
    row["tokens"][:], row["segments"][:] = ids, 1
    assert "".join(token.text for token in tokens_of(row, tokenizer)) == "hello world hello"


CONFIG = """
from ml_collections import ConfigDict
def get_config():
    return ConfigDict({{"data": {{"train": [{{"path": {text!r}}}], "prepared": {out!r}, "eval_fraction": 0.0}},
                       "batch_size": 2, "sequence_length": 16, "model": {{"preset": "tiny"}}}})
"""


@pytest.fixture
def config(tmp_path):
    (tmp_path / "a.txt").write_text("The quick brown fox jumps over the lazy dog. " * 9)
    (tmp_path / "c.py").write_text(CONFIG.format(text=str(tmp_path / "a.txt"), out=str(tmp_path / "prepared")))
    return str(tmp_path / "c.py")


def test_the_stage_shows_a_row_of_pretraining(config, tmp_path, capsys):
    page = tmp_path / "row.html"
    assert main(["data", "show", "--config", config, "--row", "3", "--html", str(page)]) == 0
    shown = capsys.readouterr().out
    assert "16 places, 16 trained on, 0 padding, 1 segments" in shown and str(page) in shown
    assert page.read_text().count("<span") == 17
    assert main(["data", "show", "--config", config, "--row", "-1"]) == 2
    assert "--row -1: rows are counted from 0." in capsys.readouterr().err
