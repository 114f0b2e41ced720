"""One update: accumulated = whole batch, gradients stay where they are stored, bad updates are skipped bit for bit."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import toy

from jaxllm.losses.terms import Term
from jaxllm.parallel.mesh import make_mesh
from jaxllm.training.optimizers import make_optimizer
from jaxllm.training.state import create
from jaxllm.training.step import jit_step, make_step, purpose_key

MESHES = {"one": {"fsdp": 1}, "fsdp": {"fsdp": 8}, "mixed": {"replica": 2, "fsdp": 2, "tensor": 2}}


def mesh_of(name):
    sizes = MESHES[name]
    return make_mesh(sizes, jax.devices()[: int(np.prod(list(sizes.values())))])


def run(mesh, steps=1, batches=None, loss=toy.loss, totals=toy.totals, optimizer=None, **options):
    """States and reports of a few updates; the last state is live, earlier ones have been given away."""
    optimizer = optimizer or make_optimizer("adamw", 1e-2, axes=toy.AXES)
    state = create(toy.init, optimizer, mesh, toy.AXES, ema=options.get("ema_decay") is not None, guard=8)
    with jax.set_mesh(mesh):
        step = jit_step(make_step(loss, totals, optimizer, axes=toy.AXES, **options), state)
        reports = []
        for i in range(steps):
            state, report = step(state, None, toy.make_batch() if batches is None else batches[i])
            reports.append({name: float(value) for name, value in report.items()})
    return state, reports


def first_gradients(mesh, microbatches):
    """The gradients as sgd with a rate of 1 applies them."""
    state, (report,) = run(
        mesh, optimizer=make_optimizer("sgd", 1.0, axes=toy.AXES, momentum=0.0), microbatches=microbatches, clip_norm=None
    )
    return jax.tree.map(lambda before, after: np.asarray(before) - np.asarray(after), toy.init(), state.params), report


@pytest.fixture(scope="module")
def whole():
    return first_gradients(mesh_of("one"), 1)


@pytest.mark.parametrize(("mesh", "microbatches"), [("one", 2), ("one", 4), ("fsdp", 1), ("fsdp", 2), ("mixed", 4)])
def test_split_and_sharded_equal_whole(whole, mesh, microbatches):
    grads, report = first_gradients(mesh_of(mesh), microbatches)
    assert report["loss"] == pytest.approx(whole[1]["loss"], rel=1e-6)
    for name in ("cross_entropy", "z_loss", "accuracy", "tokens"):
        assert report[name] == pytest.approx(whole[1][name], rel=1e-5)
    for ours, theirs in zip(jax.tree.leaves(grads), jax.tree.leaves(whole[0]), strict=True):
        assert np.linalg.norm(ours - theirs) < 1e-5 * np.linalg.norm(theirs)


def test_twenty_sharded_steps_equal_twenty_whole_ones():
    batches = [toy.make_batch(seed) for seed in range(20)]
    _, ours = run(mesh_of("mixed"), 20, batches, microbatches=2)
    _, theirs = run(mesh_of("one"), 20, batches)
    np.testing.assert_allclose([r["loss"] for r in ours], [r["loss"] for r in theirs], rtol=1e-4)
    assert theirs[-1]["loss"] < theirs[0]["loss"] - 0.3


def test_report_against_plain_jax():
    batch, params = toy.make_batch(), toy.init()

    def objective(params):
        terms, _ = toy.loss(params, None, batch, None)
        return sum(t.coefficient * t.sum for t in terms.values()) / batch["weights"].sum()

    value, grads = jax.value_and_grad(objective)(params)
    _, (report,) = run(mesh_of("one"))
    assert report["loss"] == pytest.approx(float(value), rel=1e-6)
    assert report["loss"] == pytest.approx(report["cross_entropy"] + 1e-2 * report["z_loss"], rel=1e-6)
    assert report["grad_norm"] == pytest.approx(float(optax.tree.norm(grads)), rel=1e-5)
    assert report["tokens"] == 16 * 5 and report["skipped"] == 0 and report["learning_rate"] == pytest.approx(1e-2)
    assert report["update_norm"] > 0 and report["param_norm"] == pytest.approx(float(optax.tree.norm(params)), rel=0.05)


def test_clipping_is_of_the_global_norm():
    sgd = make_optimizer("sgd", 1.0, axes=toy.AXES, momentum=0.0)
    _, (report,) = run(mesh_of("one"), optimizer=sgd, clip_norm=0.01)
    assert report["grad_norm"] > 0.01 and report["update_norm"] == pytest.approx(0.01, rel=1e-5)
    _, (report,) = run(mesh_of("one"), optimizer=sgd, clip_norm=1e3)
    assert report["update_norm"] == pytest.approx(report["grad_norm"], rel=1e-5)


def test_gradients_are_added_where_they_are_stored():
    """In the compiled program the sums over microbatches run on shards, never on whole gradients."""
    mesh, optimizer = mesh_of("fsdp"), make_optimizer("sgd", 1.0, axes=toy.AXES)
    state = create(toy.init, optimizer, mesh, toy.AXES)

    with jax.set_mesh(mesh):
        step = jit_step(make_step(toy.loss, toy.totals, optimizer, axes=toy.AXES, microbatches=2), state)
        text = step.lower(state, None, toy.make_batch()).compile().as_text()
    inside = set(re.findall(r"= f32\[([0-9,]+)\]\S* add\(", text))
    D, F, L, N, H, V = toy.D, toy.F, toy.L, toy.N, toy.H, toy.V
    shards = {f"{L},{D // 8},{F}", f"{L},{F},{D // 8}", f"{L},{D // 8},{N},{H}", f"{L},{N},{H},{D // 8}", f"{D // 8},{V}", f"{V},{D // 8}"}
    whole = {f"{L},{D},{F}", f"{L},{F},{D}", f"{L},{D},{N},{H}", f"{L},{N},{H},{D}", f"{D},{V}"}
    assert shards <= inside and not whole & inside, inside


def poisoned(kind):
    """A loss that goes wrong when the batch says so: NaN gradients, a huge loss, or huge gradients."""

    def loss(params, frozen, batch, rng):
        terms, report = toy.loss(params, frozen, batch, rng)
        bad = jnp.max(batch["bad"]) > 0
        term = terms["cross_entropy"].sum
        if kind == "nonfinite":
            term = term + jnp.where(bad, jnp.nan, 0.0) * jnp.sum(params["head"])
        if kind == "loss_spike":
            term = term + jnp.where(bad, 1e4, 0.0)
        if kind == "grad_norm_spike":
            term = term + jnp.where(bad, 1e4, 0.0) * (jnp.sum(params["head"]) - jax.lax.stop_gradient(jnp.sum(params["head"])))
        return {**terms, "cross_entropy": Term(term, 1.0)}, report

    return loss


@pytest.mark.parametrize("kind", ["nonfinite", "loss_spike", "grad_norm_spike"])
def test_bad_updates_are_skipped_counted_and_leave_no_trace(kind):
    mesh, optimizer = mesh_of("fsdp"), make_optimizer("adamw", 1e-3, axes=toy.AXES)
    state = create(toy.init, optimizer, mesh, toy.AXES, ema=True, guard=8)
    good = toy.make_batch() | {"bad": np.zeros(16, np.float32)}
    with jax.set_mesh(mesh):
        step = jit_step(make_step(poisoned(kind), toy.totals, optimizer, axes=toy.AXES, ema_decay=0.9, microbatches=2), state)
        for _ in range(5):
            state, report = step(state, None, good)
            assert report["skipped"] == 0
        before = jax.tree.map(np.asarray, state)
        state, report = step(state, None, good | {"bad": np.ones(16, np.float32)})
        after = jax.tree.map(np.asarray, state)
        assert report["skipped"] == 1 and report[f"skipped_{kind}"] == 1 and report["update_norm"] == 0
        for part in ("params", "opt_state", "ema"):
            jax.tree.map(np.testing.assert_array_equal, getattr(before, part), getattr(after, part))
        assert after.step == before.step + 1 and after.guard.skipped.sum() == 1
        state, report = step(state, None, good)
        assert report["skipped"] == 0 and report[f"skipped_{kind}"] == 1 and np.isfinite(report["loss"]) and report["update_norm"] > 0


def test_nonfinite_is_skipped_without_a_guard():
    optimizer = make_optimizer("adamw", 1e-3)
    state = create(toy.init, optimizer, mesh_of("one"), toy.AXES, guard=None)
    step = make_step(poisoned("nonfinite"), toy.totals, optimizer)
    after, report = jax.jit(step)(state, None, toy.make_batch() | {"bad": np.ones(16, np.float32)})
    assert report["skipped"] == 1
    jax.tree.map(np.testing.assert_array_equal, state.params, after.params)


def test_moving_average():
    state, _ = run(mesh_of("one"), 1, ema_decay=0.999)
    expected = jax.tree.map(lambda e, p: 0.1 * e + 0.9 * p, toy.init(), state.params)  # the first decay is (1 + 0) / (10 + 0)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), state.ema, expected)


def test_frozen_parameters_are_untouched_and_outside_the_norm():
    frozen = make_optimizer("sgd", 1.0, axes=toy.AXES, freeze="embedding|blocks/", momentum=0.0)
    state, (report,) = run(mesh_of("fsdp"), optimizer=frozen, microbatches=2, clip_norm=None)
    before = toy.init()
    for name in ("embedding", "blocks"):
        jax.tree.map(np.testing.assert_array_equal, before[name], state.params[name])
    assert report["grad_norm"] == pytest.approx(np.linalg.norm(np.asarray(before["head"]) - np.asarray(state.params["head"])), rel=1e-5)


def test_the_rng_depends_on_seed_purpose_and_step_only():
    seen = []

    def loss(params, frozen, batch, rng):
        noise = jax.random.uniform(rng)
        return {"noise": Term(noise * jnp.sum(batch["weights"]), 0.0)}, {}

    for microbatches, mesh in ((1, "one"), (4, "one"), (2, "fsdp")):
        _, reports = run(
            mesh_of(mesh),
            2,
            loss=loss,
            totals=lambda b: {"noise": jnp.sum(b["weights"])},
            microbatches=microbatches,
            batches=[toy.make_batch()] * 2,
        )
        seen.append([report["noise"] for report in reports])
    np.testing.assert_allclose(seen[1:], [seen[0]] * 2, rtol=1e-6)
    assert seen[0][0] != seen[0][1]
    assert seen[0][0] == pytest.approx(float(jax.random.uniform(purpose_key(0, "loss", 0))), rel=1e-6)
    assert not np.array_equal(jax.random.key_data(purpose_key(0, "loss", 0)), jax.random.key_data(purpose_key(0, "rollout", 0)))


def test_a_batch_that_weighs_nothing_changes_nothing():
    sgd = make_optimizer("sgd", 1.0, axes=toy.AXES, momentum=0.0)
    empty = toy.make_batch() | {"weights": np.zeros((16, 6), np.float32)}
    state, (report,) = run(mesh_of("one"), batches=[empty], optimizer=sgd)
    assert report["loss"] == 0 and report["skipped"] == 0
    jax.tree.map(np.testing.assert_array_equal, toy.init(), state.params)


def test_errors_name_the_remedy():
    with pytest.raises(ValueError, match=r"16 rows .* microbatches=4 over 8 .* multiple of 32"):
        run(mesh_of("fsdp"), microbatches=4)
    with pytest.raises(ValueError, match=r"term 'cross_entropy' but totals\(batch\) does not"):
        run(mesh_of("one"), totals=lambda batch: {"other": 1.0})
    with pytest.raises(ValueError, match="microbatches=0"):
        make_step(toy.loss, toy.totals, optax.sgd(1.0), microbatches=0)
