"""Answers that are judged become comparisons, those a reward model, and that a reward: InstructGPT's first round, in this process."""

import json
from pathlib import Path

import jax
import pytest

from jaxllm.data.comparisons import Reading, judged
from jaxllm.stages import label, run
from jaxllm.stages.config import load, resolve
from jaxllm.stages.report import read_jsonl, write_report

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def life(tmp_path_factory):
    """The work directory of configs/run/instructgpt.py:tiny; of its second round, which is the same once more, the configs alone."""
    from jaxllm.__main__ import main

    folder = tmp_path_factory.mktemp("instructgpt")

    def here(step, workdir, title):
        run.write_config(step, workdir)
        return main(run.command(step, workdir)) if step.folder < "05" else 0

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        patch.setenv("JAXLLM_CACHE", str(folder / "cache"))
        patch.setenv("JAX_COMPILATION_CACHE_DIR", jax.config.jax_compilation_cache_dir)  # conftest has set it
        patch.setattr(run, "run", here)
        words = ["--config.log.every=1", "--config.log.tensorboard=false", "--config.steps=3", "--config.data.workers=1"]
        assert main(["run", "--config", "configs/run/instructgpt.py:tiny", "--workdir", str(folder / "run"), *words]) == 0
    return folder / "run"


def test_a_second_round_learns_from_fresh_comparisons_too(life):
    found = read_jsonl(life / "02-answers/comparisons.jsonl")
    assert found and all(len(set(record["scores"])) > 1 for record in found)
    assert all(len(record["answers"]) == len(set(record["answers"])) == len(record["scores"]) for record in found)
    fresh, again, ppo = (load(str(life / f"configs/{name}.py")) for name in ("05-fresh", "06-reward_again", "07-ppo_again"))
    assert Path(fresh.init_from).name == Path(ppo.init_from).name == "04-ppo"
    assert [Path(entry["path"]).parent.name for entry in again.data.train] == ["02-answers", "05-fresh"]
    assert Path(ppo.rl.rewards[0]["path"]).name == "06-reward_again"


def test_proxy_and_gold_are_in_the_metrics_and_in_the_report(life, tmp_path):
    metrics = read_jsonl(life / "04-ppo/metrics.jsonl")
    assert len(metrics) == 3 and all(r["reward"] == r["reward_reward_model"] and r["reward_verifier"] == 0 for r in metrics)
    assert all(r["ptx"] > 0 for r in metrics)  # the base's text in every update
    page = Path(write_report([life / "01-sft", life / "04-ppo"], tmp_path / "page.html")).read_text()
    assert page.count("Proxy and gold") == 1 and "verifier (held out)" in page


def test_labels_that_were_stopped_go_on_as_if_they_had_not_been(life, stage, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    words = ("label", "--config", life / "configs/02-answers.py", "--workdir", life / "02-answers")
    file = life / "02-answers/comparisons.jsonl"
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    assert stage(*words) == 0 and file.read_bytes() == whole
    assert stage(*words, "--config.rollout.samples_per_prompt=1") == 2
    assert "leaves nothing to compare" in capsys.readouterr().err
    assert stage(*words, "--config.label.form=verdicts") == 2
    assert "verdicts need a rule" in capsys.readouterr().err
    assert stage(*words, "--config.rollout.temperature=0.5") == 2
    assert "is the run of another config: rollout.temperature" in capsys.readouterr().err
    record = json.loads((life / "02-answers/config.json").read_text())
    (life / "02-answers/config.json").write_text(json.dumps(record | {"answered_by": "an earlier checkpoint"}))
    assert stage(*words) == 2 and "was begun with other weights of init_from=" in capsys.readouterr().err
    (life / "02-answers/config.json").write_text(json.dumps(record))


def test_answers_one_by_one_have_labels_or_verdicts(life, stage, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    words = ("label", "--config", life / "configs/02-answers.py", "--workdir")
    assert stage(*words, tmp_path / "labels", "--config.label.form=labels", "--config.rollout.samples_per_prompt=1") == 0
    labels = read_jsonl(tmp_path / "labels/labels.jsonl")
    assert {record["label"] for record in labels} == {0.0, 1.0} and {"prompt", "completion"} < labels[0].keys()
    assert stage(*words, tmp_path / "verdicts", "--config.label.form=verdicts", "--config.label.rule=Say something.") == 0
    verdicts = read_jsonl(tmp_path / "verdicts/verdicts.jsonl")
    judged(verdicts[0], "here", Reading())  # it is what `jaxllm reward` reads
    assert {record["verdict"] for record in verdicts} == {True, False} and {record["rule"] for record in verdicts} == {"Say something."}


@pytest.mark.parametrize(
    ("key", "value", "said"), [("rollout.tools", ["calculator"], "without tools"), ("rl.reward_rule", "running_sum", "sum")]
)
def test_what_labels_would_not_heed_is_refused(key, value, said):
    assert label.check(resolve({"init_from": "somewhere"}), "F") == "comparisons"
    with pytest.raises(ValueError, match=f"{key}.*{said}"):
        label.check(resolve({"init_from": "somewhere", key: value}), "F")
