"""The dtype that a matrix product is asked for, by backend: float32 sums everywhere, and the one place where they are rounded at once."""

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
