"""Texts and special tokens in a row, encoded as one: which tokens each of them became, where a token lies across two as well."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

Row = Sequence[str | int]  # texts, and special tokens by their ids; texts beside each other are encoded together
Encoded = tuple[np.ndarray, np.ndarray]  # ids int32 [n]; first token and the one past the last of every piece, int32 [P, 2]
GUARD = "\ue0f1\ue0f3"  # private to this file: stands before the name of a special token, so that no text spells one


def spans_of(starts: np.ndarray, ends: np.ndarray, sizes: Sequence[int]) -> np.ndarray:
    """The tokens that hold anything of each piece.

    Args:
      starts, ends: where each token begins and ends, int64 [n], in any unit.
      sizes: of the pieces, in the same unit, one after the other.

    Returns:
      first token and the one past the last of each piece, int32 [P, 2]; a token across two pieces is in both; an empty piece has none.
    """
    stops = np.cumsum(sizes)
    first = np.searchsorted(ends, stops - sizes, side="right")
    last = np.maximum(np.searchsorted(starts, stops, side="left"), first)
    return np.stack([first, np.where(np.asarray(sizes) > 0, last, first)], axis=1).astype(np.int32)


def encode_rows(rows: Sequence[Row], encode: Callable[[str], np.ndarray], sizes: np.ndarray, prefix: bool) -> list[Encoded]:
    """Rows through a tokenizer that says nothing of places: they follow from how many bytes each of its tokens stands for.

    Args:
      rows: what to encode.
      encode: text -> ids.
      sizes: bytes of each id, int32 [V].
      prefix: whether `encode` puts a space before a text.
    """
    return [_encode_row(row, encode, sizes, prefix) for row in rows]


def _encode_row(row: Row, encode: Callable[[str], np.ndarray], sizes: np.ndarray, prefix: bool) -> Encoded:
    ids: list[np.ndarray] = [np.zeros(0, np.int32)]
    starts, ends, lengths, at = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)], [], 0
    for texts, token in _runs(row):
        found, stops, own = _encode_texts(texts, encode, sizes, prefix)
        starts.append(at + np.concatenate([[0], stops[:-1]])[: len(found)])
        ends.append(at + stops)
        ids.append(found)
        lengths += own
        at += sum(own)
        if token is not None:
            ids.append(np.asarray([token], np.int32))
            starts.append(np.asarray([at]))
            ends.append(np.asarray([at + 1]))
            lengths.append(1)
            at += 1
    return np.concatenate(ids), spans_of(np.concatenate(starts), np.concatenate(ends), lengths)


def _runs(row: Row) -> Iterable[tuple[list[str], int | None]]:
    """The texts before each special token, and the token; None after the last texts."""
    texts: list[str] = []
    for piece in row:
        if isinstance(piece, str):
            texts.append(piece)
        else:
            yield texts, piece
            texts = []
    if texts:
        yield texts, None


def _encode_texts(texts: Sequence[str], encode: Callable[[str], np.ndarray], sizes: np.ndarray, prefix: bool) -> tuple:
    """The ids of texts encoded as one, where each id ends, and the size of each text in the same unit."""
    ids = encode("".join(texts))
    lengths = [len(text.encode("utf-8")) for text in texts]
    stops = np.cumsum(sizes[ids], dtype=np.int64)
    extra = int(prefix and len(ids) > 0)
    if len(ids) and stops[-1] == sum(lengths) + extra:
        return ids, stops - extra, lengths
    places = [_agreed(encode("".join(texts[: i + 1])), ids) for i in range(len(texts) - 1)] + [len(ids)] * bool(texts)
    places = np.maximum.accumulate(places).tolist() if places else []  # the tokenizer changes the text: count tokens, not bytes
    return ids, np.arange(1, len(ids) + 1), np.diff([0, *places]).tolist()


def _agreed(head: np.ndarray, whole: np.ndarray) -> int:
    """How many tokens two texts begin with alike."""
    size = min(len(head), len(whole))
    differ = np.flatnonzero(head[:size] != whole[:size])
    return int(differ[0]) if len(differ) else size


def guarded(text: str, special: Mapping[int, str]) -> str:
    """A tokenizer.json whose special tokens have names that no text spells; every id stays.

    Args:
      text: the content of tokenizer.json.
      special: the special tokens, name by id.
    """
    said = json.loads(text)
    renamed = {name: GUARD + name for name in special.values()}
    added = {token["content"] for token in said["added_tokens"]}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    said["added_tokens"] += [{"id": i, "content": name, **flags} for i, name in sorted(special.items()) if name not in added]
    for token in said["added_tokens"]:
        if token["content"] in renamed:
            token.update(content=renamed[token["content"]], special=True)
    model = said["model"]
    vocab = model.get("vocab")
    if isinstance(vocab, dict):
        model["vocab"] = {renamed.get(piece, piece): i for piece, i in vocab.items()}
    elif isinstance(vocab, list):
        model["vocab"] = [[renamed.get(piece, piece), score] for piece, score in vocab]
    if model.get("unk_token") in renamed:
        model["unk_token"] = renamed[model["unk_token"]]
    said["post_processor"] = None  # adds tokens, by their names
    return json.dumps(said, ensure_ascii=False)


def library_spans(encoding: Any, marks: Sequence[int], sizes: Sequence[int], marked: Sequence[bool]) -> np.ndarray:
    """`spans_of` by the characters that the tokenizers library remembers; it is asked only where two texts meet.

    Args:
      encoding: of the whole text, without added tokens.
      marks: where in it the special tokens are.
      sizes: of the pieces, in characters.
      marked: which of the pieces are special tokens, as many as `marks`.
    """
    assert sum(marked) == len(marks), (sum(marked), len(marks))
    spans, stops = np.zeros((len(sizes), 2), np.int32), iter(marks)
    first = at = token = 0
    for i, mark in enumerate((*marked, True)):
        if mark:  # the texts before it, and it
            stop = next(stops, len(encoding))
            end = at + sum(sizes[first:i])
            for j in range(first, i):
                at += sizes[j]
                past, later = _meeting(encoding, at, end, stop) if sizes[j] else (token, token)
                spans[j] = token, past
                token = later
            spans[i : i + 1] = stop, stop + 1
            at, token, first = end + sum(sizes[i : i + 1]), stop + 1, i + 1
    return spans


def _meeting(encoding: Any, place: int, end: int, stop: int) -> tuple[int, int]:
    """Past the last token of what is before a character, and the first one of what begins with it; apart where one token lies across.

    Args:
      encoding: of the whole text.
      place: the character.
      end, stop: where the texts that are encoded together end, in characters and in tokens.
    """
    found = next((token for c in range(place, end) if (token := encoding.char_to_token(c)) is not None), None)
    if found is None:  # what remains became nothing
        return stop, stop
    return found + (encoding.token_to_chars(found)[0] < place), found
