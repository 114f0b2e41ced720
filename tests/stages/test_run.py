"""Several stages by one command: names, files, mistakes, and going on where it was."""

import json

import pytest

from jaxllm.stages import run
from jaxllm.stages.config import load

BASE = {"steps": 3, "batch_size": 8, "sequence_length": 32}
TINY = {"model": {"vocab_size": 320, "num_layers": 1, "width": 32, "num_heads": 2, "num_kv_heads": 2, "mlp_width": 64}, **BASE}


def entries(**second):
    return [{"stage": "pretrain", "name": "base"}, {"stage": "pretrain", "name": "more", "settings": {"init_from": "@base"} | second}]


def test_names_become_work_directories_and_what_stands_beside_goes_for_all(tmp_path):
    stages = [*entries(steps=5), {"stage": "sample", "arguments": ["--workdir", "@more", "--prompts", "@base/p.txt"]}]
    base, more, sample = run.plan({**TINY, "stages": stages}, {"seed": "7"}, tmp_path)
    assert [step.folder for step in (base, more, sample)] == ["01-base", "02-more", "03-sample"]
    assert (base.settings["steps"], more.settings["steps"], more.settings["seed"]) == (3, 5, 7)
    assert more.settings["init_from"] == str(tmp_path / "01-base")
    assert sample.arguments == ("--workdir", str(tmp_path / "02-more"), "--prompts", f"{tmp_path / '01-base'}/p.txt")
    assert run.command(sample, tmp_path)[0] == "sample"


def test_the_config_of_a_step_can_be_run_by_itself(tmp_path):
    (step,) = run.plan({**TINY, "stages": [{"stage": "pretrain", "settings": {"data": {"train": ["null, true.txt"]}}}]}, {}, tmp_path)
    run.write_config(step, tmp_path)
    config = load(str(tmp_path / "configs/01-pretrain.py"))
    assert config.steps == 3 and config.model.width == 32 and config.data.train[0]["path"] == "null, true.txt"


@pytest.mark.parametrize(
    ("stages", "said"),
    [
        ([], "has no stages"),
        ([{"stage": "pretrian"}], "Did you mean 'pretrain'"),
        ([{"stage": "pretrain", "file": "x"}], "entry 1 has 'file'"),
        ([{"stage": "pretrain"}, {"stage": "pretrain"}], "two are called 'pretrain'"),
        ([{"stage": "pretrain", "settings": {"init_from": "@sft"}}], "no earlier step"),
        ([{"stage": "pretrain", "settings": {"stepz": 3}}], "Unknown config key 'stepz'"),
        ([{"stage": "sample", "config": "x.py"}], "takes no config"),
        ([{"stage": "pretrain", "name": "../x"}], "cannot be the name of a folder"),
    ],
)
def test_mistakes_are_told_before_anything_runs(stages, said, tmp_path):
    with pytest.raises(ValueError, match=said):
        run.plan({**TINY, "stages": stages}, {}, tmp_path)
    assert not list(tmp_path.iterdir())


def test_it_goes_on_where_it_was_and_refuses_another_config(stage, tmp_path, monkeypatch, capsys):
    asked = []

    def fake(step, workdir, title):
        asked.append(step.folder)
        return 75 if codes and codes.pop() else 0

    monkeypatch.setattr(run, "run", fake)
    config = tmp_path / "all.py"
    config.write_text(f"def get_config(arg=''):\n    return { ({**TINY, 'stages': entries()})!r}\n")
    words, codes = ("run", "--config", config, "--workdir", tmp_path / "run"), [True, False]
    assert stage(*words) == 75 and asked == ["01-base", "02-more"]
    assert list(json.loads((tmp_path / "run/run.json").read_text())) == ["01-base"]
    assert stage(*words) == 0 and asked[2:] == ["02-more"] and "01-base: done before" in capsys.readouterr().err
    assert stage(*words, "--config.steps=9") == 2
    assert "step 01-base is done, and was another" in capsys.readouterr().err


def test_later_steps_are_not_left_over_from_an_earlier_first_one(stage, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(run, "run", lambda step, workdir, title: 0)
    config = tmp_path / "all.py"
    config.write_text(f"def get_config(arg=''):\n    return { ({**TINY, 'stages': entries()})!r}\n")
    (tmp_path / "run/02-more").mkdir(parents=True)
    assert stage("run", "--config", config, "--workdir", tmp_path / "run") == 2
    assert "01-base begins anew, and 02-more came from what it was" in capsys.readouterr().err


def test_entries_of_tables_are_numbers_in_the_config_of_a_step(tmp_path):
    overrides = {"peft.name": "prefix", "peft.options.inner": "0"}
    (step,) = run.plan({**TINY, "stages": [{"stage": "sft"}]}, overrides, tmp_path)
    run.write_config(step, tmp_path)
    assert load(str(tmp_path / "configs/01-sft.py")).peft.options.inner == 0
