"""How long a person waits: `jaxllm --help`, and the first training step with cold and with warm caches. Prints one JSON line per metric."""

import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def call(*words: str, env: dict[str, str] | None = None) -> tuple[float, str]:
    """Seconds and standard error of `jaxllm ...`.

    Raises:
      RuntimeError: it failed.
    """
    begin = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "jaxllm", *words], env={**os.environ, **(env or {})}, cwd=ROOT, capture_output=True, text=True
    )
    if done.returncode:
        raise RuntimeError(done.stderr)
    return time.perf_counter() - begin, done.stderr


def first_step(cache: str, tokens: str, config: str) -> float:
    """Seconds from the start of the process to the end of its first update (one step, no evaluation, no last save counted)."""
    with tempfile.TemporaryDirectory() as workdir:
        words = (
            "pretrain",
            "--config",
            config,
            "--workdir",
            workdir,
            "--config.log.every=1",
            "--config.eval.batches=1",
            "--config.steps=1",
        )
        env = {"JAX_COMPILATION_CACHE_DIR": cache, "JAXLLM_CACHE": tokens, "JAX_PLATFORMS": "cpu"}
        call(*words, "--config.schedule.warmup=0", "--config.onednn=off", env=env)
        metrics = json.loads((Path(workdir) / "metrics.jsonl").read_text().splitlines()[0])
        start = next(r for r in map(json.loads, (Path(workdir) / "goodput.jsonl").read_text().splitlines()) if r["kind"] == "start")
        return metrics["time"] - (start["time"] - start["seconds"])


def main() -> None:
    """Prints the figures; the token files are made before anything is timed."""
    helps = [call(*words)[0] for _ in range(5) for words in (["--help"], ["pretrain", "--help"])]
    print(
        json.dumps(
            {"workload": "startup", "metric": "help_seconds", "value": round(statistics.median(helps), 3), "max": round(max(helps), 3)}
        )
    )
    config = "configs/pretrain/tiny_bytes.py"
    with tempfile.TemporaryDirectory() as tokens, tempfile.TemporaryDirectory() as cache:
        call("prepare", "--config", config, env={"JAXLLM_CACHE": tokens})
        cold = first_step(cache, tokens, config)
        warm = statistics.median(first_step(cache, tokens, config) for _ in range(3))
    for name, value in (("first_step_seconds_cold", cold), ("first_step_seconds_warm", warm)):
        print(
            json.dumps({"workload": "startup", "metric": name, "value": round(value, 2), "config": re.sub(r".*/", "", config)}), flush=True
        )


if __name__ == "__main__":
    main()
