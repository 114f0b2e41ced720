"""GRPO with verifiable rewards on GSM8K's files: a right number after #### scores 1, and ending in such a line 0.1 more.

    jaxllm convert --from Qwen2.5-0.5B --to runs/qwen
    jaxllm rl --config configs/rl/grpo_gsm8k.py --workdir runs/gsm8k --config.init_from=runs/qwen

GSM8K's two files lie at data/verifiable/ (jsonl, gzipped or not); the test file is asked while training.
"""

from ml_collections import ConfigDict

TINY = {"vocab_size": 320, "num_layers": 2, "width": 64, "num_heads": 4, "num_kv_heads": 2, "mlp_width": 128, "tied_embeddings": True}


def get_config(arg: str = "") -> ConfigDict:
    """`:tiny` is a drawn model in a few steps on sums that are made here, for tests."""
    if arg not in ("", "tiny"):
        raise ValueError(f"Unknown argument {arg!r}. Choose one of: tiny")
    tiny = arg == "tiny"
    return ConfigDict(
        {
            "stage": "rl",
            "seed": 0,
            "steps": 4 if tiny else 400,
            "batch_size": 16 if tiny else 128,
            "sequence_length": 24 if tiny else 768,
            "model": TINY if tiny else {"preset": "qwen2.5-0.5b"},
            "rollout": {
                "task": "arithmetic" if tiny else "gsm8k=data/verifiable/gsm8k_train.jsonl.gz",
                "prompts": 4 if tiny else 16,
                "samples_per_prompt": 4 if tiny else 8,
                "max_new_tokens": 8 if tiny else 320,
                "long_prompt": "skip",
            },
            "rl": {
                "method": "grpo",
                "kl_coefficient": 0.001,
                "rewards": ["task", {"kind": "format", "weight": 0.1, "pattern": r"\d" if tiny else r"\n#### -?[\d,.]+\s*$"}],
            },
            "optimizer": {"name": "adamw", "learning_rate": 3e-4 if tiny else 1e-6, "weight_decay": 0.0},
            "schedule": {"name": "constant", "warmup": 2 if tiny else 10},
            "checkpoint": {"every": 2 if tiny else 50},
            "eval": {"every": 2 if tiny else 100},
            "tasks": {
                "names": ["arithmetic" if tiny else "gsm8k=data/verifiable/gsm8k_test_first_half.jsonl.gz"],
                "limit": 8 if tiny else 200,
                "shots": None if tiny else 0,
                "max_new_tokens": 8 if tiny else 320,
            },
        }
    )
