"""A reward model of pairs (Bradley-Terry with centring), from an instruction-tuned model: InstructGPT's second stage in small.

    jaxllm reward --config configs/reward/bradley_terry.py --workdir runs/reward --config.init_from=runs/alpaca

runs/alpaca is what configs/sft/alpaca.py trains. The data are {prompt, chosen, rejected} records of any of the usual forms.
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
            "batch_size": 16,  # pairs
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
                "train": [{"path": "task:arithmetic" if tiny else "data/preference/*_en.jsonl.gz"}],
                "eval_fraction": 0.02 if tiny else 0.1,
                "packing": "padded",
            },
            "reward": {"loss": "bradley_terry", "centering": 0.01, "scale": "mean"},
            "optimizer": {"name": "adamw", "learning_rate": 1e-4, "eps": 1e-5, "weight_decay": 0.0},
            "schedule": {"name": "cosine", "warmup": 0.05},
            "checkpoint": {"every": 100},
            "eval": {"every": 100, "batches": 4 if tiny else 0},
        }
    )
