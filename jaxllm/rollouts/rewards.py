"""Rewards: named components of a completion's score, joined by a rule of `rules`. What cannot be scored is missing, not 0."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxllm.losses.terms import check_choice
from jaxllm.rollouts.options import check_number, check_options, table_of
from jaxllm.rollouts.rules import RULES, Bound, Memory, Weighing

UNBOUND = Bound()
SHOWN = 80  # characters of a prompt in a sentence, the last ones
OF_ALL = ("weight", "at_least", "at_most")  # numbers that components of all kinds may have


class Spoken(NamedTuple):
    """A turn of a completion that tools take part in: "model" or a tool's name, the text, and of a tool what happened ("done", "error",
    "timed out")."""

    who: str
    text: str
    happened: str = ""


class Answer(NamedTuple):
    """A completion to be judged.

    Attributes:
      prompt: its text.
      text: of the completion, without the stop token or stop string at its end; with tools: of the model's last turn.
      row: the fields of the prompt's row.
      tokens: int32 [n], a stop token included; with tools: the model's own.
      ended: whether it ended by itself, and not by its length.
      turns: all that was said, where there are tools.
    """

    prompt: str
    text: str
    row: Mapping[str, Any]
    tokens: np.ndarray
    ended: bool
    turns: tuple[Spoken, ...] = ()


Score = Callable[[Sequence[Answer]], Sequence[Any]]  # a number for each answer; None or NaN: there is none


class Failed(Exception):
    """Raised by a score that failed on all answers, when asking for each alone would fail as well."""


class Component(NamedTuple):
    """A part of the reward.

    Attributes:
      name: in logs.
      score: of many answers at once.
      weight: in the sum; 0: it is logged and nothing else.
      everywhere: whether all processes have to ask together, as of a model that lies on the devices of all.
      bound: on its mean, with the rule "constraint"; such a component has no weight.
    """

    name: str
    score: Score
    weight: float = 1.0
    everywhere: bool = False
    bound: Bound = UNBOUND


class Rewarded(NamedTuple):
    """What answers are worth, float64 [R] each, NaN where it is missing.

    Attributes:
      total: the reward.
      parts: component -> its own values.
      problems: sentences on what could not be scored.
    """

    total: np.ndarray
    parts: dict[str, np.ndarray]
    problems: list[str]


class Rewards:
    """Components and their rule.

    Args:
      components: at least one, of different names.
      rule: of `RULES`.
      multiplier, rate: see `rules.Weighing`.
      no_end: what becomes of the rewards of completions that never ended: (rewards, ended) -> rewards; None: nothing.

    Raises:
      ValueError: no component, two of one name, an unknown rule, bounds that nothing keeps.
    """

    def __init__(
        self,
        components: Sequence[Component],
        rule: str = "sum",
        *,
        multiplier: float = 1.0,
        rate: float = 0.1,
        no_end: Callable[[np.ndarray, np.ndarray], np.ndarray] | None = None,
    ):
        check_choice("rl.reward_rule", rule, RULES)
        names = [component.name for component in components]
        if not any(component.weight for component in components):
            raise ValueError("rl.rewards has no component with a weight: nothing would be trained for. Name one: {'kind': 'task'}, say.")
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"rl.rewards has two components called {twice[0]!r}. Give one of them another name: {{'name': ...}}.")
        bounds = {component.name: component.bound for component in components if component.bound != UNBOUND}
        if bool(bounds) != (rule == "constraint"):
            said = f"a bound on {next(iter(bounds))!r}" if bounds else "no component with a bound (at_least or at_most)"
            raise ValueError(f"rl.reward_rule={rule!r} and rl.rewards has {said}. A bound and the rule 'constraint' go together.")
        self.components, self.names = list(components), names
        self.everywhere = any(component.everywhere for component in components)
        weights = {component.name: component.weight for component in components if component.weight}
        self._no_end = no_end
        self._rule, self.weighing = RULES[rule], Weighing(weights, bounds, multiplier, rate)

    def __call__(self, answers: Sequence[Answer], groups: np.ndarray, memory: Memory | None = None) -> Rewarded:
        """The rewards of a rollout.

        Args:
          answers: all of it.
          groups: int [R], which prompt each answers.
          memory: of the rule, from `learnt`; None: this is the first rollout.

        Raises:
          ValueError: a component gives another number of values than it was asked for, or something that is no number.
        """
        problems = list[str]()
        parts = {component.name: ask(component, answers, problems.append) for component in self.components}
        total = self.join(parts, groups, memory or {}, np.array([answer.ended for answer in answers], bool))
        if wrong := int((np.isnan(total) & self._whole(parts)).sum()):
            problems.append(
                f"The rule of rl.rewards has no value for {wrong} of {len(answers)} completions whose parts are all there, which train"
                " nothing: a part below 0 has no power of its weight, and 0 none below 0."
            )
        return Rewarded(total, parts, problems)

    def join(self, parts: Mapping[str, np.ndarray], groups: np.ndarray, memory: Memory, ended: np.ndarray) -> np.ndarray:
        """The reward, float64 [R]; NaN where a part that counts is missing, or the rule has no value. `ended`, bool [R]: by itself."""
        with np.errstate(all="ignore"):
            total = self._rule.join(parts, self.weighing, groups, memory)
        total = np.where(self._whole(parts) & np.isfinite(total), total, np.nan)
        return total if self._no_end is None else np.where(np.isnan(total), np.nan, self._no_end(total, ended))

    def _whole(self, parts: Mapping[str, np.ndarray]) -> np.ndarray:
        """Where no part that counts is missing, bool [R]."""
        return np.all([np.isfinite(parts[name]) for name in (*self.weighing.weights, *self.weighing.bounds)], axis=0)

    def learnt(self, memory: Memory, parts: Mapping[str, np.ndarray]) -> Memory:
        """The rule's memory after a rollout."""
        return self._rule.learn(memory, parts, self.weighing)

    def says(self, memory: Memory) -> dict[str, float]:
        """What is logged of the memory that a rollout was judged with."""
        return self._rule.says(memory, self.weighing)


def ask(component: Component, answers: Sequence[Answer], say: Callable[[str], None]) -> np.ndarray:
    """A component's values, float64 [n]; where it fails on all answers at once each is asked alone, so that only the culprit is missing."""
    failures = list[str]()

    def tried(part: Sequence[Answer]) -> list[Any] | None:
        try:
            return list(component.score(part))
        except Failed as error:
            failures.append(str(error))
            return [None] * len(part)
        except Exception as error:  # somebody else's code: whatever it does wrong, the others are still scored
            failures.append(f"{type(error).__name__}: {error}")
            return None

    found = tried(answers)
    if found is None:
        alone = [tried([answer]) for answer in answers]
        if wrong := [one for one in alone if one is not None and len(one) != 1]:
            raise ValueError(f"Reward {component.name!r} gave {len(wrong[0])} values for 1 completion. It must give one for each.")
        found = [None if one is None else one[0] for one in alone]
    if len(found) != len(answers):
        raise ValueError(f"Reward {component.name!r} gave {len(found)} values for {len(answers)} completions. It must give one for each.")
    values = np.array([_number(component.name, value) for value in found], np.float64).reshape(len(answers))
    if missing := int(np.isnan(values).sum()):
        why = f"The first failure: {failures[0]}" if failures else "It gave None or a number that is not finite"
        prompt = answers[int(np.isnan(values).argmax())].prompt
        first = f"the first of them follows the prompt {prompt if len(prompt) <= SHOWN else '...' + prompt[-SHOWN:]!r}"
        say(f"Reward {component.name!r} has no value for {missing} of {len(answers)} completions, which train nothing; {first}. {why}.")
    return values


def _number(name: str, value: Any) -> float:
    if value is None:
        return np.nan
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise ValueError(f"Reward {name!r} gave {value!r}, which is no number. Give a number, or None where there is none.") from None
    return number if np.isfinite(number) else np.nan


Maker = Callable[..., Score]


class Named(NamedTuple):
    """A component as a config names it: its kind, the options of the kind, and what `Component` says of it."""

    kind: str
    options: dict[str, Any]
    name: str
    weight: float
    bound: Bound


def named(entries: Sequence[Any], makers: Mapping[str, Maker]) -> list[Named]:
    """The components of a config, of which nothing is made yet.

    Args:
      entries: each a kind, or {kind, name, weight (or at_least, at_most)} and the options of the kind.
      makers: kind -> a function of its options.

    Raises:
      ValueError: an unknown kind or option, an option missing, or one that is no number where it should be.
    """
    found = []
    for entry in entries:
        options = table_of(entry, "rl.rewards")
        kind = options.pop("kind")
        check_choice("kind of reward", kind, makers)
        name = str(options.pop("name", kind))
        numbers = {key: check_number(f"Reward {name!r}: {key}", options.pop(key)) for key in OF_ALL if key in options}
        bound = Bound(numbers.get("at_least"), numbers.get("at_most"))
        if bound != UNBOUND and len(numbers) > 1:
            raise ValueError(f"Reward {name!r} has a bound, so it has no weight and no second bound. Give one of at_least, at_most.")
        check_options(f"Reward {name!r} of kind {kind!r}", makers[kind], options, ("name", *OF_ALL))
        found.append(Named(kind, options, name, numbers.get("weight", 1.0 if bound == UNBOUND else 0.0), bound))
    return found


def make(entries: Sequence[Named], makers: Mapping[str, Maker], everywhere: Sequence[str] = ()) -> list[Component]:
    """Components that score.

    Args:
      entries: from `named`.
      makers: kind -> a function of its options.
      everywhere: kinds that all processes have to ask together.

    Raises:
      ValueError: an option that a kind cannot use.
    """
    return [Component(one.name, makers[one.kind](**one.options), one.weight, one.kind in everywhere, one.bound) for one in entries]
