"""Prompt tuning (arXiv 2104.08691) for three tasks over one frozen model: sentiment, subjectivity, entailment, each with its own prompt.

jaxllm sft --config configs/sft/prompt_three_tasks.py --workdir runs/prompts --config.init_from=runs/books
jaxllm sample --workdir runs/prompts --config.peft.task=sentiment --prompt "a dull film"

The data are {text, label} and {premise, hypothesis, label} a line, under data/eval/. The paper's optimizer: adafactor at a constant 0.3.
"""

from ml_collections import ConfigDict


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
            "data": {
                "train": [{"path": "task:arithmetic", "name": name} for name in ("sentiment", "subjectivity", "entailment")]
                if tiny
                else [
                    {"path": "data/eval/sst2_train_sample.jsonl.gz", "name": "sentiment", "format": "text_label"},
                    {"path": "data/eval/subjectivity.jsonl.gz", "name": "subjectivity", "format": "text_label"},
                    {"path": "data/eval/mnli_train_sample.jsonl.gz", "name": "entailment", "format": "premise_hypothesis"},
                ],
                "eval_fraction": 0.1,
            },
            "chat": {"template": "bare"},
            "peft": {"name": "prompt", "length": 4 if tiny else 20, "options": {"num_tasks": 3, "start": "vocab"}},
            "optimizer": {"name": "adafactor", "learning_rate": 0.3, "options": {"parameter_scale": False}},
            "schedule": {"name": "constant"},
            "checkpoint": {"every": 100},
            "eval": {"every": 100, "batches": 4},
        }
    )
