"""`project` is einsum: the value and both gradients, with remat and without, for every projection of the models."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.step import train_step
from jaxllm.models.config import ModelConfig
from jaxllm.models.model import Model
from jaxllm.ops.products import project
from jaxllm.parallel.mesh import make_mesh
from jaxllm.training import state as states

SHAPES = {
    "btd,dnh->btnh": ((2, 3, 4), (4, 5, 6)),
    "btnh,nhd->btd": ((2, 3, 5, 6), (5, 6, 4)),
    "btd,df->btf": ((2, 3, 4), (4, 9)),
    "btf,fd->btd": ((2, 3, 9), (9, 4)),
}


@pytest.mark.parametrize("spec", SHAPES)
@pytest.mark.parametrize("remat", [False, True])
def test_project_is_einsum(spec, remat):
    rng = np.random.default_rng(0)
    x, kernel = (rng.normal(size=shape).astype(np.float32) for shape in SHAPES[spec])

    def loss(multiply):
        f = lambda x, kernel: jnp.sum(jnp.sin(multiply(spec, x, kernel)))  # noqa: E731
        return jax.checkpoint(f) if remat else f

    got, expected = (jax.value_and_grad(loss(f), (0, 1))(x, kernel) for f in (project, jnp.einsum))
    np.testing.assert_allclose(got[0], expected[0], rtol=1e-6)
    for a, b in zip(got[1], expected[1], strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_the_smaller_operand_comes_first_in_the_kernels_gradient():
    def first(spec):
        x, kernel = (jnp.ones(shape) for shape in SHAPES[spec])
        text = jax.make_jaxpr(jax.grad(lambda kernel: jnp.sum(project(spec, x, kernel))))(kernel)
        products = [[v.aval.size for v in eqn.invars] for eqn in text.eqns if eqn.primitive.name == "dot_general"]
        (sizes,) = [sizes for sizes in products if kernel.size not in sizes]
        return sizes

    for spec in SHAPES:
        small, large = first(spec)
        assert small <= large, spec


@pytest.mark.parametrize(
    ("spec", "x", "kernel"),
    [
        ("btd,dnh->btnh", (2, 1024, 128), (128, 4, 32)),
        ("btnh,nhd->btd", (2, 1024, 4, 32), (4, 32, 128)),
        ("btd,df->btf", (2, 1024, 128), (128, 344)),
        ("btf,fd->btd", (2, 1024, 344), (344, 128)),
    ],
)
def test_sums_over_tokens_are_float32(spec, x, kernel):
    """2048 ones: a sum in bfloat16 would stop at 256."""
    grads = jax.jit(jax.grad(lambda x, kernel: jnp.sum(project(spec, x, kernel).astype(jnp.float32)), (0, 1)))
    _, found = grads(jnp.ones(x, jnp.bfloat16), jnp.ones(kernel, jnp.bfloat16))
    assert found.dtype == jnp.bfloat16 and (found == 2048).all(), found


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("scan", [False, True])
def test_no_product_of_a_bfloat16_step_is_left_to_sum_in_bfloat16(tied, scan):
    """XLA:CPU's libraries sum bfloat16 in float32; a product that none of them takes has to come out in float32."""
    shape = {"num_heads": 4, "num_kv_heads": 2, "head_dim": 64, "mlp_width": 688, "tied_embeddings": tied}
    model = Model(ModelConfig(vocab_size=4096, num_layers=2, width=256, **shape), dtype="bfloat16", scan_layers=scan)
    optimizer, step = train_step(model, learning_rate=1e-3, b1=0.9, b2=0.95, weight_decay=0.1, clip_norm=1.0)
    rows = jax.ShapeDtypeStruct((4, 256), jnp.int32)
    batch = {"tokens": rows, "targets": rows, "weights": jax.ShapeDtypeStruct(rows.shape, jnp.float32)}
    mesh = make_mesh({"fsdp": 1}, devices=jax.devices()[:1])
    with jax.set_mesh(mesh):
        state = states.abstract(lambda: model.init(jax.random.key(0)), optimizer, mesh, model.axes())
        text = jax.jit(step).lower(state, {}, batch).compile().as_text()
    library, place, left = set(re.findall(r"kind=kCustom, calls=%([\w.\-]+)", text)), None, []
    for line in text.splitlines():
        begins = re.match(r"^(?:ENTRY )?%?([\w.\-]+) \(.*\{$", line)
        place = begins[1] if begins else place
        if " dot(" in line and place not in library:
            left.append(line.split(" = ")[1].split("[")[0])
    assert library or left
    assert set(left) <= {"f32"}, left
