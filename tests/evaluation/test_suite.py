"""A model on tasks: numbers by definition, records that let an evaluation go on, examples that fit, answers that cannot be judged."""

import dataclasses
import itertools
import math

import jax
import numpy as np
import pytest

from jaxllm.data.tokenizer_kinds import ByteTokenizer
from jaxllm.evaluation.prompts import Split, pair, split, windows
from jaxllm.evaluation.suite import How, Suite
from jaxllm.models.model import Model
from jaxllm.models.presets import preset
from jaxllm.sampling.text import Texts
from jaxllm.tasks.arithmetic import Arithmetic
from jaxllm.tasks.choice import Query
from jaxllm.tasks.task import Continuation, Text, Unscored
from tests.models.drawn import random_params

MODEL = Model(preset("tiny_llama3").replace(num_layers=1, vocab_size=260, max_positions=256), scan_layers=False)
TOKENIZER = ByteTokenizer()
ROWS = [{"query": f"Question {i}?", "choices": ["yes", "no, never", f"it is {i}"], "gold": i % 3} for i in range(7)]


@pytest.fixture(scope="module")
def params():
    return random_params(MODEL, 0)


@pytest.fixture(scope="module")
def suite():
    return Suite(MODEL, TOKENIZER, rows=8, slots=4)


def log_prob(params, before, after):
    """By definition: one full pass over bos, the text before and the text after."""
    ids = [TOKENIZER.bos_id, *before.encode(), *after.encode()]
    table = full(params, ids)
    return sum(table[i - 1, ids[i]] for i in range(1 + len(before.encode()), len(ids)))


@jax.jit
def _full(params, ids):
    return jax.nn.log_softmax(MODEL.logits(params, MODEL.apply(params, ids))[0])


def full(params, ids):
    """Log-probabilities of what follows each of the ids; what is behind a token changes nothing of it."""
    return np.asarray(_full(params, np.array([[*ids, *[0] * (96 - len(ids))]], np.int32)))


@pytest.mark.parametrize("shots", [0, 2])
def test_a_choice_is_scored_as_defined(suite, params, shots):
    task = Query(shots=shots)
    rows = split(task, ROWS)
    records = []
    result = suite.run(params, "q", task, rows, write=records.append)
    assert [len(rows.shown), len(rows.asked), result.shots] == [shots, 7 - shots, shots]
    shown = "".join(f"{row['query']} {row['choices'][row['gold']]}\n\n" for row in ROWS[:shots])
    right, normed = [], []
    for row, record in zip(ROWS[shots:], records, strict=True):
        expected = [log_prob(params, shown + row["query"], " " + choice) for choice in row["choices"]]
        np.testing.assert_allclose(record["log_probs"], expected, rtol=1e-4, atol=1e-3)
        right.append(int(np.argmax(expected)) == row["gold"])
        normed.append(int(np.argmax([x / len(c) for x, c in zip(expected, row["choices"], strict=True)])) == row["gold"])
    assert result.metrics["accuracy"] == pytest.approx(np.mean(right)) and result.metrics["accuracy_norm"] == pytest.approx(np.mean(normed))
    assert result.metrics["accuracy_low"] <= result.metrics["accuracy"] <= result.metrics["accuracy_high"]


def test_a_text_is_scored_token_by_token(params):
    suite = Suite(MODEL, TOKENIZER, length=20)
    text = "".join(chr(97 + i % 7) for i in range(53))
    records = []
    found = suite.run(params, "t", Text(), Split([], [{"text": text}]), write=records.append).metrics
    ids, total = [*text.encode()], 0.0
    for start in range(0, 53, 20):
        end = min(start + 20, 53)
        before = [TOKENIZER.bos_id] if start == 0 else ids[max(0, end - 21) : start]
        table = full(params, [*before, *ids[start:end]])
        total += sum(table[len(before) + i - 1, ids[start + i]] for i in range(end - start))
    assert records[0]["log_prob"] == pytest.approx(total, rel=1e-4)
    assert found["bits_per_byte"] == pytest.approx(-total / math.log(2) / 53, rel=1e-4)
    assert found["word_perplexity"] == pytest.approx(math.exp(-total), rel=1e-3)


def test_windows_predict_every_token_once():
    for size in (1, 9, 10, 11, 20, 25):
        text = "abcdefghijklmnopqrstuvwxy"[:size]
        pairs = windows(TOKENIZER, text, 10)
        assert [i for _, after in pairs for i in after] == list(text.encode())
        assert pairs[0][0] == [TOKENIZER.bos_id] and all(len(before) + len(after) - 1 <= 10 for before, after in pairs)
        assert all(len(before) + len(after) == 11 for before, after in pairs[1:])


def test_continuations(suite, params):
    task, rows = Continuation(), [{"context": "ab", "continuation": "cd"}, {"context": "x", "continuation": "yz"}]
    expected = [log_prob(params, row["context"], " " + row["continuation"]) for row in rows]
    found = suite.run(params, "c", task, Split([], rows)).metrics
    assert found["perplexity"] == pytest.approx(math.exp(-np.mean(expected)), rel=1e-3) and found["accuracy"] == 0


def test_an_interrupted_evaluation_goes_on_and_ends_the_same(suite, params):
    task = Query()
    whole, part = [], []

    class Stop(Exception):
        pass

    def write(record):
        part.append(record)
        if len(part) == 3:
            raise Stop

    first = suite.run(params, "q", task, Split([], ROWS), write=whole.append)
    with pytest.raises(Stop):
        suite.run(params, "q", task, Split([], ROWS), write=write)
    rest, told = [], []
    again = suite.run(params, "q", task, Split([], ROWS), known=part, write=rest.append, tell=told.append)
    assert again == first and [record["row"] for record in rest] == [3, 4, 5, 6] and told[0] == 3
    other = [record | {"settings": "another"} for record in whole]
    fresh = []
    suite.run(params, "q", task, Split([], ROWS), known=other, write=fresh.append)
    assert len(fresh) == 7


def test_answers_do_not_depend_on_what_was_asked_before(suite, params):
    task = Arithmetic(max_new_tokens=6)
    rows, how = list(task.made(6)), How(num_samples=2, temperature=1.0, k=(1, 2))
    whole, rest = [], []
    suite.run(params, "a", task, Split([], rows), how, write=whole.append)
    suite.run(params, "a", task, Split([], rows), how, known=[whole[0], whole[3]], write=rest.append)
    assert [record["row"] for record in rest] == [1, 2, 4, 5]
    assert [record["answers"] for record in rest] == [whole[i]["answers"] for i in (1, 2, 4, 5)]
    assert whole[0]["answers"][0] != whole[0]["answers"][1]


def test_what_was_written_before_ctrl_c_is_kept(suite, params, monkeypatch):
    task, rows, how = Arithmetic(max_new_tokens=4), list(Arithmetic().made(5)), How(num_samples=2, temperature=1.0, k=(1, 2))
    whole, kept, samples = [], [], Texts.samples
    suite.run(params, "a", task, Split([], rows), how, write=whole.append)

    def interrupted(*arguments, **options):
        yield from itertools.islice(samples(*arguments, **options), 5)  # two rows and a half
        raise KeyboardInterrupt

    monkeypatch.setattr(Texts, "samples", interrupted)
    with pytest.raises(KeyboardInterrupt):
        suite.run(params, "a", task, Split([], rows), how, write=kept.append)
    assert kept == whole[:2]


@dataclasses.dataclass(frozen=True)
class Fickle(Arithmetic):
    """A task whose verifier breaks on odd rows."""

    METRIC = "pass@1"

    def score(self, row, answer):
        if int(row["answer"]) % 2:
            raise Unscored("broken")
        return {"pass@1": 1.0}


def test_what_cannot_be_judged_is_missing_and_not_0(suite, params):
    rows = [{"question": "?", "answer": str(i)} for i in range(4)]
    result = suite.run(params, "f", Fickle(max_new_tokens=2), Split([], rows), How(num_samples=2, temperature=1.0, k=(1, 2)))
    assert result.metrics["pass@1"] == 1.0 and result.metrics["pass@2"] == 1.0 and result.unscored == 4


class Broken(Arithmetic):
    """A task whose verifier has a fault, which shows on one row."""

    def score(self, row, answer):
        return {"exact_match": 1 // (int(row["answer"]) - 2)}


def test_a_verifier_that_raises_names_the_row_and_scores_nothing(suite, params):
    rows, said = [{"question": "?", "answer": answer} for answer in ("3", "2", "3")], list[str]()
    result = suite.run(params, "odd", Broken(max_new_tokens=2), Split([], rows), say=said.append)
    assert result.metrics["exact_match"] == 1.0 and result.unscored == 1 and result.records[1]["scores"] == [None]
    assert [line for line in said if "row 2 is not scored" in line and "ZeroDivisionError" in line] == said
    said.clear()
    suite.run(params, "f", Fickle(max_new_tokens=2), Split([], [{"question": "?", "answer": "1"}]), say=said.append)
    assert said == ["f: row 1 is not scored: broken."]


class Together(Broken):
    """The same, which judges many at once."""

    def score_all(self, rows, answers):
        return [self.score(row, answer) for row, answer in zip(rows, answers, strict=True)]


def test_a_verifier_of_many_that_raises_costs_the_culprit_alone(suite, params):
    rows, said = [{"question": "?", "answer": answer} for answer in "33323"], list[str]()
    how = How(num_samples=2, temperature=1.0)
    result = suite.run(params, "odd", Together(max_new_tokens=2), Split([], rows), how, say=said.append)
    assert [record["scores"][0] for record in result.records] == [{"exact_match": 1}] * 3 + [None, {"exact_match": 1}]
    assert result.metrics["exact_match"] == 1.0 and result.unscored == 2
    assert len(said) == 2 and all("row 4 is not scored" in line and "ZeroDivisionError" in line for line in said)


class Short(Arithmetic):
    """A task whose verifier forgets an answer."""

    def score_all(self, rows, answers):
        return [{"exact_match": 1.0} for _ in answers[1:]]


def test_a_verifier_that_forgets_an_answer_scores_nothing(suite, params):
    rows, said = [{"question": "?", "answer": "1"}] * 2, list[str]()
    result = suite.run(params, "short", Short(max_new_tokens=2), Split([], rows), say=said.append)
    assert result.unscored == 2 and math.isnan(result.metrics["exact_match"]) and "0 scores for 1 answers" in said[0]


def test_each_k_is_of_its_own_temperature_and_nothing_judged_is_no_number(suite, params):
    rows = [{"question": "?", "answer": str(i)} for i in (0, 2)]
    drawn = How(num_samples=2, temperature=1.0, k=(2,))
    assert {"pass@2", "ranked@2"} <= suite.run(params, "f", Fickle(max_new_tokens=2), Split([], rows), drawn).metrics.keys()
    assert "pass@1" not in suite.run(params, "f", Fickle(max_new_tokens=2), Split([], rows), drawn).metrics
    odd = suite.run(params, "f", Fickle(max_new_tokens=2), Split([], [{"question": "?", "answer": "1"}]))
    assert math.isnan(odd.metrics["pass@1"]) and odd.unscored == 1


def test_a_continuation_keeps_its_own_space(suite, params):
    rows = [{"context": "ab", "continuation": " cd"}, {"context": "ab ", "continuation": "cd"}, {"context": "ab", "continuation": "cd"}]
    records = []
    suite.run(params, "c", Continuation(), Split([], rows), write=records.append)
    np.testing.assert_allclose([record["log_prob"] for record in records], log_prob(params, "ab", " cd"), rtol=1e-4)


def test_fewer_examples_where_more_do_not_fit(params):
    suite, said, task = Suite(MODEL, TOKENIZER, length=60), [], Query(shots=4)
    result = suite.run(params, "q", task, split(task, ROWS), say=said.append)
    assert result.shots == 1 and "1 of 4 examples" in said[0]
    with pytest.raises(ValueError, match="q: row 3 has 22 tokens and may have 17"):
        Suite(MODEL, TOKENIZER, length=16).run(params, "q", task, split(task, ROWS))
    with pytest.raises(ValueError, match=r"tasks\.shots=9 of 7 rows"):
        split(Query(shots=9), ROWS)


@pytest.mark.parametrize(("before", "after", "cut"), [("ab", " cd", 2), ("ab ", "cd", 2), ("", "cd", 0)])
def test_spaces_belong_to_what_follows(before, after, cut):
    head, tail = pair(TOKENIZER, before, after)
    assert head == [TOKENIZER.bos_id, *b"ab"[:cut]] and bytes(tail) == (before + after).encode()[cut:]
