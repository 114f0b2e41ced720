"""What a dialogue is, what a template is, and which dialogues a template can say."""

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

BOS, EOS = "{bos}", "{eos}"  # the tokenizer's own tokens, whatever they are called; no bos: nothing is put there
ASSISTANT = "assistant"
SAME = 4  # fields of a message that make it another: role, content, name, tool calls
LOSSES = ("assistant", "last", "all")


class WrongDialogue(ValueError):
    """A row that cannot be trained on: where it is, and what is wrong with it."""

    def __init__(self, dialogue: "Dialogue", problem: str):
        problem = problem.encode("utf-8", "backslashreplace").decode()  # it may quote what no terminal can print
        super().__init__(f"{dialogue.where or 'This conversation'} {problem}.")
        self.where, self.problem = dialogue.where, problem


class Message(NamedTuple):
    """One turn.

    Attributes:
      role: system, user, assistant or tool; or, in templates that know participants by name, any other.
      content: what is said.
      name: of the participant, where it is another than the role.
      tool_calls: what an assistant calls, each {"name": ..., "arguments": {...}}.
      weight: of its tokens as targets; None: as the loss rule says; 0: not trained on.
      input: what an instruction is applied to (Alpaca's input).
      reasoning: what an assistant thinks before it speaks.
    """

    role: str
    content: str
    name: str | None = None
    tool_calls: tuple[Mapping[str, Any], ...] = ()
    weight: float | None = None
    input: str = ""
    reasoning: str = ""

    @property
    def words(self) -> str:
        """The content, and below it the input, for templates that have no place of its own for that."""
        return f"{self.content}\n\n{self.input}" if self.input else self.content


class Dialogue(NamedTuple):
    """Messages in their order, the tools (JSON schemas) that may be called, and `file:line` for errors."""

    messages: tuple[Message, ...]
    tools: tuple[Mapping[str, Any], ...] = ()
    where: str = ""


class Part(NamedTuple):
    """A piece of a rendering.

    Attributes:
      text: as text; or, where `token`, the name of a special token (or BOS, EOS).
      turn: the message it belongs to; -1: none.
      said: whether its speaker must write it: the words and the end token, not the header.
      token: whether it is a special token.
    """

    text: str
    turn: int = -1
    said: bool = False
    token: bool = False


Render = Callable[[Dialogue, Sequence[int], bool], list[Part]]


@dataclasses.dataclass(frozen=True)
class Template:
    """How a model is spoken to.

    Attributes:
      name: for errors.
      render: (dialogue, which messages are trained on, whether an assistant's header follows) -> its parts.
      end: the special token that ends an assistant's turn (a stop token when sampling), or the text where it is none.
      tokens: names of the special tokens that the vocabulary must have.
      markers: names that are special tokens in some vocabularies and plain text in others.
      follows: role -> roles that may come after it ("": first); None: any order.
      names: whether participants of any name may speak.
      tools: whether it has a form for tool calls and results.
      thoughts: whether it has a form for an assistant's reasoning.
      rewrites: whether an assistant's turn looks otherwise once another follows, so that only the last one can be trained on.
    """

    name: str
    render: Render
    end: str = EOS
    tokens: tuple[str, ...] = ()
    markers: tuple[str, ...] = ()
    follows: Mapping[str, tuple[str, ...]] | None = None
    names: bool = False
    tools: bool = False
    thoughts: bool = False
    rewrites: bool = False


def message_weights(dialogue: Dialogue, loss: str = ASSISTANT) -> list[float]:
    """The weight of each message's words: its own, or what the loss rule says.

    Args:
      dialogue: whose messages.
      loss: "assistant": the assistants' turns; "last": the last of them; "all": every message's words.

    Raises:
      ValueError: an unknown rule.
    """
    if loss not in LOSSES:
        raise ValueError(f"Unknown loss rule {loss!r}. Choose one of: {', '.join(LOSSES)}.")
    spoken = [i for i, message in enumerate(dialogue.messages) if message.role == ASSISTANT]
    learnt = {"assistant": spoken, "last": spoken[-1:], "all": range(len(dialogue.messages))}[loss]
    return [float(i in learnt) if message.weight is None else float(message.weight) for i, message in enumerate(dialogue.messages)]


def check(dialogue: Dialogue, template: Template, weights: Sequence[float]) -> None:
    """Refuses a dialogue that a template cannot say, or that nothing can be learnt from.

    Raises:
      WrongDialogue: names the message and what is wrong.
    """
    before = ""
    for i, message in enumerate(dialogue.messages):
        problem = _trouble(dialogue, template, i, before)
        if problem:
            raise WrongDialogue(dialogue, f"has a message {i + 1} ({message.role}) {problem}")
        before = message.role
    if dialogue.tools and not template.tools:
        raise WrongDialogue(dialogue, f"offers tools, which template {template.name!r} has no form for")
    trained = [i for i, weight in enumerate(weights) if weight]
    if not trained:
        raise WrongDialogue(dialogue, f"would train on nothing: roles are {', '.join(m.role for m in dialogue.messages) or 'none'}")
    for i in trained:
        if not (dialogue.messages[i].words.strip() or dialogue.messages[i].tool_calls):
            raise WrongDialogue(dialogue, f"has an empty message {i + 1} ({dialogue.messages[i].role}), which would be trained on")
    if template.rewrites and [i for i, m in enumerate(dialogue.messages) if m.role == ASSISTANT and i > trained[0]]:
        raise WrongDialogue(
            dialogue,
            f"trains on message {trained[0] + 1}, which template {template.name!r} writes otherwise once another answer follows:"
            " take the loss 'last', or a row for each answer",
        )


def _trouble(dialogue: Dialogue, template: Template, i: int, before: str) -> str | None:
    """What is wrong with a message after one of the role `before`."""
    message = dialogue.messages[i]
    known = ("system", "user", ASSISTANT, "tool")
    if message.role not in known and not template.names:
        return f"of an unknown role: template {template.name!r} knows {', '.join(known[: 3 + template.tools])}"
    if message.name and message.role != "tool" and not template.names:
        return f"of {message.name!r}, and template {template.name!r} knows no participants by name"
    if (message.tool_calls or message.role == "tool") and not template.tools:
        return f"of a tool, which template {template.name!r} has no form for"
    if message.reasoning and not (template.thoughts and message.role == ASSISTANT):
        whose = "" if message.role == ASSISTANT else " in this role"
        return f"with reasoning, which template {template.name!r} has no form for{whose}: take one that has (qwen3), or leave it out"
    if template.follows is not None and message.role not in (allowed := template.follows.get(before, ())):
        place = f"after {before}" if before else "at the beginning"
        return f"where template {template.name!r} allows {' or '.join(allowed) or 'nothing'}: {place}"
    if i and message[:SAME] == dialogue.messages[i - 1][:SAME]:
        return f"that repeats message {i}"
    if message.weight is not None and not 0 <= message.weight < float("inf"):
        return f"of weight {message.weight}: give 0 or more"
    return None


def each_answer(dialogue: Dialogue) -> list[Dialogue]:
    """A dialogue for every answer in it that may be trained on, cut off behind it, that answer alone trained on.

    What templates that rewrite earlier turns need.
    """
    before = tuple(message._replace(weight=0.0) for message in dialogue.messages)
    ends = [i for i, message in enumerate(dialogue.messages) if message.role == ASSISTANT and message.weight != 0]
    return [dialogue._replace(messages=(*before[:i], dialogue.messages[i])) for i in ends]


def as_json(value: Any, **how: Any) -> str:
    """JSON as templates write it: characters as they are."""
    return json.dumps(value, ensure_ascii=False, **how)
