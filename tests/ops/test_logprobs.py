"""Log-probabilities of targets: values and gradients against numpy, on one device and eight, and never a whole table of logits."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from jaxllm.ops.logprobs import fused_cross_entropy, token_log_probs
from jaxllm.parallel.mesh import make_mesh

B, T, D = 4, 12, 8
QUICK = {"xla_backend_optimization_level": 0}  # these programs run once: compiling them is what takes time
MESHES = [
    {"fsdp": 2, "context": 2, "tensor": 2},
    {"replica": 2, "fsdp": 4},
    {"tensor": 8},
    {"replica": 2, "tensor": 4},
    {"context": 4, "fsdp": 2},
]


def make(vocab, bias=False, batch=B, length=T, seed=0):
    rng = np.random.default_rng(seed)
    hidden, kernel = rng.normal(size=(batch, length, D)), rng.normal(size=(D, vocab))
    targets = rng.integers(0, vocab, (batch, length))
    targets[0, 0], targets[0, 1] = 0, vocab - 1
    return hidden, kernel, rng.normal(size=vocab) if bias else None, targets, rng.normal(size=(2, batch, length))


def in_numpy(hidden, kernel, bias, targets, cotangents, softcap=None):
    """Values and gradients, float64."""
    raw = hidden @ kernel + (0 if bias is None else bias)
    logits = raw if softcap is None else softcap * np.tanh(raw / softcap)
    log_z = np.log(np.exp(logits - logits.max(-1, keepdims=True)).sum(-1)) + logits.max(-1)
    onehot = np.eye(kernel.shape[1])[targets]
    probs = np.exp(logits - log_z[..., None])
    values = (logits * onehot).sum(-1) - log_z, log_z, (logits.argmax(-1) == targets).astype(np.float32)
    d_logits = cotangents[0][..., None] * (onehot - probs) + cotangents[1][..., None] * probs
    d_logits *= 1 if softcap is None else 1 - (logits / softcap) ** 2
    grads = d_logits @ kernel.T, np.einsum("btd,btv->dv", hidden, d_logits), d_logits.sum((0, 1))
    return values, grads


def ours(hidden, kernel, bias, targets, cotangents, transposed=False, dtype=jnp.float32, **how):
    """The same by the code under test, in one compiled program."""
    floats = {"hidden": hidden, "kernel": kernel.T if transposed else kernel} | ({} if bias is None else {"bias": bias})
    floats = {name: jnp.asarray(x, dtype) for name, x in floats.items()}
    targets, cotangents = jnp.asarray(targets, jnp.int32), jnp.asarray(cotangents, jnp.float32)

    def loss(floats, targets, cotangents):
        out = token_log_probs(floats["hidden"], floats["kernel"], targets, bias=floats.get("bias"), transposed=transposed, **how)
        return jnp.sum(out.log_probs * cotangents[0] + out.log_z * cotangents[1]), out

    (_, values), grads = jax.jit(jax.value_and_grad(loss, has_aux=True), compiler_options=QUICK)(floats, targets, cotangents)
    return values, [grads["hidden"], grads["kernel"].T if transposed else grads["kernel"], grads.get("bias")]


def fused(hidden, kernel, bias, targets, weights, z_loss, transposed=False, dtype=jnp.float32, **how):
    """Half of the fused loss, its gradients, and the LogProbs beside it."""
    floats = {"hidden": hidden, "kernel": kernel.T if transposed else kernel} | ({} if bias is None else {"bias": bias})
    floats = {name: jnp.asarray(x, dtype) for name, x in floats.items()}
    targets, weights = jnp.asarray(targets, jnp.int32), jnp.asarray(weights, jnp.float32)

    def loss(floats, targets, weights):
        how_so = how | {"transposed": transposed, "bias": floats.get("bias"), "z_loss": z_loss}
        total, found = fused_cross_entropy(floats["hidden"], floats["kernel"], targets, weights, **how_so)
        return total / 2 + jnp.sum(found.log_z), (total, found)  # what is found carries no gradient

    (_, (total, values)), grads = jax.jit(jax.value_and_grad(loss, has_aux=True), compiler_options=QUICK)(floats, targets, weights)
    return total, (values, [grads["hidden"], grads["kernel"].T if transposed else grads["kernel"], grads.get("bias")])


def fused_in_numpy(hidden, kernel, bias, targets, weights, z_loss, softcap=None):
    log_probs, log_z, _ = in_numpy(hidden, kernel, bias, targets, np.zeros((2, *targets.shape)), softcap)[0]
    total = np.sum(weights * (z_loss * log_z**2 - log_probs))
    return total, in_numpy(hidden, kernel, bias, targets, np.stack([-weights, 2 * z_loss * weights * log_z]) / 2, softcap)


def agree(got, expected, atol=1e-5):
    for a, b in zip([*got[0], *got[1]], [*expected[0], *expected[1]], strict=True):
        if a is not None:
            np.testing.assert_allclose(np.asarray(a, np.float64), b, atol=atol, rtol=1e-5)


@pytest.mark.parametrize(
    ("vocab", "bias", "softcap", "how"),
    [
        (37, False, None, {}),
        (37, True, 2.0, {"transposed": True}),
        (37, True, None, {"chunk": 5, "transposed": True}),
        (64, False, 2.0, {"chunk": 5}),
        (64, True, None, {"chunk": 12}),
        (3, True, 2.0, {"chunk": 1}),
    ],
)
def test_values_and_gradients_are_those_of_numpy(vocab, bias, softcap, how):
    case = make(vocab, bias)
    agree(ours(*case, softcap=softcap, **how), in_numpy(*case, softcap=softcap))


@pytest.mark.parametrize(
    ("sizes", "vocab", "transposed"), [(sizes, *(((64, False), (37, True))[i % 2])) for i, sizes in enumerate(MESHES)], ids=str
)
def test_sharded_is_unsharded(sizes, vocab, transposed):
    case = make(vocab, bias=True, batch=8)
    with jax.set_mesh(make_mesh(sizes)):
        got = ours(*case, softcap=3.0, chunk=7, transposed=transposed)
    agree(got, in_numpy(*case, softcap=3.0))


@pytest.mark.parametrize(
    ("vocab", "bias", "softcap", "z_loss", "how"),
    [
        (37, False, None, 0.0, {}),
        (37, True, 2.0, 1e-2, {"transposed": True}),
        (64, False, 2.0, 1e-2, {"chunk": 5}),
        (37, True, None, 0.0, {"chunk": 5, "transposed": True}),
    ],
)
def test_the_fused_loss_is_that_of_numpy(vocab, bias, softcap, z_loss, how):
    *case, weights = make(vocab, bias)
    got, expected = fused(*case, weights[0], z_loss, softcap=softcap, **how), fused_in_numpy(*case, weights[0], z_loss, softcap)
    assert float(got[0]) == pytest.approx(expected[0], rel=1e-5)
    agree(got[1], expected[1])


@pytest.mark.parametrize(
    ("sizes", "shape", "transposed"),
    [
        (MESHES[0], (37, True, 8), False),
        (MESHES[1], (64, True, 8), True),
        (MESHES[2], (37, True, 8), True),
        (MESHES[0], (37, False, 3, 5), False),
    ],
    ids=str,
)
def test_the_fused_loss_sharded_is_unsharded(sizes, shape, transposed):
    *case, weights = make(*shape)
    with jax.set_mesh(make_mesh(sizes)):
        got = fused(*case, weights[0], 1e-2, softcap=3.0, chunk=7, transposed=transposed)
    expected = fused_in_numpy(*case, weights[0], 1e-2, 3.0)
    assert float(got[0]) == pytest.approx(expected[0], rel=1e-5)
    agree(got[1], expected[1])


def sparse_case(shape, draw=3):
    """A case whose weights are mostly 0; a whole row of them, and none of another."""
    *case, weights = make(*shape)
    weights = np.where(np.random.default_rng(draw).random(weights[0].shape) < 0.7, 0.0, weights[0])
    weights[0], weights[1] = 0.0, 1.0
    return case, weights


SPARSE = [
    ({}, (37, True), {"chunk": 5, "softcap": 2.0}),
    ({}, (37, False), {"chunk": 7, "transposed": True}),
    ({}, (64, True), {}),  # one chunk
    (MESHES[0], (37, True, 8), {"chunk": 2}),
    (MESHES[1], (64, False, 8), {"chunk": 4, "transposed": True}),
    (MESHES[2], (37, True, 3, 5), {"chunk": 4}),
]


@pytest.mark.parametrize(("sizes", "shape", "how"), SPARSE, ids=str)
def test_leaving_out_what_weighs_nothing_changes_nothing(sizes, shape, how):
    case, weights = sparse_case(shape)
    with jax.set_mesh(make_mesh(sizes, devices=None if sizes else jax.devices()[:1])):
        got = fused(*case, weights, 1e-2, sparse=True, **how)
    total, (values, grads) = fused_in_numpy(*case, weights, 1e-2, how.get("softcap"))
    assert float(got[0]) == pytest.approx(total, rel=1e-5)
    agree(got[1], ([np.where(weights != 0, x, 0.0) for x in values], grads))


@pytest.mark.parametrize(("sizes", "shape", "how"), SPARSE, ids=str)
def test_log_probs_that_nobody_asks_for_are_0_and_the_others_as_they_were(sizes, shape, how):
    case, weights = sparse_case(shape)
    cotangents = np.random.default_rng(4).normal(size=(2, *weights.shape))
    with jax.set_mesh(make_mesh(sizes, devices=None if sizes else jax.devices()[:1])):
        got = ours(*case, cotangents, weights=jnp.asarray(weights), **how)
    values, grads = in_numpy(*case, np.where(weights != 0, cotangents, 0.0), how.get("softcap"))
    agree(got, ([np.where(weights != 0, x, 0.0) for x in values], grads))


@pytest.mark.parametrize("trained", [0, 15])
def test_chunks_that_weigh_nothing_are_not_computed(trained):
    *case, weights = make(37)
    at = np.random.default_rng(1).permutation(B * T)[trained:]
    weights = weights[0]
    weights.reshape(-1)[at] = 0.0
    case[0].reshape(-1, D)[at] = np.nan  # whoever looks at them knows nothing any more
    total, (values, grads) = fused(*case, weights, 1e-2, sparse=True, chunk=5)
    assert np.isfinite(float(total)) and all(np.isfinite(x).all() for x in [*values, *grads[:2]])
    assert np.any(grads[1] != 0) == (trained > 0)
    assert not np.isfinite(fused(*case, weights, 1e-2, chunk=5)[1][1][1]).all()
    values, grads = ours(*case, np.stack([weights, weights]), weights=jnp.asarray(weights), chunk=5)
    assert all(np.isfinite(x).all() for x in [*values, *grads[:2]]) and np.any(grads[1] != 0) == (trained > 0)


def test_the_fused_loss_has_no_gradient_by_its_weights():
    hidden, kernel, targets = jnp.ones((1, 2, D)), jnp.ones((D, 5)), jnp.zeros((1, 2), jnp.int32)
    with pytest.raises(ValueError, match="no gradient by its weights"):
        jax.grad(lambda weights: fused_cross_entropy(hidden, kernel, targets, weights)[0])(jnp.ones((1, 2)))
    with pytest.raises(ValueError, match=r"weights \(2,\) do not belong"):
        fused_cross_entropy(hidden, kernel, targets, jnp.ones(2))


def test_rows_and_length_that_the_mesh_does_not_divide():
    case = make(37, batch=3, length=5)
    with jax.set_mesh(make_mesh({"fsdp": 2, "context": 2, "tensor": 2})):
        agree(ours(*case, chunk=4), in_numpy(*case))


@pytest.mark.parametrize("is_fused", [False, True])
def test_the_kernels_gradient_leaves_cut_as_it_is_stored(is_fused):
    hidden, kernel, _, targets, _ = (
        None if x is None else jnp.asarray(x, jnp.int32 if x.dtype.kind == "i" else jnp.float32) for x in make(64)
    )
    mesh = make_mesh({"fsdp": 2, "tensor": 4})
    with jax.set_mesh(mesh):
        loss = by_loss if is_fused else by_token
        grad = jax.jit(jax.grad(lambda kernel: loss(hidden, kernel, targets, None)))(kernel)
    assert grad.sharding.is_equivalent_to(jax.NamedSharding(mesh, P("fsdp", "tensor")), 2)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("size", [0.0, 1e4])
@pytest.mark.parametrize("is_fused", [False, True])
def test_extreme_logits_are_finite(dtype, size, is_fused):
    hidden, kernel, _, targets, cotangents = make(37)
    case = (hidden * size, kernel, None, targets)
    how = {"dtype": dtype, "chunk": 16}
    values, grads = fused(*case, cotangents[0], 0.0, **how)[1] if is_fused else ours(*case, cotangents, **how)
    assert all(np.isfinite(np.asarray(x, np.float32)).all() for x in [*values, *grads[:2]])
    assert (np.asarray(values.log_probs) <= 0).all()


def test_bfloat16_is_close():
    case = make(37)
    rounded = [np.asarray(jnp.asarray(x, jnp.bfloat16), np.float64) for x in case[:2]]
    values, grads = ours(*case, dtype=jnp.bfloat16, chunk=16)
    expected = in_numpy(*rounded, *case[2:])
    np.testing.assert_allclose(values.log_probs, expected[0][0], atol=1e-4)  # from rounded inputs on, values are float32
    for got, wanted in zip(grads[:2], expected[1][:2], strict=True):
        assert got.dtype == jnp.bfloat16
        assert np.linalg.norm(np.asarray(got, np.float64) - wanted) < 0.01 * np.linalg.norm(wanted)


def test_the_fused_loss_in_bfloat16_is_close_and_what_weighs_nothing_trains_nothing():
    *case, weights = make(37)
    weights = np.where(np.arange(T) % 3 == 0, 0.0, weights[0])
    rounded = [np.asarray(jnp.asarray(x, jnp.bfloat16), np.float64) for x in case[:2]]
    total, (_, grads) = fused(*case, weights, 1e-2, dtype=jnp.bfloat16, chunk=16)
    expected = fused_in_numpy(*rounded, *case[2:], weights, 1e-2)
    assert float(total) == pytest.approx(expected[0], rel=1e-4)
    assert np.all(np.asarray(grads[0], np.float32)[:, ::3] == 0)
    for got, wanted in zip(grads[:2], expected[1][1][:2], strict=True):
        assert got.dtype == jnp.bfloat16
        assert np.linalg.norm(np.asarray(got, np.float64) - wanted) < 0.01 * np.linalg.norm(wanted)


def test_logits_in_bfloat16_are_rounded_once_and_nothing_else_is():
    hidden, kernel, _, targets, cotangents = make(37)[:5]
    rounded = lambda x: np.asarray(jnp.asarray(x, jnp.bfloat16), np.float64)  # noqa: E731
    logits = rounded(rounded(hidden) @ rounded(kernel))
    expected = np.take_along_axis(logits, targets[..., None], -1)[..., 0] - np.log(np.exp(logits).sum(-1))
    log_probs = lambda name: ours(hidden, kernel, None, targets, cotangents, dtype=jnp.bfloat16, logits_dtype=name)[0].log_probs  # noqa: E731
    got = {name: log_probs(name) for name in ("float32", "bfloat16")}
    assert np.abs(got["bfloat16"] - expected).max() < 1e-4 < np.abs(got["float32"] - expected).max()
    assert np.abs(got["bfloat16"] - got["float32"]).max() < 2**-7 * np.abs(logits).max()


def test_equal_logits_have_one_argmax_the_first():
    values = jax.jit(token_log_probs)(jnp.zeros((1, 3, D)), jnp.zeros((D, 5)), jnp.asarray([[0, 1, 4]], jnp.int32))
    assert values.correct.tolist() == [[1.0, 0.0, 0.0]]


def test_a_token_of_weight_zero_trains_nothing():
    hidden, kernel, _, targets, cotangents = make(37)
    cotangents[:, 1, 3:7] = 0
    grads = ours(hidden, kernel, None, targets, cotangents, chunk=5)[1]
    assert np.all(np.asarray(grads[0])[1, 3:7] == 0)
    hidden[1, 3:7], targets[1, 3:7] = 50.0, 0
    np.testing.assert_array_equal(grads[1], ours(hidden, kernel, None, targets, cotangents, chunk=5)[1][1])


def by_token(hidden, kernel, targets, chunk):
    return -jnp.sum(token_log_probs(hidden, kernel, targets, chunk=chunk).log_probs)


def by_loss(hidden, kernel, targets, chunk):
    return fused_cross_entropy(hidden, kernel, targets, jnp.ones(targets.shape), chunk=chunk)[0]


@pytest.mark.parametrize("loss", [by_token, by_loss])
def test_it_can_be_rematerialised_and_scanned(loss):
    case = make(37)
    hidden, kernel, targets = jnp.asarray(case[0], jnp.float32), jnp.asarray(case[1], jnp.float32), jnp.asarray(case[3], jnp.int32)

    def by_row(kernel):
        body = jax.checkpoint(lambda total, row: (total + loss(row[0][None], kernel, row[1][None], 5), None))
        return jax.lax.scan(body, 0.0, (hidden, targets))[0]

    whole = jax.jit(jax.grad(lambda kernel: by_token(hidden, kernel, targets, 5)))(kernel)
    np.testing.assert_allclose(jax.jit(jax.grad(by_row))(kernel), whole, atol=1e-5)


def largest_array(compiled):
    shapes = re.findall(r"(?:f32|bf16)\[([\d,]+)\]", compiled.as_text())
    return max(int(np.prod([int(d) for d in shape.split(",")])) for shape in shapes)


def abstract(vocab, tokens):
    return (
        jax.ShapeDtypeStruct((2, tokens // 2, D), jnp.float32),
        jax.ShapeDtypeStruct((D, vocab), jnp.float32),
        jax.ShapeDtypeStruct((2, tokens // 2), jnp.int32),
    )


@pytest.mark.parametrize("loss", [by_token, by_loss])
def test_the_logits_are_never_held(loss):
    vocab, tokens, chunk = 1000, 512, 32

    def plain(hidden, kernel, targets, chunk):
        return jnp.sum(jnp.take_along_axis(jax.nn.log_softmax(hidden @ kernel), targets[..., None], -1))

    def compiled(f):
        return jax.jit(jax.grad(f, (0, 1)), static_argnums=3).lower(*abstract(vocab, tokens), chunk).compile()

    ours, theirs = compiled(loss), compiled(plain)
    assert largest_array(theirs) >= tokens * vocab  # the check sees such an array where there is one
    assert largest_array(ours) <= chunk * vocab
    assert ours.memory_analysis().temp_size_in_bytes < 4 * tokens * vocab / 2 < theirs.memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize(("loss", "expected"), [(by_token, 4), (by_loss, 3)])
def test_products_and_none_of_them_for_a_frozen_kernel(loss, expected):
    def products(*argnums):
        gradient = jax.jit(jax.grad(loss, argnums), static_argnums=3)
        return gradient.lower(*abstract(96, 128), 32).as_text().count("dot_general")

    assert products(0, 1) == products(0) + 1 == expected


def test_shapes_that_do_not_belong_together():
    with pytest.raises(ValueError, match="do not belong together"):
        token_log_probs(jnp.zeros((1, 2, 8)), jnp.zeros((5, 8)), jnp.zeros((1, 2), jnp.int32))
    with pytest.raises(ValueError, match=r"bias \(4,\)"):
        token_log_probs(jnp.zeros((1, 2, 8)), jnp.zeros((8, 5)), jnp.zeros((1, 2), jnp.int32), bias=jnp.zeros(4))
