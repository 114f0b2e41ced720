"""Dialogues into tokens: every token of a template's rendering with the weight it has as a target, and whose words it is of."""

from collections.abc import Mapping, Sequence

import numpy as np

from jaxllm.data.dialogues import ASSISTANT, BOS, EOS, Dialogue, Message, Part, Template, WrongDialogue, check, message_weights
from jaxllm.data.examples import Example
from jaxllm.data.tokenizer_kinds import Tokenizer

Spelled = Mapping[str, int | str | None]


def spelled(template: Template, tokenizer: Tokenizer) -> Spelled:
    """The ids of the special tokens that a template places; a marker that the vocabulary does not have is text, and BOS may be nothing.

    Raises:
      ValueError: the names that the vocabulary does not have.
    """
    found: dict[str, int | str | None] = {name: _token_id(tokenizer, name) for name in template.tokens}
    if missing := [name for name, id in found.items() if id is None]:
        raise ValueError(
            f"The tokenizer has no {', '.join(missing)}, which template {template.name!r} needs."
            " Choose a template whose markers it has, or 'plain', which needs none."
        )
    for name in template.markers:
        id = tokenizer.token_id(name)
        found[name] = name if id is None else id
    return found | {BOS: tokenizer.bos_id, EOS: tokenizer.eos_id}


def _token_id(tokenizer: Tokenizer, name: str) -> int | None:
    """The id of a special token, or of a symbol that is always one token."""
    id = tokenizer.token_id(name)
    if id is None:
        ids = tokenizer.encode(name)
        id = int(ids[0]) if len(ids) == 1 and tokenizer.decode(ids) == name else None
    return id


def _symbols(ids: Spelled, tokenizer: Tokenizer) -> list[str]:
    """Which of these tokens the tokenizer reads in any text (user symbols of sentencepiece, added tokens that are not special)."""
    return [name for name, id in ids.items() if isinstance(id, int) and name not in (BOS, EOS) and tokenizer.encode(name).tolist() == [id]]


def _rendered(dialogue: Dialogue, template: Template, symbols: Sequence[str], trained: Sequence[int], asks: bool) -> list[Part]:
    """The parts of a dialogue, none of whose texts spells a token that would be read there."""
    parts = template.render(dialogue, trained, asks)
    for name in symbols:
        if any(name in part.text for part in parts if not part.token):
            raise WrongDialogue(dialogue, f"spells {name}, which this tokenizer reads as that very token wherever it stands")
    return parts


def _pieces(parts: Sequence[Part], ids: Spelled) -> tuple[list[Part], list[str | int]]:
    """The parts that are there, and what the tokenizer gets of each."""
    named = [(part, ids[part.text] if part.token else part.text) for part in parts]
    there = [(part, piece) for part, piece in named if piece is not None and piece != ""]
    return [part for part, _ in there], [piece for _, piece in there]


def encode_batch(
    dialogues: Sequence[Dialogue], template: Template, tokenizer: Tokenizer, loss: str = ASSISTANT
) -> list[Example | WrongDialogue]:
    """Many dialogues at the speed of the tokenizer's library; a wrong one comes back as its error, in its place.

    The tokens are those of the rendering as a whole: texts between special tokens are encoded together. Names of special tokens inside a
    message are ordinary text. A token that lies across the edge of what a speaker says counts as said.

    Args:
      dialogues: what to encode.
      template: how it is rendered.
      tokenizer: of the model.
      loss: see `message_weights`.

    Raises:
      ValueError: an unknown loss rule, or special tokens that the vocabulary lacks.
    """
    ids = spelled(template, tokenizer)
    symbols = _symbols(ids, tokenizer)
    found: list[Example | WrongDialogue | None] = []
    rows = []
    for dialogue in dialogues:
        weights = message_weights(dialogue, loss)
        try:
            check(dialogue, template, weights)
            parts = _rendered(dialogue, template, symbols, [i for i, weight in enumerate(weights) if weight], False)
        except WrongDialogue as error:
            found.append(error)
            continue
        rows.append((dialogue, weights, *_pieces(parts, ids)))
        found.append(None)
    encoded = zip(rows, tokenizer.encode_pieces([row[3] for row in rows]), strict=True)
    done = (_weighed(dialogue, weights, parts, *said) for (dialogue, weights, parts, _), said in encoded)
    return [next(done) if one is None else one for one in found]


def encode(dialogue: Dialogue, template: Template, tokenizer: Tokenizer, loss: str = ASSISTANT) -> Example:
    """One dialogue; see `encode_batch`.

    Raises:
      WrongDialogue: a turn that the template forbids, an unknown role, a row that would train on nothing.
    """
    (found,) = encode_batch([dialogue], template, tokenizer, loss)
    if isinstance(found, WrongDialogue):
        raise found
    return found


def _weighed(
    dialogue: Dialogue, weights: Sequence[float], parts: Sequence[Part], ids: np.ndarray, spans: np.ndarray
) -> Example | WrongDialogue:
    """The tokens with what is known of their parts."""
    turns, targets = np.full(len(ids), -1, np.int16), np.zeros(len(ids), np.float32)
    places = spans.tolist()
    for said in (False, True):  # where a token lies across, what is said wins
        for part, (first, stop) in zip(parts, places, strict=True):
            if part.said == said:
                turns[first:stop] = part.turn
                if said and part.turn >= 0:
                    targets[first:stop] = weights[part.turn]
    targets[:1] = 0.0  # nothing comes before the first token
    if not targets.any():
        return WrongDialogue(dialogue, "would train on nothing: no token of it is a target")
    return Example(ids, targets, turns, tuple(message.role for message in dialogue.messages))


def encode_prompt(dialogue: Dialogue, template: Template, tokenizer: Tokenizer) -> np.ndarray:
    """A dialogue as it is asked: what opens every text, the turns, the header of the assistant's answer; int32 [n].

    Raises:
      WrongDialogue: a turn that the template forbids.
      ValueError: special tokens that the vocabulary lacks.
    """
    answered = dialogue._replace(messages=(*dialogue.messages, Message(ASSISTANT, "...")))
    check(answered, template, message_weights(answered, "last"))
    ids = spelled(template, tokenizer)
    parts = _rendered(dialogue, template, _symbols(ids, tokenizer), [], True)
    asked = tokenizer.encode_pieces([_pieces(parts, ids)[1]])[0][0]
    return np.concatenate([np.asarray(tokenizer.opening, np.int32), asked])
