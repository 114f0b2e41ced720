"""Text into token ids and back, exactly: bytes, sentencepiece models and tokenizer.json files, each a class of one protocol."""

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Protocol, runtime_checkable

import numpy as np

from jaxllm.data import pieces
from jaxllm.data.special_tokens import Special

SPACE = "▁"  # how sentencepiece writes a space
INFO_FILE = "tokenizer_info.json"


@runtime_checkable
class Tokenizer(Protocol):
    """What the rest of the house knows about a tokenizer.

    `encode` adds no special tokens; a document on disk is `bos? tokens eos`. `fingerprint` is a hash of everything that decides which ids a
    text becomes. `stop_ids` are all ids that end what a model writes, `eos_id` first: models for chats often have several.
    """

    kind: str
    vocab_size: int
    bos_id: int | None
    eos_id: int
    pad_id: int
    stop_ids: tuple[int, ...]
    fingerprint: str
    opening: tuple[int, ...]  # ids that stand before every text a model reads: a soft prompt's, beyond the vocabulary

    def encode(self, text: str) -> np.ndarray:
        """The ids of a text, int32 [n]."""
        ...

    def token_id(self, name: str) -> int | None:
        """The id of a special token by its name, which `encode` reads as ordinary text; None: there is none of that name."""
        ...

    def token_name(self, id: int | None) -> str:
        """The name of a special token, "" for what has none."""
        ...

    def special_tokens(self) -> dict[str, int]:
        """The names and ids of all special tokens, which `encode` reads as ordinary text."""
        ...

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """The ids of several texts."""
        ...

    def encode_pieces(self, rows: Sequence[pieces.Row]) -> list[pieces.Encoded]:
        """Rows of texts and special tokens (by id), each encoded as one; names of special tokens within a text are ordinary text.

        Returns:
          of each row the ids, int32 [n], and for each of its pieces the first token and the one past the last, int32 [P, 2]; a token that
          lies across two texts is in both.
        """
        ...

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids; special tokens give nothing, bytes that are not UTF-8 give U+FFFD.

        Ids past the vocabulary give nothing either: a model whose own is padded to a round size can sample them.
        """
        ...

    def token_bytes(self) -> np.ndarray:
        """How many bytes of text each id stands for, int32 [vocab_size]; 0 for special tokens."""
        ...

    def save(self, folder: str | os.PathLike) -> None:
        """Writes what `load_tokenizer` needs into a folder."""
        ...


def _hash(*parts: bytes) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        digest.update(len(part).to_bytes(8, "little") + part)
    return digest.hexdigest()


def _write_info(folder: str | os.PathLike, tokenizer: Tokenizer) -> None:
    names = ("kind", "vocab_size", "bos_id", "eos_id", "pad_id", "fingerprint")
    text = json.dumps({name: getattr(tokenizer, name) for name in names} | {"stop_ids": list(tokenizer.stop_ids)}, indent=1)
    Path(folder, INFO_FILE).write_text(text + "\n")


class ByteTokenizer:
    """Every byte is its own id; 256, 257, 258 are padding, beginning and end."""

    kind = "bytes"
    opening: tuple[int, ...] = ()
    vocab_size = 259
    pad_id: int = 256
    bos_id: int | None = 257
    eos_id: int = 258
    stop_ids: tuple[int, ...] = (258,)
    fingerprint = _hash(b"bytes", b"256=pad 257=bos 258=eos")

    def encode(self, text: str | bytes) -> np.ndarray:
        data = text if isinstance(text, bytes) else text.encode("utf-8")
        return np.frombuffer(data, np.uint8).astype(np.int32)

    def token_id(self, name: str) -> int | None:
        return None

    def token_name(self, id: int | None) -> str:
        return ""

    def special_tokens(self) -> dict[str, int]:
        return {}

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        return [self.encode(text) for text in texts]

    def encode_pieces(self, rows: Sequence[pieces.Row]) -> list[pieces.Encoded]:
        return pieces.encode_rows(rows, self.encode, self.token_bytes(), prefix=False)

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        return bytes(i for i in map(int, ids) if i < 256)

    def decode(self, ids: Iterable[int]) -> str:
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    def token_bytes(self) -> np.ndarray:
        return (np.arange(self.vocab_size) < 256).astype(np.int32)

    def save(self, folder: str | os.PathLike) -> None:
        _write_info(folder, self)


class SentencePieceTokenizer:
    """A sentencepiece model; ours give back every text exactly, those of others as exactly as their normalisation allows.

    sentencepiece (Kudo & Richardson 2018) writes a space as U+2581 and would read that character back as a space. Where the model has byte
    pieces we spell a real U+2581 in bytes, and we decode by joining the bytes of the pieces.
    """

    kind = "sentencepiece"
    opening: tuple[int, ...] = ()

    def __init__(self, model: bytes):
        import sentencepiece

        self.model = model  # as it is in the file
        try:
            self._sp = sp = sentencepiece.SentencePieceProcessor(model_proto=model)
        except RuntimeError as error:
            raise ValueError(f"This is not a sentencepiece model ({error}). Give the .model file that training wrote.") from None
        self.vocab_size = int(sp.get_piece_size())
        self.bos_id = int(sp.bos_id()) if sp.bos_id() >= 0 else None
        if sp.eos_id() < 0:
            raise ValueError("The sentencepiece model has no end-of-text token (eos_id). Train it again with eos_id >= 0.")
        self.eos_id = int(sp.eos_id())
        self.pad_id = int(sp.pad_id()) if sp.pad_id() >= 0 else self.eos_id
        self.stop_ids: tuple[int, ...] = (self.eos_id,)
        self.fingerprint = _hash(b"sentencepiece", model)
        self._bytes = [self._piece_bytes(i) for i in range(self.vocab_size)]
        first = sp.encode("a", out_type=str)[0]
        self._dummy_prefix = first.startswith(SPACE)
        spelled = [sp.piece_to_id(f"<0x{byte:02X}>") for byte in SPACE.encode()]
        self._space_ids = spelled if all(sp.is_byte(i) for i in spelled) else None

    def _piece_bytes(self, i: int) -> bytes:
        if self._sp.is_control(i) or self._sp.is_unused(i):
            return b""
        if self._sp.is_unknown(i):
            return "\ufffd".encode()
        piece = self._sp.id_to_piece(i)
        return bytes([int(piece[3:5], 16)]) if self._sp.is_byte(i) else piece.replace(SPACE, " ").encode()

    def encode(self, text: str) -> np.ndarray:
        if SPACE in text and self._space_ids is not None and not self._dummy_prefix:
            parts = text.split(SPACE)
            ids = list(self._sp.encode(parts[0]))
            for part in parts[1:]:
                ids += self._space_ids + self._sp.encode(part)
            return np.asarray(ids, np.int32)
        return np.asarray(self._sp.encode(text), np.int32)

    def token_id(self, name: str) -> int | None:
        found = self._sp.piece_to_id(name)
        return found if self._sp.is_control(found) and self._sp.id_to_piece(found) == name else None

    def token_name(self, id: int | None) -> str:
        return self._sp.id_to_piece(id) if id is not None and self._sp.is_control(id) else ""

    def special_tokens(self) -> dict[str, int]:
        return {self._sp.id_to_piece(i): i for i in range(self.vocab_size) if self._sp.is_control(i)}

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        return [self.encode(text) for text in texts]

    def encode_pieces(self, rows: Sequence[pieces.Row]) -> list[pieces.Encoded]:
        return pieces.encode_rows(rows, self.encode, self.token_bytes(), prefix=self._dummy_prefix)

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        return b"".join(self._bytes[i] for i in map(int, ids) if i < self.vocab_size)

    def decode(self, ids: Iterable[int]) -> str:
        text = self.decode_bytes(ids).decode("utf-8", errors="replace")
        return text[1:] if self._dummy_prefix and text.startswith(" ") else text

    def token_bytes(self) -> np.ndarray:
        return np.asarray([len(b) for b in self._bytes], np.int32)

    def save(self, folder: str | os.PathLike) -> None:
        Path(folder, "tokenizer.model").write_bytes(self.model)
        _write_info(folder, self)


def parsed(text: str) -> Any:
    """The library's tokenizer of a tokenizer.json.

    Raises:
      ValueError: it is none.
    """
    import tokenizers

    try:
        return tokenizers.Tokenizer.from_str(text)
    except Exception as error:  # the library raises bare Exception
        raise ValueError(f"This is not a tokenizer.json ({str(error)[:200]}).") from None


class JsonTokenizer:
    """A Hugging Face tokenizer.json. Special tokens spelled out in a text are read as ordinary text.

    Args:
      text: the content of tokenizer.json.
      eos, bos, pad: the special tokens by name; None: the first name of the table below that is there; "" as bos or pad: none.
      ends: further ids that end what a model writes.
    """

    kind = "tokenizer.json"
    opening: tuple[int, ...] = ()
    KNOWN: ClassVar[dict[str, tuple[str, ...]]] = {
        "eos": ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "[SEP]"),
        "bos": ("<|begin_of_text|>", "<s>", "<bos>", "<|endoftext|>", "[CLS]"),
        "pad": ("<pad>", "<|pad|>", "[PAD]", "<|finetune_right_pad_id|>"),
    }

    def __init__(self, text: str, *, eos: str | None = None, bos: str | None = None, pad: str | None = None, ends: Sequence[int] = ()):
        self._text = text
        self._tokenizer = parsed(text)
        self._tokenizer.encode_special_tokens = True
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self.vocab_size = max(self._tokenizer.get_vocab(with_added_tokens=True).values()) + 1
        eos_id = self._special("eos", eos)
        if eos_id is None:
            raise ValueError(
                f"Which token of this tokenizer.json ends a text? Set data.tokenizer.eos; none of {self.KNOWN['eos']} is there."
            )
        self.eos_id, self.bos_id = eos_id, self._special("bos", bos)
        pad_id = self._special("pad", pad)
        self.pad_id = eos_id if pad_id is None else pad_id
        self.stop_ids: tuple[int, ...] = (eos_id, *(i for i in dict.fromkeys(ends) if i != eos_id and i < self.vocab_size))
        ids = f"{self.eos_id} {self.bos_id} {self.pad_id}" + "".join(f" {i}" for i in self.stop_ids[1:])
        self.fingerprint = _hash(b"tokenizer.json", json.dumps(json.loads(text), sort_keys=True).encode(), ids.encode())

    @classmethod
    def with_special(cls, text: str, said: Special) -> "JsonTokenizer":
        """With the special tokens that the files beside tokenizer.json name; bos only if the reference puts it before a text."""
        plain = parsed(text)
        bos_id = None if said.bos is None else plain.token_to_id(said.bos)
        first = plain.encode("a").ids[:1]  # with whatever its own template adds
        adds = said.adds_bos if said.adds_bos is not None else bos_id is not None and first == [bos_id]
        eos = said.eos or (plain.id_to_token(said.ends[0]) if said.ends else None)
        pad = said.pad if said.pad is not None and plain.token_to_id(said.pad) is not None else ""
        return cls(text, eos=eos, bos=said.bos if adds and said.bos else "", pad=pad, ends=said.ends)

    def _special(self, role: str, name: str | None) -> int | None:
        if name == "" and role != "eos":
            return None
        if name is not None:
            found = self._tokenizer.token_to_id(name)
            if found is None:
                raise ValueError(f"data.tokenizer.{role}={name!r} is not a token of this tokenizer.json.")
            return found
        ids = (self._tokenizer.token_to_id(known) for known in self.KNOWN[role])
        return next((i for i in ids if i is not None), None)

    def encode(self, text: str) -> np.ndarray:
        return np.asarray(self._tokenizer.encode(text, add_special_tokens=False).ids, np.int32)

    def token_id(self, name: str) -> int | None:
        return next((i for i, token in self._tokenizer.get_added_tokens_decoder().items() if token.content == name), None)

    def token_name(self, id: int | None) -> str:
        token = None if id is None else self._tokenizer.get_added_tokens_decoder().get(id)
        return "" if token is None else token.content

    def special_tokens(self) -> dict[str, int]:
        marked = {i for i, token in self._tokenizer.get_added_tokens_decoder().items() if token.special}
        own = {i for i in (self.bos_id, self.eos_id, self.pad_id) if i is not None}
        return {self._tokenizer.id_to_token(i): i for i in sorted(marked | own)}

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        return [np.asarray(e.ids, np.int32) for e in self._tokenizer.encode_batch(list(texts), add_special_tokens=False)]

    @cached_property
    def _guarded(self) -> tuple[Any, dict[int, str], np.ndarray]:
        """The library's tokenizer, its special tokens guarded; how it spells each id that a template may place; which ids are special."""
        special = {i: name for name, i in self.special_tokens().items()}
        library = parsed(pieces.guarded(self._text, special))
        library.no_padding()
        library.no_truncation()
        added = {i: token.content for i, token in self._tokenizer.get_added_tokens_decoder().items()}
        spelled = added | {i: pieces.GUARD + name for i, name in special.items()}
        assert all(library.token_to_id(name) == i for i, name in spelled.items()), spelled
        return library, spelled, np.isin(np.arange(self.vocab_size), list(special))

    def encode_pieces(self, rows: Sequence[pieces.Row]) -> list[pieces.Encoded]:
        library, spelled, special = self._guarded
        texts = [[piece if isinstance(piece, str) else spelled[piece] for piece in row] for row in rows]
        found = []
        for e, row, text in zip(
            library.encode_batch(["".join(text) for text in texts], add_special_tokens=False), rows, texts, strict=True
        ):
            ids = np.asarray(e.ids, np.int32)
            marked = [not isinstance(piece, str) and special[piece] for piece in row]
            found.append((ids, pieces.library_spans(e, np.flatnonzero(special[ids]).tolist(), [len(piece) for piece in text], marked)))
        return found

    def decode(self, ids: Iterable[int]) -> str:
        return self._tokenizer.decode([int(i) for i in ids], skip_special_tokens=True)

    def token_bytes(self) -> np.ndarray:
        byte_level = "ByteLevel" in json.dumps(json.loads(self._text).get("decoder"))
        special = {i for i, token in self._tokenizer.get_added_tokens_decoder().items() if token.special}
        sizes = np.zeros(self.vocab_size, np.int32)
        for piece, i in self._tokenizer.get_vocab(with_added_tokens=True).items():
            if i in special:
                continue
            one_byte = len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">")
            sizes[i] = 1 if one_byte else len(piece) if byte_level else len(piece.replace(SPACE, " ").encode())
        return sizes

    def save(self, folder: str | os.PathLike) -> None:
        Path(folder, "tokenizer.json").write_text(self._text, encoding="utf-8")
        _write_info(folder, self)
