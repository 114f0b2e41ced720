"""Rows of examples: packed trains on what the examples one by one do; every example once an epoch; a function of (seed, step) alone."""

import collections

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxllm.data import layouts
from jaxllm.data.example_rows import ExampleEvalReader, ExampleReader
from jaxllm.data.examples import Example, write_examples
from jaxllm.data.pipeline import FIELDS, Feed
from jaxllm.models.model import Model
from jaxllm.models.presets import preset
from jaxllm.ops.ring import zigzag_order
from tests.data.drawn_examples import Memory, drawn, tagged
from tests.models.drawn import random_params

T, B = 16, 4
MODES = {"packed": {}, "padded": {"mode": "padded", "buckets": (8, 12)}}


@pytest.fixture(autouse=True)
def small_windows(monkeypatch):
    monkeypatch.setattr(layouts, "WINDOW", 32)


def reader(stores, batch_size=B, seed=3, **options):
    return ExampleReader(stores, sequence_length=T, batch_size=batch_size, seed=seed, **options)


def two_sources():
    return {"a": Memory(tagged(1, 70)), "b": Memory(tagged(2, 25, first=500))}


def batches(reader, steps):
    return [reader.rows(step) for step in range(steps)]


def seen(rows):
    """How many rows hold a segment of each example of `tagged` ones."""
    found = collections.Counter()
    for batch in rows:
        for tokens, segments in zip(batch["tokens"], batch["segments"], strict=True):
            found.update(tokens[segments == s][0] for s in range(1, segments.max() + 1))
    return found


def equal(one, other):
    assert set(one) == set(other)
    for name in one:
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)


@pytest.fixture(scope="module")
def summed():
    """The weighted sum of the losses of a row of 16 tokens under a tiny model."""
    model = Model(
        preset("tiny_llama3").replace(vocab_size=64, width=16, num_heads=2, num_kv_heads=1, head_dim=8, mlp_width=24, num_layers=2)
    )
    params = random_params(model, seed=0)

    @jax.jit
    def total(batch):
        hidden = model.apply(params, batch["tokens"], segments=batch["segments"], positions=batch["positions"])
        log_probs = model.log_probs(params, hidden, batch["targets"]).log_probs
        return -jnp.sum(jnp.where(batch["weights"] > 0, batch["weights"] * log_probs, 0))

    return total


def one_by_one(example):
    """A row that holds one example from its beginning, written out by hand."""
    n = len(example.tokens)
    fill = lambda values: np.r_[values, np.zeros(T - len(values))][None]  # noqa: E731
    row = {"tokens": fill(example.tokens), "targets": fill(example.tokens[1:]), "weights": fill(example.weights[1:])}
    row |= {"segments": fill(np.ones(n)), "positions": fill(np.arange(n))}
    return {name: array.astype(FIELDS[name]) for name, array in row.items()}


@pytest.mark.parametrize("mode", MODES)
def test_packed_is_unpacked(summed, mode):
    examples = drawn(0, 40)
    alone = sum(float(summed(one_by_one(example))) for example in examples)
    rows = reader({"a": Memory(examples)}, batch_size=1, **MODES[mode])
    epoch = batches(rows, rows.steps_for(1))
    filled = [{name: np.pad(batch[name], ((0, 0), (0, T - batch[name].shape[1]))) for name in FIELDS} for batch in epoch]
    np.testing.assert_allclose(sum(float(summed(batch)) for batch in filled), alone, rtol=1e-5)
    if mode == "packed":  # the test notices tokens that see their neighbours
        blind = [batch | {"segments": np.minimum(batch["segments"], 1)} for batch in filled]
        assert abs(sum(float(summed(batch)) for batch in blind) - alone) > 1e-3 * alone


@pytest.mark.parametrize("mode", MODES)
def test_a_row_is_made_of_its_examples(mode):
    examples = drawn(5, 90)
    rows = reader({"a": Memory(examples)}, turns=True, **MODES[mode])
    for step in (0, 3, 11):
        batch = rows.rows(step)
        length = batch["tokens"].shape[1]
        assert length == T if mode == "packed" else length in (8, 12, 16)
        for name, dtype in FIELDS.items():
            assert batch[name].shape == (B, length) and batch[name].dtype == dtype
        np.testing.assert_array_equal(batch["row"], np.arange(B))
        for row in range(B):
            place, roles = rows.place(step, row), rows.roles(step, row)
            assert mode == "packed" or len(place) <= 1
            for segment, held in enumerate(place, 1):
                example, n = examples[held.example], held.length
                span = slice(held.start, held.start + n)
                assert n == len(example.tokens) and held.source == "a"
                np.testing.assert_array_equal(np.flatnonzero(batch["segments"][row] == segment), np.arange(held.start, held.start + n))
                np.testing.assert_array_equal(batch["tokens"][row, span], example.tokens)
                np.testing.assert_array_equal(batch["targets"][row, span], np.r_[example.tokens[1:], 0])
                np.testing.assert_array_equal(batch["weights"][row, span], np.r_[example.weights[1:], 0])
                np.testing.assert_array_equal(batch["positions"][row, span], np.arange(n))
                np.testing.assert_array_equal(batch["turns"][row, span], example.turns)
                assert roles[segment - 1] == example.roles
            empty = batch["segments"][row] == 0
            assert empty.sum() == length - sum(held.length for held in place)
            assert not batch["weights"][row, empty].any() and (batch["turns"][row, empty] == -1).all()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("names", ["a", "ab"])
def test_every_example_once_an_epoch(mode, names):
    """With one row a batch epochs end with a batch; in larger ones the batch that an epoch ends in may begin the next."""
    stores = {name: two_sources()[name] for name in names}
    rows = reader(stores, batch_size=1, **MODES[mode])
    everyone = {int(example.tokens[0]) for store in stores.values() for example in store.examples}
    before = 0
    for epoch in range(1, 4):
        stop = rows.steps_for(epoch)
        found = seen(rows.rows(step) for step in range(before, stop))
        assert set(found) == everyone and set(found.values()) == {1}
        assert rows.epochs(stop) == {name: pytest.approx(epoch) for name in names}
        before = stop
    larger = reader(stores, **MODES[mode])
    found = seen(larger.rows(step) for step in range(larger.steps_for(2)))
    assert set(found) == everyone and min(found.values()) == 2
    assert all(larger.steps_for(part) <= larger.steps_for(part + 0.25) for part in (0, 0.3, 0.9, 1.2, 2.6))
    half = larger.epochs(larger.steps_for(0.5))["a"]
    assert 0.4 < half < 0.7


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("weights", [None, {"a": 1.0, "b": 2.5}])
def test_a_batch_is_a_function_of_seed_and_step(mode, weights):
    running = reader(two_sources(), weights=weights, **MODES[mode])
    later = {step: running.rows(step) for step in range(60)}
    for step in (59, 7, 31, 0):
        fresh = reader(two_sources(), weights=weights, **MODES[mode])
        equal(fresh.rows(step), later[step])
        equal(running.rows(step), later[step])
        mine = np.array([3, 1])
        equal(fresh.rows(step, mine), {name: value[mine] for name, value in later[step].items()})
    other = reader(two_sources(), seed=4, weights=weights, **MODES[mode])
    assert any(other.rows(step)["tokens"].tolist() != later[step]["tokens"].tolist() for step in range(3))


def test_epochs_differ_and_rows_are_shuffled():
    rows = reader({"a": Memory(tagged(1, 30))}, batch_size=1)
    orders = [[rows.place(step, 0)[0].example for step in range(rows.steps_for(e), rows.steps_for(e + 1))] for e in range(3)]
    assert orders[0] != orders[1] != orders[2]


def test_windows_are_found_by_the_rows_before_them():
    rows = reader(two_sources())
    layout = rows.layout
    far = layout.find(200, 1)  # from the middle: windows before it are counted, then forgotten
    assert len(layout._plan._kept) <= layouts.PLANS < len(layout._firsts)
    counted = [layout.first(window) for window in range(len(layout._firsts))]
    fresh = reader(two_sources()).layout
    assert [fresh.first(window) for window in range(len(counted))] == counted
    sizes = [len(fresh._plan(window).offsets) - 1 for window in range(len(counted) - 1)]
    np.testing.assert_array_equal(np.diff(counted), sizes)
    for row in (0, counted[1] - 1, counted[1], counted[2], 801):
        assert counted[fresh.window_of(row)] <= row < counted[fresh.window_of(row) + 1]
    np.testing.assert_array_equal(far[1].item, fresh.find(200, 1)[1].item)


def test_a_weighted_mixture_keeps_its_shares_of_the_examples():
    rows = reader(two_sources(), weights={"a": 1, "b": 3})
    steps = rows.steps_for(4)
    found = seen(batches(rows, steps))
    a, b = (sum(count for token, count in found.items() if (token >= 500) == later) for later in (False, True))
    assert abs(b / (a + b) - 0.75) < 0.03
    epochs = rows.epochs(steps)
    assert epochs["a"] == pytest.approx(a / 70, abs=0.1) and epochs["b"] == pytest.approx(b / 25, abs=0.3)
    assert min(epochs.values()) == pytest.approx(4, abs=0.1)  # steps_for: the slowest source has gone round so often
    assert {count - 4 for token, count in found.items() if token < 500} <= {-1, 0, 1}


def test_too_long_is_truncated_skipped_or_refused_and_counted():
    long = np.r_[0, np.zeros(15), np.ones(4)].astype(np.float32)
    late = Example(np.arange(20), long, np.zeros(20, np.int16), ("text",))  # all it would teach is cut off
    early = late._replace(weights=np.r_[0, np.ones(19)].astype(np.float32), tokens=np.arange(20) + 30)
    store = Memory([late, *drawn(0, 5), early])
    small = int(store.trained[1:-1].sum())
    cut = reader({"a": store})
    said = cut.statistics()
    assert {name: said["sources"]["a"][name] for name in ("examples", "truncated", "skipped")} == {
        "examples": 6,
        "truncated": 1,
        "skipped": 1,
    }
    assert said["trained"] == small + 15 and said["tokens"] == store.lengths[1:-1].sum() + 16
    assert [(x.source, x.example, x.length, x.fate) for x in said["too_long"]] == [("a", 0, 20, "skipped"), ("a", 6, 20, "truncated")]
    assert "a: example 6 has 20 tokens, longer than a row: truncated." in cut.describe()
    weights = sum(batch["weights"].astype(bool).sum() for batch in batches(reader({"a": store}, batch_size=1), cut.layout.first(1)))
    assert weights == said["trained"]
    skipping = reader({"a": store}, too_long="skip").statistics()
    assert (skipping["examples"], skipping["skipped"], skipping["truncated"], skipping["trained"]) == (5, 2, 0, small)
    with pytest.raises(ValueError, match=r"Example 0 of 'a' has 20 tokens, more than the 16 of a row \(2 examples have\)"):
        reader({"a": store}, too_long="refuse")
    with pytest.raises(ValueError, match="No example of 'a' fits a row of 16 tokens: all 1 are longer"):
        reader({"a": Memory([late])})


@pytest.mark.parametrize("mode", MODES)
def test_prefixes_are_seen_and_never_predicted(mode):
    examples = drawn(1, 30, longest=20)
    prefix = np.arange(64, 69)
    rows = reader({"a": Memory(examples), "b": Memory(tagged(2, 10))}, prefixes={"a": prefix}, turns=True, **MODES[mode])
    for step in range(rows.steps_for(1)):
        batch = rows.rows(step)
        assert not batch["weights"][batch["targets"] >= 64].any() and batch["targets"].max() < 64
        for row in range(B):
            for held in rows.place(step, row):
                span = slice(held.start, held.start + held.length)
                if held.source == "b":
                    continue
                example = examples[held.example]
                kept = min(len(example.tokens), T - 5)
                assert held.length == kept + 5
                np.testing.assert_array_equal(batch["tokens"][row, span], np.r_[prefix, example.tokens[:kept]])
                np.testing.assert_array_equal(batch["weights"][row, span], np.r_[np.zeros(5), example.weights[1:kept], 0])
                np.testing.assert_array_equal(batch["targets"][row, span], np.r_[np.zeros(5), example.tokens[1:kept], 0])
                np.testing.assert_array_equal(batch["positions"][row, span], np.arange(held.length))
                assert (batch["turns"][row, span][:5] == -1).all()


def test_padded_batches_are_cut_evenly_by_the_context_axis():
    store, context = Memory(tagged(1, 24, longest=190)), 16
    rows = [
        ExampleReader({"a": store}, sequence_length=192, batch_size=B, seed=3, mode="padded", multiple=m).rows for m in (1, 2 * context)
    ]
    lengths, cut = ({read(step)["tokens"].shape[1] for step in range(6)} for read in rows)
    assert 144 in lengths and cut <= {96, 160, 192} and len(cut) > 1
    for length in cut:
        zigzag_order(length, context)
    with pytest.raises(ValueError, match="144"):
        zigzag_order(144, context)


def test_padded_batches_are_as_long_as_their_longest_example_needs():
    store = Memory(drawn(0, 200))
    rows = reader({"a": store}, **MODES["padded"])
    lengths = collections.Counter()
    for step in range(rows.steps_for(1)):
        longest = max(held.length for row in range(B) for held in rows.place(step, row))
        bucket = min(b for b in (8, 12, 16) if b >= longest)
        assert rows.rows(step)["tokens"].shape == (B, bucket)
        assert rows.rows(step, [0])["tokens"].shape == (1, bucket)  # every process sees the same bucket
        lengths[bucket] += 1
    assert tuple(sorted(lengths)) == rows.buckets == (8, 12, 16) and reader({"a": store}).buckets == (T,)
    plain = store.lengths.sum() / (B * sum(bucket * count for bucket, count in lengths.items()))
    assert rows.statistics()["efficiency"] == pytest.approx(plain)
    unsorted = store.lengths.sum() / sum(B * max(store.lengths[i : i + B]) for i in range(0, 200, B))
    assert plain > unsorted


def test_the_efficiency_is_that_of_the_rows():
    rows = reader(two_sources(), batch_size=1)
    whole = batches(rows, rows.steps_for(1))
    assert rows.statistics()["efficiency"] == pytest.approx(np.mean([batch["segments"] > 0 for batch in whole]))


def test_eval_reads_every_example_once_in_order():
    store = Memory(tagged(1, 70))
    rows = ExampleEvalReader(store, sequence_length=T, batch_size=B)
    whole = batches(rows, rows.num_batches)
    found = seen(whole)
    assert set(found) == set(range(70)) and set(found.values()) == {1}
    assert sum(batch["weights"].sum() for batch in whole) == store.trained.sum()
    order = [held.example for step in range(rows.num_batches) for row in range(B) for held in rows.place(step, row)]
    windows = [set(order[:23]), set(order[23:46])]  # 70 examples in three windows: each packed by itself, one after the other
    assert windows == [set(range(23)), set(range(23, 46))]
    assert rows.num_batches * B >= rows.num_rows > (rows.num_batches - 1) * B
    empty = whole[-1]["segments"][rows.num_rows - (rows.num_batches - 1) * B :]
    assert not empty.any()
    few = ExampleEvalReader(store, sequence_length=T, batch_size=B, max_batches=2)
    assert few.num_batches == 2
    equal(few.rows(1, [2]), {name: value[[2]] for name, value in whole[1].items()})


def test_a_store_on_disk_is_fed_ahead_by_threads(tmp_path):
    examples = drawn(0, 60)
    rows = reader({"a": write_examples(tmp_path / "s", examples, vocab_size=64, fingerprint="x")})
    wanted = batches(reader({"a": Memory(examples)}), 12)
    feed = Feed(rows, lambda batch, indices: batch, prefetch=4, threads=3)
    for batch in wanted:
        equal(feed(), batch)
    feed.close()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "pakced"}, "Unknown mode='pakced'. Choose one of: packed, padded"),
        ({"too_long": "cut"}, "Unknown too_long='cut'. Choose one of: truncate, skip, refuse"),
        ({"weights": {"b": 1}}, r"given for \['b'\], but the sources are \['a'\]"),
        ({"weights": {"a": 0}}, "'a' has weight 0. Give it more than 0"),
        ({"prefixes": {"b": [1]}}, r"given for 'b', but the sources are \['a'\]"),
        ({"prefixes": {"a": range(15)}}, "prefix of 15 tokens leaves 1 of sequence_length=16"),
        ({"buckets": (8,)}, r"buckets=\(8,\) are given, but mode='packed' pads to no bucket"),
        ({"mode": "padded", "buckets": (99,)}, "bucket of 99 tokens"),
        ({"mode": "padded", "buckets": (10,), "multiple": 4}, "bucket of 10 tokens"),
    ],
)
def test_users_mistakes_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        reader({"a": Memory(tagged(0, 3))}, **options)
    with pytest.raises(ValueError, match="no examples to train on"):
        reader({})
