"""Llama 3 70B from scratch on a v5p slice of 512 chips (v5p:8x8x8) in pure FSDP.

    jaxllm pretrain --config configs/pretrain/llama3_70b_v5p_512.py --workdir gs://BUCKET/runs/llama3_70b_v5p_512 --config.data.prepared=gs://BUCKET/tokens

Write the tokens first with `jaxllm prepare` and Llama 3's tokenizer.json.  It needs hardware that was not at hand: it is checked by shapes
(`--check`), and its `:tiny` argument runs anywhere; what to expect is PLANNED.
"""

from ml_collections import ConfigDict

# By the compiler, not measured: `python -m benchmarks.plans` (2026-11-22, libtpu 0.0.50.1). GB in use at one time on a device, GB that it
# sends in a step, and the least seconds of a step by the roofline.
PLANNED = {"topology": "v5p:8x8x8", "hbm_gb": 35.33, "sent_gb": 567.52, "step_seconds": 19.96}


def get_config(arg: str = "") -> ConfigDict:
    """`:tiny` trains a two-layer model of the same family on the standard library's source, on the devices that are there."""
    if arg not in ("", "tiny"):
        raise ValueError(f"Unknown argument {arg!r}. Choose one of: tiny")
    tiny = arg == "tiny"
    return ConfigDict(
        {
            "seed": 0,
            "steps": 6 if tiny else 250_000,
            "batch_size": 8 if tiny else 1024,
            "sequence_length": 64 if tiny else 8192,
            "model": {"preset": "tiny_llama3" if tiny else "llama3-70b"},
            "data": {
                "train": [{"path": "builtin:stdlib"}] if tiny else [],
                "prepared": None if tiny else "gs://BUCKET/tokens",
                "tokenizer": {"kind": "bytes"} if tiny else {"kind": "tokenizer.json", "path": "gs://BUCKET/tokenizer.json"},
            },
            "optimizer": {"name": "adamw", "learning_rate": 1.5e-4, "b2": 0.95, "weight_decay": 0.1},
            "schedule": {"name": "cosine", "warmup": 2 if tiny else 2000, "final": 0.1},
            "remat": "full",
            "parallel": {"fsdp": -1} if tiny else {"fsdp": 512},
            "checkpoint": {"every": 500, "every_minutes": 30.0, "keep": 3},
            "eval": {"every": 1000, "batches": 8 if tiny else 64},
            "z_loss": 1e-4,
        }
    )
