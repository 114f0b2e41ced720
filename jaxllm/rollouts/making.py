"""One rollout from beginning to end: sampled, looked at by the training graph, scored, and given its advantages."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxllm.parallel import hosts
from jaxllm.rollouts.resampling import Judged, resample
from jaxllm.rollouts.rewards import Answer, Rewarded, Rewards
from jaxllm.rollouts.rollout import Prompt, Sampler, Samples, drawn, rows_of
from jaxllm.rollouts.rules import NOTHING, Memory
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
      tries: how often a prompt whose samples all have one reward gives way to the next one, see `resampling`.
    """

    num_prompts: int
    num_samples: int
    sequence_length: int
    rescores: bool
    compares: bool
    check_every: int
    seed: int
    tries: int = 0


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


class Carry(NamedTuple):
    """What goes from one rollout to the next, and into checkpoints between them.

    Attributes:
      coefficient: of the KL.
      prompts: drawn so far.
      rewards: what the rule of rewards remembers.
      returns: number, mean and sum of squared distances from it of the returns of tokens so far; see `credit.returns_scale`.
    """

    coefficient: np.float32
    prompts: int
    rewards: Memory
    returns: tuple[float, ...] = NOTHING


class Made(NamedTuple):
    """A rollout.

    Attributes:
      buffer: what minibatches are cut from, and what a checkpoint keeps.
      samples: the completions; gone after a resume.
      rewarded: what they are worth.
      seconds: by kind of work.
      carry: to the next one.
    """

    buffer: Buffer
    samples: Samples
    rewarded: Rewarded
    seconds: dict[str, float]
    carry: Carry


class Making:
    """Makes rollouts; a pure function of (weights, step, carry).

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

    def __call__(self, weights: Weights, number: int, step: int, carry: Carry) -> Made:
        """Rollout `number`, with the noise of `step`."""
        plan, clock, prompts = self.plan, _Clock(), carry.prompts

        def draw(places: np.ndarray, attempt: int) -> Judged:
            nonlocal prompts
            prompts += len(places)
            return self._judged(weights, prompts - len(places), places, attempt, step, carry.rewards, clock)

        (samples, rewarded), thrown = resample(draw(np.arange(plan.num_prompts), 0), draw, plan.tries)
        ended = np.array([done.stopped for done in samples.finished])
        total = self.rewards.join(rewarded.parts, samples.groups, carry.rewards, ended)  # one scale for all of it
        rewarded = rewarded._replace(total=total)
        rows = rows_of(samples, plan.sequence_length)
        looked = self._looked(weights, {**rows, "row": samples.ids}, number, step)
        clock.spent("score")
        known: dict[str, Any] = {"weights": rows["weights"], "scores": rewarded.total.astype(np.float32), "groups": samples.groups}
        known |= {"ended": ended, "coefficient": carry.coefficient, **looked}
        known["returns_seen"] = np.array(carry.returns, np.float32)
        if self.greedy:
            known["greedy"] = self._greedy(self.greedy, weights, samples.prompts[:: plan.num_samples], step, carry.rewards, clock)
        found = jax.device_get(self.credit({name: value for name, value in known.items() if name != "others"}))
        buffer = {**rows, **{name: found[name] for name in ("weights", "advantages", "returns") if name in found}}
        if "log_probs" in looked:
            buffer["old"] = looked["log_probs"]
        buffer |= {"reference": looked["reference"]} if "reference" in looked else {}
        buffer |= {"old_values": looked["values"]} if "values" in looked else {}
        known["resampled"] = np.repeat(thrown, plan.num_samples)
        known["says"] = self.rewards.says(carry.rewards)
        after = carry._replace(prompts=prompts, rewards=self.rewards.learnt(carry.rewards, rewarded.parts))
        if "returns_seen" in found:
            after = after._replace(returns=tuple(map(float, found["returns_seen"])))
        buffer |= statistics(samples)
        return Made(buffer | _statistics(rows, known, found, rewarded, plan), samples, rewarded, clock.seconds, after)

    def _judged(self, weights: Weights, first: int, places: np.ndarray, attempt: int, step: int, memory: Memory, clock: "_Clock") -> Judged:
        """Groups of the prompts from number `first` on, to stand in these places; every attempt has noise of its own."""
        plan = self.plan
        chosen = drawn(plan.seed, first, len(places), len(self.prompts))
        ids = (attempt * plan.num_prompts + places[:, None]) * plan.num_samples + np.arange(plan.num_samples)
        samples = self.sampler(weights.decoder, [self.prompts[i] for i in chosen], plan.num_samples, step, ids)
        clock.spent("sample")
        found = Judged(samples, judged(self.rewards, samples.answers, samples.groups, memory))
        clock.spent("reward")
        return found

    def _greedy(
        self, greedy: Sampler, weights: Weights, prompts: Sequence[Prompt], step: int, memory: Memory, clock: "_Clock"
    ) -> np.ndarray:
        """The rewards of the likeliest completion of each prompt, float32, for each of its samples."""
        likeliest = greedy(weights.decoder, prompts, 1, step)
        clock.spent("sample")
        baseline = judged(self.rewards, likeliest.answers, likeliest.groups, memory).total
        clock.spent("reward")
        return np.repeat(baseline.astype(np.float32), self.plan.num_samples)

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
        self.seconds[kind], self._mark = self.seconds.get(kind, 0.0) + now - self._mark, now


def judged(rewards: Rewards, answers: Sequence[Answer], groups: np.ndarray, memory: Memory) -> Rewarded:
    """The rewards as the first process finds them, in every process: nobody promises that a judge says the same twice."""
    said = None
    if hosts.is_first() or rewards.everywhere:
        found = rewards(answers, groups, memory)
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
    said |= {name: np.full(len(tokens), value) for name, value in known["says"].items()}
    if "returns_scale" in found:
        said["returns_scale"] = np.full(len(tokens), found["returns_scale"])
    if "reference" in known:
        said["kl_coefficient"] = np.full(len(tokens), known["coefficient"])
    if "log_probs" in known and "reference" in known:
        said["kl_sequence"] = np.where(np.isfinite(rewarded.total), found["divergence"], np.nan)
    if "explained_variance" in found:
        said["explained_variance"] = np.full(len(tokens), found["explained_variance"])
    if plan.tries:
        said["resampled"] = known["resampled"]
    if plan.check_every:
        said["coupled_mismatch"] = known["others"].sum(1) / tokens if "others" in known else np.full(len(tokens), np.nan)
    return {f"stat_{name}": np.asarray(values, np.float32) for name, values in said.items()}
