"""A small English model of encyclopedia and novels, with its own sentencepiece tokenizer: the base of the configs in configs/sft/.

jaxllm pretrain --config configs/pretrain/books.py --workdir runs/books

The text lies under data/ here: one plain file of Wikipedia articles and a folder of books, .txt or .txt.gz; name your own with
--config.data.train=...
"""

from ml_collections import ConfigDict

PLANNED = {"topology": "v5e:2x2", "hbm_gb": 0.07948, "sent_gb": 0.02154, "step_seconds": 0.0001329}


def get_config(arg: str = "") -> ConfigDict:
    """`:tiny` is the same in a few steps, for tests."""
    if arg not in ("", "tiny"):
        raise ValueError(f"Unknown argument {arg!r}. Choose one of: tiny")
    tiny = arg == "tiny"
    return ConfigDict(
        {
            "steps": 6 if tiny else 400,
            "batch_size": 16,
            "sequence_length": 64 if tiny else 256,
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
                "train": [{"path": "data/text/wiki_demo.txt.gz", "weight": 1.0}, {"path": "data/text/books_en", "weight": 1.0}],
                "tokenizer": {"kind": "bytes"} if tiny else {"kind": "sentencepiece", "model_type": "bpe", "vocab_size": 4096},
            },
            "optimizer": {"name": "adamw", "learning_rate": 3e-3, "b2": 0.95},
            "schedule": {"name": "cosine", "warmup": 3 if tiny else 40},
            "checkpoint": {"every": 100},
            "eval": {"every": 100, "batches": 6},
        }
    )
