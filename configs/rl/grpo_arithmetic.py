"""GRPO on sums that are made here, scored by their own verifier; from a model that was taught some of them.

jaxllm rl --config configs/rl/grpo_arithmetic.py --workdir runs/grpo --config.init_from=runs/sums

runs/sums is what configs/sft/arithmetic.py trains. A fifth of all questions is never trained on, and is asked while training. On two cores
of an AMD EPYC (2026-11-23, one run, other work beside it), from sums taught for 280 steps, of 200 sums asked 76.5 % were right at step 0,
83.0 % at step 30 and 82.5 % at step 60; of the samples 68.4 % in the first ten updates, 74.3 % in the best ten and 69.5 % in the last.
It is LoRA: all weights at rates from 1e-5 to 2e-4 gained nothing or lost.
"""

from ml_collections import ConfigDict


def get_config(arg: str = "") -> ConfigDict:
    """`:tiny` is the same in a few steps, for tests."""
    if arg not in ("", "tiny"):
        raise ValueError(f"Unknown argument {arg!r}. Choose one of: tiny")
    tiny = arg == "tiny"
    return ConfigDict(
        {
            "stage": "rl",
            "seed": 0,
            "steps": 4 if tiny else 60,
            "batch_size": 16 if tiny else 256,
            "sequence_length": 24,
            "model": {
                "vocab_size": 320 if tiny else 2048,
                "num_layers": 2 if tiny else 4,
                "width": 64 if tiny else 192,
                "num_heads": 4,
                "num_kv_heads": 2,
                "mlp_width": 128 if tiny else 512,
                "tied_embeddings": True,
            },
            "rollout": {
                "task": "addition",
                "limit": 64 if tiny else 7000,
                "prompts": 4 if tiny else 32,
                "samples_per_prompt": 4 if tiny else 8,
                "max_new_tokens": 8,
            },
            "rl": {"method": "grpo", "kl_coefficient": 0.02},
            "peft": {"name": "lora", "rank": 8, "alpha": 8.0},
            "optimizer": {"name": "adamw", "learning_rate": 3e-3, "weight_decay": 0.0},
            "schedule": {"name": "constant", "warmup": 2 if tiny else 10},
            "checkpoint": {"every": 2 if tiny else 30},
            "eval": {"every": 2 if tiny else 30},
            "tasks": {"names": ["addition"], "limit": 8 if tiny else 200, "max_new_tokens": 8, "slots": 64},
        }
    )
