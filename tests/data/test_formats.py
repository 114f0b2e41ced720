"""Every format gives its documents, says which records are bad and where, and can be read in parts."""

import gzip
import json
import sys

import pyarrow
import pyarrow.parquet
import pytest
import zstandard
from array_record.python.array_record_module import ArrayRecordWriter

from jaxllm.data import formats
from jaxllm.data.formats import File, Piece, cut, describe, detect, read_piece

TEXTS = [f"Document {i}:\n\tsome text ünd mehr {'x' * (i % 7)}\r\n" for i in range(300)]


def lines(texts=TEXTS, field="text"):
    return b"".join(json.dumps({field: t, "n": i}).encode() + b"\n" for i, t in enumerate(texts))


def write_arrayrecord(path, records):
    writer = ArrayRecordWriter(str(path), "group_size:1")
    for record in records:
        writer.write(record)
    writer.close()


def write(folder, kind):
    """A file of `TEXTS` in this format, and its path."""
    path = folder / f"data{kind}"
    if kind == ".parquet":
        pyarrow.parquet.write_table(pyarrow.table({"n": list(range(len(TEXTS))), "text": TEXTS}), path, row_group_size=40)
    elif kind == ".arrayrecord":
        write_arrayrecord(path, [t.encode() for t in TEXTS])
    else:
        pack = {".gz": gzip.compress, ".zst": zstandard.ZstdCompressor().compress}.get(kind[kind.rfind(".") :], bytes)
        path.write_bytes(pack(lines()))
    return path


def as_file(path):
    kind, compression = detect(str(path))
    assert kind
    return File(str(path), path.name, path.stat().st_size, "stamp", kind, compression)


def read_all(path, field=None):
    file = as_file(path)
    return list(read_piece(Piece(0, file, file.size), field))


def test_every_text_of_a_record(tmp_path):
    rows = [{"id": 3, "messages": [{"role": "user", "content": "a"}, {"content": "b"}], "more": "c"}, ["d", None], {"n": 1}]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert [(r.text, r.problem) for r in read_all(tmp_path / "a.jsonl", formats.EVERY)] == [
        ("user\na\nb\nc", None),
        ("d", None),
        (None, "empty"),
    ]


KINDS = (".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet", ".arrayrecord")


@pytest.mark.parametrize("kind", KINDS)
def test_records_come_back_in_order(tmp_path, kind):
    records = read_all(write(tmp_path, kind))
    assert [record.text for record in records] == TEXTS
    assert [record.line for record in records] == list(range(1, len(TEXTS) + 1))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("piece_bytes", [1, 333, 5000, 10**9])
def test_the_parts_of_a_file_are_the_file(tmp_path, kind, piece_bytes):
    if kind == ".jsonl" and piece_bytes == 1:
        piece_bytes = 7  # a part for every byte is slow
    file = as_file(write(tmp_path, kind))
    pieces = cut(0, file, piece_bytes)
    assert [record.text for piece in pieces for record in read_piece(piece, None)] == TEXTS
    if kind in (".jsonl", ".parquet", ".arrayrecord") and piece_bytes < 1000:
        assert len(pieces) > 5


@pytest.mark.parametrize("kind", [".txt", ".md", ".py", ".txt.gz", ".py.zst"])
def test_a_text_file_is_one_document_with_its_line_ends(tmp_path, kind):
    path = tmp_path / f"a{kind}"
    text = "first\r\nsecond\n\tthird\x0c  \n"
    pack = {".gz": gzip.compress, ".zst": zstandard.ZstdCompressor().compress}.get(kind[kind.rfind(".") :], bytes)
    path.write_bytes(pack(text.encode()))
    assert [record.text for record in read_all(path)] == [text]


def test_the_field_is_chosen_by_name(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(lines(field="body"))
    assert [r.text for r in read_all(tmp_path / "a.jsonl", "body")] == TEXTS
    (tmp_path / "b.jsonl").write_bytes(lines(TEXTS[:3], "body") + lines(TEXTS[3:5], "text"))
    assert [r.text for r in read_all(tmp_path / "b.jsonl", "text,body")] == TEXTS[:5]
    write_arrayrecord(tmp_path / "a.arrayrecord", lines(field="body").splitlines())
    assert [r.text for r in read_all(tmp_path / "a.arrayrecord", "body")] == TEXTS
    write(tmp_path, ".parquet")
    with pytest.raises(ValueError, match=r"no column 'body'. Set field to one of: n, text"):
        read_all(tmp_path / "data.parquet", "body")
    assert [r.text for r in read_all(tmp_path / "data.parquet", "body,text")] == TEXTS


BAD = [
    (b'{"text": "fine"}', None),
    (b'{"text": "cut off', "broken JSON"),
    (b"[" * 100_000, "broken JSON"),
    (b'{"body": "elsewhere"}', "missing field"),
    (b'["text"]', "missing field"),
    (b'{"text": 3}', "missing field"),
    (b'{"text": null}', "missing field"),
    (b'{"text": "\xff\xfe"}', "invalid UTF-8"),
    (b'{"text": "\\ud800"}', "invalid UTF-8"),
    (b'{"text": " \\n "}', "empty"),
    (b"", "empty"),
    (b'{"text": "fine too"}', None),
]


@pytest.mark.parametrize("kind", [".jsonl", ".jsonl.gz"])
def test_bad_records_are_named_by_line_and_the_rest_is_read(tmp_path, kind):
    path = tmp_path / f"bad{kind}"
    path.write_bytes((gzip.compress if kind.endswith("gz") else bytes)(b"\n".join(line for line, _ in BAD) + b"\n"))
    records = read_all(path)
    assert [r.line for r in records] == list(range(1, len(BAD) + 1))
    for record, (_, problem) in zip(records, BAD, strict=True):
        assert (record.problem or "").split(":")[0] == (problem or "")
        assert (record.text is None) == (problem is not None)
    assert "there: body" in records[3].problem


def test_bad_documents_of_other_formats(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"ok \xc3\x28")
    (tmp_path / "b.txt").write_bytes(b" \n")
    assert read_all(tmp_path / "a.txt")[0].problem == "invalid UTF-8: invalid continuation byte at byte 3"
    assert read_all(tmp_path / "b.txt")[0].problem == "empty"
    pyarrow.parquet.write_table(pyarrow.table({"text": ["a", None, ""]}), tmp_path / "c.parquet")
    assert [r.problem and r.problem.split(":")[0] for r in read_all(tmp_path / "c.parquet")] == [None, "missing field", "empty"]
    write_arrayrecord(tmp_path / "d.arrayrecord", [b"a", b"\xff"])
    assert [r.problem and r.problem.split(":")[0] for r in read_all(tmp_path / "d.arrayrecord")] == [None, "invalid UTF-8"]


def test_several_frames_are_one_file(tmp_path):
    packed = lines()
    for name, pack in (("a.jsonl.zst", zstandard.ZstdCompressor().compress), ("a.jsonl.gz", gzip.compress)):
        (tmp_path / name).write_bytes(pack(packed[:999]) + pack(packed[999:]))
        assert [r.text for r in read_all(tmp_path / name)] == TEXTS


@pytest.mark.parametrize("kind", [".jsonl.gz", ".jsonl.zst"])
def test_a_file_that_breaks_off_is_read_up_to_there(tmp_path, kind):
    path = write(tmp_path, kind)
    path.write_bytes(path.read_bytes()[:-20])
    records = read_all(path)
    assert records[-1].problem.startswith("broken")
    assert [r.text for r in records[:-1]] == TEXTS[: len(records) - 1]


def test_formats_are_told_by_name():
    names = {
        "a.py": "text",
        "b.JSONL": "jsonl",
        "c.txt.gz": "text",
        "d.jsonl.zst": "jsonl",
        "e.parquet": "parquet",
        "f": None,
        "g.png": None,
    }
    assert {name: detect(name)[0] for name in names} == names
    files = [File(n, n, 1, "", k, detect(n)[1]) for n, k in names.items() if k]
    assert describe(files) == "1 jsonl, 1 jsonl.zst, 1 parquet, 1 text, 1 text.gz"


@pytest.mark.parametrize(("module", "kind"), [("zstandard", ".jsonl.zst"), ("pyarrow.parquet", ".parquet")])
def test_a_missing_extra_is_one_command(tmp_path, monkeypatch, module, kind):
    path = write(tmp_path, kind)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ValueError, match=r"Run: pip install 'jaxllm\[data\]'"):
        read_all(path)


def test_every_reader_is_in_this_test():
    assert set(formats.READERS) == {"text", "jsonl", "parquet", "arrayrecord"}
