"""The stock templates: how the models people start from are spoken to, each as published, in a table by name."""

import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from jaxllm.data.chat import ASSISTANT, BOS, EOS, Dialogue, Message, Part, Template, WrongDialogue


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
        parts += _turn(i, name, _with_calls(message.words, message.tool_calls))
    return [*parts, Part(START, token=True), Part("assistant\n")] if asks else parts


def _turn(i: int, name: str, said: str, given: str = "") -> list[Part]:
    """One turn of ChatML; `given` is what the template begins it with."""
    parts = [Part(START, i, token=True), Part(f"{name}\n{given}", i), Part(said, i, said=True)]
    return [*parts, Part(END, i, said=True, token=True), Part("\n", i)]


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
    return "\n".join([*([content] if content or not calls else []), *tagged])


def _qwen2(dialogue: Dialogue, trained: Sequence[int], asks: bool) -> list[Part]:
    """Qwen 2.5: ChatML with a system turn of its own where none is given; results of tools are turns of the user's."""
    return _qwen(dialogue, asks, "You are Qwen, created by Alibaba Cloud. You are a helpful assistant.", _qwen2_answer, "")


def _qwen2_answer(message: Message, i: int, last: bool) -> tuple[str, str]:
    return "", _with_calls(message.words, message.tool_calls)


EMPTY_THOUGHT = "<think>\n\n</think>\n\n"


def _qwen3(dialogue: Dialogue, trained: Sequence[int], asks: bool, *, header: str) -> list[Part]:
    """Qwen 3: thoughts before the answer, left out of every answer that a question of the user's has followed."""
    query = max((i for i, m in enumerate(dialogue.messages) if _asks(m)), default=len(dialogue.messages))
    return _qwen(dialogue, asks, "", partial(_qwen3_answer, query=query), header)


def _asks(message: Message) -> bool:
    wrapped = message.words.startswith("<tool_response>") and message.words.endswith("</tool_response>")
    return message.role == "user" and not wrapped


def _qwen3_answer(message: Message, i: int, last: bool, query: int) -> tuple[str, str]:
    """What of an answer the template supplies (the empty thought), and what the model writes."""
    thought, content = message.reasoning, message.words
    if not thought and "</think>" in content:
        thought = content.split("</think>")[0].rstrip("\n").split("<think>")[-1].lstrip("\n")
        content = content.split("</think>")[-1].lstrip("\n")
    thinks = i > query and (last or thought)
    said = _with_calls(content.lstrip("\n") if thinks else content, message.tool_calls)
    if thinks and thought:
        return "", "<think>\n" + thought.strip("\n") + "\n</think>\n\n" + said
    return EMPTY_THOUGHT if thinks else "", said


def _qwen(dialogue: Dialogue, asks: bool, system: str, answer: Callable[[Message, int, bool], tuple[str, str]], header: str) -> list[Part]:
    messages = _with_tools(dialogue, system)
    parts, count = [], len(dialogue.messages)
    for i, message in enumerate(messages, count - len(messages)):
        if message.role == "tool":
            parts += _result(dialogue.messages, i)
        elif message.role == ASSISTANT:
            given, said = answer(message, i, i == count - 1)
            parts += _turn(i, ASSISTANT, said, given)
        else:
            parts += _turn(i, message.role, message.words)
    return [*parts, Part(START, token=True), Part(f"assistant\n{header}")] if asks else parts


def _result(messages: Sequence[Message], i: int) -> list[Part]:
    """What a tool gave; results in a row share one turn."""
    opens = i == 0 or messages[i - 1].role != "tool"
    closes = i + 1 == len(messages) or messages[i + 1].role != "tool"
    head = [Part(START, i, token=True), Part("user", i)] if opens else []
    tail = [Part(END, i, token=True), Part("\n", i)] if closes else []
    return [*head, Part("\n<tool_response>\n", i), Part(messages[i].words, i, said=True), Part("\n</tool_response>", i), *tail]


def _llama2(dialogue: Dialogue, trained: Sequence[int], asks: bool) -> list[Part]:
    """Llama 2: each question in [INST], the system's words in the first; a text of its own for every exchange."""
    parts = []
    for i, message, system in _exchanges(dialogue):
        if message.role == "user":
            said = f"<<SYS>>\n{system}\n<</SYS>>\n\n{message.words}" if system is not None else message.words
            parts += [Part(BOS, i, token=True), Part("[INST]", i, token=True), Part(" ", i)]
            parts += [Part(said.strip(), i, said=True), Part(" ", i), Part("[/INST]", i, token=True)]
        else:
            parts += [Part(f" {message.words.strip()} ", i, said=True), Part(EOS, i, said=True, token=True)]
    return parts


def _mistral(dialogue: Dialogue, trained: Sequence[int], asks: bool) -> list[Part]:
    """Mistral 7B Instruct v0.1 and v0.2: each question in [INST], the system's words in the first, one text."""
    parts = [Part(BOS, token=True)]
    for i, message, system in _exchanges(dialogue):
        if message.role == "user":
            said = f"{system}\n\n{message.words}" if system is not None else message.words
            parts += [Part(" ", i), Part("[INST]", i, token=True), Part(" ", i)]
            parts += [Part(said, i, said=True), Part(" ", i), Part("[/INST]", i, token=True)]
        else:
            parts += [Part(f" {message.words}", i, said=True), Part(EOS, i, said=True, token=True)]
    return parts


def _gemma(dialogue: Dialogue, trained: Sequence[int], asks: bool) -> list[Part]:
    """Gemma 2 and 3: user and model take turns; the system's words (which Gemma 2 has no place for) stand before the first question."""
    start, end = GEMMA
    parts = [Part(BOS, token=True)]
    for i, message, system in _exchanges(dialogue):
        before = "" if system is None else f"{system}\n\n"
        role = "user" if message.role == "user" else "model"
        parts += [Part(start, i, token=True), Part(f"{role}\n", i), Part(before + message.words.strip(), i, said=True)]
        parts += [Part(end, i, said=True, token=True), Part("\n", i)]
    return [*parts, Part(start, token=True), Part("model\n")] if asks else parts


def _exchanges(dialogue: Dialogue) -> Iterator[tuple[int, Message, str | None]]:
    """The messages but the system's, whose words come with the first."""
    system: str | None = None
    for i, message in enumerate(dialogue.messages):
        if message.role == "system":
            system = message.words
        else:
            yield i, message, system
            system = None


def _llama3(dialogue: Dialogue, trained: Sequence[int], asks: bool) -> list[Part]:
    """Llama 3: every turn headed by who speaks, between two special tokens."""
    parts = [Part(BOS, token=True)]
    for i, message in enumerate(dialogue.messages):
        parts += _headed(i, message.role, message.words.strip())
    return parts + _headed(-1, ASSISTANT, None) if asks else parts


def _headed(i: int, role: str, said: str | None) -> list[Part]:
    start, stop, end = LLAMA3
    parts = [Part(start, i, token=True), Part(role, i), Part(stop, i, token=True), Part("\n\n", i)]
    return parts if said is None else [*parts, Part(said, i, said=True), Part(end, i, said=True, token=True)]


DATES = "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n"  # what the template says where it is not told the day
CALL_ME = """Given the following functions, please respond with a JSON for a function call with its proper arguments \
that best answers the given prompt.

Respond in the format {"name": function name, "parameters": dictionary of argument name and its value}.Do not use variables.

"""


def _llama31(dialogue: Dialogue, trained: Sequence[int], asks: bool) -> list[Part]:
    """Llama 3.1: always a system turn, with its dates; the tools in the first question; one call at a time; results as JSON texts."""
    messages = list(dialogue.messages)
    if not messages or messages[0].role != "system":
        messages.insert(0, Message("system", ""))
    offset, tools = len(dialogue.messages) - len(messages), dialogue.tools
    first = next((i for i, message in enumerate(messages) if message.role == "user"), -1)
    parts = [Part(BOS, token=True)]
    for i, message in enumerate(messages):
        role, said = message.role, message.words.strip()
        if message.role == "system" and i == 0:
            said = ("Environment: ipython\n" if tools else "") + DATES + said
        elif tools and i == first:
            said = CALL_ME + "".join(as_json(tool, indent=4) + "\n\n" for tool in tools) + said
        elif message.role == "tool":
            role, said = "ipython", as_json(message.words)
        elif message.tool_calls:
            said = _one_call(dialogue, message, i + offset)
        parts += _headed(i + offset, role, said)
    return parts + _headed(-1, ASSISTANT, None) if asks else parts


def _one_call(dialogue: Dialogue, message: Message, i: int) -> str:
    if len(message.tool_calls) > 1 or message.content.strip():
        problem = f"has a message {i + 1} with {len(message.tool_calls)} calls and {len(message.content)} characters beside them"
        raise WrongDialogue(dialogue, f"{problem}: template 'llama3.1' has a form for one call alone")
    (call,) = message.tool_calls
    return as_json({"name": call["name"], "parameters": call["arguments"]})


def _zephyr(dialogue: Dialogue, trained: Sequence[int], asks: bool) -> list[Part]:
    """Zephyr: <|role|>, a line end, the words, the end token."""
    parts = []
    for i, message in enumerate(dialogue.messages):
        parts += [Part(f"<|{message.role}|>", i, token=True), Part("\n", i), Part(message.words, i, said=True)]
        parts += [Part(EOS, i, said=True, token=True), Part("\n", i)]
    return [*parts, Part("<|assistant|>", token=True), Part("\n")] if asks else parts


def _alpaca(dialogue: Dialogue, trained: Sequence[int], asks: bool) -> list[Part]:
    """Stanford Alpaca: an instruction, perhaps with an input, and the response."""
    parts = [Part(BOS, token=True)]
    for i, message in enumerate(dialogue.messages):
        if message.role == ASSISTANT:
            parts += [Part(message.words, i, said=True), Part(EOS, i, said=True, token=True)]
            continue
        beside = ", paired with an input that provides further context" if message.input else ""
        parts.append(Part(f"Below is an instruction that describes a task{beside}. Write a response that appropriately completes the", i))
        parts += [Part(" request.\n\n### Instruction:\n", i), Part(message.content, i, said=True)]
        parts += [Part("\n\n### Input:\n", i), Part(message.input, i, said=True)] if message.input else []
        parts.append(Part("\n\n### Response:", i))
    return parts


def _bare(dialogue: Dialogue, trained: Sequence[int], asks: bool) -> list[Part]:
    """A prompt and its completion as they are, for data that brings its own layout; a space between them where neither brings one."""
    parts, before = [Part(BOS, token=True)], ""
    for i, message in enumerate(dialogue.messages):
        apart = _answers(message) and before.rstrip() == before != "" and message.words.lstrip() == message.words
        parts += [Part(" " * apart + message.words, i, said=True)] + [Part(EOS, i, said=True, token=True)] * _answers(message)
        before = message.words
    return parts


GEMMA = ("<start_of_turn>", "<end_of_turn>")
LLAMA3 = ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
ALTERNATING = {"": ("system", "user"), "system": ("user",), "user": (ASSISTANT,), ASSISTANT: ("user",)}
SINGLE = {"": ("user",), "user": (ASSISTANT,)}
PLAIN = Template("plain", partial(_lines, end=Part(EOS, said=True, token=True)), names=True, tools=True)
CHATML = Template("chatml", _chatml, END, (START, END), names=True, tools=True)
QWEN3 = Template("qwen3", partial(_qwen3, header=""), END, (START, END), tools=True, rewrites=True)

TEMPLATES: dict[str, Template] = {
    "plain": PLAIN,
    "transcript": dataclasses.replace(PLAIN, name="transcript", render=partial(_lines, end=Part("\n", said=True)), end="\n"),
    "bare": Template("bare", _bare, follows=SINGLE),
    "alpaca": Template("alpaca", _alpaca, follows=SINGLE),
    "chatml": CHATML,
    "qwen2.5": Template("qwen2.5", _qwen2, END, (START, END), tools=True),
    "qwen3": QWEN3,
    "qwen3-direct": dataclasses.replace(QWEN3, name="qwen3-direct", render=partial(_qwen3, header=EMPTY_THOUGHT)),  # asked not to think
    "llama2": Template("llama2", _llama2, markers=("[INST]", "[/INST]"), follows=ALTERNATING),
    "llama3": Template("llama3", _llama3, LLAMA3[-1], LLAMA3),
    "llama3.1": Template("llama3.1", _llama31, LLAMA3[-1], LLAMA3, tools=True),
    "mistral": Template("mistral", _mistral, markers=("[INST]", "[/INST]"), follows=ALTERNATING),
    "gemma": Template("gemma", _gemma, GEMMA[-1], GEMMA, follows=ALTERNATING),
    "zephyr": Template("zephyr", _zephyr, markers=("<|system|>", "<|user|>", "<|assistant|>")),
}
