"""Prepared folders and raw text on gs://, against a bucket store on this machine that answers late, short and wrong."""

import json
from pathlib import Path

import numpy as np
import pytest
from fake_gcs import serve

from jaxllm.__main__ import main
from jaxllm.data import remote
from jaxllm.data.formats import Piece, read_piece
from jaxllm.data.pipeline import Reader
from jaxllm.data.prepared import default_root, open_prepared
from jaxllm.data.sources import Source, list_files
from jaxllm.stages.prepare import prepare

DOCUMENTS = [f"document {i} " + "lorem ipsum dolor " * (i % 40) for i in range(300)]


def quiet(line):
    pass


@pytest.fixture
def bucket(monkeypatch):
    """A store that gs:// leads to; waits between attempts are short."""
    import gcsfs

    with serve() as store:
        for name, value in {"STORAGE_EMULATOR_HOST": store.url, "NO_GCE_CHECK": "true", "GOOGLE_CLOUD_PROJECT": "none"}.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(remote, "FIRST_WAIT", 0.01)
        monkeypatch.setattr(remote, "BLOCK_BYTES", 4096)
        gcsfs.GCSFileSystem.clear_instance_cache()
        yield store
        gcsfs.GCSFileSystem.clear_instance_cache()


@pytest.fixture
def local(tmp_path, monkeypatch):
    monkeypatch.setattr(remote, "BLOCK_BYTES", 4096)
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in DOCUMENTS))
    data = {"train": [str(tmp_path / "a.jsonl")], "tokenizer": {"kind": "bytes"}, "workers": 1, "eval_fraction": 0.1}
    return prepare(data | {"prepared": str(tmp_path / "local")}, say=quiet, chunk_bytes=20_000, bucket_bytes=40_000)


def upload(store, prepared):
    for path in Path(prepared.folder).rglob("*"):
        if path.is_file():
            store.objects["b", f"tokens/{path.relative_to(prepared.folder)}"] = path.read_bytes()


def batches(prepared, steps=range(3)):
    reader = Reader(prepared.streams("train"), sequence_length=64, batch_size=4, seed=5)
    return [reader.rows(step) for step in steps]


def equal(one, other):
    for a, b in zip(one, other, strict=True):
        for name in a:
            np.testing.assert_array_equal(a[name], b[name])


def test_raw_text_is_read_from_a_bucket_with_faults(bucket):
    import gzip

    lines = "".join(json.dumps({"text": text}) + "\n" for text in DOCUMENTS).encode()
    bucket.objects["b", "raw/a.jsonl"] = lines
    bucket.objects["b", "raw/deep/b.jsonl.gz"] = gzip.compress(lines)
    bucket.objects["b", "raw/c.txt"] = b"one document\r\n"
    bucket.objects["b", "other/d.txt"] = b"not this"
    bucket.faults = [503, "short", None, None, 503]
    for path, names in {
        "gs://b/raw": ["a.jsonl", "c.txt", "deep/b.jsonl.gz"],
        "gs://b/raw/*.txt": ["c.txt"],
        "gs://b/raw/a.jsonl": ["a.jsonl"],
    }.items():
        files = list_files(Source("s", path))[0]
        assert [file.name for file in files] == names
    files = list_files(Source("s", "gs://b/raw"))[0]
    bucket.faults = ["short", None, 503, "short", 503]
    texts = [[record.text for record in read_piece(Piece(0, file, file.size), None)] for file in files]
    assert texts == [DOCUMENTS, ["one document\r\n"], DOCUMENTS]
    assert not bucket.faults
    half = len(lines) // 2
    parts = [Piece(0, files[0], half, 0, half), Piece(0, files[0], half, half, len(lines))]
    assert [record.text for piece in parts for record in read_piece(piece, None)] == DOCUMENTS


def test_a_folder_prepared_on_a_bucket_is_the_local_one(bucket, local, tmp_path):
    data = {"train": [str(tmp_path / "a.jsonl")], "tokenizer": {"kind": "bytes"}, "workers": 1, "eval_fraction": 0.1}
    data |= {"prepared": "gs://b/made", "cache": str(tmp_path / "cache")}
    bucket.faults = [None, 503, None, 503]
    made = prepare(data, root=tmp_path / "root", say=quiet, chunk_bytes=20_000, bucket_bytes=40_000)
    assert made.folder == "gs://b/made" and made.content == local.content
    there = {name.removeprefix("made/"): data for (_, name), data in bucket.objects.items()}
    assert there == {str(p.relative_to(local.folder)): p.read_bytes() for p in Path(local.folder).rglob("*") if p.is_file()}
    said = []
    again = prepare({key: data[key] for key in ("prepared", "cache")}, say=said.append)
    assert "there already" in said[-1]
    equal(batches(again), batches(local))


def test_tokens_are_read_by_ranges_kept_and_checked(bucket, local, tmp_path):
    upload(bucket, local)
    bucket.faults = [None, "short", None, 503, None]
    opened = open_prepared("gs://b/tokens", cache=tmp_path / "cache")
    assert opened.tokenizer.fingerprint == local.tokenizer.fingerprint
    bucket.faults = ["flip", None, "short", 503, "flip", "short"]
    equal(batches(opened), batches(local))
    assert not bucket.faults
    total = sum(len(data) for (_, name), data in bucket.objects.items() if name.endswith(".tokens"))
    blocks = [p for p in (tmp_path / "cache").glob("*/*") if p.name.isdigit()]
    assert 0 < sum(p.stat().st_size for p in blocks) < total / 2
    asked = len(bucket.media_requests)
    equal(batches(open_prepared("gs://b/tokens", cache=tmp_path / "cache")), batches(local))
    assert set(bucket.media_requests[asked:]) <= {"tokens/index.json"}


def test_a_spoiled_cache_is_read_again_and_a_spoiled_bucket_is_refused(bucket, local, tmp_path, monkeypatch):
    upload(bucket, local)
    wanted = batches(local)
    equal(batches(open_prepared("gs://b/tokens", cache=tmp_path / "cache")), wanted)
    for path in (tmp_path / "cache").glob("*/*"):
        if path.name.isdigit():
            path.write_bytes(b"\0" + path.read_bytes()[1:-1])
    equal(batches(open_prepared("gs://b/tokens", cache=tmp_path / "cache")), wanted)
    monkeypatch.setattr(remote, "ATTEMPTS", 2)
    for key, data in bucket.objects.items():
        if key[1].endswith(".tokens"):
            bucket.objects[key] = bytes(255 - byte for byte in data)
    with pytest.raises(remote.Unreliable, match="the checksum is wrong"):
        batches(open_prepared("gs://b/tokens", cache=tmp_path / "other"))
    index = json.loads(bucket.objects["b", "tokens/index.json"])
    index["splits"]["train"]["a"]["shards"][0]["crc"] += 1
    bucket.objects["b", "tokens/index.json"] = json.dumps(index).encode()
    with pytest.raises(ValueError, match=r"index.json was changed"):
        open_prepared("gs://b/tokens", cache=tmp_path / "other")


def test_a_small_cache_stays_small(bucket, local, tmp_path):
    upload(bucket, local)
    opened = open_prepared("gs://b/tokens", cache=tmp_path / "cache", cache_bytes=20_000)
    equal(batches(opened, range(8)), batches(local, range(8)))
    assert sum(p.stat().st_size for p in (tmp_path / "cache").glob("*/*") if p.name.isdigit()) <= 20_000


def test_staging_copies_checks_and_reads_locally(bucket, local, tmp_path):
    upload(bucket, local)
    bucket.faults = [None, 503, "short", None, "short"]
    staged = open_prepared("gs://b/tokens", stage_to=tmp_path / "staged")
    assert not remote.is_remote(staged.folder)
    equal(batches(staged), batches(local))
    asked = len(bucket.media_requests)
    equal(batches(open_prepared("gs://b/tokens", stage_to=tmp_path / "staged")), batches(local))
    assert not [name for name in bucket.media_requests[asked:] if name.endswith(".tokens")]
    shard = next(Path(staged.folder).rglob("*.tokens"))
    shard.write_bytes(bytes(len(shard.read_bytes())))
    with pytest.raises(ValueError, match="is not what was written"):
        open_prepared("gs://b/tokens", stage_to=tmp_path / "staged")


def test_a_work_directory_in_a_bucket(bucket, local, tmp_path, monkeypatch, capsys):
    """`prepare` notes there where the tokens are; `report` reads its records and puts the page beside them. Nothing appears here."""
    monkeypatch.chdir(tmp_path)
    config = tmp_path / "config.py"
    config.write_text(f"def get_config():\n    return {{'data': {{'prepared': {local.folder!r}}}}}\n")
    assert main(["prepare", "--config", str(config), "--workdir", "gs://b/work"]) == 0
    assert json.loads(bucket.objects["b", "work/prepare.json"])["content"] == local.content
    bucket.objects["b", "work/metrics.jsonl"] = b"".join(b'{"step": %d, "loss": %f}\n' % (i, 5 / i) for i in (1, 2, 3))
    assert main(["report", "gs://b/work"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "gs://b/work/report.html"
    assert b"Loss (nats per token)" in bucket.objects["b", "work/report.html"]
    assert not list(tmp_path.glob("gs*"))


@pytest.mark.parametrize("stage", ["prepare", "report", "demo"])
def test_a_work_directory_that_nothing_can_open(stage, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = {"prepare": ["--config", "any.py", "--workdir"], "report": [], "demo": ["--workdir"]}[stage]
    assert main([stage, *words, "ftp://b/work"]) == 2
    assert "unknown scheme ftp://. Choose gs:// or s3://" in capsys.readouterr().err
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main([stage, *words, "gs://b/work"]) == 2
    assert "gs:// needs gcsfs. Run: pip install 'jaxllm[gcs]'" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_what_is_not_there_is_named(bucket, monkeypatch, tmp_path):
    with pytest.raises(ValueError, match="'gs://b/none' is not a prepared folder"):
        open_prepared("gs://b/none", cache=tmp_path)
    with pytest.raises(ValueError, match="There is nothing at 'gs://b/none'"):
        list_files(Source("s", "gs://b/none"))

    def missing(path):
        raise ImportError("Please install gcsfs to access Google Storage")

    monkeypatch.setattr("fsspec.core.url_to_fs", missing)
    with pytest.raises(ValueError, match=r"Run: pip install 'jaxllm\[gcs\]'"):
        remote.filesystem("gs://b/x")


def test_a_full_disk_costs_the_cache_and_not_the_run(bucket, local, tmp_path, monkeypatch):
    upload(bucket, local)
    opened = open_prepared("gs://b/tokens", cache=tmp_path / "cache")

    def full(self, data):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as context:
        context.setattr(Path, "write_bytes", full)
        got = batches(opened)
    equal(got, batches(local))


@pytest.mark.parametrize(
    ("own", "xdg", "expected"),
    [("/a", "/b", "/a"), (None, "/b", "/b/jaxllm"), (None, "", "~/.cache/jaxllm"), (None, None, "~/.cache/jaxllm")],
)
def test_where_token_files_lie_by_default(own, xdg, expected, monkeypatch):
    for name, value in (("JAXLLM_CACHE", own), ("XDG_CACHE_HOME", xdg)):
        monkeypatch.delenv(name, raising=False) if value is None else monkeypatch.setenv(name, value)
    assert default_root() == Path(expected).expanduser()
