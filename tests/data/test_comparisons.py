"""Every form of comparison is told by its fields and says what it says; what says nothing is refused by name."""

import math

import pytest

from jaxllm.data.comparisons import FORMATS, Reading, Tally, judged, prefixes, records, transcript
from jaxllm.data.dialogues import WrongDialogue
from jaxllm.data.sources import make_sources

HUMAN = "\n\nHuman: hi\n\nAssistant: yes?\n\nHuman: 2+2\n\nAssistant:"
ASKED = [{"role": "user", "content": "q"}]

# record -> (format, the prompt's last words, answers best first, ranks)
RECORDS = {
    "prompt and texts": ({"prompt": "q", "chosen": "a", "rejected": "b"}, "pair", "q", ["a", "b"], (0, 1)),
    "query": ({"query": "q", "chosen": "a", "rejected": "b"}, "pair", "q", ["a", "b"], (0, 1)),
    "messages": ({"messages": ASKED, "chosen": "a", "rejected": "b"}, "pair", "q", ["a", "b"], (0, 1)),
    "instruction": (
        {"instruction": "do", "input": "it", "output": "a", "chosen": "a", "rejected": "b"},
        "pair",
        "do",
        ["a", "b"],
        (0, 1),
    ),
    "whole dialogues": (
        {"chosen": [*ASKED, {"role": "assistant", "content": "a"}], "rejected": [*ASKED, {"role": "assistant", "content": "b"}]},
        "pair",
        "q",
        ["a", "b"],
        (0, 1),
    ),
    "answers as messages": (
        {"prompt": ASKED, "chosen": [{"role": "assistant", "content": "a"}], "rejected": [{"role": "assistant", "content": "b"}]},
        "pair",
        "q",
        ["a", "b"],
        (0, 1),
    ),
    "sharegpt": (
        {
            "conversations": [{"from": "human", "value": "q"}],
            "chosen": {"from": "gpt", "value": "a"},
            "rejected": {"from": "gpt", "value": "b"},
        },
        "pair",
        "q",
        ["a", "b"],
        (0, 1),
    ),
    "transcripts": ({"chosen": f"{HUMAN} 4", "rejected": f"{HUMAN} 5"}, "pair", "2+2", ["4", "5"], (0, 1)),
    "second output": ({"input": "q", "output_1": "b", "output_2": "a", "label": 2}, "two_outputs", "q", ["a", "b"], (0, 1)),
    "tied outputs": ({"instruction": "q", "output_1": "a", "output_2": "b", "preference": 1.5}, "two_outputs", "q", ["a", "b"], (0, 0)),
    "votes": (
        {"instruction": "q", "response1": "b", "response2": "a", "annotator1": 2, "annotator2": 1, "annotator3": 2},
        "annotated",
        "q",
        ["a", "b"],
        (0, 1),
    ),
    "votes that tie": (
        {"instruction": "q", "response1": "a", "response2": "b", "annotator1": 2, "annotator2": 1},
        "annotated",
        "q",
        ["a", "b"],
        (0, 0),
    ),
    "places": ({"prompt": "q", "answers": ["c", "a", "b"], "ranking": [3, 1, 1]}, "ranking", "q", ["a", "b", "c"], (0, 0, 1)),
    "scores": ({"prompt": "q", "answers": ["c", "a", "b"], "scores": [0.1, 9, 5]}, "ranking", "q", ["a", "b", "c"], (0, 1, 2)),
    "the best": ({"prompt": "q", "answers": ["c", "a", "b"], "best": 1}, "ranking", "q", ["a", "c", "b"], (0, 1, 1)),
    "a label": ({"prompt": "q", "completion": "a", "label": True}, "label", "q", ["a"], (0,)),
    "a labelled dialogue": ({"messages": [*ASKED, {"role": "assistant", "content": "a"}], "label": 3.5}, "label", "q", ["a"], (0,)),
    "a step": ({"prompt": "q", "steps": ["a\n", "b"], "labels": [True, False]}, "steps", "q", ["a\nb"], (0,)),
    "a step as trl has it": ({"prompt": "q", "completions": ["a"], "labels": [1]}, "steps", "q", ["a"], (0,)),
    "a rule": ({"dialogue": f"{HUMAN} 4", "rule": "Be kind.", "verdict": True}, "rule", "2+2", ["4"], (0,)),
}


@pytest.mark.parametrize("name", RECORDS)
def test_a_record_says_what_it_says(name):
    record, form, asked, answers, ranks = RECORDS[name]
    found = judged(record, "f:1", Reading())
    assert [dialogue.messages[-1].content for dialogue in found.dialogues] == answers
    assert found.ranks == ranks and (len(answers) > 1) == math.isnan(found.value)
    for dialogue in found.dialogues:
        *prompt, answer = dialogue.messages
        assert prompt[-1].content == asked and all(turn.weight == 0 for turn in prompt)
        assert answer.role == "assistant" and answer.weight is None
    assert judged(record, "f:1", Reading(format=form)) == found


def test_every_form_is_tried():
    assert {row[1] for row in RECORDS.values()} == set(FORMATS)


def test_values_margins_rules_and_turns():
    assert judged(RECORDS["a label"][0], "", Reading()).value == 1 and judged(RECORDS["a labelled dialogue"][0], "", Reading()).value == 3.5
    scored = {"prompt": "q", "chosen": "a", "rejected": "b", "score_chosen": 8, "score_rejected": 5.5}
    assert judged(scored, "", Reading()).margin == 2.5
    first = judged(RECORDS["a rule"][0], "", Reading()).dialogues[0].messages[0]
    assert first.content.startswith("The rule: Be kind.\n") and first.content.endswith("\n\nhi")
    assert [(turn.role, turn.content) for turn in transcript(f"{HUMAN} 4")] == [
        ("user", "hi"),
        ("assistant", "yes?"),
        ("user", "2+2"),
        ("assistant", "4"),
    ]


@pytest.mark.parametrize(
    ("record", "sentence"),
    [
        ({"prompt": "q", "chosen": "a", "rejected": "a"}, "prefers an answer to the very same one"),
        ({"prompt": "q", "answers": ["a", "b", "a"], "ranking": [1, 2, 3]}, "prefers an answer to the very same one"),
        ({"prompt": "q", "chosen": "a", "rejected": None}, "lacks an answer"),
        ({"text": "x"}, "fits no format of comparisons (pair, two_outputs"),
        ({"prompt": "q", "completion": "a", "label": "good"}, "has a label 'good' that is no number"),
        ({"input": "q", "output_1": "a", "output_2": "b", "label": 3}, "prefers 3, which is none of 1 and 2"),
        ({"prompt": "q", "answers": ["a", "b"], "ranking": [1]}, "2 answers and a ranking that is no list of as many numbers"),
        ({"prompt": "q", "steps": ["a", "b"], "labels": [1]}, "not as many labels"),
        ({"prompt": "q", "steps": "ab", "labels": [1, 1]}, "not as many labels"),
        ({"prompt": "q", "steps": ["a"], "labels": ["good"]}, "has a label 'good' that is no number"),
        ({"dialogue": "plain", "rule": "r", "verdict": 1}, "neither messages nor a transcript"),
        ({"prompt": "q", "chosen": "a", "rejected": "\ud83d"}, "has a text with '\\ud83d' in it, half a surrogate pair"),
        ({"chosen": "plain", "rejected": "texts"}, "neither messages nor a transcript"),
    ],
)
def test_what_says_nothing_is_refused_by_name(record, sentence):
    with pytest.raises(WrongDialogue, match="f:7") as error:
        judged(record, "f:7", Reading())
    assert sentence in str(error.value)


def test_a_source_is_read_and_what_was_seen_is_said(tmp_path):
    (tmp_path / "x.jsonl").write_text('{"prompt": "q", "chosen": "a", "rejected": "b"}\n{"prompt": "q"}\nbroken\n')
    tally = Tally("x")
    assert len(list(records(make_sources([str(tmp_path / "x.jsonl")], "data.train")[0], Reading(), tally))) == 1
    assert str(tally) == "x: 3 records: 1 pair (chosen, rejected); 2 of no use."
    assert "x.jsonl:3 is broken JSON" in str(tally.wrong[1])
    with pytest.raises(ValueError, match="Choose one of: pair"):
        Reading(format="pairs")


def test_each_step_of_a_solution_is_judged_behind_those_before_it(tmp_path):
    lines = ['{"prompt": "q", "steps": ["a", "b", "c"], "labels": [true, true, false]}', '{"prompt": "q", "steps": ["a"], "labels": []}']
    (tmp_path / "x.jsonl").write_text("\n".join(lines))
    tally = Tally("x")
    found = list(records(make_sources([str(tmp_path / "x.jsonl")], "data.train")[0], Reading(), tally))
    assert [one.dialogues[0].messages[-1].content for one in found] == ["a", "a\nb", "a\nb\nc"] == prefixes("a\nb\nc")
    assert [one.value for one in found] == [1, 1, 0] and {one.dialogues[0].messages[0].content for one in found} == {"q"}
    assert str(tally) == "x: 4 records: 3 steps (steps, labels); 1 of no use."
    assert prefixes("a\n\nb\n") == ["a", "a\n\nb"] and prefixes(" \n") == []
