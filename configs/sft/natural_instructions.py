"""Natural Instructions: many tasks told in words, some held out at three levels (OPT-IML, arXiv 2212.12017) and scored apart.

jaxllm sft --config configs/sft/natural_instructions.py --workdir runs/ni --config.init_from=runs/books

runs/books is what configs/pretrain/books.py trains. The data are task files (definition, examples, instances), one task a line, at
data/instruct/natural_instructions_tasks.jsonl.gz; tasks are drawn in proportion to their examples, counted up to `data.cap`.
"""

from ml_collections import ConfigDict

HELD_OUT = {"categories": ["Dialogue Generation"], "tasks": ["task181_outcome_extraction"], "instances": 0.05}


def get_config(arg: str = "") -> ConfigDict:
    """`:tiny` is the same in a few steps on sums that are made here, for tests."""
    if arg not in ("", "tiny"):
        raise ValueError(f"Unknown argument {arg!r}. Choose one of: tiny")
    tiny = arg == "tiny"
    return ConfigDict(
        {
            "stage": "sft",
            "steps": 4 if tiny else 300,
            "batch_size": 16,
            "sequence_length": 64 if tiny else 512,
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
            "data": {"train": [{"path": "task:arithmetic" if tiny else "data/instruct/natural_instructions_tasks.jsonl.gz"}]}
            | ({} if tiny else {"eval_fraction": 0.0, "hold_out": HELD_OUT, "cap": 64.0, "shown": 1}),
            "chat": {"template": "bare"},
            "optimizer": {"name": "adamw", "learning_rate": 1e-3, "b2": 0.95, "weight_decay": 0.0},
            "schedule": {"name": "cosine", "warmup": 0.05},
            "checkpoint": {"every": 100},
            "eval": {"every": 100, "batches": 4},
        }
    )
