"""Options of rewards and tools: those that are not there, that are missing, and whose values are of another kind, each with the nearest."""

from collections.abc import Sequence

import pytest

from jaxllm.rollouts.options import check_options, table_of


def maker(words: Sequence[str], size: int, share: float = 0.5, name: str | None = None, corpus: str = ""):
    return words, size, share, name, corpus


GOOD = {"words": ["a"], "size": 3}


@pytest.mark.parametrize("more", [{}, {"share": 1}, {"name": None}, {"name": "x", "share": 0.1}, {"words": "left to the maker"}])
def test_what_fits_passes(more):
    check_options("It", maker, GOOD | more, ("all",), given=("corpus",))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"size": 3}, "It needs 'words'. Its own options: words, size, share, name; those of all: all.$"),
        (GOOD | {"shrae": 1}, "does not know 'shrae'.* Did you mean 'share'"),
        (GOOD | {"corpus": "mine"}, "does not know 'corpus'"),
        (GOOD | {"size": 2.5}, "It: size=2.5 is not a whole number"),
        (GOOD | {"size": True}, "size=True is not a whole number"),
        (GOOD | {"size": None}, "size=None is not a whole number"),
        (GOOD | {"share": "a"}, "share='a' is not a number"),
        (GOOD | {"share": float("nan")}, "share=nan is not a number"),
        (GOOD | {"name": 3}, "name=3 is not a text"),
    ],
)
def test_what_does_not_is_told(options, said):
    with pytest.raises(ValueError, match=said):
        check_options("It", maker, options, ("all",), given=("corpus",))


def test_an_entry_is_a_kind_or_a_table_with_one():
    assert table_of("length", "k") == {"kind": "length"} and table_of({"kind": "x", "a": 1}, "k") == {"kind": "x", "a": 1}
    for entry, said in ((3, "entry 3"), ({"name": "x"}, "has no kind"), (["length"], "Each is a kind, or a table")):
        with pytest.raises(ValueError, match=said):
            table_of(entry, "rl.rewards")
