"""Bottleneck adapters (Houlsby, arXiv 1902.00751) on Alpaca's instructions: after attention and MLP of every block of a frozen base.

jaxllm sft --config configs/sft/alpaca_adapters.py --workdir runs/alpaca_adapters --config.init_from=runs/books

runs/books is what configs/pretrain/books.py trains; peft.name may also be pfeiffer or parallel.
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
            "peft": {"name": "houlsby", "options": {"reduction": 8}},
            "optimizer": {"name": "adamw", "learning_rate": 3e-3, "b2": 0.95, "weight_decay": 0.0},
            "schedule": {"name": "cosine", "warmup": 0.05},
            "checkpoint": {"every": 100},
            "eval": {"every": 100, "batches": 4},
        }
    )
