"""A tiny model and comparisons that can be learnt, for the tests of reward models and of preference tuning."""

import json
import random

import jax
import numpy as np

from jaxllm.parallel import rules
from jaxllm.parallel.mesh import make_mesh
from jaxllm.stages import inputs, programs, tuning
from jaxllm.stages import setup as setups
from jaxllm.stages.config import resolve
from jaxllm.training import state as states
from jaxllm.training.step import jit_step

SHAPE = {"vocab_size": 320, "num_layers": 1, "width": 16, "num_heads": 2, "num_kv_heads": 1, "mlp_width": 32}
TINY = {
    "steps": 12,
    "batch_size": 8,
    "sequence_length": 96,
    "model": SHAPE,
    "optimizer": {"learning_rate": 5e-3},
    "schedule": {"name": "constant"},
    "checkpoint": {"every": 0},
    "data": {"eval_fraction": 0.2, "workers": 1, "packing": "padded"},
    "log": {"every": 1, "tensorboard": False},
}
LETTERS = "abcdefgh"


def write(place):
    """Files of comparisons whose better answers hold a z, and of labels that say whether there is one; returns {kind: path}."""
    draw = random.Random(0)

    def said(good):
        words = [draw.choice(LETTERS) for _ in range(draw.randint(2, 9))]
        return "".join([*words, "z"] if good else [*words, "b"])

    rows = {
        "pairs": [{"prompt": f"p{i % 90}", "chosen": said(True), "rejected": said(False)} for i in range(160)],
        "ranking": [{"prompt": f"p{i}", "answers": [said(False), said(True), said(False)], "ranking": [2, 1, 3]} for i in range(60)],
        "labels": [{"prompt": f"p{i}", "completion": said(i % 2 == 0), "label": i % 2 == 0} for i in range(120)],
        "ratings": [{"prompt": f"p{i}", "completion": said(i % 2 == 0), "label": 2.0 - 3 * (i % 2)} for i in range(120)],
    }
    for name, records in rows.items():
        (place / f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return {name: str(place / f"{name}.jsonl") for name in rows}


def settings(path, **more):
    """The tiny config on a file, with dotted keys on top."""
    said = {**TINY, "data": {**TINY["data"], "train": [{"path": path}]}}
    return resolve(said, more)


def config_file(place, path):
    """The same as a file."""
    said = {**TINY, "data": {**TINY["data"], "train": [{"path": path}]}}
    place.write_text(f"def get_config(arg=''):\n    return {said!r}\n")
    return place


class Bench:
    """A run taken apart: its data, and single updates from the drawn start, on any mesh."""

    def __init__(self, recipe, config, mesh=None):
        self.recipe, self.config = recipe, config
        self.mesh = mesh or make_mesh(devices=jax.devices()[:1])
        self.data = recipe.open_data(config)
        model = setups.model(config, self.data.tokenizer.vocab_size)
        self.tuned = tuning.make(config, model, self.data.tokenizer, recipe.beside(config, model))
        self.objective = recipe.objective(config, model)

    def rows(self):
        """The first batch that no row is missing in."""
        reader = self.data.reader(self.config, self.tuned.soft())
        return next(rows for rows in map(reader.rows, range(99)) if rows["lengths"][:, 0, 0].all())

    def batch(self, rows):
        return inputs.placement(self.config, self.mesh)(rows, np.arange(self.config.batch_size))

    def start(self):
        """(state, frozen) of step 0; adapters are moved off their start, so that they do something."""
        config, tuned = self.config, self.tuned
        optimizer = setups.optimizer(config, tuned.axes(), tuned.still())
        state = states.create(tuned.init(config), optimizer, self.mesh, tuned.axes(), **programs.state_options(config))
        with jax.set_mesh(self.mesh):
            base = jax.jit(lambda: tuned.model.init(jax.random.key(config.seed)))()
        frozen = {"base": base} if tuned.method is not None else {"reference": base} if tuned.beside.reference else {}
        return optimizer, state, frozen

    def update(self, rows, steps=1):
        """The state and the report after some updates on the same rows."""
        optimizer, state, frozen = self.start()
        step = jit_step(programs.make_update(self.config, self.tuned, self.objective, optimizer), state)
        with jax.set_mesh(self.mesh), jax.default_matmul_precision("highest"):
            for _ in range(steps):
                state, report = step(state, frozen, self.batch(rows))
        return state, {name: float(value) for name, value in report.items()}

    def terms(self, rows, params=None):
        """What the loss makes of rows at the start: its terms, its report, its totals."""
        _, state, frozen = self.start()
        with rules.under(self.mesh):
            batch, whole = self.batch(rows), self.tuned.whole(state.params if params is None else params, frozen)
            batch = batch if self.objective.before is None else self.objective.before(whole, frozen, batch)
            terms, report = self.objective.loss(whole, frozen, batch, None)
            return terms, report, self.objective.totals(batch)


def gradients(state):
    """Adam's first moments after one update: the gradients, times a constant."""
    found = [leaf.mu for leaf in jax.tree.leaves(state.opt_state, is_leaf=lambda x: hasattr(x, "mu")) if hasattr(leaf, "mu")]
    return {rules.path_name(path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(found[0])}


def assert_same_update(found, expected):
    """Losses within 1e-6 and every gradient within 1e-5 of its norm (those that are 0 but for rounding, of the largest's)."""
    (state, report), (other, told) = found, expected
    assert abs(report["loss"] - told["loss"]) <= 1e-6 * max(abs(told["loss"]), 1)
    mine, theirs = gradients(state), gradients(other)
    largest = max(np.linalg.norm(leaf) for leaf in theirs.values())
    for name, leaf in theirs.items():
        assert np.linalg.norm(mine[name] - leaf) <= 1e-5 * max(np.linalg.norm(leaf), 1e-2 * largest), name
