"""GRPO on sums and differences with a calculator to call, scored by the task's own verifier; from a model that knows the form of a call.

jaxllm rl --config configs/rl/arithmetic_tools.py --workdir runs/tools --config.init_from=runs/calls

runs/calls is what configs/sft/arithmetic_calls.py trains. The model writes "[12 + 7]", the calculator puts "{19}" behind it, the model
writes its answer and ends; its tokens train, the calculator's do not. On two cores of an AMD EPYC (2026-11-23, much other work beside it)
100 updates took 5 minutes; of 100 sums that are never trained on, asked with the calculator, 92 were right at step 0 and 99 at step 100.
"""

from ml_collections import ConfigDict


def get_config(arg: str = "") -> ConfigDict:
    """`:tiny` is the same in a few steps, for tests."""
    if arg not in ("", "tiny"):
        raise ValueError(f"Unknown argument {arg!r}. Choose one of: tiny")
    tiny = arg == "tiny"
    return ConfigDict(
        {
            "stage": "rl",
            "seed": 0,
            "steps": 4 if tiny else 100,
            "batch_size": 16 if tiny else 128,
            "sequence_length": 64,
            "model": {
                "vocab_size": 264,
                "num_layers": 2 if tiny else 4,
                "width": 64 if tiny else 128,
                "num_heads": 4,
                "num_kv_heads": 2,
                "mlp_width": 128 if tiny else 384,
                "tied_embeddings": True,
            },
            "rollout": {
                "task": "arithmetic",
                "prompts": 4 if tiny else 16,
                "samples_per_prompt": 4 if tiny else 8,
                "max_new_tokens": 24,
                "tools": [{"kind": "calculator", "open": "[", "close": "]"}],
                "result": ["{", "}"],
                "max_turns": 3,
                "max_tool_tokens": 12,
            },
            "rl": {"method": "grpo", "rewards": ["task", {"kind": "tools", "weight": 0.0}]},
            "optimizer": {"name": "adamw", "learning_rate": 5e-5, "weight_decay": 0.0},
            "schedule": {"name": "constant", "warmup": 2 if tiny else 10},
            "checkpoint": {"every": 2 if tiny else 50},
            "eval": {"every": 2 if tiny else 50},
            "tasks": {"names": ["arithmetic"], "limit": 8 if tiny else 100, "max_new_tokens": 24},
        }
    )
