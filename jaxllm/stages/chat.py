"""Chat: a conversation with the model of a work directory on the terminal, written as it is drawn."""

import sys
from argparse import Namespace
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from jaxllm.data.chat import encode_prompt
from jaxllm.data.dialogues import ASSISTANT, Dialogue, Message, Template
from jaxllm.data.templates import TEMPLATES
from jaxllm.data.tokenizer_kinds import Tokenizer
from jaxllm.parallel import hosts
from jaxllm.parallel.mesh import make_mesh
from jaxllm.sampling.text import Texts
from jaxllm.stages import spoken
from jaxllm.stages.opened import open_tokenizer
from jaxllm.stages.sample import open_texts, start

HELP = "Write a line, or: /reset to begin anew, /quit (or Ctrl-D) to leave."
BASE = TEMPLATES["transcript"]  # how a model without a chat template is spoken to


def template_of(folder: str, tokenizer: Tokenizer, plain: bool) -> Template:
    """How the model of a work directory is spoken to: by its own template, or where it has none (or `plain`) as the lines of a transcript.

    Raises:
      ValueError: the template is no Jinja.
    """
    own = None if plain else spoken.of_folder(folder)
    try:
        return BASE if own is None else own.template(tokenizer)
    except ValueError as error:
        raise ValueError(f"{error} Or talk to the model without one: --plain.") from None


def encoded(texts: Texts, template: Template, messages: Sequence[Message]) -> tuple[np.ndarray, list[Message]]:
    """The prompt's tokens, and the messages in it: where they are too long, without the oldest turns."""
    while True:
        ids = encode_prompt(Dialogue(tuple(messages)), template, texts.tokenizer)
        if len(ids) <= texts.room or len(messages) < 3:
            return ids, list(messages)
        messages = messages[2:]


def answer(texts: Texts, params: Any, prompt: np.ndarray, seed: int, show: Callable[[str], None]) -> str:
    """One answer; what is new of it is shown after every block of tokens."""
    shown = 0

    def look(id: int, tokens: Sequence[int]) -> int | None:
        nonlocal shown
        text, keep = texts.text(tokens, id), texts.ends(id, tokens)
        ready = text if keep is not None else text[: max(shown, len(text) - texts.margin)]
        ready = ready.rstrip("\ufffd")  # half a character
        show(ready[shown:])
        shown = max(shown, len(ready))
        return keep

    (sample,) = texts.samples(params, [prompt], seed=seed, look=look)
    show(sample.text[shown:])
    return sample.text


def main(args: Namespace, overrides: Sequence[str]) -> int:
    """`jaxllm chat --workdir D`."""
    config = start(args, overrides)
    mesh = make_mesh(devices=jax.devices()[:1])
    with jax.set_mesh(mesh):
        tokenizer = open_tokenizer(args.workdir, config.peft.task)
        template = template_of(args.workdir, tokenizer, args.plain)
        stop = [*config.sample.stop, *(["\nUser:"] if template is BASE else [])]
        texts, params, step = open_texts(args, config, mesh, slots=1, block=4, stop=stop, long_prompt="window")
        messages, turn = list[Message](), 0
        spoken = "plain turns: it came without a chat template" if template is BASE else "its own chat template"
        print(f"Step {step} of {args.workdir}, {spoken}. {HELP}", file=sys.stderr)
        while (line := _read()) is not None:
            if line == "/reset":
                messages = []
                continue
            messages.append(Message("user", line))
            before = texts.cut, len(messages)
            ids, messages = encoded(texts, template, messages)
            text = answer(texts, params, ids, config.seed + turn, lambda new: print(new, end="", flush=True))
            print()
            if (texts.cut, len(messages)) != before:
                print("(The conversation is longer than the context: its oldest part was left out.)", file=sys.stderr)
            messages.append(Message(ASSISTANT, text.strip()))
            turn += 1
    hosts.finish()
    return 0


def _read() -> str | None:
    """The next line; None: no more."""
    while True:
        try:
            line = input("> " if sys.stdin.isatty() else "").strip()
        except EOFError:
            return None
        if line == "/quit":
            return None
        if line:
            return line
