"""An ensemble of eight scores with randomised priors on one trunk, of HH-RLHF's transcripts: a mean, and how far members disagree.

    jaxllm reward --config configs/reward/harmless_ensemble.py --workdir runs/harmless --config.init_from=runs/alpaca

The data are pairs of whole transcripts ("\\n\\nHuman: ...\\n\\nAssistant: ...") at data/preference/hh_harmless_base_test.jsonl.gz.
"""

from ml_collections import ConfigDict


def get_config(arg: str = "") -> ConfigDict:
    """`:tiny` is the same in a few steps on right and wrong sums that are made here, for tests."""
    if arg not in ("", "tiny"):
        raise ValueError(f"Unknown argument {arg!r}. Choose one of: tiny")
    tiny = arg == "tiny"
    return ConfigDict(
        {
            "stage": "reward",
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
                "train": [{"path": "task:arithmetic" if tiny else "data/preference/hh_harmless_base_test.jsonl.gz"}],
                "eval_fraction": 0.02 if tiny else 0.1,
                "packing": "packed",
            },
            "reward": {"loss": "bradley_terry", "members": 8, "hidden": [32], "prior": 1.0, "scale": "unit"},
            "optimizer": {"name": "adamw", "learning_rate": 1e-4, "eps": 1e-5, "weight_decay": 0.0},
            "schedule": {"name": "cosine", "warmup": 0.05},
            "checkpoint": {"every": 100},
            "eval": {"every": 100, "batches": 4 if tiny else 0},
        }
    )
