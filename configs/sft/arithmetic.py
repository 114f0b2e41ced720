"""Sums of two numbers below 100, taught to the demo's code model until it gets some of them right: the second stage of `make demo`.

jaxllm sft --config configs/sft/arithmetic.py --workdir runs/sums --config.init_from=runs/stdlib

runs/stdlib is what configs/pretrain/stdlib_code.py trains. The questions are made here; a fifth of all there are is never trained on,
and asked. On two cores of an AMD EPYC (2026-11-23, other work beside it), of 200 such sums none was right at step 0, 7.5 % at step 140 and
76.5 % at step 280, from a base of 120 steps.
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
            "steps": 4 if tiny else 280,
            "batch_size": 16,
            "sequence_length": 64 if tiny else 128,
            "model": {
                "vocab_size": 320 if tiny else 2048,
                "num_layers": 2 if tiny else 4,
                "width": 64 if tiny else 192,
                "num_heads": 4,
                "num_kv_heads": 2,
                "mlp_width": 128 if tiny else 512,
                "tied_embeddings": True,
            },
            "data": {"train": [{"path": "task:addition"}], "eval_fraction": 0.02},
            "chat": {"template": "bare"},
            "optimizer": {"name": "muon", "learning_rate": 5e-3, "weight_decay": 0.0},
            "schedule": {"name": "cosine", "warmup": 0.1},
            "checkpoint": {"every": 140},
            "eval": {"every": 140, "batches": 2},
            "tasks": {"names": ["addition"], "limit": 8 if tiny else 200, "max_new_tokens": 8, "slots": 64},
        }
    )
