"""The templates of Llama 2, Mistral, Gemma and Llama 3: headers and ends as special tokens, or [INST] in the text."""

from collections.abc import Iterator, Sequence

from jaxllm.data.dialogues import ASSISTANT, BOS, EOS, Dialogue, Message, Part, WrongDialogue, as_json

GEMMA = ("<start_of_turn>", "<end_of_turn>")
LLAMA3 = ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")


def llama2(dialogue: Dialogue, trained: Sequence[int], asks: bool) -> list[Part]:
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


def mistral(dialogue: Dialogue, trained: Sequence[int], asks: bool) -> list[Part]:
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


def gemma(dialogue: Dialogue, trained: Sequence[int], asks: bool) -> list[Part]:
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


def llama3(dialogue: Dialogue, trained: Sequence[int], asks: bool) -> list[Part]:
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


def llama31(dialogue: Dialogue, trained: Sequence[int], asks: bool) -> list[Part]:
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
