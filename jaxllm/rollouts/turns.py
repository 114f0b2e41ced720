"""Rollouts in turns: the model writes until it calls a tool, the result is put behind its tokens, and it writes on."""

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from jaxllm.models.model import Model
from jaxllm.rollouts.protocol import Talk
from jaxllm.rollouts.rewards import Answer, Spoken
from jaxllm.rollouts.rollout import Played, Prompt, Sampler, Samples
from jaxllm.rollouts.tools import DONE, MODEL, TIMEOUT, Call
from jaxllm.sampling.endings import Endings
from jaxllm.sampling.engine import Finished, Request

STATISTICS = ("turns", "tool_calls", "tool_errors", "tool_timeouts", "tool_truncated")  # of each sample


class TurnSampler(Sampler):
    """A `Sampler` whose completions may call tools.

    A turn that calls one is followed by the result, as tokens that nobody samples, and by another turn, until a turn calls nothing, the
    model has written `max_new_tokens` in all, or `max_turns` are over: a call in the last one is not answered, and the completion is one
    that was cut off. Draws are named by the sample and the position in the row, so a completion is a function of (weights, step, sample)
    as long as tools give the same for the same.

    Args:
      model, endings, and what is named: see `Sampler`.
      talk: how tools are called.
      max_turns: of the model.
    """

    def __init__(self, model: Model, endings: Endings, *, talk: Talk, max_turns: int, **how: Any):
        super().__init__(model, endings, **how)
        self.talk, self.max_turns = talk, max_turns

    def __call__(self, params: Any, prompts: Sequence[Prompt], num_samples: int, step: int) -> Samples:
        """See `Sampler`."""
        if self._engine is None:
            self._engine = self._made(len(prompts) * num_samples)
        own = [prompt for prompt in prompts for _ in range(num_samples)]
        books = _Books(self, prompts, num_samples)
        for done in self._engine.run(params, books.requests(), self.key(step), books.ends):
            books.take(done)
        played = [row.played() for row in books.rows]
        answers = [_answer(prompt, row, self.talk) for prompt, row in zip(own, books.rows, strict=True)]
        return Samples(own, np.repeat(np.arange(len(prompts), dtype=np.int32), num_samples), played, answers)


class _Row:
    """A completion while it is being written."""

    def __init__(self, id: int, prompt: Prompt, left: int):
        self.id, self.prompt, self.left = id, prompt, left
        self.tokens, self.own, self.stopped, self.num_turns, self.cut = list[int](), list[bool](), False, 0, 0
        self.log_probs, self.filtered, self.turns, self.last = list[float](), list[float](), list[Spoken](), list[int]()

    @property
    def before(self) -> list[int]:
        """The last token so far."""
        return self.tokens[-1:] or self.prompt.tokens[-1:].tolist()

    def wrote(self, done: Finished) -> None:
        """The model's next turn."""
        self._add(done.tokens, done.log_probs, done.filtered_log_probs, True)
        self.left, self.num_turns = self.left - len(done.tokens), self.num_turns + 1

    def read(self, tokens: Sequence[int]) -> None:
        """What tools put behind it."""
        self._add(tokens, [0.0] * len(tokens), [0.0] * len(tokens), False)

    def _add(self, tokens: Sequence[int], log_probs: Sequence[float], filtered: Sequence[float], own: bool) -> None:
        self.tokens += tokens
        self.log_probs += log_probs
        self.filtered += filtered
        self.own += [own] * len(tokens)

    def played(self) -> Played:
        """As it is now."""
        turns = tuple(self.turns)
        return Played(self.id, self.tokens, self.log_probs, self.filtered, self.stopped, self.own, turns, self.num_turns, self.cut)


class _Books:
    """Which completions are to be written on, and with what."""

    def __init__(self, sampler: TurnSampler, prompts: Sequence[Prompt], num_samples: int):
        self.talk, self.most, self.prompts = sampler.talk, sampler.max_turns, prompts
        count, room = num_samples * len(prompts), sampler.max_new_tokens
        self.rows = [_Row(id, prompts[id // num_samples], room) for id in range(count)]
        self.num_samples, self.called = num_samples, list[tuple[_Row, list[Call]]]()

    def requests(self) -> Iterator[Request | None]:
        """Completions whose calls were answered, then prompts that nobody has begun; None while all others are being written.

        Calls wait until the engine asks for more, between two of its blocks, so that tools answer many at once.
        """
        fresh = iter(range(len(self.prompts)))
        ready: deque[Request] = deque()
        while True:
            if self.called:
                ready.extend(self._answered())
            if ready:
                yield ready.popleft()
            elif (prompt := next(fresh, None)) is not None:
                ids = range(prompt * self.num_samples, (prompt + 1) * self.num_samples)
                yield Request(self.prompts[prompt].tokens, tuple(ids), self.rows[ids[0]].left)
            else:
                yield None

    def ends(self, id: int, tokens: Sequence[int]) -> int | None:
        """See `engine.Ends`."""
        return self.talk.keep(self.rows[id].before, tokens)

    def take(self, done: Finished) -> None:
        """A turn that ended."""
        row = self.rows[done.id]
        before = row.before
        calls = self.talk.calls(before, done.tokens) if done.stopped else []
        row.turns.append(Spoken(MODEL, self.talk.text(before, done.tokens)))
        row.wrote(done)
        if calls and row.left > 0 and row.num_turns < self.most:
            self.called.append((row, calls))
        else:
            row.stopped = done.stopped and not calls

    def _answered(self) -> Iterator[Request]:
        called, self.called = self.called, []
        answers = self.talk.answer([calls for _, calls in called])
        for (row, calls), answer in zip(called, answers, strict=True):
            row.read(answer.tokens.tolist())
            row.cut += answer.cut
            row.turns += [
                Spoken(call.tool or "unknown", result.text, result.happened) for call, result in zip(calls, answer.results, strict=True)
            ]
            tokens = np.concatenate([row.prompt.tokens, np.array(row.tokens, np.int32)])
            yield Request(tokens, (row.id,), row.left)


def _answer(prompt: Prompt, row: _Row, talk: Talk) -> Answer:
    own = np.array(row.tokens, np.int32)[np.array(row.own, bool)]
    return Answer(prompt.text, row.turns[-1].text, prompt.row, own, row.stopped, tuple(row.turns))


def statistics(samples: Samples) -> Mapping[str, np.ndarray]:
    """What is reported of each sample, float32 [R]; nothing where there are no tools."""
    found = [done for done in samples.finished if isinstance(done, Played)]
    if not found:
        return {}
    happened = [[turn.happened for turn in done.turns if turn.who != MODEL] for done in found]
    said = {
        "turns": [done.num_turns for done in found],
        "tool_calls": [len(own) for own in happened],
        "tool_errors": [sum(one != DONE for one in own) for own in happened],
        "tool_timeouts": [own.count(TIMEOUT) for own in happened],
        "tool_truncated": [done.cut for done in found],
    }
    return {f"stat_{name}": np.array(said[name], np.float32) for name in STATISTICS}
