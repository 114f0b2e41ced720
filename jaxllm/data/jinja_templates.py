"""A tokenizer's own chat template, in Jinja: rendered in a sandbox, its assistants' words found by rendering the turns before them."""

import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jinja2
from jinja2.ext import Extension
from jinja2.sandbox import ImmutableSandboxedEnvironment

from jaxllm.data.dialogues import ASSISTANT, EOS, Dialogue, Message, Part, Template, WrongDialogue, as_json
from jaxllm.data.tokenizer_kinds import Tokenizer

BREAK = "\ue0f2"  # put into names of special tokens that a message spells: they are ordinary text


class _Generation(Extension):
    """`{% generation %} ... {% endgeneration %}`, which some templates put round what an assistant says: what is inside, as it is."""

    tags = {"generation"}  # noqa: RUF012  (jinja2's own protocol)

    def parse(self, parser: Any) -> Any:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _refuse(message: str) -> None:
    raise jinja2.TemplateError(message)


def _to_json(value: Any, indent: int | None = None, **how: Any) -> str:
    return as_json(value, indent=indent, **how)


def _compiled(text: str) -> jinja2.Template:
    """The template, as transformers compiles one; a template that asks for today's date does not get it: rows must not change overnight."""
    extensions: list[Any] = ["jinja2.ext.loopcontrols", _Generation]
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=extensions)
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _refuse
    try:
        return environment.from_string(text)
    except (jinja2.TemplateError, RecursionError) as error:
        raise ValueError(f"The chat template is no Jinja template: {error}. Choose a stock template, 'chatml' say.") from None


def jinja_template(text: str, tokenizer: Tokenizer, name: str = "its own") -> Template:
    """A template out of a tokenizer's Jinja.

    Where the assistants' words are is found by rendering: the words of turn i are what render(messages up to i) adds to render(messages
    before i, with the assistant's header). Each must begin as the one before; a template that rewrites earlier turns is refused for rows
    that train on such a turn. White space behind a turn's end token is the template's. A dialogue is refused with tools or calls, or a
    thought that it trains on, that do not show.

    Args:
      text: the template.
      tokenizer: whose special tokens it names.
      name: what it is called in errors.

    Raises:
      ValueError: it is no Jinja.
    """
    compiled, names = _compiled(text), tuple(tokenizer.special_tokens())
    spelled = {"bos_token": tokenizer.token_name(tokenizer.bos_id), "eos_token": tokenizer.token_name(tokenizer.eos_id)}
    cut = re.compile("|".join(map(re.escape, sorted(names, key=len, reverse=True))) or r"(?!)")

    def render(dialogue: Dialogue, trained: Sequence[int], asks: bool) -> list[Part]:
        said = _Rendered(compiled, spelled, dialogue, cut, name)
        return said.parts(trained, asks)

    return Template(name, render, end=EOS, markers=names, names=True, tools=True, thoughts=True)


def as_dict(message: Message, guard: Callable[[str], str] = str) -> dict[str, Any]:
    """A message as templates know it."""
    found: dict[str, Any] = {"role": message.role, "content": guard(message.words)}
    if message.name:
        found["name"] = guard(message.name)
    if message.reasoning:
        found["reasoning_content"] = guard(message.reasoning)
    if message.tool_calls:
        said = [_texts(call, guard) for call in message.tool_calls]
        calls = [{k: v for k, v in call.items() if k in ("name", "arguments")} for call in said]
        ids = [{"id": call["id"]} if call.get("id") else {} for call in said]
        found["tool_calls"] = [{**id, "type": "function", "function": call} for id, call in zip(ids, calls, strict=True)]
    return found


def _texts(said: Any, change: Callable[[str], str]) -> Any:
    """What is made of JSON, with every text and name in it changed."""
    if isinstance(said, Mapping):
        return {change(name): _texts(part, change) for name, part in said.items()}
    if isinstance(said, list | tuple):
        return [_texts(part, change) for part in said]
    return change(said) if isinstance(said, str) else said


class _Marks:
    """Words that nobody says, in the places of others, to see whether a template shows what is in these places."""

    def __init__(self) -> None:
        self.placed: list[tuple[str, str]] = []  # each with what is wrong where it does not show

    def place(self, problem: str) -> str:
        self.placed.append((f"qzx{len(self.placed)}xzq", problem))
        return self.placed[-1][0]

    def values(self, said: Any, problem: str) -> Any:
        """Arguments, a mark for each value."""
        if isinstance(said, Mapping):
            return {name: self.values(part, problem) for name, part in said.items()}
        if isinstance(said, list | tuple):
            return [self.values(part, problem) for part in said]
        return self.place(problem)

    def calling(self, i: int, message: Mapping[str, Any]) -> dict[str, Any]:
        """A message, a mark for the name and each argument of each call."""
        calls, problem = [], f"has a message {i + 1} ({message['role']}) with"
        for call in message.get("tool_calls", ()):
            name, arguments = call["function"]["name"], call["function"]["arguments"]
            function = {
                "name": self.place(f"{problem} a tool call, {name!r},"),
                "arguments": self.values(arguments, f"{problem} an argument of the call {name!r},"),
            }
            calls.append(call | {"function": function})
        return {**message, **({"tool_calls": calls} if calls else {})}

    def tool(self, tool: Mapping[str, Any]) -> dict[str, Any]:
        """A tool, a mark for its name."""
        own = tool.get("function")
        if isinstance(own, Mapping):
            return {**tool, "function": {**own, "name": self.place(f"offers a tool, {own.get('name')!r},")}}
        return {**tool, "name": self.place(f"offers a tool, {tool.get('name')!r},")}


class _Rendered:
    """A dialogue under a template."""

    def __init__(self, template: jinja2.Template, spelled: Mapping[str, str], dialogue: Dialogue, cut: re.Pattern, name: str):
        self.template, self.spelled, self.dialogue, self.cut, self.name = template, spelled, dialogue, cut, name
        self.messages = [as_dict(message, self._guard) for message in dialogue.messages]
        self.tools = _texts(dialogue.tools, self._guard)

    def _guard(self, text: str) -> str:
        return self.cut.sub(lambda found: found[0][0] + BREAK + found[0][1:], text)

    def text(self, count: int, asks: bool = False, **more: Any) -> str:
        said = {"messages": self.messages[:count], "tools": self.tools or None, "add_generation_prompt": asks, **more}
        try:
            return self.template.render(documents=None, **self.spelled, **said)
        except Exception as error:  # it is somebody else's program
            raise WrongDialogue(self.dialogue, f"is refused by the chat template {self.name!r}: {error}") from None

    def parts(self, trained: Sequence[int], asks: bool) -> list[Part]:
        self._check_shown()
        whole = self.text(len(self.messages), asks)
        edges = {i: self._span(i, whole) for i in trained}
        turns = self._turns(whole)
        found, at = [], 0
        for piece, token in self._pieces(whole):
            cuts = sorted(
                {at, at + len(piece), *(c for span in (*edges.values(), *turns.values()) for c in span if at < c < at + len(piece))}
            )
            for first, stop in itertools.pairwise(cuts):
                said = next((i for i, (begin, end) in edges.items() if begin <= first and stop <= end), None)
                turn = next((i for i, (begin, end) in turns.items() if begin <= first and stop <= end), -1)
                text = whole[first:stop] if token else whole[first:stop].replace(BREAK, "")
                found.append(Part(text, turn if said is None else said, said is not None, token))
            at += len(piece)
        return found

    def _check_shown(self) -> None:
        """Refuses a dialogue whose calls and tools the template leaves out: what it trains on, or asks of, would be another one."""
        marks = _Marks()
        messages = [marks.calling(i, message) for i, message in enumerate(self.messages)]
        tools = [marks.tool(tool) for tool in self.tools]
        if marks.placed:
            text = self.text(len(messages), messages=messages, tools=tools or None)
            for mark, problem in marks.placed:
                if mark not in text:
                    raise WrongDialogue(self.dialogue, f"{problem} which the chat template {self.name!r} does not show")

    def _pieces(self, whole: str) -> list[tuple[str, bool]]:
        """The text, cut at special tokens; which pieces are such."""
        found, at = [], 0
        for match in self.cut.finditer(whole):
            found += [(whole[at : match.start()], False), (match[0], True)]
            at = match.end()
        return [(piece, token) for piece, token in [*found, (whole[at:], False)] if piece]

    def _turns(self, whole: str) -> dict[int, tuple[int, int]]:
        """Where each message lies, as far as rendering without the later ones tells."""
        found, before = {}, 0
        for i in range(len(self.messages)):
            try:
                until = self.text(i + 1)
            except WrongDialogue:  # not every beginning of a dialogue is one
                until = ""
            until = self._beginning(until, whole)
            same = len(until) > max(before, 0)
            if same and before >= 0:
                found[i] = (before, len(until))
            before = len(until) if same else -1
        return found

    def _beginning(self, text: str, whole: str) -> str:
        """A text, if the whole begins with it; some templates (Phi 3) end every rendering with the end token. Else nothing."""
        tries = (text, text.removesuffix(self.spelled["eos_token"]))
        return next((one for one in tries if whole.startswith(one)), "")

    def _span(self, i: int, whole: str) -> tuple[int, int]:
        """Where the words of a message lie that is trained on.

        Raises:
          WrongDialogue: it cannot be told.
        """
        until = whole if i == len(self.messages) - 1 else self._beginning(self.text(i + 1), whole)
        if not until:
            raise self._rewritten(i)
        answers = self.dialogue.messages[i].role == ASSISTANT
        begin = self._answer_begins(i, until) if answers else self._words_begin(i, until)
        if answers and self.messages[i]["content"].split("</think>")[-1].strip() not in until[begin:]:
            raise self._hidden(i)  # a template for messages of several parts, say
        if answers and self.messages[i].get("reasoning_content", "").strip() not in until[begin:]:
            raise self._hidden(i, "reasoning")
        tokens = [match for match in self.cut.finditer(until) if match.start() >= begin]
        ends = len(until) if not tokens or until[tokens[-1].end() :].strip() else tokens[-1].end()
        return begin, ends

    def _answer_begins(self, i: int, until: str) -> int:
        quiet = {} if self.dialogue.messages[i].reasoning or "</think>" in self.messages[i]["content"] else {"enable_thinking": False}
        heads = [self.text(i, True), *([self.text(i, True, **quiet)] if quiet else [])]  # the empty thought is the template's
        fitting = [len(head) for head in heads if until.startswith(head)]
        if not fitting:
            raise self._rewritten(i)
        return max(fitting)

    def _words_begin(self, i: int, until: str) -> int:
        words = self.messages[i]["content"]
        begin = until.rfind(words if words in until else words.strip())
        if begin < 0:
            raise self._hidden(i)
        return begin

    def _hidden(self, i: int, what: str = "words") -> WrongDialogue:
        return WrongDialogue(self.dialogue, f"trains on message {i + 1}, whose {what} the chat template {self.name!r} does not show")

    def _rewritten(self, i: int) -> WrongDialogue:
        problem = f"trains on message {i + 1}, which the chat template {self.name!r} writes otherwise once another follows"
        return WrongDialogue(self.dialogue, f"{problem}: take the loss 'last', or a row for each answer")
