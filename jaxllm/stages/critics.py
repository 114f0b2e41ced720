"""The critic of a config: a head on the policy's trunk or a model of its own, what that begins as, and the pace at which it learns."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from jaxllm.losses.terms import check_choice
from jaxllm.models import heads
from jaxllm.models.critic import TRUNK, Critic
from jaxllm.models.heads import Head
from jaxllm.models.model import Model
from jaxllm.rollouts.scoring import forward
from jaxllm.stages import methods, opened, scored
from jaxllm.training.apart import apart

TRUNKS = ("shared", "own")
KEYS = {"critic": "shared", "critic_init_from": None, "critic_learning_rate": None, "critic_warmup": 0}  # and what says nothing
Values = Callable[[Any, Mapping[str, jax.Array], jax.Array], jax.Array]


def begun(config: ConfigDict, model: Model, mesh: Any, tokenizer: str, drawn: Any) -> Any:
    """A critic that begins as another run: its trunk, and its head where that is one linear map; a reward model's scale is in the head.

    Args:
      config: of this run.
      model: the policy's.
      mesh: of the run.
      tokenizer: the fingerprint of the run's.
      drawn: the critic as it would begin otherwise.

    Raises:
      ValueError: another tokenizer, or a model of another shape.
    """
    folder = config.rl.critic_init_from
    source = opened.open_source(folder, mesh, model)
    if source.tokenizer != tokenizer:
        raise ValueError(f"rl.critic_init_from={folder!r} has another tokenizer than the policy. Train it with the policy's.")
    opened.check_same(model.config, source.model.config, folder, key="rl.critic_init_from")

    def fits(mine: jax.Array, theirs: jax.Array) -> jax.Array:
        if mine.shape != theirs.shape:
            raise ValueError(
                f"rl.critic_init_from={folder!r} has a parameter of shape {theirs.shape} where the policy's is {mine.shape}. Give a run of"
                " the policy's own shape."
            )
        return jax.device_put(jnp.copy(theirs).astype(mine.dtype), mine.sharding)

    with jax.set_mesh(mesh):
        tree = model.relayout(source.params, model.scan_layers)
        trunk = jax.tree.map(fits, drawn[TRUNK], {name: tree[name] for name in drawn[TRUNK]})
    head, fresh = opened.head_of(folder, mesh), {name: leaf for name, leaf in drawn.items() if name != TRUNK}
    linear = head is not None and jax.tree.map(jnp.shape, head) == jax.tree.map(jnp.shape, fresh)
    return {TRUNK: trunk, **(scaled(head, scored.scale_of(folder)) if linear else fresh)}


def scaled(head: Any, scale: scored.Scale) -> Any:
    """A linear head whose values are gain * value + bias."""
    (layer,) = head.values()
    return {name: {"kernel": scale.gain * layer["kernel"], "bias": scale.gain * layer["bias"] + scale.bias} for name in head}


def head_of(config: ConfigDict, model: Model) -> Head | Critic | None:
    """What is trained beside the policy, where the method has a critic."""
    if not methods.has_critic(config):
        return None
    head = Head(model.config.width, zero=True)
    return Critic(head) if config.rl.critic == "own" else head


def values_of(config: ConfigDict, model: Model) -> Values | None:
    """(parameters, batch, the policy's hidden [B, T, D]) -> values float32 [B, T]; None: there is no critic."""
    head = head_of(config, model)
    if head is None:
        return None
    if isinstance(head, Head):
        return lambda params, batch, hidden: head.apply(heads.of(params), hidden)[..., 0, 0]
    own = head.head
    return lambda params, batch, hidden: own.apply(heads.of(params), forward(model, head.trunk(params), batch))[..., 0, 0]


def paced(config: ConfigDict) -> Callable[[Any], Any]:
    """What becomes of the optimizer: the critic has its own rate, and begins alone."""
    section, rate = config.rl, config.optimizer.learning_rate
    factor = 1.0 if section.critic_learning_rate is None else section.critic_learning_rate / (rate or 1.0)  # `check` refuses none
    if factor == 1.0 and not section.critic_warmup:
        return lambda optimizer: optimizer
    return lambda optimizer: apart(optimizer, f"^{heads.NAME}/", factor=factor, alone=section.critic_warmup)


def begins(config: ConfigDict, model: Model) -> Callable[[Any, str, Any], Any] | None:
    """See `begun`; None: the critic is a copy of the policy under a head of zeros."""
    return functools.partial(begun, config, model) if config.rl.critic_init_from else None


def check(config: ConfigDict) -> None:
    """Refuses a critic that nothing is made of.

    Raises:
      ValueError: names the key.
    """
    section = config.rl
    check_choice("rl.critic", section.critic, TRUNKS)
    said = [name for name, nothing in KEYS.items() if section[name] != nothing]
    if said and not methods.has_critic(config):
        raise ValueError(f"rl.{said[0]}={section[said[0]]!r}, and rl.method={section.method!r} has no critic. Choose ppo, or leave it out.")
    if section.critic == "own" and section.value_detached:
        raise ValueError("rl.value_detached=True is of a critic on the policy's trunk, and rl.critic='own' has another. Leave it out.")
    if section.critic_learning_rate is not None and not config.optimizer.learning_rate:
        raise ValueError(f"rl.critic_learning_rate={section.critic_learning_rate} stands beside optimizer.learning_rate=0. Freeze instead.")
    if section.critic_warmup < 0:
        raise ValueError(f"rl.critic_warmup={section.critic_warmup} is not a number of steps. Give 0 or more.")
    if not section.critic_init_from:
        return
    if section.critic == "shared":
        raise ValueError(f"rl.critic_init_from={section.critic_init_from!r} fills a trunk of the critic's own. Set rl.critic=own.")
    if config.peft.name or config.peft.init_from:
        raise ValueError(
            f"rl.critic_init_from={section.critic_init_from!r} is a whole model, and under peft.* the critic is a second set of adapters"
            " over the policy's base. Leave one of them out."
        )
