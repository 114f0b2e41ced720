"""ORPO (arXiv 2403.07691): no reference at all, the likelihood of the chosen answer and its odds against the rejected one in one loss.

    jaxllm preference --config configs/preference/orpo.py --workdir runs/orpo --config.init_from=runs/books

runs/books is what configs/pretrain/books.py trains: instruction tuning and preference in one stage.
"""

from ml_collections import ConfigDict


def get_config(arg: str = "") -> ConfigDict:
    """`:tiny` is the same in a few steps on right and wrong sums that are made here, for tests."""
    if arg not in ("", "tiny"):
        raise ValueError(f"Unknown argument {arg!r}. Choose one of: tiny")
    tiny = arg == "tiny"
    return ConfigDict(
        {
            "stage": "preference",
            "epochs": None if tiny else 1.0,
            "steps": 4 if tiny else 200,
            "batch_size": 16,  # rows, each full of pairs
            "sequence_length": 128 if tiny else 1024,  # of both answers together
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
            "data": {
                "train": [{"path": "task:arithmetic" if tiny else "data/preference/dpo_en.jsonl.gz"}],
                "eval_fraction": 0.02 if tiny else 0.1,
                "packing": "packed",
            },
            "preference": {"loss": "orpo", "beta": 0.1},
            "optimizer": {"name": "adamw", "learning_rate": 5e-5, "weight_decay": 0.0},
            "schedule": {"name": "cosine", "warmup": 0.05},
            "checkpoint": {"every": 100},
            "eval": {"every": 100, "batches": 4 if tiny else 0},
        }
    )
