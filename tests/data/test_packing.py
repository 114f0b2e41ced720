"""Every example is in one row once, no row is longer than T, and few rows are needed."""

import itertools
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxllm.data.packing import best_fit, bucket_lengths, by_length, check_buckets


def contents(packed):
    return [packed.items[a:b].tolist() for a, b in zip(packed.offsets[:-1], packed.offsets[1:], strict=True)]


def plain_best_fit(lengths, capacity):
    """The definition: the longest first, each into the row with the least room that is enough."""
    rows = []
    for item in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        fitting = [row for row in rows if row[0] >= lengths[item]]
        row = min(fitting, key=lambda row: row[0]) if fitting else [capacity, []]
        if not fitting:
            rows.append(row)
        row[0] -= lengths[item]
        row[1].append(item)
    return rows


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 40), max_size=60), st.integers(40, 90))
def test_none_lost_none_twice_none_too_long(lengths, capacity):
    packed = best_fit(np.asarray(lengths, np.int32), capacity)
    rows = contents(packed)
    assert sorted(packed.items.tolist()) == list(range(len(lengths)))
    assert all(row and row == sorted(row) and sum(lengths[i] for i in row) <= capacity for row in rows)
    rooms = sorted(capacity - sum(lengths[i] for i in row) for row in rows)
    assert rooms == sorted(room for room, _ in plain_best_fit(lengths, capacity))  # whichever of two equal rows is taken


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=60), st.integers(1, 9))
def test_batches_by_length_hold_neighbours(lengths, batch_size):
    packed = by_length(np.asarray(lengths), batch_size)
    batches = contents(packed)
    assert sorted(packed.items.tolist()) == list(range(len(lengths)))
    assert all(len(batch) == batch_size for batch in batches[:-1]) and 0 < len(batches[-1]) <= batch_size
    ordered = [lengths[i] for batch in batches for i in batch]
    assert ordered == sorted(lengths, reverse=True)


def test_a_hundred_thousand_examples_are_packed_in_a_moment_and_tightly():
    lengths = np.clip(np.exp(np.random.RandomState(0).normal(4.9, 0.8, 100_000)), 8, 1024).astype(int)
    began = time.perf_counter()
    packed = [best_fit(lengths[i : i + 8192], 1024) for i in range(0, len(lengths), 8192)]
    assert time.perf_counter() - began < 2
    assert lengths.sum() / (1024 * sum(p.num_rows for p in packed)) > 0.99


def test_buckets():
    assert bucket_lengths(1024, shortest=128) == (128, 192, 256, 384, 512, 768, 1024)
    assert bucket_lengths(1000, shortest=500) == (500, 750, 1000)
    assert bucket_lengths(30) == (30,)
    assert bucket_lengths(1024, shortest=128, multiple=128) == (128, 256, 384, 512, 768, 1024)
    assert bucket_lengths(192, multiple=16) == (96, 144, 192)
    for longest, multiple in itertools.product((256, 768, 2048, 4096), (2, 8, 32, 256)):  # 2 x context
        found = bucket_lengths(longest, multiple=multiple)
        assert found[-1] == longest and not any(bucket % multiple for bucket in found)
    with pytest.raises(ValueError, match=r"bucket of 24 tokens \(sequence_length=128\) is no multiple of 16, as the mesh cuts it: take 32"):
        check_buckets([64, 24], 128, 16)
    with pytest.raises(ValueError, match=r"bucket of 100 tokens \(sequence_length=100\) is no multiple of 8"):
        check_buckets([], 100, 8)
    assert check_buckets([64, 16], 128) == (16, 64, 128)
    with pytest.raises(ValueError, match=r"bucket of 200 tokens is not in 2..128 \(sequence_length\)"):
        check_buckets([200], 128)
