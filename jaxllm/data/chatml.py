"""ChatML and the templates of Qwen, which are ChatML with more: a system turn of their own, tools, thoughts."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from jaxllm.data.dialogues import ASSISTANT, Dialogue, Message, Part, as_json

START, END = "<|im_start|>", "<|im_end|>"


def chatml(dialogue: Dialogue, trained: Sequence[int], asks: bool) -> list[Part]:
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


def qwen2(dialogue: Dialogue, trained: Sequence[int], asks: bool) -> list[Part]:
    """Qwen 2.5: ChatML with a system turn of its own where none is given; results of tools are turns of the user's."""
    return _qwen(dialogue, asks, "You are Qwen, created by Alibaba Cloud. You are a helpful assistant.", _qwen2_answer, "")


def _qwen2_answer(message: Message, i: int, last: bool) -> tuple[str, str]:
    return "", _with_calls(message.words, message.tool_calls)


EMPTY_THOUGHT = "<think>\n\n</think>\n\n"


def qwen3(dialogue: Dialogue, trained: Sequence[int], asks: bool, *, header: str) -> list[Part]:
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
