"""A source is a file, a folder, a glob, a URL, the hub or built in; its files come in one order, with a stamp of their content."""

import os
import sys
import sysconfig
import types

import pytest

from jaxllm.data.sources import Source, default_name, list_files, make_sources


@pytest.fixture
def tree(tmp_path):
    for name, text in {"b.txt": "b", "a/x.py": "x", "a/y.md": "y", "a/z.png": "z", ".git/c.txt": "c", "a/__pycache__/d.py": "d"}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def names(path, **arguments):
    return [file.name for file in list_files(Source("s", str(path), **arguments))[0]]


def test_folder_glob_and_file(tree):
    assert names(tree) == ["a/x.py", "a/y.md", "b.txt"]
    assert list_files(Source("s", str(tree)))[1] == {".png": 1}
    assert names(f"{tree}/**/*.md") == ["a/y.md"]
    assert names(f"{tree}/a/*.p*") == ["x.py"]
    assert names(tree / "b.txt") == ["b.txt"]
    assert names(tree / "a/z.png", format="text") == ["z.png"]


def test_the_stamp_follows_the_content(tree):
    before = list_files(Source("s", str(tree)))[0]
    os.utime(tree / "b.txt", (0, 0))
    assert list_files(Source("s", str(tree)))[0] == before
    (tree / "b.txt").write_text("B")
    after = list_files(Source("s", str(tree)))[0]
    assert [a.stamp != b.stamp for a, b in zip(after, before, strict=True)] == [False, False, True]
    big = tree / "big.txt"
    big.write_bytes(b"x" * 3_000_000)
    first = list_files(Source("s", str(big)))[0][0].stamp
    with open(big, "r+b") as file:
        file.seek(1_500_000)
        file.write(b"y")
    assert list_files(Source("s", str(big)))[0][0].stamp != first


def test_the_standard_library_is_always_there():
    files, left_out = list_files(Source("s", "builtin:stdlib"))
    found = [file.name for file in files]
    assert found == sorted(found) and "json/decoder.py" in found and not left_out
    assert all(name.endswith(".py") and "site-packages" not in name for name in found)
    assert files[0].path.startswith(sysconfig.get_path("stdlib"))


def test_the_hub_is_asked_for_a_data_set(tree, monkeypatch):
    asked = []

    def snapshot_download(name, **arguments):
        asked.append((name, arguments))
        return str(tree)

    monkeypatch.setitem(sys.modules, "huggingface_hub", types.SimpleNamespace(snapshot_download=snapshot_download))
    assert names("hub:owner/name/data/*.md@abc") == ["a/x.py", "a/y.md", "b.txt"]
    assert asked == [("owner/name", {"repo_type": "dataset", "revision": "abc", "allow_patterns": "data/*.md"})]
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ValueError, match=r"Run: pip install 'jaxllm\[hub\]'"):
        names("hub:owner/name")


def test_entries_of_a_config():
    sources = make_sources([{"path": "x/books.jsonl.gz", "weight": 2}, {"path": "y/books.txt", "weight": 1, "field": None}], "data.train")
    assert [(s.name, s.weight) for s in sources] == [("books", 2), ("books_2", 1)]
    assert make_sources(["builtin:stdlib"], "data.eval", ["stdlib"])[0].name == "stdlib_2"
    assert [default_name(p) for p in ("/a/b/", "gs://x/y/*.txt", "hub:o/n@v", "builtin:stdlib", "...")] == [
        "b",
        "y",
        "n",
        "stdlib",
        "source",
    ]


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"path": "a", "wieght": 1}, "Unknown key 'wieght' in data.train[0]. Choose from: path, weight"),
        ({"weight": 1}, "data.train[0] has no path"),
        ({"path": "a", "format": "csv"}, "Unknown format 'csv' in data.train[0]. Choose from: text, jsonl"),
        ({"path": "a", "weight": 0}, "data.train[0].weight=0 must be more than 0"),
        ({"path": "a", "name": "../up"}, "'../up' cannot be the name of a source"),
    ],
)
def test_bad_entries_are_named(entry, message):
    with pytest.raises(ValueError) as caught:
        make_sources([entry], "data.train")
    assert message in str(caught.value)


def test_what_is_not_there_is_named(tree):
    for path, message in {
        f"{tree}/nope": "There is nothing at",
        f"{tree}/a/z.png": "does not tell its format. Set format to one of: text",
        "builtin:moon": "The one built in is builtin:stdlib",
        "hub:justaname": "is not owner/name",
        "nowhere://x/y": "unknown protocol|Protocol not known|needs a package",
    }.items():
        with pytest.raises(ValueError, match=message):
            names(path)
    (tree / "only").mkdir()
    (tree / "only/a.png").write_text("a")
    (tree / "only/b.png").write_text("b")
    with pytest.raises(ValueError, match=r"known format \(there are: 2 .png\)"):
        names(tree / "only")
    with pytest.raises(ValueError, match="Give a weight to all, or to none"):
        make_sources([{"path": "a", "weight": 1}, {"path": "b"}], "data.train")
