"""Every task of the catalogue on a row as published: what is asked, what is right, and that a wrong row is refused."""

import json

import pytest

from jaxllm.tasks.arithmetic import Arithmetic
from jaxllm.tasks.catalog import TASKS, entry, find_files, kind, open_task
from jaxllm.tasks.exact import BBH
from jaxllm.tasks.rows import normal_rows
from jaxllm.tasks.task import Choice, Generation, WrongRow

LISTED = {"question": {"stem": "Why?", "choices": [{"text": "so", "label": "A"}, {"text": "no", "label": "B"}]}, "answerKey": "B"}
HUB = {"question": "Why?", "choices": {"text": ["so", "no"], "label": ["1", "2"]}, "answerKey": "2"}
MC = {"mc1_targets": {"yes": 1, "no": 0}, "mc2_targets": {"choices": ["no", "yes", "aye"], "labels": [0, 1, 1]}}
# name -> rows as published; of a choice: prompt, choices and the right one of each
CHOICES = {
    "choice": [({"query": "Q", "choices": ["a", " b "], "gold": 1}, "Q", ["a", "b"], 1)],
    "arc_easy": [(LISTED, "Question: Why?\nAnswer:", ["so", "no"], 1), (HUB, "Question: Why?\nAnswer:", ["so", "no"], 1)],
    "arc_challenge": [({"query": "Question: Why?", "choices": ["so", "no"], "gold": 0}, "Question: Why?\nAnswer:", ["so", "no"], 0)],
    "openbookqa": [(LISTED, "Why?", ["so", "no"], 1)],
    "commonsense_qa": [(LISTED, "Question: Why?\nChoices:\nA. so\nB. no\nAnswer:", ["A", "B"], 1)],
    "hellaswag": [
        (
            {
                "activity_label": "Do",
                "ctx_a": "A man [title] b  [x]sits.",
                "ctx_b": "he",
                "endings": ["runs [title] Up", "eats"],
                "label": "1",
            },
            "Do: A man. b sits. He",
            ["runs. Up", "eats"],
            1,
        )
    ],
    "piqa": [({"goal": "cut", "sol1": "saw", "sol2": "sea", "label": 0}, "Question: cut\nAnswer:", ["saw", "sea"], 0)],
    "siqa": [
        (
            {"context": "C.", "question": "Q?", "answerA": "a", "answerB": "b", "answerC": "c", "label": "3"},
            "Q: C. Q?\nA:",
            ["a", "b", "c"],
            2,
        )
    ],
    "copa": [
        (
            {"premise": "It fell.", "choice1": "It broke.", "choice2": "I ate.", "question": "effect", "label": 0},
            "It fell therefore",
            ["it broke.", "i ate."],
            0,
        )
    ],
    "boolq": [
        ({"question": "is it", "passage": "P.", "answer": True}, "P.\nQuestion: is it?\nAnswer:", ["no", "yes"], 1),
        ({"question": "is it?", "passage": "P.", "label": 0}, "P.\nQuestion: is it?\nAnswer:", ["no", "yes"], 0),
    ],
    "truthfulqa_mc1": [({"question": "Is it?", **MC}, "Q: Is it?\nA:", ["yes", "no"], 0)],
    "truthfulqa_mc2": [({"question": "Is it?", **MC}, "Q: Is it?\nA:", ["no", "yes", "aye"], 1)],
    "mmlu": [
        (
            dict(zip(("question", *"ABCD", "answer"), ("Q?", "a", "b", "c", "d", "C"), strict=True)),
            "Q?\nA. a\nB. b\nC. c\nD. d\nAnswer:",
            list("ABCD"),
            2,
        )
    ],
    "bigbench": [({"input": "I", "target_scores": {"x": 0, "y": 1}}, "Q: I\nA:", ["x", "y"], 1)],
    "model_written": [
        ({"question": "Q?", "answer_matching_behavior": " (A)", "answer_not_matching_behavior": " (B)"}, "Q?\n\nAnswer:", ["(A)", "(B)"], 0)
    ],
}
CODE = {
    "task_id": "x/0",
    "prompt": "def one():\n",
    "entry_point": "one",
    "canonical_solution": "    return 1\n",
    "test": "def check(f):\n    assert f() == 1\n",
}
MBPP = {
    "task_id": 1,
    "text": "one",
    "code": "def one():\n  return 1",
    "test_list": ["assert one() == 1"],
    "test_setup_code": "",
    "challenge_test_list": [],
}
OTHERS = {
    "arithmetic": {"question": "1 + 2 =", "answer": "3"},
    "arithmetic_calls": {"question": "1 + 2 =", "answer": "3"},
    "addition": {"question": "1 + 2 =", "answer": "3"},
    "text": {"text": "a text"},
    "lambada": {"text": "the last word"},
    "continuation": {"context": "c", "continuation": "d"},
    "winogrande": {"sentence": "the _ ran", "option1": "cat", "option2": "dog", "answer": "2"},
    "winograd": {"context_options": ["a", "b"], "continuation": "c", "gold": 0},
    "bigbench_exact": {"context": "c", "continuation": "d"},
    "bbh": {"task": "t", "input": "True and False is", "target": "False"},
    "gsm8k": {"question": "1+1?", "answer": "It is <<1+1=2>>2.\n#### 2"},
    "math": {"problem": "1+1?", "level": "Level 1", "type": "Algebra", "solution": "It is $\\boxed{2}$."},
    "svamp": {"Body": "One.", "Question": "And one?", "Answer": 2.0, "Equation": "1+1"},
    "humaneval": CODE,
    "mbpp": MBPP,
    "ifeval": {"key": 1, "prompt": "Write no comma.", "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]},
    "natural_instructions": {
        "Definition": ["Say yes."],
        "Positive Examples": [],
        "Negative Examples": [],
        "Instances": [{"input": "?", "output": ["yes"]}],
    },
}


def test_every_task_is_here():
    assert {*CHOICES, *OTHERS} == set(TASKS)


@pytest.mark.parametrize("name", CHOICES)
def test_what_a_choice_asks(name):
    found = entry(name)
    for row, prompt, choices, gold in CHOICES[name]:
        (row,) = normal_rows(found.task, iter(found.expand(row) if found.expand else [row]), "here")
        assert (found.task.prompt(row), row["choices"], row["gold"]) == (prompt, choices, gold)
        assert found.task.pairs(row) == [(prompt, " " + choice) for choice in choices]
        assert found.task.target(row) == choices[gold] and isinstance(found.task, Choice)


@pytest.mark.parametrize("name", [name for name in OTHERS if name not in ("humaneval", "mbpp")])
def test_a_right_answer_scores_and_a_wrong_one_does_not(name):
    found = entry(name)
    rows = found.expand(OTHERS[name]) if found.expand else [OTHERS[name]]
    (row,) = normal_rows(found.task, iter(rows), "here")
    if isinstance(found.task, Generation):
        right = "I write none" if name == "ifeval" else found.task.target(row)
        assert found.task.score(row, right)[found.task.METRIC] == 1
        assert found.task.score(row, "7, I think")[found.task.METRIC] == 0
    else:
        assert found.task.prompt(row) is not None and found.task.target(row)


@pytest.mark.parametrize(
    ("name", "row", "sentence"),
    [
        ("choice", {"query": "Q", "choices": ["a"], "golden": 0}, "has no 'gold' (is it 'golden'?); its fields are choices, golden, query"),
        ("choice", {"query": "Q", "choices": "yes", "gold": 0}, "has choices='yes', which is no list of texts"),
        ("choice", {"query": "Q", "choices": ["a"], "gold": "0"}, "has gold='0', which is no whole number"),
        ("choice", {"query": None, "choices": ["a"], "gold": 0}, "has query=None, which is no text"),
        ("arc_easy", {"question": "Q", "choices": [], "answerkey": "A"}, "has no 'answerKey' (is it 'answerkey'?)"),
        ("continuation", {"context": 1, "continuation": "a"}, "has context=1, which is no text"),
        ("continuation", {"context": "a", "continuation": " "}, "has an empty continuation"),
    ],
)
def test_a_wrong_row_says_which_field(name, row, sentence):
    with pytest.raises(WrongRow) as error:
        entry(name).task.normal(row)
    assert sentence in str(error.value)


@pytest.mark.parametrize("name", TASKS)
def test_a_row_of_another_format_is_refused_and_named(name):
    found = entry(name)
    with pytest.raises(ValueError, match=r"Row 1 of rows\.jsonl (has no |is not of the format)"):
        normal_rows(found.task, iter([{"other": 1}]), "rows.jsonl")
    with pytest.raises(WrongRow, match=type(found.task).__name__):
        found.task.normal({"other": 1})


@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("choice", {"query": "Q", "choices": "yes", "gold": 0}),
        ("choice", {"query": "Q", "choices": ["a", "b"], "gold": 1.0}),
        ("choice", {"query": "Q", "choices": ["a", "b"], "gold": True}),
        ("choice", {"query": None, "choices": ["a", "b"], "gold": 0}),
        ("text", {"text": ""}),
        ("text", {"text": None}),
        ("continuation", {"context": "a", "continuation": " "}),
        ("lambada", {"context": 1, "continuation": "a"}),
        ("boolq", {"question": "q", "passage": "p", "answer": "perhaps"}),
        ("arithmetic", {"question": "1 + 1 =", "answer": "two"}),
    ],
)
def test_values_of_another_kind_are_refused(name, row):
    with pytest.raises(ValueError, match=r"Row 1 of f (has|says)"):
        normal_rows(TASKS[name].task, iter([row]), "f")


def test_answers_as_words_and_numbers():
    row = {"question": "q", "passage": "p"}
    found = normal_rows(TASKS["boolq"].task, iter([row | {"answer": said} for said in ("false", "True", 0, True)]), "f")
    assert [one["gold"] for one in found] == [0, 1, 0, 1]
    assert normal_rows(TASKS["arithmetic"].task, iter([{"question": "1 + 1 =", "answer": 2}]), "f")[0]["answer"] == "2"


def test_splits_are_never_mixed(tmp_path):
    for name in ("hellaswag_train.jsonl", "hellaswag_val.jsonl", "gsm8k_test.jsonl"):
        (tmp_path / name).write_text("{}")
    with pytest.raises(ValueError, match=r"Several files of task 'hellaswag'.*hellaswag=FILE"):
        find_files("hellaswag", str(tmp_path))
    with pytest.raises(ValueError, match="No file of task 'mmlu'"):
        find_files("mmlu", str(tmp_path))


def test_gold_outside_of_the_choices_is_refused():
    with pytest.raises(ValueError, match="gold=2 is none of its 2 choices"):
        normal_rows(TASKS["choice"].task, iter([{"query": "Q", "choices": ["a", "b"], "gold": 2}]), "f")
    with pytest.raises(ValueError, match="'E' is right, which is none of A, B"):
        normal_rows(TASKS["arc_easy"].task, iter([LISTED | {"answerKey": "E"}]), "f")


def test_pairs_of_winogrande_differ_before_what_is_scored():
    found = TASKS["winogrande"].task
    row = found.normal(OTHERS["winogrande"])
    assert found.pairs(row) == [("the cat", " ran"), ("the dog", " ran")] and row["gold"] == 1


def test_scores_of_choices():
    task, row = TASKS["choice"].task, {"query": "Q", "choices": ["ab", "abcd"], "gold": 1}
    assert task.scored(row, [-3.0, -5.0], [2, 4]) == {"accuracy": 0.0, "accuracy_norm": 1.0}
    assert task.scored(row, [-3.0, -3.0], [2, 2])["accuracy"] == 0.0, "of equal ones the first"
    mc2 = TASKS["truthfulqa_mc2"].task
    row = mc2.normal({"question": "Is it?", **MC})
    assert mc2.scored(row, [-1.0, -1.0, -1.0], [1, 1, 1])["accuracy"] == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        (" 3", 1),
        ("3\nmore", 1),
        ("3.", 1),
        (" 3, I think", 1),
        ("03", 1),
        ("+3", 0),
        ("-3", 0),
        ("31", 0),
        ("3.5", 0),
        ("3,000", 0),
        ("", 0),
        ("x 3", 0),
    ],
)
def test_arithmetic_is_read_at_the_beginning(answer, right):
    assert TASKS["arithmetic"].task.score({"question": "1 + 2 =", "answer": "3"}, answer)["exact_match"] == right


def test_no_question_of_arithmetic_is_in_both_parts():
    task = TASKS["arithmetic"].task
    train, test = ({row["question"] for row in task.made(2000, seed, part)} for seed, part in ((0, "train"), (1, "test")))
    assert len(train) > 1000 and len(test) > 500 and not train & test


def test_arithmetic_is_a_function_of_seed_and_number():
    task = TASKS["arithmetic"].task
    few, many = list(task.made(5, 1)), list(task.made(50, 1))
    assert many[:5] == few and list(task.made(5, 2)) != few and len({row["question"] for row in many}) > 30
    for row in many:
        left, sign, right, _ = row["question"].split()
        assert int(row["answer"]) == (int(left) + int(right) if sign == "+" else int(left) - int(right))


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        ("Think. So the answer is False.", 1),
        ("So the answer is False. So the answer is True.", 0),
        ("False", 1),
        ("False.\nTrue", 1),
        ("the answer is false.", 0),
    ],
)
def test_chains_of_thought_end_in_an_answer(answer, right):
    assert TASKS["bbh"].task.score(OTHERS["bbh"], answer)["exact_match"] == right


def test_material_is_of_the_row_alone():
    shown = BBH(prompts={"x": "Q: shared\nA: so the answer is yes."})
    assert shown.material({"name": "x", "input": "2 + 2?", "target": "4"}) == "2 + 2? 4"
    assert Arithmetic().material({"question": "1 + 1 =", "answer": "2"}) == "1 + 1 = 2"


def test_files_are_found_by_their_published_names(tmp_path):
    rows = [{"query": "Q", "choices": ["a", "b"], "gold": 1}] * 3
    (tmp_path / "mc").mkdir()
    (tmp_path / "mc" / "arc_easy.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "college_test.csv").write_text('"Is ""it"", really?",a,b,c,d,B\n')
    assert find_files("arc_easy", str(tmp_path)) == [str(tmp_path / "mc" / "arc_easy.jsonl")]
    assert len(open_task("arc_easy", find_files("arc_easy", str(tmp_path)))[1]) == 3
    assert open_task("mmlu", find_files("mmlu", str(tmp_path)))[1][0]["query"].startswith('Is "it", really?\nA. a')
    with pytest.raises(ValueError, match="No file of task 'piqa'"):
        find_files("piqa", str(tmp_path))


@pytest.mark.parametrize(
    ("name", "text", "sentence"),
    [
        ("rows.jsonl", '{"query": "Q", "choices": ["a"], "gold": 0}\n[1]\n', "line 2 of .* is not a JSON object"),
        ("rows.jsonl", '{"a": \n', "line 1 of .* is not JSON"),
        ("rows.json", '{"a": 1}', "is not a JSON list of objects"),
        ("rows.jsonl", "", "has no row"),
        ("rows.jsonl.gz", "plain", "cannot be read"),
        ("rows.txt", "a", "not a kind of file"),
        ("rows.csv", "Q,a,b\n", "another number of columns"),
    ],
)
def test_files_that_are_none_are_told(name, text, sentence, tmp_path):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=sentence):
        open_task("mmlu" if name.endswith("csv") else "choice", [str(tmp_path / name)])


def test_unknown_names_and_missing_files():
    with pytest.raises(ValueError, match="Did you mean 'hellaswag'"):
        entry("hellaswg")
    with pytest.raises(ValueError, match="Task 'piqa' needs a file"):
        open_task("piqa", [])
    with pytest.raises(ValueError, match="There is no task file 'nowhere"):
        open_task("piqa", ["nowhere.jsonl"])
    assert {kind(found.task) for found in TASKS.values()} == {"choice", "generation", "continuation", "text"}
