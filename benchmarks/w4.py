"""W4, generation: the peers' weights and prompts through jaxllm's engine; 128 new tokens for each of 32 prompts at temperature 1.

Reads the JSON file named by BENCH_SPEC (written by the peers' harness) and prints one JSON line per metric.
"""

import json
import os
import resource
import statistics
import time
from pathlib import Path

from jaxllm.training.goodput import process_age

STARTED = time.time() - process_age()
SPEC = json.loads(Path(os.environ["BENCH_SPEC"]).read_text())
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax  # noqa: E402
import numpy as np  # noqa: E402

from jaxllm.interop import huggingface, places  # noqa: E402
from jaxllm.interop.folders import open_folder  # noqa: E402
from jaxllm.models.model import Model  # noqa: E402
from jaxllm.parallel.mesh import make_mesh  # noqa: E402
from jaxllm.sampling.engine import Engine, Request  # noqa: E402
from jaxllm.sampling.logits import Sampling  # noqa: E402


def emit(metric: str, value: float, unit: str, **more: object) -> None:
    """One JSON line, by the peers' names."""
    print(json.dumps({"workload": "w4", "peer": "jaxllm", "metric": metric, "value": value, "unit": unit, **more}), flush=True)


def main() -> None:
    """One warm-up call, then whole calls, prefill included."""
    folder, dtype = open_folder(Path(SPEC["assets"]) / "model"), SPEC["config"]["dtype"]
    family, config = places.read_config(folder)
    model, mesh = Model(config, dtype=dtype, param_dtype=dtype, scan_layers=False), make_mesh()
    prompts, new = np.load(f"{SPEC['assets']}/w4_prompts.npy").astype(np.int32), SPEC["spec"]["new_tokens"]
    engine = Engine(model, Sampling(), slots=len(prompts), length=prompts.shape[1] + new, prefill=len(prompts))
    with jax.set_mesh(mesh):
        params = huggingface.load(folder, family, model, mesh)

        def call(count: int, seed: int) -> float:
            begin = time.perf_counter()
            requests = (Request(prompt, (i,), count) for i, prompt in enumerate(prompts))
            found = list(engine.run(params, requests, jax.random.key(seed)))
            assert [len(done.tokens) for done in found] == [count] * len(prompts)
            return time.perf_counter() - begin

        first, startup = call(new, 0), time.time() - STARTED
        times = [(call(new, seed), call(1, seed)) for seed in range(1, SPEC["config"]["reps"] + 1)]
    rates, (whole, prefill) = [len(prompts) * new / t for t, _ in times], (statistics.median(x) for x in zip(*times, strict=True))
    emit("new_tokens_per_s", statistics.median(rates), "tokens/s", spread=[min(rates), max(rates)])
    emit("prefill_seconds", prefill, "s")
    emit("decode_step_ms", 1e3 * (whole - prefill) / (new - 1), "ms")
    emit("first_call_seconds", first, "s", startup_to_first_output=startup)
    emit("peak_rss", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, "MiB")


if __name__ == "__main__":
    main()
