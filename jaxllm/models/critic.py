"""A critic with a trunk of its own: a second copy of what is trained of a model, under a linear map to the value of a state."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from jaxllm.models import adapted
from jaxllm.models.adapted import Adapted, Params
from jaxllm.models.heads import NAME, Head

TRUNK = "trunk"
VOCABULARY = "head"  # the map to the vocabulary, which no value needs


@dataclass(frozen=True)
class Critic:
    """Stands where a `Head` stands. Beside adapters its trunk is a second set of them over the same frozen base.

    Attributes:
      head: from the trunk's final hidden state to the value.
    """

    head: Head
    prior: float = 0.0

    def init(self, rng: jax.Array, own: Params) -> Params:
        """The trunk as `own`, which is trained of the model itself, and a fresh head."""
        trunk = {name: tree for name, tree in own.items() if name != VOCABULARY}
        return {TRUNK: jax.tree.map(jnp.copy, trunk), **self.head.init(rng, own)}  # copies: a step is given its old memory, each once

    def axes(self, own: Params) -> Params:
        """The tree of `init`, with logical axis names; `own` are those of the model itself."""
        return {TRUNK: {name: tree for name, tree in own.items() if name != VOCABULARY}, **self.head.axes(own)}

    def trunk(self, params: Params | Adapted) -> Params | Adapted:
        """The critic's trunk among the parameters of a model that has a critic: what `Model.apply` computes with."""
        base, adapters = adapted.split(params)
        own = base[NAME][TRUNK]
        return Adapted({name: tree for name, tree in base.items() if name != NAME}, own) if adapters else own
