"""InstructGPT end to end (arXiv 2203.02155) in small: SFT, a K-wise reward model, PPO-ptx, and a second round with fresh comparisons.

    jaxllm pretrain --config configs/pretrain/stdlib_code.py --workdir runs/stdlib
    jaxllm run --config configs/run/instructgpt.py --workdir runs/instructgpt

The labeller is the verifier of sums: it ranks four answers to each prompt. PPO sees the reward model alone; the verifier watches. PPO-ptx
adds the base model's own text to every update. The second reward model learns from the comparisons of both rounds, the fresh ones being of
answers of the policy that the first round trained.
"""

from ml_collections import ConfigDict

TINY = {"vocab_size": 320, "num_layers": 1, "width": 32, "num_heads": 2, "num_kv_heads": 1, "mlp_width": 64}


def get_config(arg: str = "") -> ConfigDict:
    """`:tiny` is the same in a few steps from drawn weights, for tests."""
    if arg not in ("", "tiny"):
        raise ValueError(f"Unknown argument {arg!r}. Choose one of: tiny")
    tiny = arg == "tiny"
    end, own = (":tiny", {"model": TINY, "tasks": {"names": []}}) if tiny else ("", {})
    asked = {"limit": 16 if tiny else 8000, "prompts": 16 if tiny else 64, "samples_per_prompt": 4}
    text = {"train": [{"path": "configs" if tiny else "builtin:stdlib"}], **({} if tiny else {"filters": "codex"})}

    def label(name: str, model: str) -> dict:
        judged = {"rl": {"rewards": [{"kind": "format", "pattern": "[0-9a-z]"}]}} if tiny else {}  # drawn weights get no sum right
        settings = {"init_from": model, "rollout": asked, **judged, **own}
        return {"stage": "label", "name": name, "config": f"configs/rl/grpo_arithmetic.py{end}", "settings": settings}

    def reward(name: str, *labels: str) -> dict:
        settings = {"init_from": "@sft", "data": {"train": [f"{place}/comparisons.jsonl" for place in labels]}, **own}
        return {"stage": "reward", "name": name, "config": f"configs/reward/ranking_arithmetic.py{end}", "settings": settings}

    def ppo_ptx(name: str, model: str, proxy: str) -> dict:
        rewards = [{"kind": "model", "name": "reward_model", "path": proxy}, {"kind": "task", "name": "verifier", "weight": 0.0}]
        settings = {"init_from": model, "data": text, "rl": {"rewards": rewards, "ptx_coefficient": 0.5, "ptx_rows": 16}, **own}
        return {"stage": "rl", "name": name, "config": f"configs/rl/ppo_arithmetic.py{end}", "settings": settings}

    taught = own if tiny else {"init_from": "runs/stdlib"}
    return ConfigDict(
        {
            "stages": [
                {"stage": "sft", "config": f"configs/sft/arithmetic.py{end}", "settings": taught},
                label("answers", "@sft"),
                reward("reward", "@answers"),
                ppo_ptx("ppo", "@sft", "@reward"),
                label("fresh", "@ppo"),
                reward("reward_again", "@answers", "@fresh"),
                ppo_ptx("ppo_again", "@ppo", "@reward_again"),
            ]
        }
    )
