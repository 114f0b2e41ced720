"""BM25 equals ten lines of Python, and equal documents come in one order."""

import math
import random

import numpy as np
import pytest

from jaxllm.rollouts.bm25 import BM25, words_of

DRAWN = random.Random(0)
WORDS = ["ape", "bee", "cat", "dog", "eel", "fox", "gnu", "hen", "ibis", "jay"]
DOCUMENTS = [" ".join(DRAWN.choices(WORDS, k=DRAWN.randrange(1, 30))) for _ in range(40)]
DOCUMENTS += [DOCUMENTS[3], "", "Ape? APE!"]


def plain(documents, query, k1=1.2, b=0.75):
    split = [words_of(document) for document in documents]
    mean, scores = sum(map(len, split)) / len(split), []
    for words in split:
        score = 0.0
        for word in words_of(query):
            having = sum(word in other for other in split)
            idf, count = math.log(1 + (len(split) - having + 0.5) / (having + 0.5)), words.count(word)
            score += idf * count * (k1 + 1) / (count + k1 * (1 - b + b * len(words) / mean))
        scores.append(score)
    return scores


@pytest.mark.parametrize("query", ["ape", "cat dog", "fox, FOX gnu!", "ibis zebra"])
def test_scores_and_order_equal_the_plain_form(query):
    scores = plain(DOCUMENTS, query)
    order = sorted((i for i, score in enumerate(scores) if score > 0), key=lambda i: (-round(scores[i], 9), i))
    found = BM25(DOCUMENTS).search(query, len(DOCUMENTS))
    assert [hit.number for hit in found] == order
    np.testing.assert_allclose([hit.score for hit in found], [scores[i] for i in order], rtol=1e-12)
    assert BM25(DOCUMENTS).search(query, 5) == found[:5]


def test_of_equal_ones_the_earlier_and_nothing_for_other_words():
    found = [hit.number for hit in BM25(DOCUMENTS).search(DOCUMENTS[3], 2)]
    assert sorted(found) == found and DOCUMENTS[found[0]] == DOCUMENTS[found[1]]
    assert BM25(DOCUMENTS).search("zebra", 3) == [] == BM25(["", ""]).search("ape", 3)
