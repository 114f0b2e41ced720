"""What the papers' names mean: which surrogate, ratio, advantage, denominator and KL make PPO, GRPO and their descendants."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

NONE: Mapping[str, Any] = MappingProxyType({})


class Method(NamedTuple):
    """A row of `METHODS`: names that tables elsewhere resolve, and options of what they name.

    Attributes:
      surrogate: of `losses.policy.SURROGATES`.
      advantages: "gae" (needs a critic), "greedy" (`against_greedy`), "to_go" (`returns_to_go`), or of `advantages.OUTCOME`.
      over: denominator, of `losses.policy.DENOMINATORS`; a constant is 1 unless the config has another.
      kl: where the KL from the reference goes, "reward", "loss" or "none".
      level: of the ratio, of `losses.policy.LEVELS`.
      options: of the surrogate.
      scale: options of `group_relative`.
      whiten: whether advantages are whitened over the tokens of the batch.
      drop_uninformative: whether groups of equal rewards are dropped and replaced.
    """

    surrogate: str
    advantages: str
    over: str
    kl: str
    level: str = "token"
    options: Mapping[str, Any] = NONE
    scale: Mapping[str, Any] = NONE
    whiten: bool = False
    drop_uninformative: bool = False


def _clip(low: float, high: float) -> Mapping[str, float]:
    return MappingProxyType({"low": low, "high": high})


METHODS: dict[str, Method] = {
    "ppo": Method("clip", "gae", "token", "reward", options=_clip(0.2, 0.2), whiten=True),
    "grpo": Method("clip", "group_relative", "sequence", "loss", options=_clip(0.2, 0.2)),
    "dr_grpo": Method("clip", "group_mean", "constant", "none", options=_clip(0.2, 0.2)),
    "dapo": Method("clip", "group_relative", "token", "none", options=_clip(0.2, 0.28), drop_uninformative=True),
    "gspo": Method("clip", "group_relative", "sequence", "none", level="sequence", options=_clip(3e-4, 4e-4)),
    "gspo_token": Method("clip", "group_relative", "sequence", "none", level="sequence_token", options=_clip(3e-4, 4e-4)),
    "cispo": Method("cispo", "group_relative", "token", "none"),
    "rloo": Method("reinforce", "leave_one_out", "constant", "reward"),
    "remax": Method("reinforce", "greedy", "constant", "reward"),
    "reinforce": Method("reinforce", "to_go", "constant", "reward"),
    "reinforce_plus_plus": Method("clip", "to_go", "token", "reward", options=_clip(0.2, 0.2), whiten=True),
    "raft": Method("reinforce", "best", "token", "none"),
    "reinforce_plus_plus_baseline": Method("clip", "group_mean", "token", "loss", options=_clip(0.2, 0.2), whiten=True),
}
