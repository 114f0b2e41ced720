"""Files of answers become pairs of the same prompt, people's labels keep their meaning, and what does not go together is named."""

import json
import math

import numpy as np
import pytest

from jaxllm.evaluation.pairs import paired, read_answers, read_labelled


def write(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_answers_of_every_kind_are_read(tmp_path):
    sampled = write(tmp_path / "a.jsonl", {"prompt": "p", "number": 0, "text": "x", "step": 7}, {"prompt": "q", "text": "y", "step": 7})
    assert read_answers(sampled) == ({"p": ["x"], "q": ["y"]}, ("prompt", "text"), 7)
    alpaca = write(tmp_path / "b.jsonl", {"instruction": "p", "input": "", "output": "x"}, {"instruction": "p", "input": "i", "output": ""})
    assert read_answers(alpaca) == ({"p": ["x"], "p\n\ni": [""]}, ("instruction", "input", "output"), 0)


def test_several_answers_to_a_prompt_are_paired_in_order(tmp_path):
    first = write(tmp_path / "a.jsonl", *({"prompt": p, "answer": f"a{i}", "step": i} for i, p in enumerate("pqp")))
    second = write(tmp_path / "b.jsonl", *({"prompt": p, "answer": f"b{i}"} for i, p in enumerate("qpp")))
    found = paired(read_answers(first), read_answers(second))
    assert found[:5] == (["p", "p", "q"], ["a0", "a2", "a1"], ["b1", "b2", "b0"], [0, 0, 1], 0)
    assert found.limited(2).prompts == ["p", "p"] and found.limited(None) == found


@pytest.mark.parametrize(
    ("row", "labels", "both"),
    [
        (
            {"instruction": "p", "response1": "a", "response2": True, "annotator1": 1, "annotator2": 2, "annotator3": 0},
            [1, 0, 0.5],
            ("a", "True"),
        ),
        ({"input": "p", "output_1": "a", "output_2": None, "label": 2}, [0], ("a", "")),
        ({"instruction": "p", "output_1": "a", "output_2": "b", "preference": 1.5}, [0.5], ("a", "b")),
        ({"prompt": "p", "first": "a", "second": "b", "label": None}, [math.nan], ("a", "b")),
        ({"prompt": "p", "chosen": "a", "rejected": "b"}, [1], ("a", "b")),
    ],
)
def test_labels_mean_what_they_meant(row, labels, both, tmp_path):
    found = read_labelled(write(tmp_path / "l.jsonl", row))
    np.testing.assert_array_equal(found.labels, [labels])
    assert (found.prompts, found.first[0], found.second[0]) == (["p"], *both)


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        ([], "has no answers"),
        ([{"answer": "x"}], "no prompt. Name it prompt, instruction or input"),
        ([{"prompt": "p", "answers": "x"}], "no answer. Name it one of: text"),
    ],
)
def test_what_is_no_answer_is_named(rows, sentence, tmp_path):
    with pytest.raises(ValueError, match=sentence):
        read_answers(write(tmp_path / "a.jsonl", *rows))


@pytest.mark.parametrize(
    ("prompts", "sentence"), [("pq", "1 of 2 prompts are answered in one file alone: 'q'"), ("pp", "has 1 answers in one")]
)
def test_other_prompts_are_refused(prompts, sentence, tmp_path):
    first = read_answers(write(tmp_path / "a.jsonl", {"prompt": "p", "text": "x"}))
    second = read_answers(write(tmp_path / "b.jsonl", *({"prompt": p, "text": "x"} for p in prompts)))
    with pytest.raises(ValueError, match=sentence):
        paired(first, second)


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        ({"prompt": "p", "first": "a", "second": "b"}, "no label. Name it label"),
        ({"prompt": "p", "first": "a", "second": "b", "label": 3}, "the label 3. Choose from: 1"),
        ({"prompt": "p", "first": "a", "second": "b", "label": True}, "the label True"),
        ({"prompt": "p", "first": "a", "second": ["b"], "label": 1}, "no two answers"),
    ],
)
def test_what_is_no_label_is_named(row, sentence, tmp_path):
    with pytest.raises(ValueError, match=f"Row 2 of .*{sentence}"):
        read_labelled(write(tmp_path / "l.jsonl", {"prompt": "p", "first": "a", "second": "b", "label": 1}, row))
