"""LoRA (arXiv 2106.09685) on Alpaca's instructions: two thin matrices beside every linear layer of a frozen base.

jaxllm sft --config configs/sft/alpaca_lora.py --workdir runs/alpaca_lora --config.init_from=runs/books

runs/books is what configs/pretrain/books.py trains; --config.peft.quantize=nf4 keeps the frozen base in four bits (QLoRA).
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
            "peft": {"name": "lora", "rank": 16, "alpha": 32.0},
            "optimizer": {"name": "adamw", "learning_rate": 3e-3, "b2": 0.95, "weight_decay": 0.0},
            "schedule": {"name": "cosine", "warmup": 0.05},
            "checkpoint": {"every": 100},
            "eval": {"every": 100, "batches": 4},
        }
    )
