"""Search in a corpus by BM25 (Robertson et al., TREC-3, 1994): an inverted index in memory, the same order of results every time."""

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

_WORD = re.compile(r"\w+")


class Found(NamedTuple):
    """A document that has words of the query: its number in the corpus, and its score."""

    number: int
    score: float


def words_of(text: str) -> list[str]:
    """The words of a text, case aside."""
    return _WORD.findall(text.casefold())


class BM25:
    """An index of documents.

    score(d) = sum over the query's words w, each as often as it stands there, of idf(w) f (k1 + 1) / (f + k1 (1 - b + b |d| / mean |d|)),
    with f how often w is in d, and idf(w) = ln(1 + (N - n + 1/2) / (n + 1/2)) for the n of N documents that have it: Lucene's, never
    negative.

    Args:
      documents: texts; taken once, and not kept.
      k1: how soon a word that comes again counts no more.
      b: how much long documents pay for their length, from 0 to 1.
    """

    def __init__(self, documents: Iterable[str], k1: float = 1.2, b: float = 0.75):
        postings: dict[str, tuple[list[int], list[int]]] = {}
        lengths: list[int] = []
        for number, text in enumerate(documents):
            words = words_of(text)
            lengths.append(len(words))
            for word, count in Counter(words).items():
                numbers, counts = postings.setdefault(word, ([], []))
                numbers.append(number)
                counts.append(count)
        self.size, self._k1 = len(lengths), k1
        sizes = np.array(lengths, np.float64)
        mean = sizes.mean() if sizes.sum() else 1.0
        self._slow = k1 * (1 - b + b * sizes / mean)  # [N], what stands beside f
        self._postings = {word: (np.array(numbers), np.array(counts, np.float64)) for word, (numbers, counts) in postings.items()}

    def search(self, query: str, count: int) -> list[Found]:
        """The best documents, at most `count`, the best first and of equal ones the earlier; none without a word of the query."""
        scores = np.zeros(self.size)
        for word, times in sorted(Counter(words_of(query)).items()):  # in one order: sums of floats depend on it
            if word in self._postings:
                numbers, counts = self._postings[word]
                idf = math.log(1 + (self.size - len(numbers) + 0.5) / (len(numbers) + 0.5))
                scores[numbers] += times * idf * counts * (self._k1 + 1) / (counts + self._slow[numbers])
        order: Sequence[int] = np.argsort(-scores, kind="stable")[:count].tolist()
        return [Found(number, float(scores[number])) for number in order if scores[number] > 0]
