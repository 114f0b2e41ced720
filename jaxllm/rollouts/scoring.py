"""What the training graph says of sampled tokens: their log-probabilities, and whether it would have drawn them with the same noise."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxllm.models.model import Model
from jaxllm.parallel import rules
from jaxllm.sampling.logits import Sampling, draw
from jaxllm.sampling.noise import row_keys

SCORED = ("tokens", "targets", "segments", "positions")  # of the rows, what a forward pass reads
Critic = Callable[[Any, Mapping[str, jax.Array], jax.Array], jax.Array]  # (parameters, rows, hidden [B, T, D]) -> values [B, T]
Place = Callable[[Mapping[str, np.ndarray]], dict[str, jax.Array]]  # rows as global arrays on the mesh


def forward(model: Model, params: Any, batch: Mapping[str, jax.Array]) -> jax.Array:
    """The hidden states [B, T, D] of rows, as in an update (dropout is off in all of policy optimisation)."""
    return model.apply(params, batch["tokens"], segments=batch["segments"], positions=batch["positions"])


def token_log_probs(
    model: Model, params: Any, hidden: jax.Array, targets: jax.Array, weights: jax.Array, temperature: float = 1.0
) -> jax.Array:
    """Log-probabilities float32 [B, T] of the targets under the distribution that is sampled: the logits divided by the temperature.
    0 where the weight is 0: of prompts and padding nobody asks.

    One function for the sampled, the old, the new and the reference's, so that no two of them can differ in it.
    """
    if temperature == 1.0:
        return model.log_probs(params, hidden, targets, weights).log_probs
    cap = model.config.logit_softcap  # cap * tanh(x / cap) / t = (cap / t) * tanh((x / t) / (cap / t))
    cooled = dataclasses.replace(model, config=model.config.replace(logit_softcap=None if cap is None else cap / temperature))
    return cooled.log_probs(params, hidden / jnp.asarray(temperature, hidden.dtype), targets, weights).log_probs


def token_entropies(model: Model, params: Any, hidden: jax.Array, temperature: float = 1.0) -> jax.Array:
    """The entropy in nats of the distribution after each of hidden [B, T, D], float32 [B, T], with its gradient; one place of all rows at
    a time, and its logits again for the gradient."""

    def at(column: jax.Array) -> jax.Array:
        log_probs = jax.nn.log_softmax(model.logits(params, column) / temperature)
        return -jnp.sum(jnp.exp(log_probs) * log_probs, axis=-1)

    return jax.lax.map(jax.checkpoint(at), jnp.moveaxis(hidden, 1, 0)).T


class Scorer:
    """Looks at the rows of a rollout, some at a time, always as many: one compiled program for each of its methods.

    Args:
      model: as it trains.
      temperature: at which tokens are sampled.
      place: onto the mesh.
      rows: how many at a time; where a rollout does not divide, its first rows fill the last part.
      critic: what the policy's parameters say of its own chances; None: nothing.
    """

    def __init__(self, model: Model, temperature: float, place: Place, rows: int, critic: Critic | None = None):
        self.rows, self._place = rows, place
        self._log_probs = jax.jit(lambda params, batch: _whole(looked(model, temperature, params, batch)["log_probs"]))
        self._looked = jax.jit(lambda params, batch: jax.tree.map(_whole, looked(model, temperature, params, batch, critic)))
        self._others = jax.jit(lambda params, batch, key: _whole(_others(model, temperature, params, batch, key)))

    def log_probs(self, params: Any, rows: Mapping[str, np.ndarray]) -> np.ndarray:
        """Of the sampled tokens, float32 [R, T]; 0 elsewhere."""
        return self._each(lambda batch: self._log_probs(params, batch), rows)

    def look(self, params: Any, rows: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The policy's "log_probs" of the sampled tokens, and where there is a critic its "values" of the states they were drawn in."""
        return self._each(lambda batch: self._looked(params, batch), rows)

    def others(self, params: Any, rows: Mapping[str, np.ndarray], key: jax.Array) -> np.ndarray:
        """Sampled tokens that this graph, with the very noise they were drawn with, would not have drawn; bool [R, T].

        Where there is none, every token is proven to be a sample of the policy that is trained.

        Args:
          params: the policy's, as sampled.
          rows: a rollout; "row" are the samples' ids, without it their places.
          key: of the rollout's draws.
        """
        return self._each(lambda batch: self._others(params, batch, key), rows)

    def _each(self, function: Callable[[dict[str, jax.Array]], Any], rows: Mapping[str, np.ndarray]) -> Any:
        count, found = len(rows["tokens"]), []
        ids = rows.get("row", np.arange(count, dtype=np.int32))
        for start in range(0, count, self.rows):
            which = np.arange(start, start + self.rows) % count
            part = {name: rows[name][which] for name in (*SCORED, "weights")}
            found.append(function(self._place({**part, "row": ids[which]})))
        return jax.tree.map(lambda *parts: np.concatenate(parts)[:count], *jax.device_get(found))


def _whole(x: jax.Array) -> jax.Array:
    """In every process, all of it."""
    return rules.constrain(x, *(None,) * x.ndim)


def looked(
    model: Model, temperature: float, params: Any, batch: Mapping[str, jax.Array], critic: Critic | None = None
) -> dict[str, jax.Array]:
    """What `Scorer.look` runs for rows that are on the mesh."""
    hidden = forward(model, params, batch)
    found = {"log_probs": token_log_probs(model, params, hidden, batch["targets"], batch["weights"], temperature)}
    if critic is not None:
        found["values"] = critic(params, batch, hidden)
    return {name: jnp.where(batch["weights"] != 0, values, 0.0) for name, values in found.items()}


def _others(model: Model, temperature: float, params: Any, batch: Mapping[str, jax.Array], key: jax.Array) -> jax.Array:
    hidden, keys, sampling = forward(model, params, batch), row_keys(key, batch["row"]), Sampling(temperature=temperature)
    rows = hidden.shape[0]

    def at(place: jax.Array) -> jax.Array:  # the target of `place` stands one further on
        logits = model.logits(params, jax.lax.dynamic_index_in_dim(hidden, place, 1, keepdims=False))
        return draw(sampling, logits, keys, jnp.full(rows, place + 1), None)[0]

    drawn = jax.lax.map(at, jnp.arange(hidden.shape[1], dtype=jnp.int32)).T
    return (batch["weights"] != 0) & (drawn != batch["targets"])
