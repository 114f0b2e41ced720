"""Sparrow in small (arXiv 2209.14375): a preference model and a rule model, both learnt, are one reward of policy optimisation.

    jaxllm sft --config configs/sft/arithmetic.py --workdir runs/sums --config.init_from=runs/stdlib
    jaxllm run --config configs/run/sparrow.py --workdir runs/sparrow

Preference: of two answers the right sum. Rule: no negative number, whatever the question. Both judges are programs, their models are learnt
from the policy's own answers; the reward is the preference minus the log-odds that the rule is broken, and the programs watch.
"""

from ml_collections import ConfigDict

RULE, KEPT = "Name no negative number.", {"kind": "format", "name": "rule_kept", "pattern": "^[^-]*$"}
TINY = {"vocab_size": 320, "num_layers": 1, "width": 32, "num_heads": 2, "num_kv_heads": 1, "mlp_width": 64}


def get_config(arg: str = "") -> ConfigDict:
    """`:tiny` is the same in a few steps of a drawn model, for tests."""
    if arg not in ("", "tiny"):
        raise ValueError(f"Unknown argument {arg!r}. Choose one of: tiny")
    tiny = arg == "tiny"
    start = {"init_from": "@sums" if tiny else "runs/sums"}
    end, own = (":tiny", {"model": TINY, "tasks": {"names": []}}) if tiny else ("", {})
    asked = {"limit": 32 if tiny else 3000, "prompts": 16 if tiny else 64, "samples_per_prompt": 4}
    rewards = [
        {"kind": "model", "name": "preference", "path": "@preference"},
        {"kind": "model", "name": "rule_broken", "path": "@rule", "rule": RULE, "weight": -1.0},
        {"kind": "task", "name": "right", "weight": 0.0},
        {**KEPT, "weight": 0.0},
    ]
    rl, reward = f"configs/rl/grpo_arithmetic.py{end}", f"configs/reward/ranking_arithmetic.py{end}"
    sums = [{"stage": "sft", "name": "sums", "config": "configs/sft/arithmetic.py:tiny", "settings": own}] if tiny else []
    verdicts = {"label": {"form": "verdicts", "rule": RULE}, "rl": {"rewards": [KEPT]}}
    return ConfigDict(
        {
            "stages": [
                *sums,
                {"stage": "label", "name": "answers", "config": rl, "settings": {**start, "rollout": asked, **own}},
                {"stage": "label", "name": "verdicts", "config": rl, "settings": {**start, "rollout": asked, **verdicts, **own}},
                {
                    "stage": "reward",
                    "name": "preference",
                    "config": reward,
                    "settings": {**start, "data": {"train": ["@answers/comparisons.jsonl"]}, **own},
                },
                {
                    "stage": "reward",
                    "name": "rule",
                    "config": reward,
                    "settings": {**start, "data": {"train": ["@verdicts/verdicts.jsonl"]}, "reward": {"loss": "binary"}, **own},
                },
                {"stage": "rl", "name": "sparrow", "config": rl, "settings": {**start, "rl": {"rewards": rewards}, **own}},
            ]
        }
    )
