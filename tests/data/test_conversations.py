"""Every form of dialogues is told by its fields and becomes the same dialogue; what fits none is named, counted, and refused if much."""

import gzip
import json

import pytest

from jaxllm.data import natural_instructions
from jaxllm.data.conversations import FORMATS, Problem, Reading, Tally, check_share, detect, dialogues, read
from jaxllm.data.dialogues import Message, WrongDialogue
from jaxllm.data.sources import Source, make_sources
from jaxllm.tasks.natural import NaturalInstructions, rows_of

HI = (Message("user", "hi"), Message("assistant", "yo"))
CHAT = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]
TASK = {
    "Definition": ["Add."],
    "Positive Examples": [{"input": "1 1", "output": "2", "explanation": "sum"}],
    "Negative Examples": [{"input": "1 2", "output": "4", "explanation": "off"}],
    "Instances": [{"input": "2 2", "output": ["4", "four"]}, {"input": "3 3", "output": ["6"]}],
}
RECORDS = {
    "messages": {"messages": CHAT},
    "sharegpt": {"id": "x", "conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "yo"}]},
    "self_instruct": {"instruction": "hi", "instances": [{"input": "", "output": "yo"}]},
    "alpaca": {"instruction": "hi", "input": "", "output": "yo"},
    "instruction_response": {"instruction": "hi", "context": "", "response": "yo", "category": "qa"},
    "prompt_completion": {"prompt": "hi", "completion": "yo"},
    "prompt_response": {"prompt": "hi", "response": "yo"},
    "query_answer": {"query": "hi", "answer": "yo"},
    "question_answer": {"question": "hi", "answer": "yo"},
}
LABELLED = {  # never told by their fields: a label is to be learnt if it is said
    "text_label": {"text": "hi", "label": "yo"},
    "premise_hypothesis": {"premise": "a", "hypothesis": "b", "label": 1},
}


@pytest.mark.parametrize("name", RECORDS)
def test_a_format_is_told_by_its_fields(name):
    assert detect(RECORDS[name]) == (name, FORMATS[name].fields)
    for reading in (Reading(), Reading(format=name)):
        (found,) = dialogues(RECORDS[name], "f:1", reading)
        assert found.messages == HI and found.where == "f:1"


OTHER = {"completion": "no", "response": "no", "output": "no", "answer": "no", "query": "no", "question": "no"}  # another format's fields


@pytest.mark.parametrize("name", [name for name, form in FORMATS.items() if set(form.fields) & set(OTHER)])
def test_a_format_reads_its_own_fields_and_no_others(name):
    assert dialogues(OTHER | RECORDS[name], "f:1", Reading(format=name))[0].messages == HI


def test_a_field_more_does_not_change_what_is_learnt():
    record = {**RECORDS["question_answer"], "response": "no"}
    assert detect(record)[0] == "question_answer" and dialogues(record, "f:1", Reading())[0].messages == HI


@pytest.mark.parametrize("name", RECORDS)
def test_names_of_fields_may_be_capitalised(name):
    capital = {field.capitalize(): part for field, part in RECORDS[name].items()}
    assert detect(capital)[0] == name and dialogues(capital, "f:1", Reading())[0].messages == HI
    small = RECORDS[name] | {field.upper(): "no" for field in FORMATS[name].fields}
    assert dialogues(small, "f:1", Reading())[0].messages == HI  # the names in small letters count


def test_every_format_has_its_record():
    assert {*RECORDS, *LABELLED, "natural_instructions"} == set(FORMATS)


@pytest.mark.parametrize(("name", "words"), [("text_label", ["hi", "yo"]), ("premise_hypothesis", ["a\nb", "1"])])
def test_a_label_is_learnt_only_if_it_is_said(name, words):
    assert [message.words for message in dialogues(LABELLED[name], "f:1", Reading(format=name))[0].messages] == words
    with pytest.raises(Problem, match="has label: answers to compare"):
        detect(LABELLED[name])


@pytest.mark.parametrize("shown", [(2, 0, False), (1, 1, True)])
def test_natural_instructions_are_asked_as_the_task_asks_them(shown):
    reading = Reading(positives=shown[0], negatives=shown[1], explanations=shown[2])
    found = dialogues(TASK, "t.json:1", reading)
    task = NaturalInstructions(positives=shown[0], negatives=shown[1], explanations=shown[2])
    rows = [task.normal(row) for row in rows_of(TASK)]
    assert [one.messages for one in found] == [(Message("user", task.prompt(r)), Message("assistant", task.target(r))) for r in rows]
    assert [one.where for one in found] == ["t.json:1 instance 1", "t.json:1 instance 2"]
    assert detect({name.lower().replace(" ", "_"): part for name, part in TASK.items()})[0] == "natural_instructions"
    assert natural_instructions.prompt(rows[0], 0).startswith("Definition: Add.\n\nNow complete")


def test_tools_calls_and_results_in_all_spellings():
    call = {"name": "f", "arguments": {"x": 1}}
    flat = [{"role": "function_call", "content": json.dumps(call)}, {"role": "observation", "content": "2"}]
    openai = [
        {"role": "assistant", "content": None, "tool_calls": [{"type": "function", "function": call | {"arguments": '{"x": 1}'}}]},
        {"role": "tool", "content": [{"type": "text", "text": "2"}], "name": "f"},
    ]
    schema = {"name": "f", "parameters": {}}
    older = [
        {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": '{"x": 1}'}},
        {"role": "function", "content": "2", "name": "f"},
    ]
    one, two, three = (
        dialogues({"messages": [*CHAT[:1], *turns], "tools": tools}, "f:1", Reading())[0]
        for turns, tools in ((flat, json.dumps([schema])), (openai, [schema]), (older, [schema]))
    )
    assert three == two
    assert one.messages[1] == two.messages[1] == Message("assistant", "", tool_calls=(call,))
    assert one.messages[2] == two.messages[2]._replace(name=None) == Message("tool", "2") and one.tools == two.tools == (schema,)


def test_what_else_a_record_says():
    weighed = {"messages": [{**CHAT[0], "weight": 0.5}, {**CHAT[1], "train": False, "reasoning_content": "hm"}], "system": "Be kind."}
    (found,) = dialogues(weighed, "f:1", Reading())
    assert found.messages == (Message("system", "Be kind."), HI[0]._replace(weight=0.5), HI[1]._replace(weight=0.0, reasoning="hm"))
    (found,) = dialogues({"prompt": CHAT, "completion": [{"role": "assistant", "content": "so"}]}, "f:1", Reading())
    assert [message.weight for message in found.messages] == [0.0, 0.0, None]
    (found,) = dialogues({"instruction": "c", "input": "d", "output": "e", "history": [["a", "b"]]}, "f:1", Reading())
    assert [m.words for m in found.messages] == ["a", "b", "c\n\nd", "e"] and found.messages[2].input == "d"
    (found,) = dialogues({"messages": [CHAT[0], {"role": "Search Query", "content": "q"}]}, "f:1", Reading(participants=("Search Query",)))
    assert found.messages[1].role == "Search Query"


WRONG = {
    "no format": ({"text": "hi"}, "fits no format of dialogues (messages,"),
    "two formats": ({"prompt": "a", "response": "b", "messages": CHAT}, "fits the formats messages, prompt_response"),
    "preferences": ({"instruction": "a", "output": "b", "chosen": "c", "rejected": "d"}, "has chosen, rejected: answers to compare"),
    "votes": ({"messages": CHAT, "label": False}, "has label: answers to compare"),
    "an unknown role": (
        {"messages": [{"role": "asistant", "content": "a"}]},
        "unknown role 'asistant' (known: system, user,",
    ),
    "no role": ({"messages": [{"content": "a"}]}, "has a message without 'role'"),
    "no list": ({"messages": "a"}, "has messages that are no list"),
    "a picture": ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "has a content that is no text but image"),
    "broken tools": ({"messages": CHAT, "tools": "[{"}, "has tools that are broken JSON"),
    "a broken call": ({"messages": [{"role": "function_call", "content": "{"}]}, "has tool calls that are broken JSON"),
    "a nameless call": ({"messages": [{"role": "function_call", "content": "{}"}]}, "has a tool call without a name"),
    "a weight in words": ({"messages": [{**CHAT[0], "weight": "much"}]}, "has a weight 'much' that is no number"),
    "a number": ({"question": "a", "answer": 7}, "has a answer that is no text but int"),
    "half a character": ({"prompt": "a", "completion": "b \ud83d"}, "has a text with '\\ud83d' in it, half a surrogate pair"),
    "half a reason": ({"messages": [{**CHAT[1], "reasoning": "\ud83d"}]}, "has a text with"),
    "half a name": ({"messages": [{**CHAT[0], "name": "\ud83d"}]}, "has a text with"),
    "half an argument": ({"messages": [{"role": "function_call", "content": '{"name": "f", "arguments": {"\\ud83d": 1}}'}]}, "has a text"),
    "half a tool": ({"messages": CHAT, "tools": [{"name": "f", "enum": ["\ud83d"]}]}, "has a text with"),
    "half a field": ({"\ud83d": 1}, "its fields are \\ud83d; set"),
    "half an instance": ({**TASK, "Instances": [{"input": "a"}]}, "is not of the format 'natural_instructions': KeyError: 'output'"),
}


@pytest.mark.parametrize(("record", "said"), WRONG.values(), ids=WRONG)
def test_what_is_wrong_with_a_record_is_told_with_its_place(record, said):
    with pytest.raises(WrongDialogue) as error:
        dialogues(record, "f.jsonl:3", Reading())
    assert str(error.value).startswith("f.jsonl:3 ") and said in str(error.value) and str(error.value).encode()


def test_a_format_that_is_said_overrides_what_is_seen():
    assert dialogues(WRONG["votes"][0], "f:1", Reading(format="messages"))[0].messages == HI
    with pytest.raises(WrongDialogue, match="has no instruction and no output, which format 'alpaca' needs"):
        dialogues(RECORDS["messages"], "f:1", Reading(format="alpaca"))
    with pytest.raises(ValueError, match=r"Unknown format 'alpacca' of dialogues\. Choose one of: messages"):
        Reading(format="alpacca")
    with pytest.raises(Problem):
        detect({})
    (source,) = make_sources([{"path": "x", "format": "sharegpt"}], "data.train", formats=FORMATS)
    assert source.format == "sharegpt"


def write(path, records):
    lines = "\n".join(json.dumps(record) for record in records)
    path.write_bytes(gzip.compress(lines.encode()) if path.suffix == ".gz" else lines.encode())


def test_files_of_all_kinds_are_read_and_what_was_seen_is_said(tmp_path):
    import pyarrow
    import pyarrow.parquet

    write(tmp_path / "a.jsonl.gz", [RECORDS["messages"], RECORDS["alpaca"]])
    (tmp_path / "b.json").write_text(json.dumps([RECORDS["sharegpt"], "text"]))
    (tmp_path / "c.json").write_text(json.dumps(TASK))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([RECORDS["messages"]]), tmp_path / "d.parquet")
    write(tmp_path / "e.jsonl", [RECORDS["query_answer"]])
    with open(tmp_path / "e.jsonl", "a") as file:
        file.write('\n\n{"broken\n')
    tally = Tally("mine")
    found = list(read(Source("mine", str(tmp_path)), Reading(), tally))
    assert [one.where.rsplit("/", 1)[1] for one in found] == [
        "a.jsonl.gz:1",
        "a.jsonl.gz:2",
        "b.json:1",
        "c.json:1 instance 1",
        "c.json:1 instance 2",
        "d.parquet:1",
        "e.jsonl:1",
    ]
    assert [one.messages for one in found if "c.json" not in one.where] == [HI] * 5
    assert (tally.records, tally.dialogues, len(tally.wrong)) == (8, 7, 2)
    assert str(tally).startswith("mine: 7 dialogues of 8 records: 2 messages (messages), 1 alpaca (instruction, output), 1 sharegpt (conv")
    assert str(tally).endswith("; 2 of no use.")
    assert str(tally.wrong[0]).endswith("b.json:2 is a str, not an object.") and "e.jsonl:3 is broken JSON" in str(tally.wrong[1])
    with pytest.raises(
        ValueError,
        match=r"2 of 8 rows of source 'mine' cannot be trained on \(25.0%\), more than data.*b.json:2 is a",
    ):
        check_share("mine", tally.wrong, tally.records, 0.02)
    check_share("mine", tally.wrong, tally.records, 0.25)


def test_a_file_of_plain_text_has_no_dialogues(tmp_path):
    (tmp_path / "a.txt").write_text("hi")
    with pytest.raises(ValueError, match=r"a.txt is text, which has no records\. Give one of: .jsonl"):
        list(read(Source("a", str(tmp_path / "a.txt")), Reading(), Tally("a")))
