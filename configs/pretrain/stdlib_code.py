"""A small code model of the Python standard library's source, with its own sentencepiece tokenizer: what `make demo` trains.

jaxllm pretrain --config configs/pretrain/stdlib_code.py --workdir runs/stdlib

On two cores of an AMD EPYC (2026-11-22, inside `make demo`: 208 s with tokenizer, one kill and resume, samples and report), held-out
bits per byte 3.57 at step 0 and 2.02 at step 200; the unigram baseline is 2.89.
"""

from ml_collections import ConfigDict

# By the compiler, not measured: see llama3_8b.py.
PLANNED = {"topology": "v5e:2x2", "hbm_gb": 0.05213, "sent_gb": 0.01048, "step_seconds": 6.901e-05}


def get_config(arg: str = "") -> ConfigDict:
    """`:tiny` is the same in a few steps, for tests."""
    if arg not in ("", "tiny"):
        raise ValueError(f"Unknown argument {arg!r}. Choose one of: tiny")
    tiny = arg == "tiny"
    return ConfigDict(
        {
            "seed": 0,
            "steps": 6 if tiny else 200,
            "batch_size": 16,
            "sequence_length": 64 if tiny else 256,
            "model": {
                "vocab_size": 2048,
                "num_layers": 2 if tiny else 4,
                "width": 64 if tiny else 192,
                "num_heads": 4,
                "num_kv_heads": 2,
                "mlp_width": 128 if tiny else 512,
                "tied_embeddings": True,
            },
            "data": {
                "train": [{"path": "builtin:stdlib"}],
                "tokenizer": {"kind": "sentencepiece", "model_type": "bpe", "vocab_size": 2048},
                "filters": "codex",
            },
            "optimizer": {"name": "adamw", "learning_rate": 3e-3, "b2": 0.95},
            "schedule": {"name": "cosine", "warmup": 3 if tiny else 20},
            "checkpoint": {"every": 40},
            "eval": {"every": 50, "batches": 6},
            # Before and after; a model of source code does no sums, and the report says so.
            "tasks": {"names": [] if tiny else ["addition"], "limit": 64, "every": 200, "max_new_tokens": 8, "slots": 16},
        }
    )
