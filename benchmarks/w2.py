"""W2, instruction tuning on ragged lengths: the peers' weights and examples through jaxllm's packed rows, objective and update.

Reads the JSON file named by BENCH_SPEC (written by the peers' harness) and prints one JSON line per metric. W2_OPTIONS: config keys to try.
"""

import json
import os
import resource
import statistics
import time
from pathlib import Path

from jaxllm.stages.setup import ONEDNN_FLAGS, give_memory_back
from jaxllm.training.goodput import process_age

STARTED = time.time() - process_age()
give_memory_back()
SPEC = json.loads(Path(os.environ["BENCH_SPEC"]).read_text())
os.environ.setdefault("JAX_PLATFORMS", "cpu")
if os.environ.get("ONEDNN", "1") == "1":
    os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", ONEDNN_FLAGS)

import jax  # noqa: E402

from benchmarks.tuned import read_examples, start  # noqa: E402


def emit(metric: str, value: float, unit: str, **more: object) -> None:
    """One JSON line, by the peers' names."""
    print(json.dumps({"workload": "w2", "peer": "jaxllm", "metric": metric, "value": value, "unit": unit, **more}), flush=True)


def main() -> None:
    """Two warm-up steps, then the timed ones; from the end of a step to the end of the next, the loss on the host, the rows read."""
    sizes, asked, assets = SPEC["spec"], SPEC["config"], Path(SPEC["assets"])
    settings = {"seed": sizes["seed"], "batch_size": sizes["packed_batch"], "sequence_length": sizes["max_len"]}
    settings |= {"model": {"dtype": asked["dtype"]}, "steps": sizes["warmup"] + asked["steps"]}
    made = start(assets / "model", read_examples(assets / "w2.jsonl"), settings, json.loads(os.environ.get("W2_OPTIONS", "{}")))
    state, times, losses, tokens, startup = made.state, [], [], [], 0.0
    with jax.set_mesh(made.mesh):
        for _ in range(settings["steps"]):
            begin = time.perf_counter()
            state, report = made.update(state, made.frozen, made.feed())
            losses.append(float(report["loss"]))
            times.append(time.perf_counter() - begin)
            tokens.append(int(report["tokens"]))
            startup = startup or time.time() - STARTED
    places, timed = made.reader.batch_size * made.reader.sequence_length, slice(sizes["warmup"], None)
    rates = [count / seconds for count, seconds in zip(tokens[timed], times[timed], strict=True)]
    emit("effective_tokens_per_s", sum(tokens[timed]) / sum(times[timed]), "tokens/s", spread=[min(rates), max(rates)])
    emit("pad_share", 1 - sum(tokens[timed]) / (places * len(rates)), "fraction", epoch=1 - made.reader.statistics()["efficiency"])
    emit("step_time", statistics.median(times[timed]), "s", spread=[min(times[timed]), max(times[timed])], tokens=tokens)
    emit("startup_to_first_step", startup, "s", first_step=times[0])
    emit("peak_rss", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, "MiB")
    first = [example.example for row in range(made.reader.batch_size) for example in made.reader.place(0, row)]
    emit("first_loss", losses[0], "nats", last=losses[-1], losses=losses, examples=first)
    made.feed.close()


if __name__ == "__main__":
    main()
