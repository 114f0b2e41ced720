"""A run of policy optimisation in parts, small enough to be taken apart: what tests of `stages/rl.py` share."""

import json

import jax
import numpy as np

from jaxllm.parallel.mesh import make_mesh
from jaxllm.stages import opened, programs, rl, train
from jaxllm.stages.config import flatten, nest, resolve
from jaxllm.stages.recipe import Beside
from jaxllm.training import state as states
from jaxllm.training.step import jit_step
from jaxllm.training.trees import join_feed, split_feed

REWARD = '''
"""The share of a letter, for tests; it kills its process where it is told to."""
import os, signal

CALLS = [0]

def share(prompts, completions, rows):
    CALLS[0] += 1
    if os.environ.get("KILL_AT") == str(CALLS[0]):
        os.kill(os.getpid(), signal.SIGKILL)
    return [sum(c in "abcdefghijklmnop" for c in text) / 6 for text in completions]
'''
TINY = {
    "seed": 5,
    "steps": 6,
    "batch_size": 32,
    "sequence_length": 16,
    "model": {"vocab_size": 264, "num_layers": 1, "width": 32, "num_heads": 2, "num_kv_heads": 1, "mlp_width": 64, "scan_layers": False},
    "optimizer": {"learning_rate": 2e-2},
    "schedule": {"name": "constant"},
    "checkpoint": {"every": 2},
    "log": {"every": 1, "tensorboard": False},
    "rollout": {"prompts": 4, "samples_per_prompt": 8, "max_new_tokens": 6, "check_every": 1},
}


def write(folder):
    """Prompts and a reward in a folder."""
    (folder / "reward.py").write_text(REWARD)
    prompts = ["go", "say it", "well then", "and", "now what"]
    (folder / "prompts.jsonl").write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts))


def settings_in(place, **changes):
    """The tiny config on what `write` wrote, with whatever is changed by dotted key."""
    base = {**TINY, "rollout": {**TINY["rollout"], "file": str(place / "prompts.jsonl")}}
    base["rl"] = {"rewards": [{"kind": "function", "path": f"{place}/reward.py:share", "name": "share"}]}
    return nest({**flatten(base), **{name.replace("__", "."): value for name, value in changes.items()}}).to_dict()


COMPILED = {}  # what sessions of the same shapes share


def kind_of_critic(config):
    return config.rl.critic if config.rl.method == "ppo" else None


class Session:
    """A run's parts, without its files; what was compiled for an earlier one is used again."""

    def __init__(self, config, folder, devices=1, share=True):
        built = train.build(resolve(config), rl.RECIPE)
        self.made = made = built._replace(mesh=make_mesh(devices=jax.devices()[:devices]))
        self.axes = made.tuned.axes()
        with jax.set_mesh(made.mesh):
            self.state, self.frozen = self.begin(json.dumps([devices, made.config.peft.name, kind_of_critic(made.config)]))
            self.feed = rl.feed(made, str(folder))
            self.step = jit_step(programs.make_update(made.config, made.tuned, made.objective, made.optimizer), self.state)
        if share:
            making, heat = self.feed._making, made.config.rollout.temperature
            sizes = (devices, heat, made.config.batch_size, kind_of_critic(made.config))
            making.sampler = COMPILED.setdefault(("sampler", devices, heat), making.sampler)
            making.greedy = making.greedy and COMPILED.setdefault(("greedy", devices), making.greedy)
            making.scorer = COMPILED.setdefault(("scorer", *sizes), making.scorer)
            making.credit = COMPILED.setdefault(("credit", devices, json.dumps(config["rl"])), making.credit)
            self.step = COMPILED.setdefault(("step", devices, json.dumps(config)), self.step)
        self.batches, self.reports = [], []

    def begin(self, key):
        """The state at step 0 and what is frozen, drawn once for all sessions that begin alike."""
        made = self.made
        if key not in COMPILED:
            state = states.create(made.tuned.init(made.config), made.optimizer, made.mesh, self.axes, guard=None)
            still = opened.frozen(made.config, made.mesh, made.tuned._replace(beside=Beside(reference=True)), None)
            leaves, tree = jax.tree.flatten((state, still))
            COMPILED[key] = jax.device_get(leaves), [leaf.sharding for leaf in leaves], tree
        leaves, places, tree = COMPILED[key]
        state, still = jax.tree.unflatten(tree, list(map(jax.device_put, leaves, places)))
        return state, still if made.tuned.beside.reference or made.tuned.method else {}

    def run(self, count):
        with jax.set_mesh(self.made.mesh):
            for _ in range(count):
                batch = self.feed(self.state, self.frozen)
                self.batches.append(jax.device_get(batch))
                self.state, report = self.step(self.state, self.frozen, batch)
                self.reports.append({name: float(value) for name, value in report.items()})
        return self

    def params(self):
        return jax.tree.leaves(jax.device_get(self.state.params))


def saved_and_loaded(feed_state):
    arrays, nested = split_feed(feed_state)
    return join_feed({name: np.array(array) for name, array in arrays.items()}, json.loads(json.dumps(nested)))
