"""W3, preferences on ragged lengths: the peers' weights and pairs through `jaxllm reward`, `preference` as a user runs them.

Reads the JSON file named by BENCH_SPEC (written by the peers' harness) and prints one JSON line per metric. W3_OPTIONS: config keys to try.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SPEC = json.loads(Path(os.environ["BENCH_SPEC"]).read_text())
STAGES = {"reward": ("reward", {"reward": {"loss": "bradley_terry"}}), "dpo": ("preference", {"preference": {"loss": "dpo", "beta": 0.1}})}
ROWS, LENGTH = 4, 704  # about 8 pairs in each of the 12 batches of an epoch; the longest pair has 668 tokens


def text(ids: list[int]) -> str:
    """What the peers' word-level tokenizer maps to these ids."""
    return " ".join(f"t{token}" for token in ids)


def write(folder: Path) -> list[str]:
    """The pairs as text, and the config; returns the command line."""
    sizes, asked, assets = SPEC["spec"], SPEC["config"], Path(SPEC["assets"])
    pairs = [json.loads(line) for line in (assets / "w3.jsonl").read_text().splitlines()]
    lines = [json.dumps({name: text(pair[name]) + " " * (name == "prompt") for name in ("prompt", "chosen", "rejected")}) for pair in pairs]
    (folder / "pairs.jsonl").write_text("\n".join(lines) + "\n")
    stage, section = STAGES[asked["task"]]
    settings = {
        "stage": stage,
        "steps": sizes["warmup"] + asked["steps"],
        "batch_size": ROWS,
        "sequence_length": LENGTH,
        "model": {"dtype": asked["dtype"]},
        "data": {"train": [{"path": str(folder / "pairs.jsonl")}], "eval_fraction": 0.0, "packing": "packed"},
        "chat": {"template": "bare"},
        "optimizer": {"name": "adamw", "learning_rate": 1e-5, "b2": 0.999, "weight_decay": 0.0, "clip_norm": 1.0},
        "schedule": {"name": "constant"},
        "log": {"every": 1, "tensorboard": False},
        "checkpoint": {"every": 10_000},
        "eval": {"every": 0},
        "init_from": str(assets / "model"),
        **section,
    }
    config = f"from ml_collections import ConfigDict\n\n\ndef get_config():\n    return ConfigDict({settings!r})\n"
    (folder / "config.py").write_text(config)
    options = [f"--config.{name}={value}" for name, value in json.loads(os.environ.get("W3_OPTIONS", "{}")).items()]
    return [sys.executable, "-m", "jaxllm", stage, "--config", str(folder / "config.py"), "--workdir", str(folder / "run"), *options]


def emit(metric: str, value: float, unit: str, **more: object) -> None:
    """One JSON line, by the peers' names."""
    print(json.dumps({"workload": "w3", "peer": "jaxllm", "metric": metric, "value": value, "unit": unit, **more}), flush=True)


def main() -> None:
    """Runs the stage in a process and reads what it logged: a step is what lies between two lines of metrics.jsonl."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        command, began = write(folder), time.time()
        with tempfile.TemporaryFile("w+") as said:
            process = subprocess.Popen(command, env=os.environ | {"JAX_PLATFORMS": "cpu"}, stdout=said, stderr=said)
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
            if process.returncode:
                said.seek(0)
                raise SystemExit(said.read())
        steps = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    timed = [step["step_seconds"] for step in steps[SPEC["spec"]["warmup"] :]]
    median, batch = statistics.median(timed), SPEC["spec"]["batch"]
    task = SPEC["config"]["task"]
    emit("pairs_per_s", batch / median, "pairs/s", spread=[batch / max(timed), batch / min(timed)], task=task)
    emit("step_time", median, "s", spread=[min(timed), max(timed)])
    emit("startup_to_first_step", steps[0]["time"] - began, "s")
    emit("peak_rss", usage.ru_maxrss / 1024, "MiB")
    emit("first_loss", steps[0]["loss"], "nats", losses=[step["loss"] for step in steps], tokens=[step["tokens"] for step in steps])


if __name__ == "__main__":
    main()
