"""The training text that a task's rows are looked for in: files, prepared folders, or what a run itself was trained on."""

import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxllm.data.formats import EVERY, Piece, cut, read_piece
from jaxllm.data.prepared import Prepared, open_prepared
from jaxllm.data.remote import is_remote
from jaxllm.data.sources import list_files, make_sources
from jaxllm.data.token_files import INDEX_FILE, TokenStream
from jaxllm.data.tokenizer_kinds import Tokenizer
from jaxllm.evaluation.contamination import Document, overlap
from jaxllm.interop import folders
from jaxllm.parallel import hosts
from jaxllm.stages import workdir
from jaxllm.stages.wanted import Asked

RUN = "run"  # instead of a path: what the model's own work directory was trained on
PIECE_BYTES = 64 << 20
TOKENS = 1 << 16  # of a document that are decoded together
CONTEXT = 8  # tokens before them that are decoded too: some tokenizers drop the space that a text begins with

Tell = Callable[[int], None]  # is told of bytes that were read


class Text(NamedTuple):
    """A part of the training text."""

    size: int  # bytes, of the file or of what its tokens say
    read: Callable[[Tell], Iterator[Document]]


def shares(asked: Sequence[Asked], entries: Sequence[Any], source: str) -> list[np.ndarray] | None:
    """For each task the share of each row's n-grams that the training text has, see `evaluation.contamination`; None: nothing to look in.

    The text is read once for all tasks, by the first process, with a progress bar.

    Args:
      asked: the tasks.
      entries: of tasks.contamination.
      source: the model's folder.

    Raises:
      ValueError: there is no such text.
    """
    if not entries:
        return None
    texts = [text for entry in entries for text in open_texts(entry, source)]
    rows = [one.task.material(row) for one in asked for row in one.rows.asked]
    found: list[float | None] = []
    if hosts.is_first():
        seen = overlap(rows, _read(texts))
        found = [None if np.isnan(share) else float(share) for share in seen.shares]
        hosts.say(f"Looked for {seen.num_judged:,} rows in {seen.num_documents:,} documents of {seen.num_words:,} words.")
    whole = np.array(hosts.tell(hosts.fresh("contamination"), found), np.float64)
    return np.split(whole, np.cumsum([len(one.rows.asked) for one in asked])[:-1])


def open_texts(entry: Any, source: str) -> list[Text]:
    """What one entry of tasks.contamination means.

    Raises:
      ValueError: nothing that can be read.
    """
    if entry == RUN:
        return _own(source)
    path = str(entry["path"] if isinstance(entry, dict) and "path" in entry else entry)
    if not is_remote(path) and Path(path, INDEX_FILE).is_file():
        return _of_prepared(open_prepared(path))
    (named,) = make_sources([entry], "tasks.contamination")
    files, _ = list_files(named)

    def reader(piece: Piece) -> Callable[[Tell], Iterator[Document]]:
        every = EVERY if piece.file.format == "jsonl" else None  # a record of chats, or of questions and answers, has its texts anywhere
        return lambda tell: _records(piece, named.field or every, tell)

    return [Text(piece.size, reader(piece)) for file in files for piece in cut(0, file, PIECE_BYTES)]


def _own(source: str) -> list[Text]:
    """What a run was trained on: its token files, or the files of data.train where it made none (tuning)."""
    record = {} if folders.is_one(source) else workdir.read(source)
    if "prepared" in record:
        return _of_prepared(open_prepared(record["prepared"]))
    entries = record["config"]["data"]["train"] if record else []
    if not entries:
        raise ValueError(f"{source} does not say what it was trained on. Name the text: --config.tasks.contamination=FILE,FOLDER.")
    return [text for entry in entries for text in open_texts({"path": entry["path"]}, source)]


def _of_prepared(prepared: Prepared) -> list[Text]:
    def reader(stream: TokenStream) -> Callable[[Tell], Iterator[Document]]:
        return lambda tell: _decoded(stream, prepared.tokenizer, tell)

    return [Text(stream.num_bytes, reader(stream)) for stream in prepared.streams("train").values()]


def _records(piece: Piece, field: str | None, tell: Tell) -> Iterator[Document]:
    """The documents of a part of a file; what cannot be read is told."""
    unread = []
    for record in read_piece(piece, field):
        if record.text is None:
            unread.append(record)
        else:
            yield record.text
    tell(piece.size)
    if unread:
        first = f"the first is {unread[0].line}: {unread[0].problem}"
        hosts.say(f"tasks.contamination: {len(unread)} records of {piece.file.path} were not looked at ({first}).")


def _decoded(stream: TokenStream, tokenizer: Tokenizer, tell: Tell) -> Iterator[Document]:
    each = stream.num_bytes / stream.num_tokens  # bytes of a token, about
    told = 0
    for start, stop in stream.spans():
        yield pieces(stream, tokenizer, start, stop)
        if (done := int(stop * each)) - told > 1 << 16:
            tell(done - told)
            told = done


def pieces(stream: TokenStream, tokenizer: Tokenizer, start: int, stop: int, size: int = TOKENS) -> Iterator[str]:
    """The text of tokens [start, stop) of a stream, in parts of about `size` tokens; none is cut within a character."""
    at = start
    while at < stop:
        before = stream.read(max(start, at - CONTEXT), at).tolist()
        own = stream.read(at, min(at + size + CONTEXT, stop)).tolist()
        head, end = tokenizer.decode(before), min(size, len(own))
        while (text := tokenizer.decode(before + own[:end])).endswith("\ufffd") and end < len(own):
            end += 1
        yield text[len(head) :] if text.startswith(head) else tokenizer.decode(own[:end])
        at += end


def _read(texts: Sequence[Text]) -> Iterator[Document]:
    """Every document of all of them, with a progress bar."""
    from rich.progress import DownloadColumn, Progress

    bar = Progress(*Progress.get_default_columns(), DownloadColumn(), disable=not sys.stderr.isatty(), transient=True)
    bar.console.stderr = True
    with bar:
        line = bar.add_task("training text", total=sum(text.size for text in texts))
        for text in texts:
            yield from text.read(lambda size: bar.advance(line, size))
