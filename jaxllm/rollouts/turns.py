"""Rollouts in turns: the model writes until it calls a tool, the result is put behind its tokens, and it writes on."""

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jaxllm.models.model import Model
from jaxllm.rollouts.protocol import Answered, Talk
from jaxllm.rollouts.rewards import Answer, Spoken
from jaxllm.rollouts.rollout import Played, Prompt, Sampler, Samples
from jaxllm.rollouts.tools import DONE, MODEL, TIMEOUT, Call
from jaxllm.sampling.endings import Endings
from jaxllm.sampling.engine import Ends, Engine, Finished, Request
from jaxllm.sampling.text import Texts

STATISTICS = ("turns", "tool_calls", "tool_errors", "tool_timeouts", "tool_truncated")  # of each sample


class Talking:
    """An engine whose rows may call tools: a turn that calls one is followed by the result, as tokens that nobody samples, and by another
    turn, until a turn calls nothing, the model has written all that it may, or `max_turns` are over: a call in the last one is not
    answered, and the row is one that was cut off.

    Draws are named by the row and the position in it, so a row is a function of (weights, key, id) as long as tools give the same for the
    same.

    Args:
      engine: that writes.
      talk: how tools are called.
      max_turns: of the model.
      reserved: of a request's `max_new_tokens`, those that results may take: the model writes as many less, over all its turns.
    """

    def __init__(self, engine: Engine, talk: Talk, max_turns: int, reserved: int):
        self.engine, self.talk, self.max_turns, self.reserved, self.length = engine, talk, max_turns, reserved, engine.length

    def run(self, params: Any, requests: Iterable[Request | None], rng: jax.Array, ends: Ends | None = None) -> Iterator[Played]:
        """See `Engine.run`; what ends a turn is said by `talk`."""
        books = _Books(self, iter(requests))
        for done in self.engine.run(params, books.requests(), rng, books.ends):
            row = books.take(done)
            if row is not None:
                yield row.played()


class TurnSampler(Sampler):
    """A `Sampler` whose completions may call tools.

    Args:
      model, endings, and what is named: see `Sampler`.
      talk: how tools are called.
      max_turns: of the model in a completion.
    """

    def __init__(self, model: Model, endings: Endings, *, talk: Talk, max_turns: int, **how: Any):
        super().__init__(model, endings, **how)
        self.talk, self.max_turns = talk, max_turns

    def _made(self, rows: int) -> Any:
        return Talking(super()._made(rows), self.talk, self.max_turns, 0)

    def _answer(self, prompt: Prompt, done: Any) -> Answer:
        own = np.array(done.tokens, np.int32)[np.array(done.own, bool)]
        return Answer(prompt.text, done.turns[-1].text, prompt.row, own, done.stopped, done.turns)


class TurnTexts(Texts):
    """`Texts` whose samples may call tools; a sample's text is that of the model's last turn.

    Args:
      talk: how tools are called.
      max_turns: of the model in a sample.
      max_new_tokens: of the model in a sample.
      how: see `Texts`.
    """

    def __init__(self, *what: Any, talk: Talk, max_turns: int, max_new_tokens: int, **how: Any):
        self.talk, self.max_turns, self.reserved = talk, max_turns, (max_turns - 1) * talk.most
        super().__init__(*what, max_new_tokens=max_new_tokens + self.reserved, **how)
        self.said: dict[int, str] = {}

    def _made(self, length: int) -> Any:
        made = super()._made(length)
        assert isinstance(made, Engine), made
        return _Listened(made, self.talk, self.max_turns, self.reserved, self.said)

    def mean(self, done: Any) -> float:
        """See `Texts.mean`; a tool's tokens are not the model's."""
        own = [log_prob for log_prob, its in zip(done.log_probs, done.own, strict=True) if its]
        return float(np.mean(own)) if own else 0.0

    def text(self, tokens: Sequence[int], id: int) -> str:
        """See `Texts.text`."""
        return self.said.pop(id)


class _Listened(Talking):
    """Notes what the last turn of each row says."""

    def __init__(self, *what: Any):
        *own, self.said = what
        super().__init__(*own)

    def run(self, *what: Any, **how: Any) -> Iterator[Played]:
        for done in super().run(*what, **how):
            self.said[done.id] = done.turns[-1].text
            yield done


class _Row:
    """A row while it is being written."""

    def __init__(self, id: int, prompt: np.ndarray, left: int):
        self.id, self.prompt, self.left = id, prompt, left
        self.tokens, self.own, self.stopped, self.num_turns, self.cut = list[int](), list[bool](), False, 0, 0
        self.log_probs, self.filtered, self.turns = list[float](), list[float](), list[Spoken]()

    @property
    def before(self) -> list[int]:
        """The last token so far."""
        return self.tokens[-1:] or self.prompt[-1:].tolist()

    def wrote(self, done: Finished) -> None:
        """The model's next turn."""
        self._add(done.tokens, done.log_probs, done.filtered_log_probs, True)
        self.left, self.num_turns = self.left - len(done.tokens), self.num_turns + 1

    def read(self, calls: Sequence[Call], answer: Answered) -> None:
        """What tools put behind it."""
        nothing = [0.0] * len(answer.tokens)
        self._add(answer.tokens.tolist(), nothing, nothing, False)
        self.cut += answer.cut
        found = zip(calls, answer.results, strict=True)
        self.turns += [Spoken(call.tool or "unknown", result.text, result.happened) for call, result in found]

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
    """Which rows are to be written on, and with what."""

    def __init__(self, made: Talking, requests: Iterator[Request | None]):
        self.made, self.talk, self.fresh = made, made.talk, requests
        self.rows: dict[int, _Row] = {}
        self.called: list[tuple[_Row, list[Call]]] = []

    def requests(self) -> Iterator[Request | None]:
        """Rows whose calls were answered, then new ones; None while all others are being written.

        Calls wait until the engine asks for more, between two of its blocks, so that tools answer many at once.
        """
        ready: deque[Request] = deque()
        while True:
            if self.called:
                ready.extend(self._answered())
            if ready:
                yield ready.popleft()
            elif (request := next(self.fresh, None)) is not None:
                left = request.max_new_tokens - self.made.reserved
                self.rows |= {id: _Row(id, request.prompt, left) for id in request.ids}
                yield request._replace(max_new_tokens=left)
            else:
                yield None

    def ends(self, id: int, tokens: Sequence[int]) -> int | None:
        """See `engine.Ends`."""
        return self.talk.keep(self.rows[id].before, tokens)

    def take(self, done: Finished) -> _Row | None:
        """A turn that ended; the row, if that was its last."""
        row = self.rows[done.id]
        before = row.before
        calls = self.talk.calls(before, done.tokens) if done.stopped else []
        row.turns.append(Spoken(MODEL, self.talk.text(before, done.tokens)))
        row.wrote(done)
        if calls and row.left > 0 and row.num_turns < self.made.max_turns:
            self.called.append((row, calls))
            return None
        row.stopped = done.stopped and not calls
        return self.rows.pop(done.id)

    def _answered(self) -> Iterator[Request]:
        called, self.called = self.called, []
        answers = self.talk.answer([calls for _, calls in called])
        for (row, calls), answer in zip(called, answers, strict=True):
            row.read(calls, answer)
            yield Request(np.concatenate([row.prompt, np.array(row.tokens, np.int32)]), (row.id,), row.left)


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
