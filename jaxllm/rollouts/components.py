"""The kinds of reward components: a task's own score, terms of length and format, a Python function, a program that judges."""

import importlib
import importlib.util
import inspect
import json
import re
import shlex
import subprocess
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxllm.rollouts.rewards import Answer, Failed, Score
from jaxllm.rollouts.shaping import length_penalty, soft_overlong
from jaxllm.tasks.task import Generation, Unscored


def task(task: Generation, metric: str | None = None) -> Score:
    """The score of a task, from 0 to 1; missing where its verifier says that it cannot judge.

    Args:
      task: the rows' own.
      metric: one of those that it gives; None: the one by which models are compared.
    """
    wanted = metric or task.METRIC

    def one(scores: Any) -> float | None:
        if not scores:
            return None
        if wanted not in scores:
            raise ValueError(f"{type(task).__name__} gives no {wanted!r}. Choose from: {', '.join(scores)}.")
        return scores[wanted]

    def alone(answer: Answer) -> float | None:
        try:
            return one(task.score(answer.row, answer.text))
        except Unscored:
            return None

    def score(answers: Sequence[Answer]) -> list[float | None]:
        together = getattr(task, "score_all", None)  # programs that run are judged side by side
        if together is None:
            return [alone(answer) for answer in answers]
        return [one(found) for found in together([a.row for a in answers], [a.text for a in answers])]

    return score


def exact(field: str = "answer") -> Score:
    """1 where the completion is what a field of the row says, spaces at both ends aside, else 0; missing where there is no such field."""
    return lambda answers: [None if field not in a.row else float(a.text.strip() == str(a.row[field]).strip()) for a in answers]


def lengths(answers: Sequence[Answer]) -> jax.Array:
    """Tokens of each completion, int32 [n]."""
    return jnp.array([len(answer.tokens) for answer in answers], jnp.int32)


def length(cost: float, free: int = 0) -> Score:
    """-cost for each token beyond the first `free` ones."""
    return lambda answers: np.asarray(length_penalty(lengths(answers), cost=cost, free=free)).tolist()


def overlong(buffer: int, longest: int) -> Score:
    """DAPO's soft punishment: from 0 at longest - buffer tokens down to -1 at the longest."""
    soft_overlong(jnp.zeros(1, jnp.int32), longest=longest, buffer=buffer)  # a buffer that does not fit is told now
    return lambda answers: np.asarray(soft_overlong(lengths(answers), longest=longest, buffer=buffer)).tolist()


def ended() -> Score:
    """1 for completions that ended by themselves, 0 for those that were cut off."""
    return lambda answers: [float(answer.ended) for answer in answers]


def form(pattern: str) -> Score:
    """1 where a regular expression is found in the completion (^ and $ are its beginning and its end), else 0."""
    try:
        found = re.compile(pattern, re.DOTALL)
    except re.error as error:
        raise ValueError(f"rl.rewards has the pattern {pattern!r}, which is no regular expression ({error}).") from None
    return lambda answers: [float(found.search(answer.text) is not None) for answer in answers]


def function(path: str) -> Score:
    """A Python function by `module:name` or `FILE.py:name`, called as f(prompts=[...], completions=[...], rows=[...]) -> list.

    One that has a parameter `turns` is given what models and tools said too: of each completion a list of {who, text, happened}.
    """
    called = load_function(path)
    turns = "turns" in _parameters(called)

    def score(answers: Sequence[Answer]) -> Sequence[Any]:
        more = {"turns": [[turn._asdict() for turn in answer.turns] for answer in answers]} if turns else {}
        said = {"prompts": [a.prompt for a in answers], "completions": [a.text for a in answers]}
        return called(**said, rows=[dict(answer.row) for answer in answers], **more)

    return score


def _parameters(called: Callable[..., Any]) -> Collection[str]:
    try:
        return inspect.signature(called).parameters
    except ValueError:  # some that are written in C do not say
        return ()


def load_function(path: str) -> Callable[..., Any]:
    """The function of this name.

    Raises:
      ValueError: there is none.
    """
    place, _, name = path.rpartition(":")
    try:
        if place.endswith(".py"):
            spec = importlib.util.spec_from_file_location(f"jaxllm_reward_{Path(place).stem}", place)
            assert spec is not None and spec.loader is not None
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
        else:
            module = importlib.import_module(place)
        found = getattr(module, name)
    except Exception as error:  # whatever is wrong in a file of somebody else
        raise ValueError(f"Reward function {path!r} does not load: {error}. Give module:name or FILE.py:name.") from None
    if not callable(found):
        raise ValueError(f"Reward function {path!r} is no function but {found!r}. Give module:name or FILE.py:name.")
    return found


def tools(tool: str | None = None) -> Score:
    """1 for completions with a call that was answered without an error, else 0.

    Args:
      tool: of this name; None: of any.
    """

    def one(answer: Answer) -> float:
        return float(any(turn.happened == "done" and tool in (None, turn.who) for turn in answer.turns))

    return lambda answers: [one(answer) for answer in answers]


def command(command: Sequence[str], timeout: float = 600.0) -> Score:
    """A program, started once for many completions.

    It reads a JSON line for each, {"id": 0, "prompt": ..., "completion": ..., and the fields of the row under "row"}, and writes
    {"id": 0, "reward": x} for each, in any order; a line that is missing is a reward that is missing.

    Args:
      command: the program and its arguments; no shell reads them.
      timeout: seconds.
    """
    if isinstance(command, str) or not command:
        raise ValueError(f"A reward's command {command!r} is no list of words. Give the program and its arguments: ['python', 'judge.py'].")
    words = [str(word) for word in command]

    def score(answers: Sequence[Answer]) -> list[Any]:
        asked = [{"id": i, "prompt": a.prompt, "completion": a.text, "row": dict(a.row)} for i, a in enumerate(answers)]
        lines = "".join(json.dumps(one, default=str) + "\n" for one in asked)
        try:
            done = subprocess.run(words, input=lines, capture_output=True, text=True, timeout=timeout, errors="replace")
        except (OSError, subprocess.TimeoutExpired) as error:
            raise Failed(f"`{shlex.join(words)}` {error}") from None
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
            raise Failed(f"`{shlex.join(words)}` ended with status {done.returncode}: {last}")
        try:
            found = {one["id"]: one.get("reward") for one in map(json.loads, filter(str.strip, done.stdout.splitlines()))}
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise Failed(f"`{shlex.join(words)}` wrote a line that is no {{'id', 'reward'}}: {error}") from None
        return [found.get(i) for i in range(len(answers))]

    return score


KINDS = {
    "task": task,
    "exact": exact,
    "length": length,
    "overlong": overlong,
    "ended": ended,
    "format": form,
    "tools": tools,
    "function": function,
    "command": command,
}
