"""A byte-level model of the standard library's source: a minute on a laptop; start here.

jaxllm pretrain --config configs/pretrain/tiny_bytes.py --workdir runs/tiny
"""

from ml_collections import ConfigDict

# By the compiler, not measured: see llama3_8b.py.
PLANNED = {"topology": "v5e:2x2", "hbm_gb": 0.02493, "sent_gb": 0.002314, "step_seconds": 1.559e-05}


def get_config(arg: str = "") -> ConfigDict:
    """`:tiny` is the same in a few steps, for tests."""
    if arg not in ("", "tiny"):
        raise ValueError(f"Unknown argument {arg!r}. Choose one of: tiny")
    tiny = arg == "tiny"
    return ConfigDict(
        {
            "seed": 0,
            "steps": 6 if tiny else 300,
            "batch_size": 8 if tiny else 16,
            "sequence_length": 64 if tiny else 256,
            "model": {"preset": "tiny"},
            "data": {"train": [{"path": "builtin:stdlib"}], "tokenizer": {"kind": "bytes"}},
            "optimizer": {"name": "adamw", "learning_rate": 3e-3, "weight_decay": 0.1},
            "schedule": {"name": "cosine", "warmup": 2 if tiny else 20},
            "checkpoint": {"every": 100},
            "eval": {"every": 100, "batches": 8},
        }
    )
