"""What lm-evaluation-harness asks, by definition; tests/oracle holds the harness itself beside it."""

import jax
import numpy as np
import pytest

from jaxllm.evaluation.harness import Answers, writing
from jaxllm.parallel.mesh import make_mesh
from tests.evaluation.test_suite import MODEL, TOKENIZER, full
from tests.models.drawn import random_params


@pytest.fixture(scope="module")
def answers():
    return Answers(MODEL, random_params(MODEL, 0), TOKENIZER, make_mesh(devices=jax.devices()[:1]), length=32, rows=4, slots=2)


def by_definition(params, before, after):
    table, ids = full(params, [*before, *after]), [*before, *after]
    return [table[len(before) + i - 1] for i in range(len(after))], ids[len(before) :]


def test_pairs_and_documents(answers, capsys):
    bos = TOKENIZER.bos_id
    cases = [
        ("ab", " cd", [bos, *b"ab"], b" cd"),
        ("", "x", [bos], b"x"),
        ("a\n", "b", [bos, *b"a"], b"\nb"),
        ("q" * 40, "rs", b"q" * 31, b"rs"),
    ]
    found = answers.loglikelihood([case[:2] for case in cases])
    assert "1 of 4 texts do not fit the model's 32 tokens and lost their beginnings" in capsys.readouterr().err
    for (log_prob, greedy), (*_, before, after) in zip(found, cases, strict=True):
        tables, wanted = by_definition(answers.params, before, after)
        assert log_prob == pytest.approx(sum(table[i] for table, i in zip(tables, wanted, strict=True)), rel=1e-4)
        assert greedy == all(table.argmax() == i for table, i in zip(tables, wanted, strict=True))
    text = "a document of more than two windows, every token once; it has 76 characters."
    first, second, third = answers.rolling([text, "", "short"])
    windows = [([bos], text[:32]), (text[31:32].encode(), text[32:64]), (text[len(text) - 33 : 64].encode(), text[64:])]
    expected = [t[i] for before, after in windows for t, i in zip(*by_definition(answers.params, before, after.encode()), strict=True)]
    assert first == pytest.approx(sum(expected), rel=1e-4) and second == 0 and third < 0


def test_texts_are_written_in_order_whatever_stands_beside_them(answers, capsys):
    greedy, drawn = {"max_gen_toks": 4, "until": []}, {"max_new_tokens": 4, "temperature": 1.5, "do_sample": True}
    asked = [("ab", greedy), ("cd", drawn), ("q" * 40, greedy), ("cd", drawn)]
    found = answers.written(asked)
    assert "1 of 2 texts do not fit" in capsys.readouterr().err
    assert found == answers.written(asked) and found[1] != found[3] and found[0] == answers.written(asked[:1])[0]
    ids = [TOKENIZER.bos_id, *b"ab"]
    for _ in range(4):
        ids.append(int(np.where(np.arange(260) < TOKENIZER.vocab_size, full(answers.params, ids)[len(ids) - 1], -np.inf).argmax()))
    assert found[0] == TOKENIZER.decode(ids[3:])


READ = {
    "nothing": ({}, ((), 256, 0.0, 1)),
    "one stop": ({"until": "\n\n", "max_gen_toks": 8}, (("\n\n",), 8, 0.0, 1)),
    "an empty stop is none": ({"until": ["", "Q:"], "max_tokens": 3, "do_sample": True}, (("Q:",), 3, 0.0, 1)),
    "drawn": ({"temperature": 0.5, "top_k": None}, ((), 256, 0.5, 1)),
    "not to be drawn": ({"temperature": 0.5, "do_sample": False, "num_beams": 2}, ((), 256, 0.0, 2)),
    "the first name counts": ({"max_tokens": 3, "max_gen_toks": 5}, ((), 5, 0.0, 1)),
}


@pytest.mark.parametrize(("options", "expected"), READ.values(), ids=READ)
def test_options_are_read_as_the_harness_reads_them(options, expected):
    how = writing(options)
    assert (how.stop, how.max_new_tokens, how.sampling.temperature, how.num_beams) == expected


def test_an_unknown_option_is_refused():
    with pytest.raises(ValueError, match=r"generation_kwargs: 'max_toks' is not known here\. Choose from: until"):
        writing({"max_toks": 3})


def test_without_the_extra_one_line_says_what_to_install(monkeypatch):
    import sys

    for name in ("lm_eval", "lm_eval.api.model"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, "jaxllm.stages.harness", raising=False)
    with pytest.raises(ValueError, match=r"Run: pip install 'jaxllm\[evals\]'"):
        import jaxllm.stages.harness  # noqa: F401
