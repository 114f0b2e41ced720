"""A folder of others names only files of its own, of one kind, all there; pickles are never opened."""

import json
import os

import pytest

from jaxllm.interop import folders
from tests.interop import made

INDEX = "model.safetensors.index.json"


@pytest.fixture
def folder(tmp_path):
    return made.sharded(made.folder("tiny_llama3", tmp_path / "model"))


def refused(folder, message):
    with pytest.raises(ValueError, match=message) as caught:
        folders.open_folder(folder)
    assert "\n" not in str(caught.value)


def point(folder, to):
    """Lets the index put its first tensor into another file."""
    index = json.loads((folder / INDEX).read_text())
    index["weight_map"][min(index["weight_map"])] = to
    (folder / INDEX).write_text(json.dumps(index))


def test_a_sharded_folder_is_opened(folder):
    assert folders.is_one(folder) and len(folders.open_folder(folder).tensors) == 21


@pytest.mark.parametrize("to", ["/etc/passwd", "../secret.safetensors", "a/../../b", "..", "", "a\\b", "a/b.safetensors", "a\0b"])
def test_an_index_that_points_outside_its_folder(folder, to):
    (folder.parent / "secret.safetensors").write_bytes(b"")
    point(folder, to)
    refused(folder, "which is not a plain name of a file in that folder")


def test_a_link_that_leads_out(folder, tmp_path):
    first = sorted(folder.glob("*.safetensors"))[0]
    os.rename(first, tmp_path / "elsewhere")
    first.symlink_to(tmp_path / "elsewhere")
    refused(folder, "is a link that leads out of its folder")


def test_the_links_of_the_hub_cache_are_followed(folder, tmp_path):
    snapshot, blobs = tmp_path / "models--x" / "snapshots" / "abc", tmp_path / "models--x" / "blobs"
    snapshot.mkdir(parents=True), blobs.mkdir()
    for path in folder.iterdir():
        os.rename(path, blobs / f"hash-{path.name}")
        (snapshot / path.name).symlink_to(f"../../blobs/hash-{path.name}")
    assert len(folders.open_folder(snapshot).tensors) == 21


def test_a_file_that_is_missing_or_not_what_the_index_says(folder):
    point(folder, "model-00002-of-00003.safetensors")
    refused(folder, "is in it and not in the index")
    sorted(folder.glob("*.safetensors"))[0].unlink()
    refused(folder, "lacks its file model-00001-of-00003.safetensors. Fetch it again")


def test_two_sets_of_weights(folder):
    (folder / "model.safetensors").write_bytes(b"")
    refused(folder, "which are the weights")


@pytest.mark.parametrize("text", ["[]", "{}", '{"weight_map": {}}', '{"weight_map": {"a": 3}}', "{", '{"a": 1, "a": 2}', "\ud800"])
def test_an_index_that_is_none(folder, text):
    (folder / INDEX).write_text(text, errors="surrogatepass")
    refused(folder, "weight_map|not JSON|not a table")


def test_pickles_are_never_opened(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    refused(tmp_path, "has neither model.safetensors nor .* AutoModelForCausalLM")
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04")
    refused(tmp_path, "pytorch_model.bin, a pickle, which can run any code and is never opened")


def test_what_is_no_folder(tmp_path):
    refused(tmp_path / "none", "is not a Hugging Face folder: it has no config.json")
    refused("gs://bucket/model", "is not on this machine. Copy it to a disk first")
    (tmp_path / "config.json").write_text("{}" + " " * (65 << 20))
    refused(tmp_path, "which no such file needs")
    assert not folders.is_one(tmp_path) and not folders.is_one(tmp_path / "none")
