"""How a model is spoken to: the chat template of a config, of a run, or of a folder of others."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any, NamedTuple

from etils import epath

from jaxllm.data.dialogues import Template
from jaxllm.data.jinja_templates import jinja_template
from jaxllm.data.templates import TEMPLATES, template_named
from jaxllm.data.tokenizer_kinds import Tokenizer
from jaxllm.interop import folders
from jaxllm.stages import workdir

DEFAULT = "plain"  # what dialogues are written as where nothing is said


class Spoken(NamedTuple):
    """A template as a run remembers it.

    Attributes:
      name: of a stock template; None: it is Jinja.
      jinja: its text, where it is.
    """

    name: str | None
    jinja: str | None = None

    def template(self, tokenizer: Tokenizer) -> Template:
        """The template itself.

        Raises:
          ValueError: an unknown name, or no Jinja.
        """
        return template_named(self.name) if self.name is not None else jinja_template(str(self.jinja), tokenizer)

    def identity(self) -> str:
        """What tells it from others."""
        return self.name or hashlib.blake2b(str(self.jinja).encode(), digest_size=16).hexdigest()


def of_config(said: str | None, source: str | None) -> Spoken:
    """The template that a config asks for: by name, as a file of Jinja, or (None) that of the model it starts from, else plain turns.

    Raises:
      ValueError: an unknown name that is no file either.
    """
    if said in TEMPLATES:
        return Spoken(said)
    if said and Path(said).is_file():
        return Spoken(None, Path(said).read_text(encoding="utf-8"))
    if said:
        template_named(said)  # says what there is
    return (of_folder(source) if source else None) or Spoken(DEFAULT)


def of_folder(folder: str | os.PathLike[str]) -> Spoken | None:
    """The template of a work directory or of a Hugging Face folder: what it was tuned with, or what came with its weights; None: none."""
    if folders.is_one(os.fspath(folder)):
        text = jinja_of(epath.Path(folder))
        return None if text is None else Spoken(None, text)
    if chat := workdir.read(folder).get("chat"):
        return Spoken(chat["name"], chat["jinja"])
    text = jinja_of(epath.Path(folder) / workdir.ORIGIN)
    return None if text is None else Spoken(None, text)


def jinja_of(place: epath.Path) -> str | None:
    """The Jinja template in a folder as Hugging Face lays it out."""
    if (place / "chat_template.jinja").exists():
        return (place / "chat_template.jinja").read_text()
    found: Any = None
    for name in ("chat_template.json", "tokenizer_config.json"):
        if found is None and (place / name).exists():
            found = json.loads((place / name).read_text()).get("chat_template")
    if isinstance(found, list):  # several by name
        found = next((entry.get("template") for entry in found if isinstance(entry, dict) and entry.get("name") == "default"), None)
    return found if isinstance(found, str) else None
