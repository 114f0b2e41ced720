"""Rates are the formulas of the papers; rows of several readers share a batch and none of them notices."""

import collections

import numpy as np
import pytest

from jaxllm.data.example_rows import ExampleReader
from jaxllm.data.mixing import RATES, MixedReader, by_group, rates
from jaxllm.data.pipeline import FIELDS, Reader
from tests.data.drawn_examples import Memory, drawn
from tests.data.test_pipeline import random_stream

COUNTS = {"a": 100, "b": 5000, "c": 1_000_000}
T, B = 16, 10
WEIGHTS = {"a": 1, "b": 2, "c": 5}


def plain(numbers):
    return np.asarray(numbers) / np.sum(numbers)


N = np.array(list(COUNTS.values()), float)
CASES = [
    ("proportional", {}, plain(N)),
    ("proportional", {"cap": 4096}, plain(np.minimum(N, 4096))),
    ("temperature", {"temperature": 2.0}, plain(plain(N) ** 0.5)),
    ("temperature", {"temperature": 4, "cap": 2**16}, plain(plain(np.minimum(N, 2**16)) ** 0.25)),
    ("temperature", {"temperature": 1e9}, plain([1, 1, 1])),
    ("equal", {}, plain([1, 1, 1])),
    ("fixed", {"weights": WEIGHTS}, plain([1, 2, 5])),
]


@pytest.mark.parametrize(("kind", "options", "wanted"), CASES)
def test_rates_are_the_formulas(kind, options, wanted):
    found = rates(kind, COUNTS, **options)
    assert list(found) == list(COUNTS)
    np.testing.assert_allclose(list(found.values()), wanted, rtol=1e-6)


def test_every_kind_has_a_case():
    assert {kind for kind, _, _ in CASES} == set(RATES)


def test_groups_have_their_shares_and_keep_the_rates_within():
    found = by_group(rates("proportional", COUNTS), {"a": "x", "b": "x", "c": "y"}, {"x": 3, "y": 1})
    np.testing.assert_allclose([found["a"], found["b"], found["c"]], [0.75 * 100 / 5100, 0.75 * 5000 / 5100, 0.25])


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("proportion", {}, "Unknown rates 'proportion'. Choose one of: proportional, temperature, equal, fixed"),
        ("equal", {"cap": 3}, "'equal' have no option 'cap'. Choose from: none"),
        ("proportional", {"weights": {}}, "no option 'weights'. Choose from: cap"),
        ("proportional", {"cap": 0}, "cap=0 is not a number of examples"),
        ("temperature", {"temperature": 0}, "temperature=0 is not above 0"),
        ("fixed", {}, "'fixed' need weights"),
        ("fixed", {"weights": {"a": 1}}, r"given for \['a'\], but the sources are \['a', 'b', 'c'\]"),
        ("fixed", {"weights": {"a": 1, "b": -1, "c": 1}}, "'b' has weight -1"),
    ],
)
def test_users_mistakes_are_named(kind, options, message):
    with pytest.raises(ValueError, match=message):
        rates(kind, COUNTS, **options)
    with pytest.raises(ValueError, match="'d' has no examples"):
        rates("equal", COUNTS | {"d": 0})
    with pytest.raises(ValueError, match="'a' is in no group"):
        by_group(COUNTS, {}, {})


def parts(batch_size=4, turns=False):
    examples = ExampleReader({"chat": Memory(drawn(0, 60))}, sequence_length=T, batch_size=batch_size, seed=1, turns=turns)
    return {"sft": examples, "text": Reader({"web": random_stream()}, sequence_length=T, batch_size=3, seed=1)}


def mixed(**options):
    return MixedReader(parts(**options), {"sft": 0.8, "text": 0.2}, batch_size=B)


def test_a_mixed_row_is_the_next_row_of_its_reader():
    reader, inner = mixed(), parts()
    taken = collections.Counter()
    for step in range(12):
        batch = reader.rows(step)
        assert set(batch) == {*FIELDS, "row"}
        np.testing.assert_array_equal(batch["row"], np.arange(B))
        for row in range(B):
            name, at, inner_row = reader.place(step, row)
            assert (at, inner_row) == divmod(taken[name], inner[name].batch_size)
            taken[name] += 1
            alone = inner[name].rows(at, [inner_row])
            for field in FIELDS:
                np.testing.assert_array_equal(batch[field][row], alone[field][0])
    assert abs(taken["text"] - 24) <= 1
    epochs = reader.epochs(12)
    assert epochs == {
        "sft/chat": pytest.approx(inner["sft"].epochs(96 / 4)["chat"]),
        "text/web": pytest.approx(24 / inner["text"].windows["web"]),
    }
    steps = reader.steps_for("sft", inner["sft"].steps_for(2))
    assert reader.epochs(steps)["sft/chat"] >= 1.95 and reader.epochs(steps - 2)["sft/chat"] < 2.05


def test_a_mixed_batch_is_a_function_of_the_step():
    running = mixed()
    later = [running.rows(step) for step in range(20)]
    for step in (19, 3):
        for name, value in mixed().rows(step).items():
            np.testing.assert_array_equal(value, later[step][name])
        mine = np.array([7, 2, 9])
        for name, value in running.rows(step, mine).items():
            np.testing.assert_array_equal(value, later[step][name][mine])


def test_the_inner_batch_size_does_not_matter_and_turns_are_filled_up():
    one, other = mixed(batch_size=4).rows(5), mixed(batch_size=1, turns=True).rows(5)
    assert set(other) - set(one) == {"turns"}
    np.testing.assert_array_equal(one["tokens"], other["tokens"])
    names = [mixed().place(5, row)[0] for row in range(B)]
    for row, name in enumerate(names):
        assert (other["turns"][row] >= 0).any() == (name == "sft")


def test_readers_that_cannot_be_mixed_are_refused():
    padded = ExampleReader({"a": Memory(drawn(0, 9))}, sequence_length=T, batch_size=2, seed=0, mode="padded")
    with pytest.raises(ValueError, match=r"'x' are padded to buckets .* Set its mode to packed"):
        MixedReader({"x": padded}, {"x": 1}, batch_size=4)
    longer = ExampleReader({"a": Memory(drawn(0, 9))}, sequence_length=32, batch_size=2, seed=0)
    with pytest.raises(ValueError, match="'x' have 32 tokens, those of 'sft' 16"):
        MixedReader(parts() | {"x": longer}, {"sft": 1, "text": 1, "x": 1}, batch_size=4)
    with pytest.raises(ValueError, match=r"given for \['sft'\], but the sources are \['sft', 'text'\]"):
        MixedReader(parts(), {"sft": 1}, batch_size=4)
