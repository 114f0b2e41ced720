"""A training run of a few numbers, for tests of processes: python -m tiny_run WORKDIR --until N ..."""

import argparse
import contextlib
import dataclasses
import functools
import json
import os
import signal
import sys
import time
from pathlib import Path


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("workdir", type=Path)
    parser.add_argument("--until", type=int, required=True)
    parser.add_argument("--every", type=int)
    parser.add_argument("--every-minutes", type=float)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--sleep", type=float, default=0.0)
    parser.add_argument("--die-at", type=int, help="kill -9 this process at that step")
    parser.add_argument("--die-process", type=int, default=1)
    parser.add_argument("--die-in-save", type=int, help="kill -9 in the background part of the save of that step")
    options = parser.parse_args()

    import jax
    import jax.numpy as jnp
    import numpy as np
    from jax.sharding import NamedSharding, PartitionSpec

    from jaxllm.parallel import hosts, rows
    from jaxllm.parallel.mesh import make_mesh
    from jaxllm.parallel.stops import StopRequests
    from jaxllm.training import checkpoints as saving
    from jaxllm.training import loop
    from jaxllm.training.lock import hold

    hosts.start()
    mesh = make_mesh({"fsdp": -1})
    cut, whole = NamedSharding(mesh, PartitionSpec("fsdp")), NamedSharding(mesh, PartitionSpec())

    @jax.tree_util.register_dataclass
    @dataclasses.dataclass(frozen=True)
    class State:
        step: jax.Array
        weights: jax.Array

    shardings = State(step=whole, weights=cut)
    state = jax.jit(lambda: State(jnp.int32(0), jnp.zeros(options.size)), out_shardings=shardings)()

    class Feed:
        position = 0

        def __call__(self, state, frozen):
            batch = np.random.default_rng(self.position).normal(size=(8, 4)).astype(np.float32)
            self.position += 1
            time.sleep(options.sleep)
            return rows.make_global(batch[rows.rows_needed(cut, 8)], cut, 8)

        def state(self):
            return {"position": self.position}

        def restore(self, saved):
            self.position = saved["position"]

    class Writer:
        def __init__(self):
            self.path = options.workdir / "metrics.jsonl"

        def rewind(self, to):
            if hosts.is_first() and self.path.exists():
                kept = [line for line in self.path.read_text().splitlines() if json.loads(line)["step"] <= to]
                self.path.write_text("".join(line + "\n" for line in kept))

        def write(self, step, report):
            if hosts.is_first():
                with self.path.open("a") as file:
                    file.write(json.dumps({"step": step, "loss": float(report["loss"]).hex()}) + "\n")
            if step == options.die_at and jax.process_index() == options.die_process:
                print("dies at", time.time(), flush=True)
                os.kill(os.getpid(), signal.SIGKILL)
            if step == 3:
                hosts.say("step 3 is done")

        def has_eval(self, step, name):
            return False

        def flush(self):
            pass

        def timed(self, what):
            return contextlib.nullcontext()

    @functools.partial(jax.jit, donate_argnums=0)
    def step(state, frozen, batch):
        loss = jnp.mean(jnp.square(jnp.mean(batch) - state.weights)) + jnp.mean(jnp.square(batch))
        weights = 0.9 * state.weights + jnp.mean(batch, axis=(0, 1))
        return State(state.step + 1, jax.lax.with_sharding_constraint(weights, cut)), {"loss": loss}

    if options.die_in_save is not None:
        describe = saving.manifests.describe

        def die(path, *args, **kwargs):
            if path.name == str(options.die_in_save):
                os.kill(os.getpid(), signal.SIGKILL)
            return describe(path, *args, **kwargs)

        saving.manifests.describe = die

    feed = Feed()
    with hold(options.workdir), StopRequests() as stop:
        checkpoints = saving.Checkpoints(options.workdir / "checkpoints", every=options.every, every_minutes=options.every_minutes)
        if (restored := checkpoints.restore(state)) is not None:
            state = restored.state
            feed.restore(restored.feed_state)
            hosts.say(f"resumed at {restored.step}")
        with jax.set_mesh(mesh):
            ended = loop.fit(state, None, feed, step, until=options.until, writer=Writer(), checkpoints=checkpoints, stop=stop)
        hosts.say(f"{ended.reason} at {ended.step}")
    hosts.finish()
    return 75 if ended.reason == "stopped" else 0


if __name__ == "__main__":
    sys.exit(main())
