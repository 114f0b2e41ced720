"""A config.json that knows which of its keys were read, so that none is passed over."""

import difflib
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from jaxllm.models.config import ModelConfig

REQUIRED = object()  # the default of a key that must be there

# Keys of every transformers config that change no number of a forward pass without dropout.
HARMLESS = {
    "what the file is": "model_type architectures transformers_version torch_dtype dtype auto_map tokenizer_class name_or_path prefix"
    " unsloth_version unsloth_fixed transformers.js_config id2label label2id num_labels problem_type finetuning_task task_specific_params",
    "training": "initializer_range attention_dropout hidden_dropout classifier_dropout resid_pdrop embd_pdrop attn_pdrop pruned_heads"
    " gradient_checkpointing tie_encoder_decoder",
    "how it is run": "use_cache torchscript tf_legacy_loss use_bfloat16 attn_implementation chunk_size_feed_forward output_attentions"
    " output_hidden_states output_scores return_dict return_dict_in_generate use_return_dict is_decoder",
    "generation": "bos_token_id eos_token_id pad_token_id sep_token_id decoder_start_token_id forced_bos_token_id forced_eos_token_id"
    " max_length min_length max_new_tokens do_sample early_stopping num_beams num_beam_groups diversity_penalty temperature top_k top_p"
    " typical_p repetition_penalty length_penalty no_repeat_ngram_size encoder_no_repeat_ngram_size bad_words_ids num_return_sequences"
    " suppress_tokens begin_suppress_tokens exponential_decay_length_penalty remove_invalid_values",
}


class Given:
    """What a config.json says.

    Args:
      given: the object itself.
      where: its path, for messages.
    """

    def __init__(self, given: Mapping[str, Any], where: str):
        self.given, self.where = given, where
        self._read: set[str] = set()

    def get(self, key: str, default: Any = REQUIRED) -> Any:
        """The value of a key; the default only where the key is left out (null is a value of its own).

        Raises:
          ValueError: a required key is missing or null.
        """
        self._read.add(key)
        value = self.given.get(key, default)
        if value is REQUIRED or (default is REQUIRED and value is None):
            raise ValueError(f"{self.where} has no {key}, which a {self.given.get('model_type')} model needs. Fetch the file again.")
        return value

    def refusal(self, key: str, value: Any, choices: str) -> ValueError:
        """The error for a value that jaxllm does not compute."""
        return ValueError(f"{self.where}: {key}={value!r} is not supported; {choices}. Another model of the family may do.")

    def check_all_read(self, harmless: Iterable[str]) -> None:
        """Refuses keys that nobody has read, unless they switch nothing on or are known to change no number.

        Raises:
          ValueError: names the first.
        """
        fine = {*" ".join(HARMLESS.values()).split(), *self._read, *harmless}
        switched_on = {key for key, value in self.given.items() if value not in (None, False, [], {}) and not key.startswith("_")}
        if unknown := sorted(switched_on - fine):
            near = difflib.get_close_matches(unknown[0], sorted(self._read), n=1, cutoff=0.8)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise ValueError(
                f"{self.where}: {unknown[0]}={str(self.given[unknown[0]])[:80]!r} is not a key that jaxllm knows.{hint}"
                " It may change what the model computes; take it out of the file if it does not."
            )


class Part(NamedTuple):
    """A part of a config.json that takes more than one key: from theirs to our fields, and back to their keys."""

    read: Callable[[Given], dict[str, Any]]
    write: Callable[[ModelConfig], dict[str, Any]]
