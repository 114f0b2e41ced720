"""How a model's call of a tool is told from its other words, and how the result is put before it: between texts, or as turns of a chat."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from jaxllm.data.chat import Message, Template, WrongDialogue, encode_results
from jaxllm.rollouts.tools import ERROR, Call, Result, Tool, answered
from jaxllm.sampling.endings import Endings


class Answered(NamedTuple):
    """What calls brought.

    Attributes:
      tokens: int32 [n], which follow the model's own.
      results: as the model reads them.
      cut: how many of them had to be shortened.
    """

    tokens: np.ndarray
    results: list[Result]
    cut: int


class Talk(Protocol):
    """How a model and its tools talk.

    Attributes:
      tools: by name.
      most: tokens that the results of a turn may have, with all that stands around them.
    """

    tools: Mapping[str, Tool]
    most: int

    def keep(self, before: Sequence[int], tokens: Sequence[int]) -> int | None:
        """How many of the tokens of a turn it keeps, where it ends among them; None: it goes on. See `Endings.keep`."""
        ...

    def calls(self, before: Sequence[int], tokens: Sequence[int]) -> list[Call]:
        """What a turn that ended calls; nothing: it is the answer."""
        ...

    def text(self, before: Sequence[int], tokens: Sequence[int]) -> str:
        """What a turn says, without what ends it."""
        ...

    def answer(self, turns: Sequence[Sequence[Call]]) -> list[Answered]:
        """Asks the tools what turns call, all together."""
        ...


def asked(tools: Mapping[str, Tool], turns: Sequence[Sequence[Call]]) -> list[list[Result]]:
    """The results of each turn's calls, every tool asked once."""
    results = iter(answered(tools, [call for calls in turns for call in calls]))
    return [[next(results) for _ in calls] for calls in turns]


def shortened(results: Sequence[Result], encode: Callable[[Sequence[str]], np.ndarray], most: int) -> Answered:
    """Results as tokens: where they are too many, each text is cut to the largest number of characters with which they fit.

    Raises:
      ValueError: not even empty ones do.
    """

    def tokens(characters: int) -> np.ndarray:
        return encode([result.text[:characters] for result in results])

    low, high = 0, max(len(result.text) for result in results)
    found = tokens(high)
    if len(found) <= most:
        return Answered(found, list(results), 0)
    found = tokens(0)
    if len(found) > most:
        raise ValueError(
            f"rollout.max_tool_tokens={most}, and what stands around {len(results)} result(s) has {len(found)} alone. Raise it."
        )
    while low + 1 < high:  # `low` fits, `high` does not
        middle = (low + high) // 2
        tried = tokens(middle)
        low, high, found = (middle, high, tried) if len(tried) <= most else (low, middle, found)
    return Answered(found, [result._replace(text=result.text[:low]) for result in results], sum(len(r.text) > low for r in results))


class Between:
    """A call stands between two texts of its tool, and its result follows between two others: `<calculator>2+3</calculator>` and
    `<result>5</result>`.

    A turn ends behind its first whole call, or with the text that ends a completion. What stands in a call that is still open ends
    nothing, so that a program may have empty lines.

    Args:
      tools: by name.
      endings: of a completion.
      result: the texts around results.
      most: tokens of a result, with these texts.

    Raises:
      ValueError: texts that have more tokens than that, or a call that would end where it begins.
    """

    def __init__(self, tools: Mapping[str, Tool], endings: Endings, result: tuple[str, str], most: int):
        for tool in tools.values():
            if stop := next((stop for stop in endings.stop if stop in tool.open), None):
                raise ValueError(
                    f"rollout.tools: a call of {tool.name!r} begins with {tool.open!r}, and {stop!r} ends a completion, so none would ever"
                    " be whole. Give the tool another 'open', or set rollout.stop."
                )
        self.tools, self.most, self._endings, self._result = tools, most, endings, result
        shortened([Result(" ")], self._encoded, most)

    def keep(self, before: Sequence[int], tokens: Sequence[int]) -> int | None:
        """See `Talk.keep`."""
        if not self._ends(before, tokens):
            return None
        low, high = 1, len(tokens)  # the fewest tokens that end it
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if self._ends(before, tokens[:middle]) else (middle + 1, high)
        return high

    def calls(self, before: Sequence[int], tokens: Sequence[int]) -> list[Call]:
        """See `Talk.calls`."""
        found = self._first(self._endings.decoded(before, tokens))
        return [found] if isinstance(found, Call) else []

    def text(self, before: Sequence[int], tokens: Sequence[int]) -> str:
        """See `Talk.text`."""
        said = self._endings.decoded(before, tokens[:-1] if len(tokens) and tokens[-1] in self._endings.stop_ids else tokens)
        found = self._first(said)
        return said[:found] if isinstance(found, int) else said

    def answer(self, turns: Sequence[Sequence[Call]]) -> list[Answered]:
        """See `Talk.answer`."""
        return [shortened(results, self._encoded, self.most) for results in asked(self.tools, turns)]

    def _ends(self, before: Sequence[int], tokens: Sequence[int]) -> bool:
        return self._first(self._endings.decoded(before, tokens)) is not None

    def _first(self, text: str) -> Call | int | None:
        """What ends the turn: a whole call, or the place of a text that does; None: nothing."""
        stops = [(at, "") for stop in self._endings.stop if (at := text.find(stop)) >= 0]
        opens = [(at, name) for name, tool in self.tools.items() if (at := text.find(tool.open)) >= 0]
        if not stops and not opens:
            return None
        at, name = min(stops + opens, key=lambda one: (one[0], -len(self.tools[one[1]].open) if one[1] else -len(text)))
        if not name:
            return at
        start = at + len(self.tools[name].open)
        end = text.find(self.tools[name].close, start)
        return None if end < 0 else Call(name, text[start:end])

    def _encoded(self, texts: Sequence[str]) -> np.ndarray:
        opens, closes = self._result
        return self._endings.tokenizer.encode("".join(f"{opens}{text}{closes}" for text in texts))


_TAGGED = re.compile(r"<tool_call>(.*?)</tool_call>", re.DOTALL)


class Turns:
    """Calls and results are turns of a chat, as its template has them: `<tool_call>{"name": ..., "arguments": {...}}</tool_call>`, several
    if the model likes, or (Llama 3.1, plain) one such object at the end of an answer; the results follow as turns of role tool.

    Args:
      tools: by name.
      endings: of a turn.
      template: that has a form for tools.
      most: tokens of the results of a turn, with their headers and that of the next answer.

    Raises:
      ValueError: a template that has none, or headers that have more tokens than that.
    """

    def __init__(self, tools: Mapping[str, Tool], endings: Endings, template: Template, most: int):
        self.tools, self.most, self._endings, self._template = tools, most, endings, template
        name, tool = next(iter(tools.items()))
        self._calling = Message("assistant", "", tool_calls=({"name": name, "arguments": {tool.parameter: "..."}},))
        shortened([Result(" ")], self._encoder([Call(name)]), most)

    def keep(self, before: Sequence[int], tokens: Sequence[int]) -> int | None:
        """See `Talk.keep`."""
        return self._endings.keep(before, tokens) if self._endings.stop else None

    def calls(self, before: Sequence[int], tokens: Sequence[int]) -> list[Call]:
        """See `Talk.calls`."""
        text = self.text(before, tokens)
        tagged = _TAGGED.findall(text)
        if tagged:
            return [self._call(one) for one in tagged]
        last = text[text.rfind("\n{") + 1 :].strip()
        found = _object(last) if last.startswith("{") else None
        return [self._call(last)] if found is not None and "name" in found and {"arguments", "parameters"} & set(found) else []

    def text(self, before: Sequence[int], tokens: Sequence[int]) -> str:
        """See `Talk.text`."""
        return self._endings.text(before, tokens)

    def answer(self, turns: Sequence[Sequence[Call]]) -> list[Answered]:
        """See `Talk.answer`."""
        return [self._answer(calls, results) for calls, results in zip(turns, asked(self.tools, turns), strict=True)]

    def _answer(self, calls: Sequence[Call], results: Sequence[Result]) -> Answered:
        """What the model reads: the results, or what is wrong with showing them; a model may write calls without end."""
        unseen = [Result("error: the result cannot be shown", ERROR)] * len(results)
        for said in (results, unseen):
            try:
                return shortened(said, self._encoder(calls), self.most)
            except WrongDialogue:  # a text that this tokenizer would read as a special token
                continue
            except ValueError:  # headers alone have more tokens
                break
        many = Result(f"error: {len(calls)} calls at once are too many", ERROR)
        return shortened([many], self._encoder([Call("")]), self.most)._replace(results=[many] * len(calls))

    def _call(self, text: str) -> Call:
        found = _object(text)
        if found is None or not isinstance(found.get("name"), str):
            return Call("", problem="a call is a JSON object with a name and arguments")
        tool = self.tools.get(found["name"])
        if tool is None:
            return Call("", problem=f"no tool of this name; there are {', '.join(self.tools)}")
        arguments = found.get("arguments", found.get("parameters"))
        said = arguments.get(tool.parameter) if isinstance(arguments, dict) else None
        if not isinstance(said, str | int | float):
            return Call(tool.name, problem=f"{tool.name} needs {tool.parameter}")
        return Call(tool.name, str(said))

    def _encoder(self, calls: Sequence[Call]) -> Callable[[Sequence[str]], np.ndarray]:
        names = [call.tool or next(iter(self.tools)) for call in calls]

        def encode(texts: Sequence[str]) -> np.ndarray:
            said = [Message("tool", text, name) for text, name in zip(texts, names, strict=True)]
            return encode_results(self._calling, said, self._template, self._endings.tokenizer)

        return encode


def _object(text: str) -> dict[str, Any] | None:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None
