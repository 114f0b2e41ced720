"""States and feeds go through plain dicts and come back in their own containers."""

from typing import NamedTuple

import numpy as np
import pytest

from jaxllm.training.trees import as_dict, check_same, from_dict, join_feed, names_and_shapes, split_feed


class Pair(NamedTuple):
    left: np.ndarray | None
    right: np.ndarray


def test_any_container_becomes_names_and_comes_back():
    tree = {"params": [np.ones(2), Pair(None, np.zeros((1, 3)))], "empty": {}, "step": np.int32(4)}
    nested = as_dict(tree)
    assert nested["params"]["1"]["right"].shape == (1, 3) and set(nested) == {"params", "step"}
    back = from_dict(tree, nested)
    assert isinstance(back["params"][1], Pair) and back["params"][1].left is None and back["step"] == 4 and back["empty"] == {}


def test_a_difference_is_named():
    saved = names_and_shapes({"a": np.ones(2), "b": np.ones(3)})
    check_same(saved, saved, "It")
    with pytest.raises(ValueError, match=r"a is float64\[2\] in it and float32\[2\] in the state \(2 differences\)"):
        check_same(saved, names_and_shapes({"a": np.ones(2, np.float32)}), "It")


def test_a_feed_comes_back_as_it_was():
    feed = {"position": 3, "big": 2**60, "rates": [0.5, None, True, "x"], "inner": {"keys": np.arange(4), "one": np.float32(2)}}
    arrays, nested = split_feed(feed)
    assert set(arrays) == {"inner.keys", "inner.one"}
    back = join_feed(arrays, nested)
    assert back["position"] == 3 and back["big"] == 2**60 and back["rates"] == [0.5, None, True, "x"]
    assert np.array_equal(back["inner"]["keys"], np.arange(4)) and back["inner"]["one"] == 2


def test_what_cannot_be_saved_is_named():
    with pytest.raises(TypeError, match=r"set at 'a\.b'"):
        split_feed({"a": {"b": {1, 2}}})


def test_a_table_with_a_key_of_that_name_is_not_taken_for_an_array():
    state = {"rewards": {"array": [1.0, 2.0]}, "one": {"array": 0.5}, "whole": {"array": np.arange(3)}}
    back = join_feed(*split_feed(state))
    assert back["rewards"] == {"array": [1.0, 2.0]} and back["one"] == {"array": 0.5}
    assert back["whole"]["array"].tolist() == [0, 1, 2]
