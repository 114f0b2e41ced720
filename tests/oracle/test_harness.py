"""The same rows and the same tiny model in lm-evaluation-harness with transformers, in the harness with jaxllm, and in our own suite."""

import dataclasses
import json

import pytest

from jaxllm.evaluation.prompts import Split
from jaxllm.evaluation.suite import Suite
from jaxllm.tasks.task import Choice, Generation, Text
from tests.interop.test_tokenizer_files import SPECIAL, byte_level
from tests.oracle import families

pytestmark = pytest.mark.oracle
lm_eval = pytest.importorskip("lm_eval")

LENGTH, NEW = 128, 12
WORDS = ["the", "quick", "brown", "fox", "jumps", "over", "the", "lazy", "dog", "and", "reads", "a", "book", "by", "the", "old", "door"]
SHOTS = [{"query": "the fox", "choices": ["jumps", "reads"], "gold": 0}, {"query": "a book", "choices": ["door", "dog"], "gold": 1}]
ROWS = [
    {"query": " ".join(WORDS[i : i + 3 + i]) + ending, "choices": choices, "gold": (i + 1) % 2}
    for i, (ending, choices) in enumerate(
        [
            ("", ["jumps over", "x"]),
            ("?\n", ["a", "b", "the lazy dog"]),  # a line end belongs to what follows
            (" ", ["über über über", "uber uber uber"]),  # as many characters, more bytes
            ("", ["狐狸", "fox", "ab"]),
            (".\n\n", ["yes", "no"]),
            ("", ["the old door", "the old door and the lazy dog"]),
            ("", ["éà", "door"]),
            ("", ["door", "éàé"]),
            ("", ["ßü", "dog!"]),
        ]
    )
]
TEXTS = ["one text, " + " ".join(WORDS), "\n begins and ends with space \n", " ".join(WORDS * 9), "x"]  # the third takes several windows
ASKED = [{"question": " ".join(WORDS[i : i + 4 + i]), "answer": ""} for i in range(6)]

TASKS = {
    "choice": {
        "output_type": "multiple_choice",
        "doc_to_text": "{{query}}",
        "doc_to_choice": "choices",
        "doc_to_target": "gold",
        "num_fewshot": 2,
        "fewshot_split": "train",
        "fewshot_config": {"sampler": "first_n"},
        "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
    },
    "text": {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{text}}",
        "metric_list": [{"metric": name} for name in ("word_perplexity", "byte_perplexity", "bits_per_byte")],
    },
    "write": {
        "output_type": "generate_until",
        "doc_to_text": "{{question}}",
        "doc_to_target": "{{answer}}",
        "generation_kwargs": {"until": ["\n\n", "a"], "max_gen_toks": NEW, "do_sample": False},
        "metric_list": [{"metric": "exact_match"}],
    },
}


@dataclasses.dataclass(frozen=True)
class Write(Generation):
    """The same as the harness's task of this name."""

    max_new_tokens: int = NEW
    stop: tuple[str, ...] = ("\n\n", "a")
    FIELDS = (("question", "answer"),)

    def prompt(self, row):
        return row["question"]

    def target(self, row):
        return row["answer"]

    def score(self, row, answer):
        return {"exact_match": float(answer == row["answer"])}


OWN = {"choice": (Choice(shots=2), Split(SHOTS, ROWS)), "text": (Text(), Split([], [{"text": t} for t in TEXTS])), "write": (Write(), None)}


@pytest.fixture(scope="module", params=[True, False], ids=["texts begin", "texts do not begin"])
def folder(request, tmp_path_factory):
    """A tiny Llama of transformers, with a tokenizer that puts a token before every text or none."""
    path = tmp_path_factory.mktemp("model")
    reference = families.reference_model("tiny_llama3.1")
    model = byte_level(adds_bos=request.param)
    ids = {"bos_token_id": model.token_to_id(SPECIAL[1]), "eos_token_id": model.token_to_id(SPECIAL[0])}
    for name, value in (ids | {"max_position_embeddings": LENGTH}).items():
        setattr(reference.config, name, value)
        setattr(reference.generation_config, name, value)
    reference.save_pretrained(path)
    model.save(str(path / "tokenizer.json"))
    said = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": SPECIAL[0], "pad_token": SPECIAL[3]}
    (path / "tokenizer_config.json").write_text(json.dumps(said | ({"bos_token": SPECIAL[1]} if request.param else {})))
    return path, request.param


@pytest.fixture(scope="module")
def models(folder):
    """The harness's hf, the same for whole documents, and jaxllm's.

    With a tokenizer that begins texts, hf scores that beginning of a document too, after itself, unless it is told to add none.
    """
    from lm_eval.models.huggingface import HFLM

    from jaxllm.stages import harness

    path, begins = folder
    theirs = HFLM(str(path), dtype="float32", batch_size=4, device="cpu")
    whole = HFLM(theirs.model, tokenizer=theirs.tokenizer, batch_size=4, device="cpu", add_bos_token=False if begins else None)
    return theirs, whole, harness.Jaxllm(workdir=str(path))


@pytest.fixture(scope="module")
def found(models, tmp_path_factory):
    """{who: {task: (metrics, answers by row)}} of the harness with transformers, the harness with jaxllm, and jaxllm's own suite."""
    theirs, whole, ours = models
    own = {name: suite_run(ours.answers, name) for name in ("choice", "text")}
    write = ours.answers.written([(row["question"], TASKS["write"]["generation_kwargs"]) for row in ASKED])
    rows = [row | {"answer": text if i % 2 else "none of it"} for i, (row, text) in enumerate(zip(ASKED, write, strict=True))]
    own["write"] = suite_run(ours.answers, "write", Split([], rows))
    place = files(tmp_path_factory.mktemp("tasks"), {"choice": ROWS, "text": [{"text": text} for text in TEXTS], "write": rows})
    reference = run_harness(place, theirs, ["choice", "write"]) | run_harness(place, whole, ["text"])
    return {"hf": reference, "jaxllm": run_harness(place, ours, list(TASKS)), "suite": own}


def suite_run(answers, name, rows=None):
    """Our own suite on a task: what it says, as the harness names it."""
    suite, records = Suite(answers.model, answers.tokenizer, length=answers.length), []
    suite.likelihoods = answers.likelihoods  # the same class, compiled once
    task, split = OWN[name]
    metrics = suite.run(answers.params, name, task, rows or split, write=records.append).metrics
    names = {"accuracy": "acc", "accuracy_norm": "acc_norm"}
    kept = {names.get(key, key): value for key, value in metrics.items()}
    return kept, [record.get("log_probs") or record.get("log_prob") or record["answers"][0] for record in records]


def files(place, rows):
    """Task definitions over local files."""
    for name, task in TASKS.items():
        for split, lines in (("train", SHOTS), ("test", rows[name])):
            (place / f"{name}-{split}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        data = {"data_files": {split: str(place / f"{name}-{split}.jsonl") for split in ("test", *(["train"] if name == "choice" else []))}}
        said = {"task": name, "dataset_path": "json", "dataset_kwargs": data, "test_split": "test", **task}
        (place / f"{name}.yaml").write_text(json.dumps(said))
    return place


def run_harness(place, model, names):
    """The harness on some tasks: the metrics and what the model answered."""
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(place), include_defaults=False)
    result = lm_eval.simple_evaluate(model=model, tasks=names, task_manager=manager, bootstrap_iters=0)
    found = {}
    for name in names:
        metrics = {key.removesuffix(",none"): value for key, value in result["results"][name].items()}
        answers = [sample["resps"] for sample in sorted(result["samples"][name], key=lambda s: s["doc_id"])]
        if name == "choice":
            found[name] = metrics, [[like[0][0] for like in own] for own in answers]
        else:
            found[name] = metrics, [own[0][0] for own in answers]
    return found


METRICS = {"choice": ("acc", "acc_norm"), "text": ("word_perplexity", "byte_perplexity", "bits_per_byte"), "write": ("exact_match",)}


@pytest.mark.parametrize("task", TASKS)
def test_the_harness_with_transformers_and_with_jaxllm_and_our_suite_agree(task, found):
    theirs, answers = found["hf"][task]
    for who in ("jaxllm", "suite"):
        metrics, own = found[who][task]
        assert len(own) == len(answers)
        for expected, got in zip(answers, own, strict=True):
            assert got == (expected if task == "write" else pytest.approx(expected, rel=1e-4, abs=1e-4)), (who, task)
        for name in METRICS[task]:
            assert metrics[name] == pytest.approx(theirs[name], rel=1e-4), (who, name)


def test_the_rows_say_something(found, folder):
    """No metric is the same whatever the model does, and characters are counted, not bytes."""
    assert found["hf"]["write"][0]["exact_match"] == 0.5 and len(set(found["hf"]["write"][1])) == len(ASKED)
    assert any(text != "" and "a" not in text for text in found["hf"]["write"][1])
    metrics, log_probs = found["suite"]["choice"]
    assert 0 < metrics["acc_norm"] < metrics["acc"] < 1

    def best(size):
        per = [[x / size(choice) for x, choice in zip(own, row["choices"], strict=True)] for own, row in zip(log_probs, ROWS, strict=True)]
        return [own.index(max(own)) for own in per]

    if folder[1]:
        assert best(len) != best(lambda choice: len(choice.encode()))


def test_greedy_is_told_and_long_texts_are_cut_as_by_the_harness(models, capsys):
    import torch
    from lm_eval.api.instance import Instance

    theirs, _, ours = models
    befores = [" ".join(WORDS[i : i + 3]) for i in range(12)]
    likeliest = [theirs.tok_decode(theirs._model_call(torch.tensor([theirs.tok_encode(text)]))[0, -1].argmax()) for text in befores]
    pairs = [(text, one) for text, one in zip(befores, likeliest, strict=True) if one.isascii() and one.strip()]
    pairs += [("the quick brown", "zzz"), ("", "the"), ("x y " * 90, "y x " * 30)]  # the last is too long
    asked = [Instance("loglikelihood", {}, pair, i) for i, pair in enumerate(pairs)]
    expected, found = theirs.loglikelihood(asked, disable_tqdm=True), ours.loglikelihood(asked)
    assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]
    assert {greedy for _, greedy in found} == {True, False}
    assert [x for x, _ in found] == [pytest.approx(x, rel=1e-4, abs=1e-4) for x, _ in expected]
    assert f"1 of {len(pairs)} texts do not fit the model's {LENGTH} tokens" in capsys.readouterr().err


def test_the_harness_makes_the_model_by_its_name(folder, monkeypatch, capsys):
    from lm_eval import __main__ as theirs
    from lm_eval.api.registry import get_model

    from jaxllm.stages import harness

    def cli(words):
        return lambda: get_model("jaxllm").create_from_arg_string(words, {"batch_size": 1, "device": "cuda:0"})

    harness.register()
    made = cli(f"workdir={folder[0]},max_length=64,dtype=bfloat16")()
    assert (made.answers.length, made.get_model_info()["model_dtype"]) == (64, "bfloat16")
    monkeypatch.setattr(theirs, "cli_evaluate", cli(f"folder={folder[0]}"))
    assert harness.main() == 2
    assert "Unknown --model_args folder. Give workdir=DIR" in capsys.readouterr().err
