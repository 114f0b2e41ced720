"""One rollout from beginning to end: sampled, looked at by the training graph, scored, and given its advantages."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxllm.parallel import hosts
from jaxllm.rollouts.rewards import Answer, Rewarded, Rewards
from jaxllm.rollouts.rollout import Prompt, Sampler, Samples, drawn, rows_of
from jaxllm.rollouts.scoring import Scorer
from jaxllm.rollouts.turns import statistics

Buffer = dict[str, np.ndarray]  # [R, ...] each, ordered by sample id


class Plan(NamedTuple):
    """What a rollout is made of.

    Attributes:
      num_prompts: of a rollout.
      num_samples: completions of each.
      sequence_length: T of the rows.
      rescores: whether the training graph says log-probabilities before the first update.
      compares: whether the reference says its own.
      check_every: rollouts between two comparisons of the draws with the training graph's; 0: never.
      seed: of the run.
    """

    num_prompts: int
    num_samples: int
    sequence_length: int
    rescores: bool
    compares: bool
    check_every: int
    seed: int


class Weights(NamedTuple):
    """The weights that a rollout is made with.

    Attributes:
      policy: as it trains.
      decoder: the same as the engine takes them.
      reference: the policy where it began; None: nothing is compared with it.
    """

    policy: Any
    decoder: Any
    reference: Any


class Made(NamedTuple):
    """A rollout.

    Attributes:
      buffer: what minibatches are cut from, and what a checkpoint keeps.
      samples: the completions; gone after a resume.
      rewarded: what they are worth.
      seconds: by kind of work.
    """

    buffer: Buffer
    samples: Samples
    rewarded: Rewarded
    seconds: dict[str, float]


class Making:
    """Makes rollouts; a pure function of (weights, step, coefficient).

    Args:
      plan: its sizes.
      prompts: all there are.
      sampler: draws.
      scorer: of the training graph.
      rewards: judge.
      credit: {scores, groups, ...} -> {advantages, weights, ...}, see `credit.credit`; jitted.
      greedy: draws the likeliest completions, for a baseline; None: there is none.
    """

    def __init__(
        self,
        plan: Plan,
        prompts: Sequence[Prompt],
        sampler: Sampler,
        scorer: Scorer,
        rewards: Rewards,
        credit: Callable[[dict[str, Any]], dict[str, jax.Array]],
        greedy: Sampler | None = None,
    ):
        self.plan, self.prompts, self.sampler, self.scorer = plan, prompts, sampler, scorer
        self.rewards, self.credit, self.greedy = rewards, credit, greedy

    def __call__(self, weights: Weights, number: int, step: int, coefficient: np.float32) -> Made:
        """Rollout `number`, made at `step`, with the present coefficient of the KL."""
        plan, clock = self.plan, _Clock()
        chosen = drawn(plan.seed, number * plan.num_prompts, plan.num_prompts, len(self.prompts))
        prompts = [self.prompts[i] for i in chosen]
        samples = self.sampler(weights.decoder, prompts, plan.num_samples, step)
        likeliest = self.greedy(weights.decoder, prompts, 1, step) if self.greedy else None
        clock.spent("sample")
        rows = rows_of(samples, plan.sequence_length)
        looked = self._looked(weights, rows, number, step)
        clock.spent("score")
        rewarded = judged(self.rewards, samples.answers, samples.groups)
        known: dict[str, Any] = {"weights": rows["weights"], "scores": rewarded.total.astype(np.float32), "groups": samples.groups}
        known |= {"ended": np.array([done.stopped for done in samples.finished]), "coefficient": coefficient, **looked}
        if likeliest is not None:
            baseline = judged(self.rewards, likeliest.answers, np.arange(len(prompts), dtype=np.int32)).total
            known["greedy"] = np.repeat(baseline.astype(np.float32), plan.num_samples)
        clock.spent("reward")
        found = jax.device_get(self.credit({name: value for name, value in known.items() if name != "others"}))
        buffer = {**rows, **{name: found[name] for name in ("weights", "advantages", "returns") if name in found}}
        if "log_probs" in looked:
            buffer["old"] = looked["log_probs"]
        buffer |= {"reference": looked["reference"]} if "reference" in looked else {}
        buffer |= {"old_values": looked["values"]} if "values" in looked else {}
        buffer |= statistics(samples)
        return Made(buffer | _statistics(rows, known, found, rewarded, plan), samples, rewarded, clock.seconds)

    def _looked(self, weights: Weights, rows: Mapping[str, np.ndarray], number: int, step: int) -> dict[str, np.ndarray]:
        """What the training graph says of the rows, [R, T] each."""
        plan, found = self.plan, dict[str, np.ndarray]()
        if plan.rescores:
            found |= self.scorer.look(weights.policy, rows)
        if plan.compares:
            found["reference"] = self.scorer.log_probs(weights.reference, rows)
        if plan.check_every and number % plan.check_every == 0:
            found["others"] = self.scorer.others(weights.policy, rows, self.sampler.key(step))
        return found


class _Clock:
    """Seconds by kind of work."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._mark = time.monotonic()

    def spent(self, kind: str) -> None:
        now = time.monotonic()
        self.seconds[kind], self._mark = now - self._mark, now


def judged(rewards: Rewards, answers: Sequence[Answer], groups: np.ndarray) -> Rewarded:
    """The rewards as the first process finds them, in every process: nobody promises that a judge says the same twice."""
    said = None
    if hosts.is_first() or rewards.everywhere:
        found = rewards(answers, groups)
        said = [found.total.tolist(), {name: values.tolist() for name, values in found.parts.items()}, found.problems]
    total, parts, problems = hosts.tell(hosts.fresh("rewards"), said)
    return Rewarded(np.array(total), {name: np.array(values) for name, values in parts.items()}, problems)


def _statistics(
    rows: Mapping[str, np.ndarray], known: Mapping[str, Any], found: Mapping[str, Any], rewarded: Rewarded, plan: Plan
) -> Buffer:
    """What is reported of each sample, float32 [R]; NaN: of this one nothing."""
    tokens = rows["weights"].sum(1)
    said: dict[str, Any] = {"reward": rewarded.total, **{f"reward_{name}": values for name, values in rewarded.parts.items()}}
    said |= {"completion_tokens": tokens, "truncated": ~known["ended"], "identical": found["identical"]}
    said |= {"unscored": ~np.isfinite(rewarded.total), "untrained": found["weights"].sum(1) == 0}
    if "reference" in known:
        said["kl_coefficient"] = np.full(len(tokens), known["coefficient"])
    if "log_probs" in known and "reference" in known:
        said["kl_sequence"] = np.where(np.isfinite(rewarded.total), found["divergence"], np.nan)
    if "explained_variance" in found:
        said["explained_variance"] = np.full(len(tokens), found["explained_variance"])
    if plan.check_every:
        said["coupled_mismatch"] = known["others"].sum(1) / tokens if "others" in known else np.full(len(tokens), np.nan)
    return {f"stat_{name}": np.asarray(values, np.float32) for name, values in said.items()}
