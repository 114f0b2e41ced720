"""The whole life of a tiny code model: base, instruction tuning, reward model, PPO against it, GRPO with the verifier. `make demo`.

jaxllm run --config configs/run/life.py --workdir runs/life
"""

from ml_collections import ConfigDict

SAMPLES = {"rollout": {"limit": 2000, "prompts": 64, "samples_per_prompt": 4}}
PROMPTS = ("def read_file(path):\n", "import os\nimport sys\n\n", "class Node:\n    ", "    for i in range(", "    if not isinstance(")


def get_config(arg: str = "") -> ConfigDict:
    """`:tiny` is the same in a few steps, for tests."""
    if arg not in ("", "tiny"):
        raise ValueError(f"Unknown argument {arg!r}. Choose one of: tiny")
    end = f":{arg}" if arg else ""
    proxy = [{"kind": "model", "name": "reward_model", "path": "@reward"}, {"kind": "task", "name": "verifier", "weight": 0.0}]
    code = ["--workdir", "@base", *(word for prompt in PROMPTS for word in ("--prompt", prompt))]
    few = {"rollout": {"limit": 16, "prompts": 16, "samples_per_prompt": 4}} if arg else SAMPLES
    return ConfigDict(
        {
            "stages": [
                {"stage": "pretrain", "name": "base", "config": f"configs/pretrain/stdlib_code.py{end}"},
                {
                    "stage": "sample",
                    "name": "code",
                    "arguments": [*code, "--config.sample.max_new_tokens=48", "--config.sample.temperature=0.7"],
                },
                {"stage": "sft", "name": "sums", "config": f"configs/sft/arithmetic.py{end}", "settings": {"init_from": "@base"}},
                {
                    "stage": "label",
                    "name": "answers",
                    "config": f"configs/rl/grpo_arithmetic.py{end}",
                    "settings": {"init_from": "@sums", **few},
                },
                {
                    "stage": "reward",
                    "config": f"configs/reward/ranking_arithmetic.py{end}",
                    "settings": {"init_from": "@sums", "data": {"train": ["@answers/comparisons.jsonl"]}},
                },
                {
                    "stage": "rl",
                    "name": "ppo",
                    "config": f"configs/rl/ppo_arithmetic.py{end}",
                    "settings": {"init_from": "@sums", "rl": {"rewards": proxy}},
                },
                {"stage": "rl", "name": "grpo", "config": f"configs/rl/grpo_arithmetic.py{end}", "settings": {"init_from": "@ppo"}},
            ]
        }
    )
