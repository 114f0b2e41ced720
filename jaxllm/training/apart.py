"""Some parameters at a pace of their own: another learning rate, and a start before all others."""

from typing import Any

import jax
import jax.numpy as jnp

from jaxllm.training.masks import by_name
from jaxllm.training.optimizers import Optimizer


def apart(optimizer: Optimizer, names: str, *, factor: float = 1.0, alone: int = 0) -> Optimizer:
    """An optimizer under which the parameters of some names are apart from the rest.

    What waits has no update, no weight decay either. Its moments follow its gradients all the while: were they to start from nothing when
    it joins, Adam would divide them by what a long run has seen (b2=0.999: five times its rate after a thousand steps).

    Args:
      optimizer: from `make_optimizer`; what it freezes stays frozen.
      names: a regular expression that their names match.
      factor: of their learning rate.
      alone: steps in which they learn and nothing else does.
    """

    def update(grads: Any, state: Any, params: Any, *, step: Any) -> tuple[Any, Any]:
        apart, joined = by_name(params, names), step >= alone

        def each(change: Any, tree: Any) -> Any:
            return jax.tree.map(lambda x, own: None if x is None else change(x, own), tree, apart, is_leaf=lambda x: x is None)

        def hold(x: jax.Array, own: bool) -> jax.Array:
            return x if own else jnp.where(joined, x, jnp.zeros_like(x))

        updates, state = optimizer.update(grads, state, params, step=step)
        return each(lambda x, own: x * factor if own else hold(x, own) if alone else x, updates), state

    return optimizer._replace(update=update)
