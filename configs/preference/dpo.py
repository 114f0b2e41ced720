"""DPO (arXiv 2305.18290) of all weights on pairs of answers, from an instruction-tuned model; the reference is that model, frozen.

    jaxllm preference --config configs/preference/dpo.py --workdir runs/dpo --config.init_from=runs/alpaca

With --config.peft.name=lora the reference is the base with its adapters off, and costs no memory (try ten times the learning rate).
runs/alpaca is what configs/sft/alpaca.py trains; preference.loss may be any of ipo, hinge, robust, exo, nca, sppo, apo_zero, ...
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
                "train": [{"path": "task:arithmetic" if tiny else "data/preference/dpo_en.jsonl.gz"}],
                "eval_fraction": 0.02 if tiny else 0.1,
                "packing": "padded",
            },
            "preference": {"loss": "dpo", "beta": 0.1},
            "optimizer": {"name": "adamw", "learning_rate": 1e-5, "weight_decay": 0.0},
            "schedule": {"name": "cosine", "warmup": 0.05},
            "checkpoint": {"every": 100},
            "eval": {"every": 100, "batches": 4 if tiny else 0},
        }
    )
