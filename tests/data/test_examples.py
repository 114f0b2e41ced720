"""A store gives back what was written, is there whole or not at all, and says what is wrong with it."""

import json

import numpy as np
import pytest

from jaxllm.data import examples as store_room
from jaxllm.data.examples import Example, open_examples, write_examples
from tests.data.drawn_examples import drawn

ROWS = drawn(0, 50)


def written(folder, rows=ROWS, vocab_size=64, **said):
    return write_examples(folder, rows, vocab_size=vocab_size, fingerprint="made-from", **said)


@pytest.mark.parametrize("vocab_size", [64, 100_000])
def test_a_store_gives_back_what_was_written(tmp_path, monkeypatch, vocab_size):
    monkeypatch.setattr(store_room, "SHARD_TOKENS", 100)  # several shards
    store = written(tmp_path / "s", iter(ROWS), vocab_size, notes={"template": "chatml"})
    assert len(store.index["shards"]) > 2 and store.num_examples == len(ROWS)
    again = open_examples(tmp_path / "s", fingerprint="made-from")
    for index in (49, 0, 17, *range(50)):
        found = again.example(index)
        for name in ("tokens", "weights", "turns"):
            one, other = getattr(found, name), getattr(ROWS[index], name)
            assert one.dtype == other.dtype
            np.testing.assert_array_equal(one, other)
        assert found.roles == ROWS[index].roles
    np.testing.assert_array_equal(again.lengths, [len(row.tokens) for row in ROWS])
    np.testing.assert_array_equal(again.trained, [(row.weights > 0).sum() for row in ROWS])
    assert again.index["counts"] == {"examples": 50, "tokens": again.lengths.sum(), "trained": again.trained.sum()}
    assert again.index["roles"] == [["user", "assistant"], ["system", "user", "assistant"]]  # each tuple once
    assert again.index["notes"] == {"template": "chatml"} and again.fingerprint == "made-from"
    again.verify()


def test_the_content_hash_is_of_the_content(tmp_path):
    one = written(tmp_path / "a")
    other = write_examples(tmp_path / "deep" / "b", ROWS, vocab_size=64, fingerprint="something else")
    assert one.content == other.content
    changed = [*ROWS[:-1], ROWS[-1]._replace(weights=ROWS[-1].weights * 2)]
    assert written(tmp_path / "c", changed).content != one.content
    assert written(tmp_path / "d", [row._replace(roles=("a", "b", "c")) for row in ROWS]).content != one.content


def test_a_store_is_whole_or_not_there(tmp_path):
    def dies():
        yield from ROWS[:5]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        written(tmp_path / "s", dies())
    with pytest.raises(ValueError, match="holds no encoded examples"):
        open_examples(tmp_path / "s")
    written(tmp_path / "s").verify()  # what the first attempt left is cleared away
    assert [path.name for path in tmp_path.iterdir()] == ["s"]
    with pytest.raises(ValueError, match="is there and not empty"):
        written(tmp_path / "s")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: (s / "00000.turns").unlink(), r"00000.turns is missing. Bring the file back"),
        (lambda s: (s / "00000.weights").write_bytes(b"abc"), r"00000.weights has 3 bytes, not"),
        (lambda s: (s / "index.json").write_text("{"), r"index.json is broken"),
        (lambda s: (s / "index.json").write_text('{"format": 3}'), r"has format 3; encoded examples have 'examples-1'"),
        (lambda s: (s / "index.json").write_text((s / "index.json").read_text().replace("system", "sistem")), r"was changed since"),
    ],
)
def test_a_spoiled_store_is_refused(tmp_path, change, message):
    written(tmp_path / "s")
    change(tmp_path / "s")
    with pytest.raises(ValueError, match=message):
        open_examples(tmp_path / "s")


@pytest.mark.parametrize("part", store_room.PARTS)
def test_a_flipped_bit_is_found_by_verify(tmp_path, part):
    store = written(tmp_path / "s")
    path = tmp_path / "s" / f"00000.{part}"
    data = bytearray(path.read_bytes())
    data[3] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"00000\.\* is not what was written"):
        store.verify()


GOOD = Example(np.array([1, 2, 3]), np.array([0, 0, 1.0]), np.array([0, 0, 1]), ("user", "assistant"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weights": np.zeros(2)}, "must be of one length"),
        ({"tokens": np.array([1, 2, 64])}, r"each an id in 0..63"),
        ({"weights": np.array([1.0, 0, 1])}, "the first of them 0"),
        ({"weights": np.array([0, 0, np.nan])}, "finite weights"),
        ({"weights": np.array([0, -1.0, 1])}, "0 or more"),
        ({"weights": np.zeros(3)}, "would train on nothing"),
        ({"turns": np.array([0, 0, 2])}, r"turns 0..2 and 2 roles"),
    ],
)
def test_malformed_examples_are_named(tmp_path, change, message):
    with pytest.raises(ValueError, match=rf"Example 1 .*{message}"):
        written(tmp_path / "s", [GOOD, GOOD._replace(**change)])


def test_users_mistakes_are_named(tmp_path):
    with pytest.raises(ValueError, match="remote storage are not supported yet"):
        open_examples("gs://bucket/examples")
    with pytest.raises(ValueError, match="no example to write"):
        written(tmp_path / "s", [])
    written(tmp_path / "s")
    with pytest.raises(ValueError, match=r"made from something else \(made-from, not other: other text"):
        open_examples(tmp_path / "s", fingerprint="other")
    assert json.loads((tmp_path / "s" / "index.json").read_text())["vocab_size"] == 64
