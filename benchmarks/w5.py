"""W5, a step of policy optimisation: sampling, a reward in Python, one update: the peers' weights and prompts through jaxllm's own feed.

Reads the JSON file named by BENCH_SPEC (written by the peers' harness) and prints one JSON line per metric.
"""

import functools
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
import numpy as np  # noqa: E402

from jaxllm.data.tokenizer_kinds import ByteTokenizer  # noqa: E402
from jaxllm.interop import huggingface, places  # noqa: E402
from jaxllm.interop.folders import open_folder  # noqa: E402
from jaxllm.models.model import Model  # noqa: E402
from jaxllm.parallel import flags  # noqa: E402
from jaxllm.parallel.mesh import make_mesh  # noqa: E402
from jaxllm.rollouts.credit import credit  # noqa: E402
from jaxllm.rollouts.feeds import RolloutFeed  # noqa: E402
from jaxllm.rollouts.making import Making, Plan, Weights  # noqa: E402
from jaxllm.rollouts.rewards import Component, Rewards  # noqa: E402
from jaxllm.rollouts.rollout import Prompt, Sampler  # noqa: E402
from jaxllm.rollouts.scoring import Scorer  # noqa: E402
from jaxllm.sampling.endings import Endings  # noqa: E402
from jaxllm.stages import methods, policy, rl  # noqa: E402
from jaxllm.stages.config import resolve  # noqa: E402
from jaxllm.training import state as states  # noqa: E402
from jaxllm.training.optimizers import make_optimizer  # noqa: E402
from jaxllm.training.step import jit_step, make_step  # noqa: E402

W5, END = SPEC["spec"], 2  # the token that ends a completion


def odd(answers):
    """The share of odd ids in each completion."""
    return [sum(int(token) % 2 for token in answer.tokens) / max(1, len(answer.tokens)) for answer in answers]


def emit(metric: str, value: float, unit: str, **more: object) -> None:
    """One JSON line, by the peers' names."""
    print(json.dumps({"workload": "w5", "peer": "jaxllm", "metric": metric, "value": value, "unit": unit, **more}), flush=True)


def main() -> None:
    """Warm-up steps, then the timed ones; each samples with the weights of the one before."""
    folder, dtype = open_folder(Path(SPEC["assets"]) / "model"), SPEC["config"]["dtype"]
    family, shape = places.read_config(folder)
    model, mesh = Model(shape, dtype=dtype, scan_layers=False), make_mesh()
    asked = np.load(f"{SPEC['assets']}/w5_prompts.npy").astype(np.int32)
    rows, length = W5["prompts"] * W5["completions"], asked.shape[1] + W5["new_tokens"]
    rollout = {"prompts": W5["prompts"], "samples_per_prompt": W5["completions"], "max_new_tokens": W5["new_tokens"]}
    config = resolve({"batch_size": rows, "sequence_length": length, "rollout": rollout, "rl": {"rewards": ["ended"]}})
    objective, place = policy.objective(config, model), rl.placement(mesh)
    plan = Plan(W5["prompts"], W5["completions"], length, False, False, 0, W5["seed"])
    sizes = {"sequence_length": length, "max_new_tokens": W5["new_tokens"], "temperature": W5["temperature"], "seed": W5["seed"]}
    sampler = Sampler(model, Endings(ByteTokenizer(), (), (END,)), **sizes)
    method = functools.partial(credit, methods.method_of(config), methods.shape_of(config))
    scorer, prompts = Scorer(model, W5["temperature"], place, rows), [Prompt("", tokens, {}) for tokens in asked]
    making, seconds = Making(plan, prompts, sampler, scorer, Rewards([Component("odd", odd)]), jax.jit(method)), list[dict[str, float]]()
    watch = lambda made, step, first: seconds.append({**made.seconds, "tokens": float(made.buffer["stat_completion_tokens"].sum())})  # noqa: E731
    optimizer = make_optimizer("adamw", W5["lr"], axes=model.axes(), b1=0.9, b2=0.999, weight_decay=0.0)
    step = make_step(objective.loss, objective.totals, optimizer, axes=model.axes(), clip_norm=1.0)
    with jax.set_mesh(mesh):
        state = states.from_params(huggingface.load(folder, family, model, mesh), optimizer, mesh, model.axes(), guard=None)
        feed = RolloutFeed(making, lambda state, frozen: Weights(state.params, state.params, None), place, batch_size=rows, watch=watch)
        step = jit_step(step, state, flags.compiler_options(jax.devices()[0].device_kind))
        times, rewards, first = [], [], 0.0
        for _ in range(W5["warmup"] + SPEC["config"]["steps"]):
            begin = time.perf_counter()
            state, report = step(state, {}, feed(state, {}))
            rewards.append(float(report["reward"]))
            times.append(time.perf_counter() - begin)
            first = first or time.time() - STARTED
    times, seconds = times[W5["warmup"] :], seconds[W5["warmup"] :]
    middle = {kind: statistics.median(one[kind] for one in seconds) for kind in seconds[0]}
    emit("step_seconds", statistics.median(times), "s", spread=[min(times), max(times)], rewards=rewards)
    emit("generation_seconds", middle["sample"], "s", spread=[f(one["sample"] for one in seconds) for f in (min, max)])
    emit("score_seconds", middle["score"] + middle["reward"], "s")
    update = [t - one["sample"] - one["score"] - one["reward"] for t, one in zip(times, seconds, strict=True)]
    emit("update_seconds", statistics.median(update), "s")
    emit("completion_tokens_per_s", middle["tokens"] / statistics.median(times), "tokens/s")
    emit("startup_to_first_step", first, "s")
    emit("peak_rss", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, "MiB")


if __name__ == "__main__":
    main()
