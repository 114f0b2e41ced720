"""One dial: `depth.py:12` sets width, heads, batch, learning rate and a Chinchilla-style token budget from the number of layers.

jaxllm pretrain --config configs/pretrain/depth.py:12 --workdir runs/d12 --config.data.train=PATH
"""

from ml_collections import ConfigDict

# By the compiler, not measured, of `depth.py:12`: see llama3_8b.py.
PLANNED = {"topology": "v5e:2x4", "arg": ":12", "hbm_gb": 11.47, "sent_gb": 1.011, "step_seconds": 0.1193}


def get_config(arg: str = "12") -> ConfigDict:
    """The argument is the depth; `:tiny` is depth 2 for a few steps, for tests."""
    if arg != "tiny" and not arg.isdecimal():
        raise ValueError(f"Unknown argument {arg!r}. Choose a number of layers, or tiny")
    tiny = arg == "tiny"
    return ConfigDict(
        {
            "seed": 0,
            "depth": 2 if tiny else int(arg),  # fills model, batch_size, steps and learning_rate where they are not given
            "sequence_length": 64 if tiny else 1024,
            **({"steps": 6, "batch_size": 8} if tiny else {}),
            "data": {
                "train": [{"path": "builtin:stdlib"}],
                "tokenizer": {"kind": "bytes"} if tiny else {"kind": "sentencepiece", "model_type": "bpe", "vocab_size": 32768},
            },
            "schedule": {"name": "wsd", "warmup": 2 if tiny else 40},
            "checkpoint": {"every": 1000},
            "eval": {"every": 250, "batches": 16},
        }
    )
