"""Llama 3.1 8B from scratch on one host of eight H100 or H200 GPUs.

    jaxllm pretrain --config configs/pretrain/llama3_8b_h100_8.py --workdir gs://BUCKET/runs/llama3_8b_h100_8 --config.data.prepared=gs://BUCKET/tokens

Write the tokens first with `jaxllm prepare` and Llama 3's tokenizer.json.  It needs hardware that was not at hand: it is checked by shapes
(`--check`), and its `:tiny` argument runs anywhere; no figure to expect yet, not even a planned one:
`jaxllm plan` has compilers for TPUs alone.
"""

from ml_collections import ConfigDict


def get_config(arg: str = "") -> ConfigDict:
    """`:tiny` trains a two-layer model of the same family on the standard library's source, on the devices that are there."""
    if arg not in ("", "tiny"):
        raise ValueError(f"Unknown argument {arg!r}. Choose one of: tiny")
    tiny = arg == "tiny"
    return ConfigDict(
        {
            "seed": 0,
            "steps": 6 if tiny else 100_000,
            "batch_size": 8 if tiny else 64,
            "sequence_length": 64 if tiny else 8192,
            "model": {"preset": "tiny_llama3" if tiny else "llama3.1-8b"},
            "data": {
                "train": [{"path": "builtin:stdlib"}] if tiny else [],
                "prepared": None if tiny else "gs://BUCKET/tokens",
                "tokenizer": {"kind": "bytes"} if tiny else {"kind": "tokenizer.json", "path": "gs://BUCKET/tokenizer.json"},
            },
            "optimizer": {"name": "adamw", "learning_rate": 3e-4, "b2": 0.95, "weight_decay": 0.1},
            "schedule": {"name": "cosine", "warmup": 2 if tiny else 2000, "final": 0.1},
            "remat": "full",
            "microbatches": 1 if tiny else 2,
            "parallel": {"fsdp": -1} if tiny else {"fsdp": 8},
            "checkpoint": {"every": 500, "every_minutes": 30.0, "keep": 3},
            "eval": {"every": 1000, "batches": 8 if tiny else 64},
            "z_loss": 1e-4,
        }
    )
