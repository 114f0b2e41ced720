"""How long a person waits, and what it costs: `jaxllm --help`, the first training step, and every stage once; one JSON line per metric.

Cold and warm are said of the persistent compilation cache, which is a folder of its own here. Files that were read before are in the
system's cache in both cases.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
CONFIG = "configs/pretrain/tiny_bytes.py"
ONCE = ("--config.log.every=1", "--config.eval.batches=1", "--config.steps=1", "--config.schedule.warmup=0", "--config.onednn=off")


class Ran(NamedTuple):
    """One process."""

    seconds: float
    peak: float  # MiB, resident


def call(*words: str, **env: str) -> Ran:
    """Runs `jaxllm ...`.

    Raises:
      RuntimeError: it failed.
    """
    begin = time.perf_counter()
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen([sys.executable, "-m", "jaxllm", *words], env=os.environ | env, cwd=ROOT, stdout=said, stderr=said)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            said.seek(0)
            raise RuntimeError(said.read())
    return Ran(time.perf_counter() - begin, usage.ru_maxrss / 1024)


def emit(metric: str, value: float, **more: object) -> None:
    """One JSON line."""
    print(json.dumps({"workload": "startup", "metric": metric, "value": round(value, 3), **more}), flush=True)


def first_step(workdir: Path) -> float:
    """Seconds from the start of the process to the end of its first update, from what the run wrote."""
    metrics = json.loads((workdir / "metrics.jsonl").read_text().splitlines()[0])
    start = next(r for r in map(json.loads, (workdir / "goodput.jsonl").read_text().splitlines()) if r["kind"] == "start")
    return metrics["time"] - (start["time"] - start["seconds"])


def stages(folder: Path, name: str) -> None:
    """Every stage on one small config, in the order of a model's life: whole seconds and peak memory of its process."""
    workdir, env = folder / name, {"JAX_COMPILATION_CACHE_DIR": str(folder / "programs"), "JAX_PLATFORMS": "cpu"}
    later = lambda config: ("--config", f"configs/{config}.py:tiny", "--workdir", str(workdir / Path(config).stem), *ONCE)  # noqa: E731
    run = {
        "prepare": ("--config", CONFIG, "--config.data.cache", str(folder / f"tokens-{name}")),
        "pretrain": ("--config", CONFIG, "--workdir", str(workdir), "--config.data.cache", str(folder / f"tokens-{name}"), *ONCE),
        "evaluate": ("--workdir", str(workdir)),
        "sample": ("--workdir", str(workdir), "--prompt", "def ", "--config.sample.max_new_tokens=32"),
        "report": (str(workdir),),
        "sft": later("sft/arithmetic"),
        "reward": later("reward/ranking_arithmetic"),
        "preference": later("preference/dpo"),
        "rl": later("rl/grpo_arithmetic"),
    }
    for stage, words in run.items():
        ran = call(stage, *words, **env)
        config = next((word for word in words if word.startswith("configs/")), CONFIG)
        emit(f"{stage}_seconds_{name}", ran.seconds, peak_mib=round(ran.peak), config=config)
    emit(f"first_step_seconds_{name}", first_step(workdir), config=Path(CONFIG).name)


def main() -> None:
    """Prints the figures."""
    helps = [call(*words).seconds for _ in range(5) for words in (["--help"], ["pretrain", "--help"])]
    emit("help_seconds", statistics.median(helps), max=round(max(helps), 3))
    with tempfile.TemporaryDirectory() as folder:
        for name in ("cold", "warm"):
            stages(Path(folder), name)


if __name__ == "__main__":
    main()
