"""Rejection sampling (RAFT, arXiv 2304.06767) on sums: of sixteen samples of a prompt the best is trained on, scored by the verifier.

jaxllm rl --config configs/rl/raft_arithmetic.py --workdir runs/raft --config.init_from=runs/sums

runs/sums is what configs/sft/arithmetic.py trains. A fifth of all questions is never trained on, and is asked while training.
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
            "steps": 4 if tiny else 90,
            "batch_size": 16 if tiny else 128,
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
                "prompts": 4 if tiny else 8,
                "samples_per_prompt": 4 if tiny else 16,
                "max_new_tokens": 8,
            },
            "rl": {"method": "raft"},
            "optimizer": {"name": "adamw", "learning_rate": 1e-4, "weight_decay": 0.0},
            "schedule": {"name": "constant", "warmup": 2 if tiny else 10},
            "checkpoint": {"every": 2 if tiny else 50},
            "eval": {"every": 2 if tiny else 30},
            "tasks": {"names": ["addition"], "limit": 8 if tiny else 400, "max_new_tokens": 8, "slots": 64},
        }
    )
