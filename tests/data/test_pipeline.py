"""A batch is a function of (seed, step) alone; rows keep documents apart and cover every token once an epoch."""

import threading
import time
import tracemalloc

import numpy as np
import pytest

from jaxllm.data.pipeline import FIELDS, EvalReader, Feed, Reader, num_windows, window_row
from jaxllm.data.token_files import Shard, TokenStream

T, B = 16, 8
EOS = 9


class Memory:
    """A stream of documents held in memory: document d is [1000 d, 1000 d + 1, ..., 9]."""

    def __init__(self, lengths, first=1):
        docs = [np.r_[1000 * (d + first) + np.arange(n - 1), EOS] for d, n in enumerate(lengths)]
        self.tokens = np.concatenate(docs).astype(np.int32)
        self.all_ends = np.cumsum(lengths)
        self.num_tokens = len(self.tokens)

    def read(self, start, stop):
        return self.tokens[start:stop]

    def ends(self, start, stop):
        return self.all_ends[(self.all_ends > start) & (self.all_ends <= stop)]


def random_stream(seed=0, count=60, first=1):
    return Memory(np.random.default_rng(seed).integers(2, 50, count), first)


def equal(one, other):
    assert set(one) == set(other)
    for name in one:
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)


def two_sources(threads=1):
    streams = {"a": random_stream(1), "b": random_stream(2, first=500)}
    return Reader(streams, sequence_length=T, batch_size=B, seed=3, weights={"a": 3, "b": 1}, threads=threads)


@pytest.fixture
def reader():
    return two_sources()


def test_rows_have_the_shapes_of_a_batch(reader):
    batch = reader.rows(5)
    for name, dtype in FIELDS.items():
        assert batch[name].shape == (B, T) and batch[name].dtype == dtype
    np.testing.assert_array_equal(batch["row"], np.arange(B, dtype=np.int32))


def test_no_target_crosses_and_no_token_sees_another_document():
    stream = random_stream()
    for window in range(num_windows(stream.num_tokens, T)):
        row = window_row(stream, window, T)
        live = row["segments"] > 0
        assert not row["weights"][~live].any()
        document = row["tokens"] // 1000
        for t in np.flatnonzero(live):
            same = row["segments"] == row["segments"][t]
            real = same & (row["tokens"] != EOS)
            assert len(set(document[real])) <= 1  # a segment is one document
            np.testing.assert_array_equal(row["positions"][same], np.arange(same.sum()))
            if row["tokens"][t] == EOS:
                assert row["weights"][t] == 0 and row["targets"][t] == 0
            elif row["weights"][t]:
                assert row["targets"][t] in (row["tokens"][t] + 1, EOS)
        assert set(np.diff(row["segments"][live])) <= {0, 1}


def test_an_epoch_has_every_target_once():
    stream = random_stream()
    reader = Reader({"a": stream}, sequence_length=T, batch_size=1, seed=0)
    wanted = np.ones(stream.num_tokens, bool)
    wanted[0] = False
    wanted[stream.all_ends[:-1]] = False  # the first token of a document has none before it
    for epoch in range(3):
        seen, order = np.zeros(stream.num_tokens, int), []
        for step in range(epoch * reader.windows["a"], (epoch + 1) * reader.windows["a"]):
            name, when, window = reader.place(step, 0)
            assert (name, when) == ("a", epoch)
            order.append(window)
            row = reader.rows(step)
            seen[window * T + 1 + np.flatnonzero(row["weights"][0])] += 1
        np.testing.assert_array_equal(seen, wanted)
        assert order != sorted(order)


def test_any_process_reads_its_rows_of_the_same_batch(reader):
    whole = reader.rows(7)
    for processes in (2, 4, 8):
        for p in range(processes):
            mine = np.arange(p, B, processes)
            equal(reader.rows(7, mine), {name: value[mine] for name, value in whole.items()})


def test_threads_and_history_change_nothing(reader):
    fresh = two_sources(threads=4)
    for step in (9, 0, 10**9, 4):
        equal(fresh.rows(step), reader.rows(step))
    other = Reader({"a": random_stream(1)}, sequence_length=T, batch_size=B, seed=4)
    same = Reader({"a": random_stream(1)}, sequence_length=T, batch_size=B, seed=5)
    assert not np.array_equal(other.rows(0)["tokens"], same.rows(0)["tokens"])


def test_mixtures_keep_their_shares_and_each_source_its_own_order():
    a, b = random_stream(1), random_stream(2, first=500)
    reader = Reader({"a": a, "b": b}, sequence_length=T, batch_size=10, seed=3, weights={"a": 4, "b": 1})
    places = [reader.place(step, row) for step in range(100) for row in range(10)]
    assert abs(sum(name == "a" for name, _, _ in places) - 800) <= 2
    alone = Reader({"b": b}, sequence_length=T, batch_size=1, seed=3)
    mixed = [(epoch, window) for name, epoch, window in places if name == "b"]
    assert mixed == [alone.place(step, 0)[1:] for step in range(len(mixed))]
    epochs = reader.epochs(100)
    assert epochs == {"a": pytest.approx(800 / reader.windows["a"]), "b": pytest.approx(200 / reader.windows["b"])}
    by_size = Reader({"a": a, "b": b}, sequence_length=T, batch_size=1, seed=0)
    done = by_size.windows["a"] + by_size.windows["b"]
    assert by_size.epochs(done) == {"a": pytest.approx(1), "b": pytest.approx(1)}


def test_eval_reads_every_window_once_and_fills_the_last_batch_up():
    stream = random_stream(4)
    reader = EvalReader(stream, sequence_length=T, batch_size=B)
    batches = [reader.rows(step) for step in range(reader.num_batches)]
    tokens = np.concatenate([b["tokens"].ravel() for b in batches])
    np.testing.assert_array_equal(tokens[: stream.num_tokens - 1], stream.tokens[:-1])
    assert sum(b["weights"].sum() for b in batches) == stream.num_tokens - 60  # all but the first of each document
    assert reader.num_batches * B >= reader.num_rows > (reader.num_batches - 1) * B
    empty = batches[-1]["weights"][reader.num_rows - (reader.num_batches - 1) * B :]
    assert empty.size and not empty.any()
    assert EvalReader(stream, sequence_length=T, batch_size=B, max_batches=2).num_batches == 2


@pytest.mark.parametrize(("prefetch", "threads"), [(0, 1), (1, 1), (4, 1), (4, 4), (9, 3)])
def test_a_feed_is_its_reader_whatever_is_read_ahead(reader, prefetch, threads):
    feed = Feed(reader, lambda rows, indices: rows, prefetch=prefetch, threads=threads)
    for step in range(6):
        assert feed.state() == {"position": step}
        equal(feed(None, None), reader.rows(step))
    feed.close()


def test_a_feed_goes_on_from_any_position(reader):
    feed = Feed(reader, lambda rows, indices: rows, rows=[1, 3], prefetch=3)
    for _ in range(4):
        feed()
    saved = feed.state()
    assert saved == {"position": 4}
    later = [feed() for _ in range(3)]
    again = Feed(reader, lambda rows, indices: rows, rows=[1, 3], prefetch=1, position=77)
    again.restore(saved)
    feed.restore(saved)
    for batch in later:
        equal(again(), batch)
        equal(feed(), batch)
    assert again.state() == {"position": 7}
    again.close()
    feed.close()


def test_a_feed_reads_ahead_and_hands_errors_on(reader):
    asked, gate = [], threading.Event()

    class Slow:
        batch_size = B

        def rows(self, step, rows=None):
            asked.append(step)
            if len(asked) == 3:
                gate.set()
            if step == 2:
                raise OSError("the disk is gone")
            return reader.rows(step, rows)

    feed = Feed(Slow(), lambda rows, indices: (rows, indices), prefetch=3, threads=1)
    _, indices = feed()
    np.testing.assert_array_equal(indices, np.arange(B))
    assert gate.wait(10)  # batches 1 and 2 are asked for before anybody wants them
    feed()
    for _ in range(2):
        with pytest.raises(OSError, match="disk is gone"):
            feed()
    assert feed.state() == {"position": 2}
    feed.close()


def test_users_mistakes_are_named():
    with pytest.raises(ValueError, match="no tokens to train on"):
        Reader({}, sequence_length=T, batch_size=B, seed=0)
    with pytest.raises(ValueError, match="'a' has 1 tokens, too few"):
        Reader({"a": Memory([1])}, sequence_length=T, batch_size=B, seed=0)
    with pytest.raises(ValueError, match=r"given for \['b'\], but the sources are \['a'\]"):
        Reader({"a": random_stream()}, sequence_length=T, batch_size=B, seed=0, weights={"b": 1})


def test_a_thousand_million_rows_start_at_once_in_little_memory():
    """The real stream class over 2,000 shards of 2 million tokens whose documents have synthetic lengths 10, 11, ..., 29, 10, ..."""
    shard_tokens, cycle = 1950 * 1026, np.arange(10, 30)
    per_cycle = int(cycle.sum())
    count = shard_tokens * len(cycle) // per_cycle

    class Tokens:
        def __getitem__(self, where):
            return np.arange(where.start, where.stop) % 50000

    class Ends:
        def __len__(self):
            return count

        def __getitem__(self, where):
            if isinstance(where, slice):
                return np.asarray([self[i] for i in range(where.start, where.stop)], np.uint64)
            return (where // 20) * per_cycle + int(cycle[: where % 20 + 1].sum())

    assert shard_tokens % per_cycle == 0
    shards = [{"tokens": shard_tokens, "documents": count, "bytes": 0}] * 2000
    tracemalloc.start()
    began = time.perf_counter()
    stream = TokenStream("big", shards, lambda index: Shard(Tokens(), Ends(), None))
    reader = Reader({"big": stream}, sequence_length=4, batch_size=64, seed=1)
    first = reader.rows(0)
    started = time.perf_counter() - began
    far = reader.rows(10**9 // 64 - 1)
    elapsed = time.perf_counter() - began
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert reader.windows["big"] > 10**9
    assert started < 5 and elapsed < 10, (started, elapsed)
    assert peak < 5e6, peak
    assert first["weights"].mean() > 0.8 and far["segments"].max() <= 2
