"""How much of a task's rows a training set has seen: word n-grams that both have, found exactly while the training set streams past."""

import itertools
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

SIZE, SHORTEST = 13, 5
# A word is a run of letters and digits; without spaces between words (kana, Han, Thai, Lao, Khmer, Burmese) each sign is one.
# A vowel sign that is no letter, as in Devanagari, ends a word like a comma: in the rows and in the training set alike.
UNSPACED = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff\u0e00-\u0eff\u1780-\u17ff\u1000-\u109f"
SIGN, WORD = re.compile(f"[{UNSPACED}]"), re.compile(f"[{UNSPACED}]|[^\\W_{UNSPACED}]+")
PART = 1 << 20  # characters of a document that are looked at together

Document = str | Iterable[str]  # a text, or what follows one another in it: a long one need not be in memory


class Overlap(NamedTuple):
    """What of a task's rows was found in the training set."""

    shares: np.ndarray  # float64 [rows], the share of a row's n-grams, one at each word where one begins, that were found; NaN: too short
    sizes: np.ndarray  # int [rows], the n of the row's n-grams, 0 where it is too short
    num_contaminated: int  # rows of which any n-gram was found
    num_judged: int  # rows that are long enough
    num_too_short: int
    num_documents: int  # what was read of the training set
    num_words: int

    @property
    def share(self) -> float:
        """Contaminated rows among the judged; NaN where none was."""
        return self.num_contaminated / self.num_judged if self.num_judged else np.nan


def overlap(rows: Sequence[str], documents: Iterable[Document], size: int = SIZE, shortest: int = SHORTEST) -> Overlap:
    """Finds the rows of a task that the training set has seen, by n-grams of 13 words (Brown et al. 2020, arXiv:2005.14165, appendix C).

    Unlike there, a row keeps its score, how much was found is told with whether anything was, and n-grams that are common in the training
    set count as any other. Memory holds the n-grams of the rows and a part of one document. Strings are compared, not hashes of them.

    Args:
      rows: what the model would have to have seen, for each row of the task: its prompt and its answer, say.
      documents: the training set's texts, each read once; n-grams do not reach from one into the next. A long one may come in parts, cut
        anywhere.
      size: words of an n-gram. A row of fewer has one n-gram, itself.
      shortest: a row of fewer words is not judged: it may be found anywhere.

    Raises:
      ValueError: `shortest` is not from 1 to `size`.
    """
    if not 1 <= shortest <= size:
        raise ValueError(f"shortest={shortest} and size={size} find nothing. Give 1 <= shortest <= size, as {SHORTEST} and {SIZE}.")
    grams = Grams(rows, size, shortest)
    num_documents = num_words = 0
    for document in documents:
        num_documents, num_words = num_documents + 1, num_words + grams.look(document)
    shares = grams.shares()
    judged = int((~np.isnan(shares)).sum())
    return Overlap(shares, grams.sizes, int((shares > 0).sum()), judged, len(shares) - judged, num_documents, num_words)


class Grams:
    """The n-grams of a task, which of its rows have them, and which have been found."""

    def __init__(self, rows: Sequence[str], size: int, shortest: int):
        self.size, self.shortest = size, shortest
        self.sizes = np.zeros(len(rows), np.int64)
        self.numbers: dict[str, int] = {}  # of the n-grams
        self.lengths: dict[str, tuple[int, ...]] = {}  # the first words of n-grams -> the n of those that begin so
        self.rows: list[np.ndarray] = []  # the numbers of a row's n-grams, in order
        for at, row in enumerate(rows):
            said = words(row)
            self.sizes[at] = min(size, len(said)) if len(said) >= shortest else 0
            own = [self._add(gram) for gram in windows(said, int(self.sizes[at]))]
            self.rows.append(np.array(own, np.int64))
        self.found = np.zeros(len(self.numbers), bool)

    def _add(self, gram: tuple[str, ...]) -> int:
        start = " ".join(gram[: self.shortest])
        if len(gram) not in self.lengths.get(start, ()):
            self.lengths[start] = (*self.lengths.get(start, ()), len(gram))
        return self.numbers.setdefault(" ".join(gram), len(self.numbers))

    def look(self, document: Document) -> int:
        """Marks what is found in a document; returns how many words that has."""
        count, before = 0, list[str]()
        for part in whole_words(document):
            said = words(part)
            self._mark(before + said)  # an n-gram may begin in the part before
            count, before = count + len(said), (before + said)[max(0, len(before) + len(said) - self.size + 1) :]
        return count

    def _mark(self, said: list[str]) -> None:
        for at, start in enumerate(map(" ".join, windows(said, self.shortest))):
            for length in self.lengths.get(start, ()):  # nearly always none
                number = self.numbers.get(" ".join(said[at : at + length]))
                if number is not None:
                    self.found[number] = True

    def shares(self) -> np.ndarray:
        """The share of each row's n-grams that have been found, [rows]; NaN for one that has none."""
        return np.array([self.found[own].mean() if len(own) else np.nan for own in self.rows], np.float64)


def words(text: str) -> list[str]:
    """The words of a text, lower-cased and without punctuation; letters that look alike are one (Unicode NFKC)."""
    return WORD.findall(unicodedata.normalize("NFKC", text).lower())


def whole_words(document: Document, most: int = PART) -> Iterator[str]:
    """The text of a document in parts of about `most` characters that end where a word does.

    Where that is nowhere, a part is as long as what was read, so that a word of a million letters may be two.
    """
    pieces = (document[at : at + most] for at in range(0, len(document), most)) if isinstance(document, str) else document
    left = ""
    for piece in pieces:
        left += piece
        if len(left) >= most:
            end = _end_of_words(left)
            yield left[:end]
            left = left[end:]
    if left:
        yield left


def _end_of_words(text: str) -> int:
    """The last place before which a word has surely ended, however the text goes on and is normalised; its length where there is none."""
    return next((at for at in range(len(text) - 1, 0, -1) if _ends_a_word(text[at])), len(text))


def _ends_a_word(sign: str) -> bool:
    if sign.isascii():
        return not sign.isalnum()
    return sign.isspace() or (SIGN.match(sign) is not None and not unicodedata.category(sign).startswith("M"))


def windows(said: Sequence[str], size: int) -> Iterator[tuple[str, ...]]:
    """Every run of `size` words, in order; none for 0."""
    return zip(*(itertools.islice(said, start, None) for start in range(size)), strict=False)
