"""Which tokens begin, end and pad a text, as the files beside a Hugging Face tokenizer say it."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

CONFIG, MAP, GENERATION, MODEL = "tokenizer_config.json", "special_tokens_map.json", "generation_config.json", "config.json"
GENERIC = (
    "PreTrainedTokenizerFast",
    "TokenizersBackend",
)  # classes of transformers that do as tokenizer.json says, whatever is said beside it


class Special(NamedTuple):
    """The special tokens of a folder; None: nothing is said.

    Attributes:
      eos, bos, pad: by name.
      adds_bos: whether the reference puts bos before a text; None: its tokenizer.json says so itself.
      ends: ids that end what a model writes.
    """

    eos: str | None = None
    bos: str | None = None
    pad: str | None = None
    adds_bos: bool | None = None
    ends: tuple[int, ...] = ()


def read(folder: str | os.PathLike[str]) -> Special | None:
    """What the files of a folder say; None where there is neither tokenizer_config.json nor special_tokens_map.json.

    Raises:
      ValueError: one of them is no JSON object.
    """
    config, named, generation, model = (_json(Path(folder) / name) for name in (CONFIG, MAP, GENERATION, MODEL))
    if config is None and named is None:
        return None
    said = {**(named or {}), **{key: value for key, value in (config or {}).items() if value is not None}}
    roles = {role: _name(said.get(f"{role}_token")) for role in ("eos", "bos", "pad")}
    ends = (generation or {}).get("eos_token_id", (model or {}).get("eos_token_id"))
    ends = ends if isinstance(ends, list) else [ends]
    adds = said.get("add_bos_token") if said.get("tokenizer_class") not in GENERIC else None
    return Special(**roles, adds_bos=adds if isinstance(adds, bool) else None, ends=tuple(i for i in ends if type(i) is int and i >= 0))


def _json(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON ({str(error)[:200]}). Fetch it again, or delete it.") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path} holds a {type(found).__name__}, not a table. Fetch it again, or delete it.")
    return found


def _name(token: Any) -> str | None:
    """A token is written by its name, or as a table with its name as "content"."""
    name = token.get("content") if isinstance(token, Mapping) else token
    return name if isinstance(name, str) else None
