"""Sums and differences, worked out by a calculator's call: "12 + 7 = [12 + 7]{19} 19"; a small model of bytes, from nothing.

jaxllm sft --config configs/sft/arithmetic_calls.py --workdir runs/calls

It learns the form of a call; what follows it is a tool's to write, and configs/rl/arithmetic_tools.py goes on from here with one. On two
cores of an AMD EPYC (2026-11-23, much other work beside it) 600 updates took 5 minutes, to 0.14 nats a token of held-out rows.
"""

from ml_collections import ConfigDict


def get_config(arg: str = "") -> ConfigDict:
    """`:tiny` is the same in a few steps, for tests."""
    if arg not in ("", "tiny"):
        raise ValueError(f"Unknown argument {arg!r}. Choose one of: tiny")
    tiny = arg == "tiny"
    return ConfigDict(
        {
            "stage": "sft",
            "steps": 4 if tiny else 600,
            "batch_size": 16,
            "sequence_length": 64 if tiny else 128,
            "model": {
                "vocab_size": 264,
                "num_layers": 2 if tiny else 4,
                "width": 64 if tiny else 128,
                "num_heads": 4,
                "num_kv_heads": 2,
                "mlp_width": 128 if tiny else 384,
                "tied_embeddings": True,
            },
            "data": {"train": [{"path": "task:arithmetic_calls"}], "eval_fraction": 0.02},
            "chat": {"template": "bare"},
            "optimizer": {"name": "adamw", "learning_rate": 2e-3, "b2": 0.95, "weight_decay": 0.0},
            "schedule": {"name": "cosine", "warmup": 0.1},
            "checkpoint": {"every": 200},
            "eval": {"every": 2 if tiny else 200, "batches": 2},
        }
    )
