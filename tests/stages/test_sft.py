"""Instruction tuning through the front door: it learns the answers alone, resumes bit for bit, with adapters leaves the base as it was."""

import json
import random

import jax
import numpy as np
import pytest

from jaxllm.__main__ import main
from jaxllm.parallel.mesh import make_mesh
from jaxllm.stages import dialogues, programs, recipes, train
from jaxllm.stages.config import resolve

SHAPE = {"vocab_size": 320, "num_layers": 2, "width": 32, "num_heads": 2, "num_kv_heads": 1, "mlp_width": 64}
TINY = {
    "steps": 6,
    "batch_size": 8,
    "sequence_length": 96,
    "model": SHAPE,
    "optimizer": {"learning_rate": 1e-2},
    "schedule": {"name": "constant"},
    "checkpoint": {"every": 0},
    "data": {"eval_fraction": 0.2, "workers": 1},
    "log": {"every": 1, "tensorboard": False},
}


def write_config(path, **settings):
    path.write_text(f"def get_config(arg=''):\n    return { ({**TINY, **settings})!r}\n")
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Dialogues whose answers are the last word of the question, and tasks of two categories."""
    place, draw = tmp_path_factory.mktemp("sft"), random.Random(0)
    words = ["red", "blue", "green", "grey"]
    rows = [{"prompt": f"{draw.randrange(1000)} {(word := draw.choice(words))}", "completion": word} for _ in range(160)]
    (place / "last_word.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pairs = {"positive_examples": [], "negative_examples": []}
    tasks = [
        {"task": f"task{n}", "definition": f"Say {n}.", "categories": [["sort", "copy"][n % 2]], **pairs}
        | {"instances": [{"input": f"{i}", "output": [f"{n}"]} for i in range(20)]}
        for n in range(6)
    ]
    (place / "tasks.jsonl").write_text("".join(json.dumps(task) + "\n" for task in tasks))
    return place


@pytest.fixture
def run(folder, stage):
    """Runs `jaxllm sft` on the dialogues; returns its exit code."""

    def go(workdir, *words, **settings):
        data = {**TINY["data"], "train": [{"path": str(folder / "last_word.jsonl")}]}
        config = write_config(workdir.with_suffix(".py"), data=data, **settings)
        return stage("sft", "--config", config, "--workdir", workdir, *words)

    return go


@pytest.fixture(scope="module")
def base(folder, tmp_path_factory):
    """A work directory with a base model that has hardly learnt anything."""
    text = folder / "text.txt"
    text.write_text("a base model\n" * 200)
    config = write_config(folder / "base.py", steps=2, data={"train": [{"path": str(text)}], "workers": 1, "eval_fraction": 0.0})
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAXLLM_CACHE", str(folder / "tokens"))
        assert main(["pretrain", "--config", str(config), "--workdir", str(folder / "base")]) == 0
    return folder / "base"


def records(workdir, name="metrics"):
    return [json.loads(line) for line in (workdir / f"{name}.jsonl").read_text().splitlines()]


def losses(workdir):
    return [(r["step"], r["loss"], r["grad_norm"]) for r in records(workdir)]


def held_out(workdir):
    return [r["loss"] for r in records(workdir, "evals") if "loss" in r]


def test_it_learns_the_answers_and_does_not_without_gradient(run, tmp_path, capfd):
    assert run(tmp_path / "run", "--config.steps=60") == 0
    said = capfd.readouterr().err
    assert "160 dialogues of 160 records: 160 prompt_completion (prompt, completion)" in said and "Rows are packed" in said
    first, last = held_out(tmp_path / "run")
    assert first > 5.0 and last < 0.3
    assert run(tmp_path / "still", "--config.steps=2", "--config.optimizer.learning_rate=0") == 0
    assert held_out(tmp_path / "still")[-1] > 5.0


def test_only_the_answer_and_its_end_are_trained_on(folder):
    config = resolve({**TINY, "data": {**TINY["data"], "train": [{"path": str(folder / "last_word.jsonl")}]}})
    data = dialogues.open_data(config)
    rows = data.reader(config).rows(0)
    for row in range(config.batch_size):
        for segment in range(1, rows["segments"][row].max() + 1):
            here = (rows["segments"][row] == segment) & (rows["weights"][row] > 0)
            learnt = rows["targets"][row][here]
            assert data.tokenizer.decode(learnt).strip() in ("red", "blue", "green", "grey") and learnt[-1] == data.tokenizer.eos_id


METHODS = {"lora": {}, "prompt": {"length": 4}, "houlsby": {"options": {"reduction": 4}}, "quantized": {"name": "lora", "quantize": "int8"}}


@pytest.mark.parametrize("name", METHODS)
def test_adapters_stop_and_resume_as_if_never_interrupted(name, run, base, tmp_path, monkeypatch):
    peft = {"name": name, **METHODS[name]}
    before = {path: path.read_bytes() for path in base.rglob("checkpoints/*/*") if path.is_file()}
    said = {"init_from": str(base), "peft": peft, "model": {}}
    assert run(tmp_path / "whole", **said) == 0
    monkeypatch.setattr(train, "StopRequests", lambda: StopAt(3))
    assert run(tmp_path / "parts", **said) == 75
    monkeypatch.undo()
    monkeypatch.setenv("JAXLLM_CACHE", str(tmp_path / "tokens"))
    assert run(tmp_path / "parts", **said) == 0
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")
    saved = json.loads(next((tmp_path / "whole/checkpoints").glob("6/manifest.json")).read_text())["arrays"]
    trained = sum(np.prod(shape) for key, (shape, _) in saved.items() if key.startswith("state/params"))
    assert 0 < trained < 10_000 and before == {path: path.read_bytes() for path in before}


class StopAt:
    """A run that is asked to stop at a step."""

    def __init__(self, step):
        self.step = step

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def __call__(self, step):
        return step == self.step


@pytest.fixture(scope="module")
def lora(folder, base, tmp_path_factory):
    """A work directory with LoRA adapters of the base."""
    data = {**TINY["data"], "train": [{"path": str(folder / "last_word.jsonl")}]}
    said = {"init_from": str(base), "model": {}, "peft": {"name": "lora", "rank": 4}, "data": data}
    config = write_config(folder / "lora.py", **said)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAXLLM_CACHE", str(folder / "tokens"))
        assert main(["sft", "--config", str(config), "--workdir", str(folder / "lora")]) == 0
    return folder / "lora"


def test_a_run_that_starts_from_adapters_starts_from_them_merged(lora, run, tmp_path):
    assert run(tmp_path / "next", "--config.steps=1", init_from=str(lora), model={}) == 0
    assert held_out(tmp_path / "next")[0] == pytest.approx(held_out(lora)[-1], abs=2e-5)


def test_adapters_of_another_base_are_refused(lora, base, run, tmp_path, stage, capsys):
    moved = tmp_path / "moved"
    record = json.loads((lora / "config.json").read_text())
    moved.mkdir()
    for path in lora.rglob("*"):
        if path.is_file():
            (moved / path.relative_to(lora)).parent.mkdir(parents=True, exist_ok=True)
            (moved / path.relative_to(lora)).write_bytes(path.read_bytes())
    record["config"]["init_from"] = str(lora)
    (moved / "config.json").write_text(json.dumps(record))
    assert stage("sample", "--workdir", moved, "--prompt", "a", "--config.sample.max_new_tokens=2") == 2
    assert "whose weights are others by now" in capsys.readouterr().err


def test_a_tuned_model_is_sampled_from_and_evaluated(lora, stage, capfd):
    assert stage("sample", "--workdir", lora, "--prompt", "a", "--config.sample.max_new_tokens=2") == 0
    capfd.readouterr()
    assert stage("evaluate", "--workdir", lora) == 0
    scored = json.loads(capfd.readouterr().out.splitlines()[-1])
    assert scored["loss"] == pytest.approx(held_out(lora)[-1], abs=1e-5)


def test_tasks_are_held_out_at_three_levels(folder):
    hold = {"categories": ["sort"], "tasks": ["task1"], "instances": 0.3}
    config = resolve({**TINY, "data": {"train": [{"path": str(folder / "tasks.jsonl")}], "eval_fraction": 0.0, "hold_out": hold}})
    data = dialogues.open_data(config)
    assert sorted(data.train) == ["task3", "task5"] and set(data.evals) == {f"held_out_{n}" for n in ("category", "task", "instance")}
    assert data.evals["held_out_category"].num_examples == 60 and data.evals["held_out_task"].num_examples == 20
    assert sum(s.num_examples for s in data.train.values()) + data.evals["held_out_instance"].num_examples == 40
    said = [data.tokenizer.decode(data.evals["held_out_task"].example(i).tokens) for i in range(20)]
    assert all("Say 1." in text for text in said) and len(set(said)) == 20


@pytest.mark.parametrize("packing", ["packed", "padded"])
def test_every_kind_of_row_trains(packing, run, tmp_path):
    assert run(tmp_path / "run", "--config.steps=3", f"--config.data.packing={packing}", "--config.epochs=0.1") == 0
    assert records(tmp_path / "run")[-1]["step"] >= 1


@pytest.mark.parametrize(
    ("said", "complaint"),
    [
        ({"peft": {"name": "lroa"}}, "Did you mean 'lora'?"),
        ({"peft": {"rank": 4}}, "peft.rank=4 without peft.name"),
        ({"peft": {"name": "lora", "targets": ["quary"]}}, "query"),
        ({"chat": {"template": "chatlm"}}, "Unknown template 'chatlm'"),
        ({"chat": {"template": "llama3"}}, "needs"),
        ({"chat": {"loss": "user"}}, "Choose one of: assistant, last, all"),
        ({"stage": "pretrain"}, "is a config for `jaxllm pretrain`"),
        ({"peft": {"name": "prompt", "options": {"num_tasks": 3}}}, "has 1 sources"),
    ],
)
def test_mistakes_are_one_line(said, complaint, run, tmp_path, capsys):
    assert run(tmp_path / "run", **said) == 2
    assert complaint in capsys.readouterr().err


def test_the_programs_of_tuning_are_known_in_advance(folder):
    for peft in ({"name": "lora"}, {"name": "lora", "quantize": "nf4"}, {}):
        config = resolve({**TINY, "stage": "sft", "peft": peft, "model": {**SHAPE, "width": 64}})
        mesh = make_mesh(devices=jax.devices()[:1])
        ((name, (function, arguments, _)),) = programs.programs(config, mesh, recipes.recipe_of(config)).items()
        assert name == "train_step" and bool(arguments[1]) == bool(peft)
        jax.eval_shape(function, *arguments)


def test_adapters_go_out_and_come_in_as_peft_lays_them_out(lora, base, run, stage, tmp_path, capsys):
    assert stage("convert", "--from", lora, "--to", tmp_path / "folder", "--adapters") == 0
    said = json.loads((tmp_path / "folder/adapter_config.json").read_text())
    assert (said["peft_type"], said["r"]) == ("LORA", 4)
    assert run(tmp_path / "in", "--config.steps=1", init_from=str(base), model={}, peft={"init_from": str(tmp_path / "folder")}) == 0
    assert held_out(tmp_path / "in")[0] == pytest.approx(held_out(lora)[-1], abs=1e-5)
    assert stage("convert", "--from", base, "--to", tmp_path / "none", "--adapters") == 2
    assert "trained all of its weights" in capsys.readouterr().err


def test_each_prompt_goes_through_its_own_adapter(lora, base, stage, tmp_path, capsys):
    lines = [{"prompt": "7 red", "adapter": str(lora)}, {"prompt": "8 blue"}]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    words = ["--config.sample.max_new_tokens=6", "--config.sample.temperature=0"]
    both = ["sample", "--workdir", base, "--adapters", lora, "--prompts", tmp_path / "prompts.jsonl", "--output", tmp_path / "both.jsonl"]
    assert stage(*both, *words) == 0
    alone = ["sample", "--workdir", lora, "--prompt", "7 red", "--prompt", "8 blue", "--output", tmp_path / "alone.jsonl"]
    assert stage(*alone, *words) == 0
    texts = [[json.loads(line)["tokens"] for line in (tmp_path / name).read_text().splitlines()] for name in ("both.jsonl", "alone.jsonl")]
    assert texts[0] == texts[1]
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "a", "adapter": "other"}\n')
    assert stage(*both, *words) == 2 and "asks for adapter 'other'" in capsys.readouterr().err


def test_layers_join_one_after_the_other(run, tmp_path):
    assert run(tmp_path / "run", "--config.steps=2", "--config.optimizer.unfreeze_every=1") == 0


def test_no_example_is_lost_between_tasks_and_sources(tmp_path):
    pairs = {"positive_examples": [], "negative_examples": []}

    def row(task, i):
        return {"task": task, "definition": "d", "categories": ["c"], **pairs, "instances": [{"input": f"{i}", "output": [task]}]}

    mixed = [*(row(f"t{i % 2}", i) for i in range(20)), *({"prompt": f"p{i}", "completion": "x"} for i in range(30))]
    for name, rows in (("mixed", mixed), ("more", [row("t0", i) for i in range(100, 105)])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
    train = [{"path": str(tmp_path / f"{name}.jsonl")} for name in ("mixed", "more")]
    data = dialogues.open_data(resolve({**TINY, "data": {"train": train, "eval_fraction": 0.1}}))
    held = sum(store.num_examples for store in data.evals.values())
    assert held and sum(store.num_examples for store in data.train.values()) + held == 55
    assert set(data.train) == {"mixed/t0", "t1", "mixed", "more/t0"}


def test_what_is_trained_on_is_known_to_the_last_answer(tmp_path):
    def content(answer):
        rows = [{"prompt": f"p{i}", "completion": answer if i == 7 else "y"} for i in range(20)]
        (tmp_path / "rows.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
        data = {"train": [{"path": str(tmp_path / "rows.jsonl")}], "eval_fraction": 0.0}
        return dialogues.open_data(resolve({**TINY, "data": data})).train_content

    assert content("a") != content("b") and content("a") == content("a")


def test_a_dialogue_without_an_answer_to_learn_counts_as_refused(tmp_path):
    messages = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a", "weight": 0}]
    rows = [{"messages": [{**messages[0], "content": f"q{i}"}, messages[1] if i else {**messages[1], "weight": 1}]} for i in range(10)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
    data = {"train": [{"path": str(tmp_path / "rows.jsonl")}], "eval_fraction": 0.0}
    with pytest.raises(ValueError, match="9 of 10 rows"):
        dialogues.open_data(resolve({**TINY, "chat": {"each_answer": True}, "data": data}))


def test_adapters_of_a_folder_stand_beside_their_own_base_alone(lora, folder, run, stage, tmp_path, capsys):
    assert stage("convert", "--from", lora, "--to", tmp_path / "peft", "--adapters") == 0
    other = tmp_path / "base"  # of the same name, and other weights
    text = {"train": [{"path": str(folder / "text.txt")}], "workers": 1, "eval_fraction": 0.0}
    config = write_config(tmp_path / "other.py", steps=1, seed=5, data=text)
    assert stage("pretrain", "--config", config, "--workdir", other) == 0
    assert run(tmp_path / "in", "--config.steps=1", init_from=str(other), model={}, peft={"init_from": str(tmp_path / "peft")}) == 2
    assert "another" in capsys.readouterr().err
