"""Parameter-efficient tuning by name: the table of methods, and the one door to them."""

import dataclasses
import types
from typing import Any, get_args

from jaxllm.models import adapters, last_layers, lora, prefixes, soft_prompts
from jaxllm.models.config import KINDS
from jaxllm.models.method import Peft, nearest
from jaxllm.models.model import Model

METHODS: dict[str, type[Peft]] = {
    "lora": lora.LoraMethod,
    "rslora": lora.RsloraMethod,
    "dora": lora.DoraMethod,
    "ia3": adapters.Ia3,
    "bitfit": adapters.Bitfit,
    "houlsby": adapters.Houlsby,
    "pfeiffer": adapters.Pfeiffer,
    "parallel": adapters.Parallel,
    "prompt": soft_prompts.PromptTuning,
    "prefix": prefixes.PrefixTuning,
    "last_n": last_layers.LastLayers,
}


def make(model: Model, name: str, **options: Any) -> Peft:
    """A method for a model.

    Args:
      model: the base's.
      name: a row of `METHODS`.
      **options: the row's own fields; lists are taken as tuples.

    Raises:
      ValueError: an unknown name or option, or a value that does not fit the model.
    """
    if name not in METHODS:
        raise ValueError(f"Unknown peft.name={name!r}. Choose one of: {', '.join(METHODS)}.{nearest(name, METHODS)}")
    known = {field.name: field for field in dataclasses.fields(METHODS[name]) if field.name != "model"}
    for option in options:
        if option not in known:
            raise ValueError(f"peft.name={name!r} has no option {option!r}. Its options: {', '.join(known)}.{nearest(option, known)}")
        _check_kind(known[option], options[option])
    return METHODS[name](model, **{key: _frozen(value) for key, value in options.items()})


def _check_kind(field: dataclasses.Field, value: Any) -> None:
    """Refuses a value of another kind than the field's."""
    kinds = get_args(field.type) if isinstance(field.type, types.UnionType) else (field.type,)
    kind = next((kind for kind in KINDS if kind in kinds), None)
    if kind is None or (value is None and type(None) in kinds):
        return
    wanted, words = KINDS[kind]
    if not isinstance(value, wanted) or isinstance(value, bool) != (kind is bool):
        raise ValueError(f"peft.{field.name}={value!r} is not {words}.")


def _frozen(value: Any) -> Any:
    """Lists as tuples, all the way down: a method can be hashed."""
    return tuple(map(_frozen, value)) if isinstance(value, list | tuple) else value
