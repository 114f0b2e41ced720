"""GPT-2 small (124M) on your own text, in the published batch of about half a million tokens; for one GPU host or a small TPU slice.

    jaxllm pretrain --config configs/pretrain/gpt2_124m.py --workdir runs/gpt2 --config.data.train=PATH/*.jsonl

Not run at this size yet: the only figures are the compiler's, below. `--check` and the `:tiny` argument run anywhere.
"""

from ml_collections import ConfigDict

# By the compiler, not measured: see llama3_8b.py.
PLANNED = {"topology": "v5e:2x4", "hbm_gb": 3.577, "sent_gb": 10.69, "step_seconds": 0.2654}


def get_config(arg: str = "") -> ConfigDict:
    """`:tiny` trains a two-layer model of the same family on the standard library's source."""
    if arg not in ("", "tiny"):
        raise ValueError(f"Unknown argument {arg!r}. Choose one of: tiny")
    tiny = arg == "tiny"
    shape = {"preset": "tiny_gpt2"} if tiny else {"preset": "gpt2"}
    return ConfigDict(
        {
            "seed": 1337,
            "steps": 6 if tiny else 19_073,  # 10B tokens
            "batch_size": 8 if tiny else 512,
            "sequence_length": 64 if tiny else 1024,
            "model": shape,
            "data": {
                "train": [{"path": "builtin:stdlib"}] if tiny else [{"path": "data/*.jsonl", "field": "text"}],
                "tokenizer": {"kind": "bytes"} if tiny else {"kind": "sentencepiece", "model_type": "bpe", "vocab_size": 50257},
            },
            "optimizer": {"name": "adamw", "learning_rate": 6e-4, "b2": 0.95, "weight_decay": 0.1},
            "schedule": {"name": "cosine", "warmup": 2 if tiny else 700, "final": 0.0},
            "remat": "none",
            "microbatches": 1 if tiny else 8,
            "checkpoint": {"every": 1000, "keep": 3},
            "eval": {"every": 500, "batches": 8 if tiny else 40},
        }
    )
