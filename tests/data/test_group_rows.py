"""Groups of answers in rows: together, apart, whole, each once an epoch, a pure function of the step; cut fairly or refused."""

import numpy as np
import pytest

from jaxllm.data.examples import Example
from jaxllm.data.group_rows import GroupReader, Shape, borrowed, fair_cap, fit_groups, shape_of
from jaxllm.data.groups import Chosen, Group, GroupStore, Said, open_groups, singles, write_groups
from jaxllm.losses.unpaired import mismatched
from tests.data.drawn_examples import Memory


def answer(prompt, tokens):
    """A prompt of weight 0 and an answer of weight 1."""
    ids = np.asarray([*prompt, *tokens], np.int32)
    weights = (np.arange(len(ids)) >= len(prompt)).astype(np.float32)
    return Example(ids, weights, np.where(weights > 0, 1, 0).astype(np.int16), ("user", "assistant"))


def drawn(count, answers, longest=6, seed=0):
    """Groups of 2..K answers; every token of answer k of group g is told from all others' by its id."""
    random, groups = np.random.RandomState(seed), []
    for g in range(count):
        own = [answer([1, 2 + g], np.full(random.randint(1, longest), 100 + 10 * g + k)) for k in range(random.randint(2, answers + 1))]
        groups.append(Group(tuple(own), tuple(float(k) for k in range(len(own))), np.nan, 0.5 * g, g))
    return groups


def in_memory(groups):
    ends = np.cumsum([len(group.answers) for group in groups])
    ranks = np.asarray([rank for group in groups for rank in group.ranks], np.float32)
    rest = [np.asarray([getattr(group, name) for group in groups]) for name in ("value", "margin", "prompt")]
    return GroupStore(Said(ends, ranks, *rest), Memory([one for group in groups for one in group.answers]))


def found_in(rows, shape):
    """(tokens, ranks, margin) of every group of a batch, read back from its arrays alone."""
    groups = []
    for b in range(len(rows["tokens"])):
        for g in range(shape.groups):
            lengths = rows["lengths"][b, g]
            if not lengths[0]:
                assert (rows["ranks"][b, g] == -1).all()
                continue
            tokens = []
            for k in range(shape.answers):
                own = rows["segments"][b] == g * shape.answers + k + 1
                assert own.sum() == lengths[k] and (lengths[k] == 0) == (rows["ranks"][b, g, k] < 0)
                np.testing.assert_array_equal(rows["positions"][b][own], np.arange(lengths[k]))
                ids = rows["tokens"][b][own].tolist()
                assert rows["targets"][b][own].tolist()[:-1] == ids[1:] and rows["weights"][b][own].tolist()[-1:] in ([], [0.0])
                assert rows["weights"][b][own].sum() == max(len(ids) - 2, 0)
                tokens += [tuple(ids)] if ids else []
            groups.append((tuple(tokens), tuple(rows["ranks"][b, g, : len(tokens)].tolist()), float(rows["margins"][b, g, 0])))
    return groups


@pytest.mark.parametrize("packing", ["packed", "padded"])
@pytest.mark.parametrize("seed", [None, 5])
def test_every_group_is_whole_in_one_row_and_comes_once_an_epoch(packing, seed):
    groups, shape = drawn(23, 3), shape_of(4, 48, 3, packing)
    assert shape.groups == {"packed": 2, "padded": 1}[packing]
    reader = GroupReader({"s": in_memory(groups)}, shape, seed=seed, packing=packing)
    found = [group for step in range(reader.num_batches) for group in found_in(reader.rows(step), shape)]
    expected = [(tuple(tuple(a.tokens.tolist()) for a in g.answers), g.ranks, g.margin) for g in groups]
    if seed is None:
        assert sorted(found) == sorted(expected)
    else:  # the last batch may begin the next epoch
        assert set(found) == set(expected) and len(found) >= len(expected)


def test_rows_are_a_pure_function_of_the_step_whoever_reads_them():
    store, shape = in_memory(drawn(40, 2)), shape_of(4, 64, 2, "packed")
    one, other = (GroupReader({"s": store}, shape, seed=1) for _ in range(2))
    for step in (7, 0, 3):
        whole, part = one.rows(step), other.rows(step, [2, 3])
        for name, array in whole.items():
            np.testing.assert_array_equal(array[2:], part[name])


def test_a_group_that_is_too_long_is_cut_fairly_refused_or_left_out():
    long = Group((answer([1, 2], [5] * 29), answer([1, 2], [6] * 3)), (0.0, 1.0), np.nan, 0.0, 0)
    same = Group((answer([1], [7] * 20), answer([1], [*[7] * 20, 8])), (0.0, 1.0), np.nan, 0.0, 1)
    prompt = Group((answer(range(40), [1]), answer(range(40), [2])), (0.0, 1.0), np.nan, 0.0, 2)
    store, shape = in_memory([long, same, prompt]), Shape(1, 24, 1, 2)
    fit = fit_groups("s", store, shape)
    assert (fit.truncated, fit.identical, fit.skipped) == (1, 1, 1) and fit.kept.tolist() == [0] and fit.caps.tolist() == [19]
    assert {found.fate for found in fit.too_long} == {"truncated", "made identical", "skipped"}
    reader = GroupReader({"s": store}, shape, seed=0)
    assert [len(tokens) for tokens in found_in(reader.rows(0), shape)[0][0]] == [19, 5]
    assert "1 truncated, 1 skipped, 1 left out as truncation would make their answers equal" in reader.describe()[0]
    with pytest.raises(ValueError, match="Group 0 of 's' has 36 tokens, more than the 24 of a row"):
        fit_groups("s", store, shape, too_long="refuse")
    with pytest.raises(ValueError, match="No group of 's' fits"):
        fit_groups("s", store, shape, too_long="skip")
    with pytest.raises(ValueError, match=r"has 2 answers to a prompt.*Set reward.answers to 2"):
        fit_groups("s", store, shape._replace(answers=1))


def test_the_fair_cap_cuts_the_longest_first():
    assert fair_cap(np.array([9, 3, 7]), 15) == 6 and fair_cap(np.array([2, 3]), 9) == 3 and fair_cap(np.array([5, 5]), 1) == 0


def test_a_prefix_stands_before_every_answer():
    reader = GroupReader({"s": in_memory(drawn(3, 2))}, Shape(2, 32, 1, 2), seed=0, prefixes={"s": np.array([900, 901])})
    rows = reader.rows(0)
    for segment in (1, 2):
        own = rows["segments"][0] == segment
        assert rows["tokens"][0][own][:3].tolist() == [900, 901, 1] and rows["weights"][0][own][:3].tolist() == [0, 0, 0]
        assert rows["targets"][0][own].max() < 900


def test_stores_on_disk_parts_and_singles(tmp_path):
    groups = drawn(6, 3)
    write_groups(tmp_path / "s", iter(groups), vocab_size=300, fingerprint="f", notes={"held": [1]})
    store, notes = open_groups(tmp_path / "s", fingerprint="f")
    assert notes == {"held": [1]} and store.said.margins.tolist() == [0.5 * g for g in range(6)]
    part = Chosen(store, np.array([4, 1]))
    start, stop = part.said.ends.tolist()
    assert [part.answers.example(i).tokens.tolist() for i in range(start)] == [a.tokens.tolist() for a in groups[4].answers]
    assert stop - start == len(groups[1].answers) and part.said.prompts.tolist() == [4, 1]
    alone = singles(part)
    assert alone.said.values.tolist() == [1.0, *[0.0] * (start - 1), 1.0, *[0.0] * (stop - start - 1)]
    tied = in_memory([Group((answer([1], [2]), answer([1], [3])), (0.0, 0.0), np.nan, 0.0, 9), *groups[:1]])
    assert len(singles(tied).said.values) == len(groups[0].answers)  # nobody said which of a tie is good


@pytest.mark.parametrize("seed", [None, 2])
def test_every_row_borrows_the_answer_of_another_prompt(seed):
    store, shape = singles(in_memory(drawn(9, 2))), Shape(4, 32, 1, 1)
    reader = GroupReader({"s": store}, shape, seed=seed, packing="padded", partners=mismatched)
    for step in range(reader.num_batches):
        rows = reader.rows(step)
        there = np.flatnonzero(rows["lengths"][:, 0, 0])
        if len(there) < 4:
            continue
        own = [rows["tokens"][b][rows["weights"][b] > 0] for b in there]
        lent = [rows["other_targets"][b][rows["other_weights"][b] > 0] for b in there]
        assert sorted(len(x) for x in lent) == sorted(rows["lengths"][b, 0, 0] - 2 for b in there)  # each answer is lent once
        for b, mine, theirs in zip(there, own, lent, strict=True):
            assert (theirs[0] - 100) // 10 != rows["tokens"][b, 1] - 2 and len(mine)
            assert rows["other_tokens"][b, :2].tolist() == rows["tokens"][b, :2].tolist()
        part = reader.rows(step, [1])
        assert all((part[name][0] == rows[name][1]).all() for name in rows)
    assert borrowed(answer([1, 2], [3]), answer([4], [5, 6])).tokens.tolist() == [1, 2, 5, 6]
