"""One update: accumulated = whole batch, gradients stay where they are stored, bad updates are skipped bit for bit."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import toy

from jaxllm.losses.terms import Term
from jaxllm.parallel.mesh import make_mesh
from jaxllm.training.optimizers import OPTIMIZERS, make_optimizer
from jaxllm.training.spikes import REASONS
from jaxllm.training.state import abstract, create
from jaxllm.training.step import jit_step, make_step, purpose_key

MESHES = {"one": {"fsdp": 1}, "fsdp": {"fsdp": 8}, "mixed": {"replica": 2, "fsdp": 2, "tensor": 2}}


def mesh_of(name):
    sizes = MESHES[name]
    return make_mesh(sizes, jax.devices()[: int(np.prod(list(sizes.values())))])


@functools.cache
def compiled(mesh_name, optimizer, microbatches, clip_norm, loss=toy.loss, totals=toy.totals, freeze=(), ema=False):
    """One compiled update, shared by all tests that can: how to make its first state, and the step."""
    mesh, options = mesh_of(mesh_name), {"momentum": 0.0} if optimizer == "sgd" else {}
    made = make_optimizer(optimizer, 1.0 if optimizer == "sgd" else 1e-2, axes=toy.AXES, freeze=freeze, **options)
    new = functools.partial(create, toy.init, made, mesh, toy.AXES, ema=ema, guard=8)
    decay = 0.999 if ema else None
    step = make_step(loss, totals, made, axes=toy.AXES, microbatches=microbatches, clip_norm=clip_norm, ema_decay=decay)
    with jax.set_mesh(mesh):
        batch = toy.make_batch() | {"bad": np.zeros(16, np.float32)}
        return new, jit_step(step, new()).lower(new(), None, batch).compile()


def run(mesh_name, optimizer="sgd", batches=None, microbatches=1, clip_norm=None, **options):
    """The last state and all reports of a few updates."""
    new, step = compiled(mesh_name, optimizer, microbatches, clip_norm, **options)
    state, reports = new(), []
    for batch in batches or [toy.make_batch()]:
        state, report = step(state, None, {"bad": np.zeros(16, np.float32)} | batch)
        reports.append({name: float(value) for name, value in report.items()})
    return state, reports


def first_gradients(mesh_name, microbatches):
    """The gradients as sgd with a rate of 1 applies them."""
    state, (report,) = run(mesh_name, microbatches=microbatches)
    return jax.tree.map(lambda before, after: np.asarray(before) - np.asarray(after), toy.init(), state.params), report


@pytest.fixture(scope="module")
def whole():
    return first_gradients("one", 1)


@pytest.mark.parametrize(("mesh_name", "microbatches"), [("one", 4), ("fsdp", 1), ("fsdp", 2), ("mixed", 4)])
def test_split_and_sharded_equal_whole(whole, mesh_name, microbatches):
    grads, report = first_gradients(mesh_name, microbatches)
    assert report["loss"] == pytest.approx(whole[1]["loss"], rel=1e-6)
    for name in ("cross_entropy", "z_loss", "accuracy", "tokens"):
        assert report[name] == pytest.approx(whole[1][name], rel=1e-5)
    for ours, theirs in zip(jax.tree.leaves(grads), jax.tree.leaves(whole[0]), strict=True):
        assert np.linalg.norm(ours - theirs) < 1e-5 * np.linalg.norm(theirs)


def test_twenty_sharded_steps_equal_twenty_whole_ones():
    batches = [toy.make_batch(seed) for seed in range(20)]
    _, ours = run("mixed", "adamw", batches, microbatches=2, clip_norm=1.0)
    _, theirs = run("one", "adamw", batches, clip_norm=1.0, ema=True)
    np.testing.assert_allclose([r["loss"] for r in ours], [r["loss"] for r in theirs], rtol=1e-4)
    assert theirs[-1]["loss"] < theirs[0]["loss"] - 0.3


def test_report_against_plain_jax():
    batch, params = toy.make_batch(), toy.init()

    def objective(params):
        terms, _ = toy.loss(params, None, batch, None)
        return sum(t.coefficient * t.sum for t in terms.values()) / batch["weights"].sum()

    value, grads = jax.value_and_grad(objective)(params)
    _, (report,) = run("one", "adamw", clip_norm=1.0, ema=True)
    assert report["loss"] == pytest.approx(float(value), rel=1e-6)
    assert report["loss"] == pytest.approx(report["cross_entropy"] + 1e-2 * report["z_loss"], rel=1e-6)
    assert report["grad_norm"] == pytest.approx(float(optax.tree.norm(grads)), rel=1e-5)
    assert report["tokens"] == 16 * 5 and report["skipped"] == 0 and report["learning_rate"] == pytest.approx(1e-2)
    assert report["update_norm"] > 0 and report["param_norm"] == pytest.approx(float(optax.tree.norm(params)), rel=0.05)


def test_clipping_is_of_the_global_norm(whole):
    assert whole[1]["update_norm"] == pytest.approx(whole[1]["grad_norm"], rel=1e-5)
    limit = float(whole[1]["grad_norm"]) / 3
    _, reports = run("one", batches=[toy.make_batch(seed) for seed in range(3)], clip_norm=limit)
    assert reports[0]["grad_norm"] == pytest.approx(whole[1]["grad_norm"], rel=1e-6)
    assert reports[0]["update_norm"] == pytest.approx(limit, rel=1e-5)
    for report in reports:
        assert report["update_norm"] == pytest.approx(min(report["grad_norm"], limit), rel=1e-5)


def test_gradients_are_added_where_they_are_stored():
    """In the compiled program the sums over microbatches run on shards, never on whole gradients."""
    text = compiled("fsdp", "sgd", 2, None)[1].as_text()
    inside = set(re.findall(r"= f32\[([0-9,]+)\]\S* add\(", text))
    D, F, L, N, H, V = toy.D, toy.F, toy.L, toy.N, toy.H, toy.V
    shards = {f"{L},{D // 8},{F}", f"{L},{F},{D // 8}", f"{L},{D // 8},{N},{H}", f"{L},{N},{H},{D // 8}", f"{D // 8},{V}", f"{V},{D // 8}"}
    whole = {f"{L},{D},{F}", f"{L},{F},{D}", f"{L},{D},{N},{H}", f"{L},{N},{H},{D}", f"{D},{V}"}
    assert shards <= inside and not whole & inside, inside


def poisoned(params, frozen, batch, rng):
    """A loss that goes wrong when the batch says so: NaN gradients (1), a huge loss (2), or huge gradients (3)."""
    terms, report = toy.loss(params, frozen, batch, rng)
    bad, head = jnp.max(batch["bad"]), jnp.sum(params["head"])
    wrong = jnp.where(bad == 1, jnp.nan, 0.0) * head + jnp.where(bad == 2, 1e4, 0.0)
    wrong += jnp.where(bad == 3, 1e4, 0.0) * (head - jax.lax.stop_gradient(head))
    return {**terms, "cross_entropy": Term(terms["cross_entropy"].sum + wrong, 1.0)}, report


@pytest.mark.parametrize("kind", REASONS)
def test_bad_updates_are_skipped_counted_and_leave_no_trace(kind):
    new, step = compiled("fsdp", "adamw", 2, 1.0, loss=poisoned, ema=True)
    good, state = toy.make_batch() | {"bad": np.zeros(16, np.float32)}, new()
    for _ in range(5):
        state, report = step(state, None, good)
        assert report["skipped"] == 0
    before = jax.tree.map(np.asarray, state)
    state, report = step(state, None, good | {"bad": np.full(16, 1 + REASONS.index(kind), np.float32)})
    after = jax.tree.map(np.asarray, state)
    assert report["skipped"] == 1 and report[f"skipped_{kind}"] == 1 and report["update_norm"] == 0
    for part in ("params", "opt_state", "ema"):
        jax.tree.map(np.testing.assert_array_equal, getattr(before, part), getattr(after, part))
    assert after.step == before.step + 1 and after.guard.skipped.sum() == 1
    state, report = step(state, None, good)
    assert report["skipped"] == 0 and report[f"skipped_{kind}"] == 1 and np.isfinite(report["loss"]) and report["update_norm"] > 0


def test_nonfinite_is_skipped_without_a_guard():
    optimizer = make_optimizer("sgd", 1e-3)
    state = create(toy.init, optimizer, mesh_of("one"), toy.AXES, guard=None)
    after, report = jax.jit(make_step(poisoned, toy.totals, optimizer))(state, None, toy.make_batch() | {"bad": np.ones(16, np.float32)})
    assert report["skipped"] == 1 and after.guard is None
    jax.tree.map(np.testing.assert_array_equal, state.params, after.params)


def test_moving_average():
    state, _ = run("one", "adamw", clip_norm=1.0, ema=True)
    expected = jax.tree.map(lambda e, p: 0.1 * e + 0.9 * p, toy.init(), state.params)  # the first decay is (1 + 0) / (10 + 0)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), state.ema, expected)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_state_of_low_precision_keeps_its_dtypes(name):
    """Otherwise a checkpoint of a later step is another structure than the state that is to be resumed."""
    optimizer = make_optimizer(name, 1e-2, axes=toy.AXES)
    low = functools.partial(jax.tree.map, lambda p: p.astype(jnp.bfloat16), toy.init())
    state = abstract(low, optimizer, mesh_of("one"), toy.AXES, ema=True)
    with jax.set_mesh(mesh_of("one")):
        after, _ = jax.eval_shape(make_step(toy.loss, toy.totals, optimizer, ema_decay=0.9), state, None, toy.make_batch())
    kinds = [jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), tree) for tree in (state, after)]
    assert kinds[0] == kinds[1]


def test_frozen_parameters_are_untouched_and_outside_the_norm():
    state, (report,) = run("fsdp", freeze="embedding|blocks/", microbatches=2)
    before = toy.init()
    for name in ("embedding", "blocks"):
        jax.tree.map(np.testing.assert_array_equal, before[name], state.params[name])
    assert report["grad_norm"] == pytest.approx(np.linalg.norm(np.asarray(before["head"]) - np.asarray(state.params["head"])), rel=1e-5)


def noise(params, frozen, batch, rng):
    """A loss that is a draw."""
    return {"noise": Term(jax.random.uniform(rng) * jnp.sum(batch["weights"]), 0.0)}, {}


def noise_totals(batch):
    return {"noise": jnp.sum(batch["weights"])}


def test_the_rng_depends_on_seed_purpose_and_step_only():
    two = [toy.make_batch()] * 2
    first, second = (
        [report["noise"] for report in run(mesh_name, loss=noise, totals=noise_totals, microbatches=microbatches, batches=two)[1]]
        for mesh_name, microbatches in (("one", 1), ("fsdp", 2))
    )
    np.testing.assert_allclose(first, second, rtol=1e-6)
    assert first == pytest.approx([float(jax.random.uniform(purpose_key(0, "loss", step))) for step in (0, 1)], rel=1e-6)
    assert first[0] != first[1]
    assert not np.array_equal(jax.random.key_data(purpose_key(0, "loss", 0)), jax.random.key_data(purpose_key(0, "rollout", 0)))


def test_a_batch_that_weighs_nothing_changes_nothing():
    empty = toy.make_batch() | {"weights": np.zeros((16, 6), np.float32)}
    state, (report,) = run("one", batches=[empty])
    assert report["loss"] == 0 and report["skipped"] == 0
    jax.tree.map(np.testing.assert_array_equal, toy.init(), state.params)


def nothing_known(batch):
    return {"other": 1.0}


def test_errors_name_the_remedy():
    with pytest.raises(ValueError, match=r"16 rows .* microbatches=4 over 8 .* multiple of 32"):
        compiled("fsdp", "sgd", 4, None)
    with pytest.raises(ValueError, match=r"term 'cross_entropy' but totals\(batch\) does not"):
        compiled("one", "sgd", 1, None, totals=nothing_known)
    with pytest.raises(ValueError, match="microbatches=0"):
        make_step(toy.loss, toy.totals, optax.sgd(1.0), microbatches=0)


def test_the_average_of_bfloat16_parameters_moves_by_less_than_their_rounding():
    """1 and its average 1.001: a step of 0.1% is 1e-6, which bfloat16 (spacing 0.008 there) would round away for ever."""
    init = lambda: {"w": jnp.ones((4, 4), jnp.bfloat16)}  # noqa: E731
    optimizer = make_optimizer("sgd", 0.0)
    state = create(init, optimizer, mesh_of("one"), {"w": (None, None)}, ema=True, guard=None)
    assert state.ema["w"].dtype == jnp.float32
    state = dataclasses.replace(state, step=jnp.asarray(10**6), ema=jax.tree.map(lambda e: e + 0.001, state.ema))
    loss = lambda params, frozen, batch, rng: ({"loss": Term(jnp.sum(params["w"]))}, {})  # noqa: E731
    step = jax.jit(make_step(loss, lambda batch: {"loss": jnp.float32(1)}, optimizer, ema_decay=0.999))
    for _ in range(100):
        state, _ = step(state, {}, {})
    np.testing.assert_allclose(state.ema["w"] - 1, 0.001 * 0.999**100, rtol=2e-3)


def test_compiler_options_reach_the_compiler():
    made, mesh = make_optimizer("adamw", 1e-2, axes=toy.AXES), mesh_of("one")
    step = make_step(toy.loss, toy.totals, made, axes=toy.AXES)
    with jax.set_mesh(mesh):
        state = create(toy.init, made, mesh, toy.AXES)
        lowered = jit_step(step, state, {"xla_no_such_option": True}).lower(state, None, toy.make_batch())
        with pytest.raises(jax.errors.JaxRuntimeError, match="xla_no_such_option"):
            lowered.compile()
