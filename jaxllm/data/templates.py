"""The stock templates: how the models people start from are spoken to, each as published, in a table by name."""

import dataclasses
from collections.abc import Sequence
from functools import partial

from jaxllm.data.chatml import EMPTY_THOUGHT, END, START, chatml, qwen2, qwen3
from jaxllm.data.dialogues import ASSISTANT, BOS, EOS, Dialogue, Message, Part, Template, as_json
from jaxllm.data.llama_templates import GEMMA, LLAMA3, gemma, llama2, llama3, llama31, mistral


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


ALTERNATING = {"": ("system", "user"), "system": ("user",), "user": (ASSISTANT,), ASSISTANT: ("user",)}
SINGLE = {"": ("user",), "user": (ASSISTANT,)}
PLAIN = Template("plain", partial(_lines, end=Part(EOS, said=True, token=True)), names=True, tools=True)
CHATML = Template("chatml", chatml, END, (START, END), names=True, tools=True)
QWEN3 = Template("qwen3", partial(qwen3, header=""), END, (START, END), tools=True, thoughts=True, rewrites=True)

TEMPLATES: dict[str, Template] = {
    "plain": PLAIN,
    "transcript": dataclasses.replace(PLAIN, name="transcript", render=partial(_lines, end=Part("\n", said=True)), end="\n"),
    "bare": Template("bare", _bare, follows=SINGLE),
    "alpaca": Template("alpaca", _alpaca, follows=SINGLE),
    "chatml": CHATML,
    "qwen2.5": Template("qwen2.5", qwen2, END, (START, END), tools=True),
    "qwen3": QWEN3,
    "qwen3-direct": dataclasses.replace(QWEN3, name="qwen3-direct", render=partial(qwen3, header=EMPTY_THOUGHT)),  # asked not to think
    "llama2": Template("llama2", llama2, markers=("[INST]", "[/INST]"), follows=ALTERNATING),
    "llama3": Template("llama3", llama3, LLAMA3[-1], LLAMA3),
    "llama3.1": Template("llama3.1", llama31, LLAMA3[-1], LLAMA3, tools=True),
    "mistral": Template("mistral", mistral, markers=("[INST]", "[/INST]"), follows=ALTERNATING),
    "gemma": Template("gemma", gemma, GEMMA[-1], GEMMA, follows=ALTERNATING),
    "zephyr": Template("zephyr", _zephyr, markers=("<|system|>", "<|user|>", "<|assistant|>")),
}
