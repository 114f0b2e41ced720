"""Parameter-efficient tuning by name: the table of methods, and the one door to them."""

import dataclasses
from typing import Any

from jaxllm.models import adapters, last_layers, lora, soft_prompts
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
    "prefix": soft_prompts.PrefixTuning,
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
    known = [field.name for field in dataclasses.fields(METHODS[name]) if field.name != "model"]
    for option in options:
        if option not in known:
            raise ValueError(f"peft.name={name!r} has no option {option!r}. Its options: {', '.join(known)}.{nearest(option, known)}")
    return METHODS[name](model, **{key: tuple(value) if isinstance(value, list) else value for key, value in options.items()})
