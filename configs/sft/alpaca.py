"""Alpaca-style instruction tuning of all weights: instruction, input, output -> a model that does what it is told.

jaxllm pretrain --config configs/pretrain/books.py --workdir runs/books
jaxllm sft --config configs/sft/alpaca.py --workdir runs/alpaca --config.init_from=runs/books

The data are Stanford Alpaca's records (instruction, input, output), one a line, at data/instruct/alpaca_10k.jsonl.gz.
"""

from ml_collections import ConfigDict


def get_config(arg: str = "") -> ConfigDict:
    """`:tiny` is the same in a few steps on sums that are made here, for tests."""
    if arg not in ("", "tiny"):
        raise ValueError(f"Unknown argument {arg!r}. Choose one of: tiny")
    tiny = arg == "tiny"
    return ConfigDict(
        {
            "stage": "sft",
            "steps": 4 if tiny else 300,
            "batch_size": 16,
            "sequence_length": 64 if tiny else 512,
            "model": {
                "vocab_size": 320 if tiny else 4096,
                "num_layers": 2 if tiny else 4,
                "width": 64 if tiny else 256,
                "num_heads": 4,
                "num_kv_heads": 2,
                "mlp_width": 128 if tiny else 704,
                "tied_embeddings": True,
                "max_positions": 1024,
            },
            "data": {"train": [{"path": "task:arithmetic" if tiny else "data/instruct/alpaca_10k.jsonl.gz"}], "eval_fraction": 0.02},
            "chat": {"template": "bare" if tiny else "alpaca"},
            "optimizer": {"name": "adamw", "learning_rate": 1e-3, "b2": 0.95, "weight_decay": 0.0},
            "schedule": {"name": "cosine", "warmup": 0.05},
            "checkpoint": {"every": 100},
            "eval": {"every": 100, "batches": 4},
        }
    )
