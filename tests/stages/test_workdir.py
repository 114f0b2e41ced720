"""Paths of a config as its record keeps them: they hold in whatever folder the run is read, resumed or asked again."""

import os

from jaxllm.stages.config import as_dict, resolve
from jaxllm.stages.workdir import with_absolute_paths


def test_every_path_of_policy_optimisation_is_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rewards = [
        "task",
        {"kind": "model", "path": "runs/rm"},
        {"kind": "function", "path": "mine.py:score"},
        {"kind": "function", "path": "json:dumps"},
        {"kind": "command", "command": ["python", "judge.py"]},
    ]
    tools = ["calculator", "search", {"kind": "function", "path": "tools/shout.py:shout"}]
    rollout = {"task": "gsm8k=rows.jsonl", "tools": tools, "corpus": ["docs.txt", "gs://bucket/docs.jsonl"]}
    config = as_dict(resolve({"rollout": rollout, "rl": {"rewards": rewards, "critic_init_from": "runs/rm"}}))
    found = with_absolute_paths(config)
    here = os.fspath(tmp_path)
    assert [entry["path"] for entry in found["rl"]["rewards"][1:4]] == [f"{here}/runs/rm", f"{here}/mine.py:score", "json:dumps"]
    assert found["rl"]["rewards"][4] == rewards[4] and found["rl"]["critic_init_from"] == f"{here}/runs/rm"
    assert found["rollout"]["tools"] == [*tools[:2], {"kind": "function", "path": f"{here}/tools/shout.py:shout"}]
    assert found["rollout"]["corpus"] == [f"{here}/docs.txt", "gs://bucket/docs.jsonl"]
    assert found["rollout"]["task"] == f"gsm8k={here}/rows.jsonl"
    assert with_absolute_paths(found) == found
    plain = as_dict(resolve({"rollout": {"task": "arithmetic"}}))
    assert with_absolute_paths(as_dict(resolve({"rollout": {"task": "arithmetic"}}))) == plain
