"""Heads on a trunk: scalar scores, classes, and ensembles of them with fixed random priors, read at the last token of each segment."""

import itertools
import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from jaxllm.models import adapted
from jaxllm.models.adapted import Adapted, Params
from jaxllm.parallel import rules

NAME = "scores"  # where a head stands in the tree of parameters, beside those of the trunk
PRIOR = f"^{NAME}/prior/"  # what of it is never trained


@dataclass(frozen=True)
class Head:
    """M members, each a linear map or a small MLP from the trunk's final hidden state to C numbers, all computed at once.

    An ensemble with randomised priors (Osband et al., arXiv 1806.03335) adds to each member a network of the same shape that is drawn once
    and never trained, so that members differ where there were no data (as in Dwaracherla et al., arXiv 2402.00396).

    Attributes:
      width: D.
      num_outputs: C; 1 for a reward.
      num_members: M.
      hidden: widths of the MLP between; none: one linear map, as in InstructGPT.
      prior: the factor of the fixed networks; 0: there are none.
      zero: whether the last layer begins at 0, as a critic's does (arXiv 1909.08593).
    """

    width: int
    num_outputs: int = 1
    num_members: int = 1
    hidden: tuple[int, ...] = ()
    prior: float = 0.0
    zero: bool = False

    def init(self, rng: jax.Array, own: Params | None = None) -> Params:
        """Fresh parameters, float32: kernels normal with standard deviation 1 / sqrt(inputs + 1), biases 0 (arXiv 2403.17031).

        `own`, what is trained of the trunk, is of no use here (see `critic.Critic`).
        """
        trained, fixed = jax.random.split(rng)
        own = self._members(trained)
        if self.zero:
            last = f"layer_{len(self._sizes) - 1}"
            own[last] = jax.tree.map(jnp.zeros_like, own[last])
        return own | ({"prior": self._members(fixed)} if self.prior else {})

    def _members(self, rng: jax.Array) -> Params:
        def member(key):
            keys = jax.random.split(key, len(self._sizes))
            return {
                f"layer_{i}": {"kernel": jax.random.normal(k, size) / math.sqrt(size[0] + 1), "bias": jnp.zeros(size[1])}
                for i, (k, size) in enumerate(zip(keys, self._sizes, strict=True))
            }

        return jax.vmap(member)(jax.random.split(rng, self.num_members))

    @property
    def _sizes(self) -> list[tuple[int, int]]:
        """(inputs, outputs) of each layer of a member."""
        widths = (self.width, *self.hidden, self.num_outputs)
        return list(itertools.pairwise(widths))

    def axes(self, own: Params | None = None) -> Params:
        """The tree of `init` with a tuple of logical axis names for each array: members are stacked, the last dim is an output."""
        one = {
            f"layer_{i}": {"kernel": ("layers", None if i else "embed", "output"), "bias": ("layers", "output")}
            for i in range(len(self._sizes))
        }
        return one | ({"prior": one} if self.prior else {})

    def apply(self, params: Params, hidden: jax.Array) -> jax.Array:
        """Float32 [..., M, C] of hidden states [..., D]."""
        found = self._forward(params, hidden)
        return found + self.prior * jax.lax.stop_gradient(self._forward(params["prior"], hidden)) if self.prior else found

    def _forward(self, params: Params, hidden: jax.Array) -> jax.Array:
        x = hidden.astype(jnp.float32)[..., None, :]  # the members' dim is broadcast by the first layer
        for i in range(len(self._sizes)):
            layer = params[f"layer_{i}"]
            kernel = rules.constrain(layer["kernel"], None, None, None)
            x = jnp.broadcast_to(x, (*x.shape[:-2], *kernel.shape[:2]))
            x = jnp.einsum("...md,mdh->...mh", x, kernel, precision="highest") + layer["bias"]
            x = jax.nn.relu(x) if i + 1 < len(self._sizes) else x
        return x


def of(params: Params | Adapted) -> Params:
    """The head among the parameters of a model that has one."""
    return adapted.split(params)[0][NAME]


def joined(params: Params | Adapted, head: Params) -> Params | Adapted:
    """The parameters of a trunk, with adapters or without, and of a head: what `Model` computes with, and `of` finds the head in."""
    base, adapters = adapted.split(params)
    whole = {**base, NAME: head}
    return Adapted(whole, adapters) if adapters else whole


def without(params: Params | Adapted) -> Params | Adapted:
    """The parameters of the trunk alone."""
    base, adapters = adapted.split(params)
    bare = {name: tree for name, tree in base.items() if name != NAME}
    return Adapted(bare, adapters) if adapters else bare


def last_of_segments(hidden: jax.Array, segments: jax.Array, positions: jax.Array, lengths: jax.Array) -> jax.Array:
    """The hidden state at the last real token of each segment of a row, wherever padding stands.

    Args:
      hidden: [B, T, D].
      segments: int32 [B, T]; segment s + 1 is slot s.
      positions: int32 [B, T], counted within the segment.
      lengths: int32 [B, S], tokens of each slot's segment; 0: there is none, and what is returned for it is that of token 0.

    Returns:
      [B, S, D].
    """
    slots = jnp.arange(1, lengths.shape[1] + 1, dtype=jnp.int32)
    last = (segments[:, :, None] == slots) & (positions[:, :, None] == lengths[:, None, :] - 1)
    return jnp.take_along_axis(hidden, jnp.argmax(last, axis=1)[..., None], axis=1)


def sums_of_segments(values: jax.Array, segments: jax.Array, num_slots: int) -> jax.Array:
    """float32 [B, S]: the sum over each segment's tokens of values [B, T]; segment s + 1 is slot s, segment 0 is padding."""
    slots = jnp.arange(1, num_slots + 1, dtype=jnp.int32)
    return jnp.sum(jnp.where(segments[:, :, None] == slots, values.astype(jnp.float32)[:, :, None], 0.0), axis=1)
