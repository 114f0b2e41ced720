"""Where a continuation ends, and what it says: stop tokens, stop strings, and the text of tokens that follow others."""

from collections.abc import Sequence

from jaxllm.data.tokenizer_kinds import Tokenizer


class Endings:
    """What ends a row.

    Args:
      tokenizer: of the model.
      stop: texts that end a continuation, and are not part of what it says.
      stop_ids: tokens that do.
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str], stop_ids: Sequence[int]):
        self.tokenizer, self.stop, self.stop_ids = tokenizer, tuple(stop), tuple(stop_ids)

    def text(self, before: Sequence[int], tokens: Sequence[int]) -> str:
        """What tokens say after the last token of their prompt (`before`), without a stop token or a stop string at the end."""
        text = self.decoded(before, tokens[:-1] if len(tokens) and tokens[-1] in self.stop_ids else tokens)
        found = [text.index(stop) for stop in self.stop if stop in text]
        return text[: min(found)] if found else text

    def keep(self, before: Sequence[int], tokens: Sequence[int]) -> int | None:
        """How many tokens hold the first stop string, if one is there."""
        if not self._holds(before, tokens):
            return None
        low, high = 1, len(tokens)  # the fewest tokens whose text holds one
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if self._holds(before, tokens[:middle]) else (middle + 1, high)
        return high

    def _holds(self, before: Sequence[int], tokens: Sequence[int]) -> bool:
        text = self.decoded(before, tokens)
        return any(stop in text for stop in self.stop)

    def decoded(self, before: Sequence[int], tokens: Sequence[int]) -> str:
        """The text of tokens that follow a prompt: some tokenizers drop a space from the beginning of a text, which this is not."""
        head, whole = self.tokenizer.decode(before), self.tokenizer.decode([*before, *tokens])
        return whole[len(head) :] if head and whole.startswith(head) else self.tokenizer.decode(tokens)
