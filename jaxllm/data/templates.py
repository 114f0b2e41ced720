"""The stock templates: how the models people start from are spoken to, each as published, in a table by name."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from jaxllm.data.chat import ASSISTANT, BOS, EOS, Dialogue, Message, Part, Template

ALTERNATING = {"": ("system", "user"), "system": ("user",), "user": (ASSISTANT,), ASSISTANT: ("user",)}


def as_json(value: Any, **how: Any) -> str:
    """JSON as templates write it: characters as they are."""
    return json.dumps(value, ensure_ascii=False, **how)


def template_named(name: str) -> Template:
    """A stock template.

    Raises:
      ValueError: there is none of that name.
    """
    if name not in TEMPLATES:
        raise ValueError(f"Unknown template {name!r}. Choose one of: {', '.join(TEMPLATES)}; or give a tokenizer's own, in Jinja.")
    return TEMPLATES[name]


def _lines(dialogue: Dialogue, trained: Sequence[int], asks: bool, *, end: Part) -> list[Part]:
    """`User: ...`, `Assistant: ...`: a turn a line, in plain text; the answer begins with the space before it."""
    parts = [Part(BOS, token=True)]
    if dialogue.tools:
        parts.append(Part(f"Tools: {as_json(dialogue.tools)}\n"))
    for i, message in enumerate(dialogue.messages):
        said = "\n".join(filter(None, [message.words, *map(as_json, message.tool_calls)]))
        header = Part(f"{_speaker(message)}:", i)
        parts += [header, Part(f" {said}", i, said=True), end._replace(turn=i) if _answers(message) else Part("\n", i, said=True)]
        if _answers(message) and end.token:
            parts.append(Part("\n", i))
    return [*parts, Part("Assistant:")] if asks else parts


def _speaker(message: Message) -> str:
    """Who speaks: the role, or the participant's own name."""
    if message.name and message.role != "tool":
        return message.name
    return message.role.capitalize() if message.role.islower() else message.role


def _answers(message: Message) -> bool:
    return message.role == ASSISTANT


START, END = "<|im_start|>", "<|im_end|>"


def _chatml(dialogue: Dialogue, trained: Sequence[int], asks: bool) -> list[Part]:
    """ChatML: every turn between two special tokens, headed by who speaks; tools as Hermes and Qwen list them."""
    messages = _with_tools(dialogue)
    parts = []
    for i, message in enumerate(messages, len(dialogue.messages) - len(messages)):
        name = message.name if message.name and message.role != "tool" else message.role
        parts += _turn(i, name, "\n" + _with_calls(message.words, message.tool_calls))
    return [*parts, Part(START, token=True), Part("assistant\n")] if asks else parts


def _turn(i: int, name: str, said: str) -> list[Part]:
    """One turn of ChatML; what follows the name begins with the end of its line, which is still header."""
    header = Part(f"{name}\n", i)
    return [
        Part(START, i, token=True),
        header,
        Part(said.removeprefix("\n"), i, said=True),
        Part(END, i, said=True, token=True),
        Part("\n", i),
    ]


TOOLS = """# Tools

You may call one or more functions to assist with the user query.

You are provided with function signatures within <tools></tools> XML tags:
<tools>{signatures}
</tools>

For each function call, return a json object with function name and arguments within <tool_call></tool_call> XML tags:
<tool_call>
{{"name": <function-name>, "arguments": <args-json-object>}}
</tool_call>"""


def _with_tools(dialogue: Dialogue, default: str = "") -> list[Message]:
    """The messages, the tools in the first one's text, which is the system's; where it has none, one before message 0."""
    messages = list(dialogue.messages)
    if not dialogue.tools and not default:
        return messages
    first = messages[0] if messages and messages[0].role == "system" else None
    text = default if first is None else first.words
    if dialogue.tools:
        listed = TOOLS.format(signatures="".join("\n" + as_json(tool) for tool in dialogue.tools))
        text = f"{text}\n\n{listed}" if text else listed
    rest = messages if first is None else messages[1:]
    return [(first or Message("system", ""))._replace(content=text, input=""), *rest]


def _with_calls(content: str, calls: Sequence[Mapping[str, Any]]) -> str:
    """What an assistant says and calls, each call in a pair of tags."""
    tagged = [f"<tool_call>\n{as_json({'name': c['name'], 'arguments': c['arguments']})}\n</tool_call>" for c in calls]
    return "\n".join(filter(None, [content, *tagged])) if calls else content


PLAIN = Template(
    "plain",
    partial(_lines, end=Part(EOS, said=True, token=True)),
    names=True,
    tools=True,
)

TEMPLATES: dict[str, Template] = {
    "plain": PLAIN,
    "transcript": dataclasses.replace(PLAIN, name="transcript", render=partial(_lines, end=Part("\n", said=True)), end="\n"),
    "chatml": Template("chatml", _chatml, END, (START, END), names=True, tools=True),
}
