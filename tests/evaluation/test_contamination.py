"""What was planted is found wherever it lies, what differs by a word is not, and no match reaches over the end of a document."""

import math
import weakref

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxllm.evaluation import contamination
from jaxllm.evaluation.contamination import overlap, whole_words, words

ROW = " ".join(f"w{i}" for i in range(20))  # 8 n-grams of 13
FILLER = " ".join(f"f{i}" for i in range(30))


def cut(start, stop):
    return " ".join(ROW.split()[start:stop])


def test_by_hand():
    found = overlap([ROW, FILLER], [f"{FILLER[:20]} {cut(0, 13)} x", f"y {cut(6, 20)}"])
    assert found.shares.tolist() == [3 / 8, 0.0] and found.sizes.tolist() == [13, 13]  # n-grams 0, 6 and 7
    assert (found.num_contaminated, found.num_judged, found.num_too_short, found.num_documents, found.share) == (1, 2, 0, 2, 0.5)
    assert found.num_words == len(words(FILLER[:20])) + 13 + 1 + 1 + 14


@pytest.mark.parametrize("before", [0, 1, 12, 13, 200])
@pytest.mark.parametrize("after", [0, 1, 13])
def test_a_row_is_found_wherever_it_lies(before, after):
    document = " ".join([*(["b"] * before), ROW, *(["a"] * after)])
    assert overlap([ROW], ["x", document, "y"]).shares.tolist() == [1.0]


@pytest.mark.parametrize("at", range(13))
def test_one_other_word_is_a_miss(at):
    said = cut(0, 13).split()
    row = " ".join(said)
    assert overlap([row], [row]).num_contaminated == 1
    assert overlap([row], [" ".join([*said[:at], "other", *said[at + 1 :]])]).num_contaminated == 0
    assert overlap([row], [" ".join([*said[:at], *said[at + 1 :]])]).num_contaminated == 0
    assert overlap([row], [" ".join([*said[:at], "other", *said[at:]])]).num_contaminated == int(at == 0)


@pytest.mark.parametrize("at", range(1, 20))
def test_documents_are_not_run_together(at):
    found = overlap([ROW], [cut(0, at), cut(at, 20)])
    assert found.shares[0] == (max(at - 12, 0) + max(20 - at - 12, 0)) / 8


def test_short_rows():
    found = overlap([cut(0, 4), cut(0, 5), cut(0, 12), "", cut(3, 10)], [f"x {cut(0, 11)} y"])
    assert found.sizes.tolist() == [0, 5, 12, 0, 7]
    assert found.shares.tolist() == pytest.approx([math.nan, 1.0, 0.0, math.nan, 1.0], nan_ok=True)
    assert (found.num_contaminated, found.num_judged, found.num_too_short) == (2, 3, 2)
    assert math.isnan(overlap(["a b"], [ROW]).share) and overlap([], [ROW]).num_judged == 0
    assert overlap([cut(0, 2)], [ROW], size=2, shortest=1).shares.tolist() == [1.0]


def test_words():
    assert words("Don't stop—now: a_b, 3.14 (É)") == ["don", "t", "stop", "now", "a", "b", "3", "14", "é"]
    assert words("E\u0301cole ﬁne") == ["école", "fine"]
    assert words("学而时习之, ok") == ["学", "而", "时", "习", "之", "ok"]
    assert words(" \n!") == []


def test_case_and_punctuation_are_no_difference():
    assert overlap([ROW], [ROW.upper().replace(" ", ",\n\t- ") + "!"]).shares.tolist() == [1.0]


def by_definition(row, documents, size, shortest):
    """The share of a row's n-grams that are a run of words of some document."""
    said = words(row)
    n = min(size, len(said))
    if len(said) < shortest:
        return math.nan
    seen = {tuple(text[i : i + n]) for text in map(words, documents) for i in range(len(text) - n + 1)}
    return float(np.mean([tuple(said[i : i + n]) in seen for i in range(len(said) - n + 1)]))


TEXT = st.lists(st.sampled_from("ab"), max_size=14).map(" ".join)


@given(st.lists(TEXT, max_size=4), st.lists(TEXT, max_size=4), st.integers(1, 4), st.integers(0, 3))
def test_by_definition(rows, documents, shortest, more):
    found = overlap(rows, iter(documents), shortest + more, shortest)
    assert found.shares.tolist() == pytest.approx([by_definition(row, documents, shortest + more, shortest) for row in rows], nan_ok=True)
    assert found.num_documents == len(documents)


def test_the_training_set_streams_past():
    class Document(str):
        """A text that can be asked whether it is still held."""

    held: list[weakref.ref] = []

    def documents():
        for i in range(50):
            document = Document(f"d{i} {FILLER} é")
            held.append(weakref.ref(document))
            yield document
            del document
            assert sum(one() is not None for one in held) <= 1

    assert overlap([ROW], documents()).num_documents == 50


@pytest.mark.parametrize(("size", "shortest"), [(13, 0), (4, 5)])
def test_a_mistake_is_a_sentence(size, shortest):
    with pytest.raises(ValueError, match=f"shortest={shortest} and size={size}"):
        overlap([ROW], [], size, shortest)


TEXT = f"{FILLER[:20]} {ROW}. 他说：「今天天气很好」， cafe\u0301 か\u3099 x\u2122 {cut(3, 20)}\n" * 3


@pytest.mark.parametrize("most", [1, 7, 40, 1000])
@pytest.mark.parametrize("size", [1, 5, 64])
def test_parts_of_a_document_are_the_document(most, size):
    pieces = [TEXT[at : at + size] for at in range(0, len(TEXT), size)]
    parts = list(whole_words(iter(pieces), most))
    assert "".join(parts) == TEXT
    if most > 20:  # else a word may be longer than a part
        assert [word for part in parts for word in words(part)] == words(TEXT)


@pytest.mark.parametrize("size", [1, 2, 13])
def test_n_grams_reach_over_parts(size, monkeypatch):
    rows = [ROW, cut(2, 15), FILLER, "天气很好 cafe\u0301 か\u3099"]
    whole = overlap(rows, [TEXT, "z"], size=size, shortest=size)
    monkeypatch.setattr(contamination.whole_words, "__defaults__", (24,))
    parts = overlap(rows, [iter([TEXT[:100], TEXT[100:]]), "z"], size=size, shortest=size)
    assert parts.num_words == whole.num_words == len(words(TEXT)) + 1
    np.testing.assert_array_equal(parts.shares, whole.shares)
    assert whole.shares[1] == 1 and whole.shares[2] < 1


def test_without_an_end_of_a_word_a_part_is_what_was_read():
    assert list(whole_words("a" * 25, 10)) == ["a" * 10, "a" * 10, "a" * 5]
