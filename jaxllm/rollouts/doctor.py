"""What is wrong with a rollout, in words and with the rows that show it: fixed rules, asked while training goes on."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from jaxllm.rollouts.making import Made
from jaxllm.rollouts.overoptimisation import NOTHING, History, Watched, means, sentence, turned

LIKE_LENGTH = 0.95  # correlation of reward and length from which one is the other
FEW = 16  # samples below which a correlation says nothing
COLLAPSED = 0.1  # share of the first rollout's entropy below which it has collapsed
BELOW_ZERO = -0.1  # nats a completion below which a mean KL is no chance


class Seen(NamedTuple):
    """A rollout, as the rules look at it.

    Attributes:
      made: the rollout.
      entropy: mean of -log p of its sampled tokens, nats.
      longest: tokens that a completion may have.
      history: what was recorded of the rollouts before, oldest first; see `recorded`.
      watched: which rewards are trained for, and which held out.
    """

    made: Made
    entropy: float
    longest: int
    history: History = ()
    watched: Watched = NOTHING

    def column(self, name: str) -> np.ndarray:
        """What is reported of each sample."""
        return self.made.buffer[f"stat_{name}"]


Rule = Callable[[Seen], tuple[str, np.ndarray] | None]  # -> a sentence and the samples that show it


def all_truncated(seen: Seen) -> tuple[str, np.ndarray] | None:
    """No completion ended by itself."""
    if not seen.column("truncated").all():
        return None
    at_call = int((seen.column("completion_tokens") < seen.longest).sum())  # tools: a call in the last turn
    turns = f" ({at_call} of them before, at a call in the last of rollout.max_turns)" if at_call else ""
    return (
        f"every completion was cut off at {seen.longest} tokens{turns}, so none ends where its writer would end it."
        " Raise rollout.max_new_tokens, or begin with a model that writes its end token.",
        np.arange(len(seen.made.samples.answers)),
    )


def nothing_scored(seen: Seen) -> tuple[str, np.ndarray] | None:
    """Not one completion has a reward."""
    rewards = seen.column("reward")
    return None if np.isfinite(rewards).any() else ("no completion could be scored, so nothing is trained.", np.arange(len(rewards)))


def no_variance(seen: Seen) -> tuple[str, np.ndarray] | None:
    """All rewards are one number."""
    rewards = seen.column("reward")
    there = rewards[np.isfinite(rewards)]
    if len(there) < 2 or there.max() > there.min():
        return None
    return (
        f"all {len(there)} rewards are {there[0]:g}: nothing tells a better completion from a worse. The task is too hard or solved,"
        " or the verifier says the same of everything.",
        np.flatnonzero(np.isfinite(rewards)),
    )


def no_group_varies(seen: Seen) -> tuple[str, np.ndarray] | None:
    """Rewards differ between prompts and never between the samples of one."""
    rewards, identical = seen.column("reward"), seen.column("identical")
    if seen.made.samples.groups[-1] + 1 == len(rewards) or no_variance(seen) or not np.isfinite(rewards).any() or not identical.all():
        return None
    return "rewards differ between prompts but never between the samples of one: advantages by group are all 0.", np.arange(len(rewards))


def negative_kl(seen: Seen) -> tuple[str, np.ndarray] | None:
    """A mean KL below 0 by more than chance: the samples are not the policy's own, or the masks differ."""
    if "stat_kl_sequence" not in seen.made.buffer:
        return None
    found = seen.column("kl_sequence")
    there = found[np.isfinite(found)]
    if len(there) < 2 or there.mean() + 3 * there.std(ddof=1) / np.sqrt(len(there)) > BELOW_ZERO:
        return None
    return (
        f"the KL from the reference is {there.mean():.3g} nats a completion on average, and a KL is never negative:"
        " the samples are not draws of the policy that is trained.",
        np.argsort(np.where(np.isfinite(found), found, np.inf)),
    )


def collapsed(seen: Seen) -> tuple[str, np.ndarray] | None:
    """Entropy is a small share of what it was."""
    first = seen.history[0].get("entropy") if seen.history else None
    if first is None or seen.entropy >= COLLAPSED * first:
        return None
    return (
        f"entropy has fallen to {seen.entropy:.3g} nats a token from {first:.3g}: samples repeat one another."
        " Raise rl.entropy_coefficient or rl.kl_coefficient, or lower the learning rate.",
        np.arange(len(seen.made.samples.answers)),
    )


def reward_is_length(seen: Seen) -> tuple[str, np.ndarray] | None:
    """The reward follows the length, up or down."""
    rewards, tokens = seen.column("reward"), seen.column("completion_tokens")
    there = np.isfinite(rewards)
    if there.sum() < FEW or rewards[there].std() == 0 or tokens[there].std() == 0:
        return None
    found = float(np.corrcoef(rewards[there], tokens[there])[0, 1])
    if abs(found) < LIKE_LENGTH:
        return None
    words = "longer" if found > 0 else "shorter"
    return f"the reward is the length (correlation {found:.2f}): {words} completions get more, whatever they say.", np.argsort(-rewards)


def nothing_trained(seen: Seen) -> tuple[str, np.ndarray] | None:
    """Completions were scored, and no token of them is trained."""
    if seen.made.buffer["weights"].any() or nothing_scored(seen):
        return None
    return "no token is trained: every sample was left out, as cut off or as alike with its group.", np.arange(len(seen.column("reward")))


def over_optimised(seen: Seen) -> tuple[str, np.ndarray] | None:
    """The reward that is trained for rises, and what is held out falls."""
    parts = seen.made.rewarded.parts
    found = turned([*seen.history, {"step": 0, **means(parts, seen.watched)}], seen.watched)
    if found is None:
        return None
    ranks = [np.argsort(np.argsort(np.nan_to_num(values))) for values in (seen.column("reward"), found.sign * parts[found.name])]
    return sentence(found), np.argsort(ranks[1] - ranks[0], kind="stable")  # what gets much and deserves little


RULES: dict[str, Rule] = {
    "truncated": all_truncated,
    "nothing_scored": nothing_scored,
    "no_variance": no_variance,
    "no_group_varies": no_group_varies,
    "negative_kl": negative_kl,
    "entropy": collapsed,
    "length": reward_is_length,
    "nothing_trained": nothing_trained,
    "over_optimised": over_optimised,
}
SHOWN = 3  # samples that stand below a sentence


class Doctor:
    """Asks every rule of every rollout, and says once what one finds.

    Args:
      longest: tokens that a completion may have.
      say: where sentences go.
      watched: which rewards are trained for, and which held out.
    """

    def __init__(self, longest: int, say: Callable[[str], None], watched: Watched = NOTHING):
        self._longest, self._say, self._watched = longest, say, watched
        self._said: set[str] = set()

    def __call__(self, made: Made, step: int, history: History) -> None:
        """Looks at the rollout made at `step`, after those of `history`."""
        seen = Seen(made, entropy(made), self._longest, history, self._watched)
        for name, rule in RULES.items():
            if name in self._said or (found := rule(seen)) is None:
                continue
            sentence, rows = found
            self._said.add(name)
            self._say(f"doctor, step {step}: {sentence}")
            for row in rows[:SHOWN]:
                answer, reward = made.samples.answers[row], seen.column("reward")[row]
                self._say(
                    f"  sample {row}: {answer.prompt[-40:]!r} -> {answer.text[:60]!r}, {len(answer.tokens)} tokens, reward {reward:g}"
                )


def entropy(made: Made) -> float:
    """The mean of -log p of the sampled tokens, nats: an estimate of the policy's entropy that costs nothing."""
    return float(-made.buffer["sampler"].sum() / made.buffer["stat_completion_tokens"].sum())


def recorded(made: Made, watched: Watched = NOTHING) -> dict[str, float]:
    """What later rollouts are held against."""
    return {"entropy": entropy(made), **means(made.rewarded.parts, watched)}
