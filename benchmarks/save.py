"""What a checkpoint costs the training loop: an asynchronous save, the next step included, beside a synchronous one.

100 matrices of a million float32 parameters with two moments (1.2 GB), and a donated step that rewrites all of them. Prints one JSON line
per metric.
"""

import argparse
import functools
import json
import os
import shutil
import statistics
import tempfile
import time

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp

from jaxllm.training.checkpoints import Checkpoints


def make_state(matrices: int) -> dict:
    """Parameters and two moments."""
    leaf = functools.partial(jnp.ones, (1000, 1000), jnp.float32)
    return {kind: {f"layer{i}": leaf() * (i + 1) for i in range(matrices)} for kind in ("params", "mu", "nu")}


@functools.partial(jax.jit, donate_argnums=0)
def step(state: dict, x: jax.Array) -> tuple[dict, jax.Array]:
    """Some products, so that a step takes a while, and every array of the state rewritten in place."""
    for _ in range(12):
        x = jnp.tanh(x @ state["params"]["layer0"] * 1e-3)
    return jax.tree.map(lambda a: a * 0.999 + 1e-3, state), x


def timed(state: dict, x: jax.Array) -> tuple[dict, float]:
    """One step, waited for; returns the new state and the seconds it took."""
    begin = time.perf_counter()
    state, y = step(state, x)
    jax.block_until_ready((state, y))
    return state, time.perf_counter() - begin


def main() -> None:
    """Alternates synchronous and asynchronous saves and reports the medians."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--matrices", type=int, default=100)
    options = parser.parse_args()
    state, x = make_state(options.matrices), jnp.ones((2000, 1000))
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    folder = tempfile.mkdtemp(prefix="jaxllm-save-")
    saves = Checkpoints(folder, keep=1, say=lambda line: print(line, flush=True))
    saves.prepare(state)
    blocked: dict[str, list[float]] = {"sync": [], "async": []}
    durable, calls = [], []
    try:
        state, _ = timed(state, x)
        for number in range(2 * (options.rounds + 1)):
            kind = ("sync", "async")[number % 2]
            plain = []
            for _ in range(3):
                state, seconds = timed(state, x)
                plain.append(seconds)
            begin = time.perf_counter()
            saves.maybe_save(number + 1, state, {"position": number}, force=True)
            if kind == "async" and number >= 2:
                calls.append(time.perf_counter() - begin)
            if kind == "sync":
                saves.wait()
            state, y = step(state, x)
            jax.block_until_ready((state, y))
            if number >= 2:  # the first of each kind warms up
                blocked[kind].append(time.perf_counter() - begin - statistics.median(plain))
            saves.wait()
            durable.append(time.perf_counter() - begin)
    finally:
        saves.close()
        shutil.rmtree(folder, ignore_errors=True)
    median = {kind: statistics.median(values) for kind, values in blocked.items()}
    rows = [(f"{kind}_blocked_seconds", median[kind], [min(blocked[kind]), max(blocked[kind])]) for kind in blocked]
    rows += [("async_call_seconds", statistics.median(calls), [min(calls), max(calls)])]
    rows += [("async_share_of_sync", median["async"] / median["sync"], None), ("durable_seconds", statistics.median(durable), None)]
    for metric, value, spread in rows:
        print(json.dumps({"workload": "save", "metric": metric, "value": round(value, 4), "spread": spread, "bytes": size}), flush=True)


if __name__ == "__main__":
    main()
