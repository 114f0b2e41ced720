"""How matrix products are asked for: their dtype by backend (float32 sums everywhere), and the order of their operands in gradients."""

from functools import partial

import jax
import jax.numpy as jnp

from jaxllm.parallel import rules


def gradient_dtype(operands: jnp.dtype | str) -> jnp.dtype:
    """What a product whose result is summed further, or cast to the operands' dtype anyway, should be asked for.

    float32, so that nothing is rounded in between. XLA:CPU is the exception: it multiplies bfloat16 fast only into bfloat16 (its sums are
    float32 all the same), so there a block's result is rounded once before it is added to the others in float32. Scores and logits are
    never asked for this way: they stay float32.
    """
    return jnp.dtype(operands) if rules.platform() == "cpu" else jnp.dtype("float32")


def multiply(spec: str, a: jax.Array, b: jax.Array, dtype: jnp.dtype | str = "float32") -> jax.Array:
    """`einsum` that comes out in `dtype`."""
    return jnp.einsum(spec, a, b, preferred_element_type=jnp.dtype(dtype))


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def project(spec: str, x: jax.Array, kernel: jax.Array) -> jax.Array:
    """`einsum(spec, x, kernel)`, and in its kernel's gradient the smaller of x and the cotangent comes first.

    XLA:CPU writes the first operand of that product transposed, in strides; JAX's own rule always puts the cotangent there.
    """
    return jnp.einsum(spec, x, kernel)


def _project_forward(spec, x, kernel):
    return jnp.einsum(spec, x, kernel), (x, kernel)


def _project_backward(spec, saved, cotangent):
    (x, kernel), (operands, y) = saved, spec.split("->")
    a, b = operands.split(",")
    first = a if x.size <= cotangent.size else y
    order = "".join(sorted(b, key=lambda dim: dim not in first))
    found = jnp.einsum(f"{a},{y}->{order}", x, cotangent)
    if order != b and rules.platform() == "cpu":
        found = jax.lax.optimization_barrier(found)  # else XLA turns the product round again, to a form whose bfloat16 sums are bfloat16
    to_x = jnp.einsum(f"{y},{b}->{a}", cotangent, kernel)
    return to_x.astype(x.dtype), jnp.einsum(f"{order}->{b}", found).astype(kernel.dtype)


project.defvjp(_project_forward, _project_backward)
