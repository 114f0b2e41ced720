"""The points of a sweep: what grids, zips, draws and chains of keys come to, and what is refused."""

import math

import pytest

from launch import space


def test_grids_multiply_zips_go_side_by_side_and_chains_follow():
    found = space.points([("grid", "a=1,2"), ("zip", "b=x,y"), ("zip", "c=u,v"), ("chain", ""), ("grid", "a=3")])
    assert found == [{"a": a, "b": b, "c": c} for a in "12" for b, c in ("xu", "yv")] + [{"a": "3"}]


def test_a_point_that_comes_twice_is_one():
    assert space.points([("grid", "a=1,2"), ("chain", ""), ("grid", "a=2,3")]) == [{"a": "1"}, {"a": "2"}, {"a": "3"}]


def test_commas_inside_brackets_and_quotes_belong_to_the_value():
    assert space.entry("--grid", "config.data.train=[a, b],{'k': 1, 'l': 2},'c,d'") == (
        "data.train",
        ["[a, b]", "{'k': 1, 'l': 2}", "'c,d'"],
    )


def test_draws_stay_between_their_ends_and_follow_from_the_seed():
    flags = [("random", "lr=log:1e-4:1e-2"), ("random", "depth=int:1:4"), ("random", "p=uniform:0.25:0.5"), ("random", "name=adamw,lion")]
    found = space.points(flags, count=400, seed=3)
    assert found == space.points(flags, count=400, seed=3) != space.points(flags, count=400, seed=4)
    rates = [float(point["lr"]) for point in found]
    assert all(1e-4 <= rate <= 1e-2 for rate in rates)
    assert 0.4 < sum(rate < 1e-3 for rate in rates) / 400 < 0.6  # half of them below the geometric middle
    assert {point["depth"] for point in found} == set("1234") and {point["name"] for point in found} == {"adamw", "lion"}
    assert all(0.25 <= float(point["p"]) <= 0.5 for point in found)
    assert math.isclose(sum(float(point["p"]) for point in found) / 400, 0.375, abs_tol=0.02)


@pytest.mark.parametrize(
    "flags, count, said",
    [
        ([("grid", "a")], None, "write KEY=VALUE,VALUE"),
        ([("grid", "a=1,,2")], None, "write KEY=VALUE,VALUE"),
        ([("grid", "a=1"), ("zip", "a=2")], None, "a is there already"),
        ([("zip", "a=1,2"), ("zip", "b=1")], None, "a has 2 values, b has 1 values"),
        ([("random", "a=log:0:1")], 2, "above 0"),
        ([("random", "a=uniform:2:1")], 2, "two numbers in order"),
        ([("random", "a=int:x:1")], 2, "two numbers in order"),
        ([("random", "a=1,2")], None, "--random and --count go together"),
        ([("grid", "a=1,2")], 3, "--random and --count go together"),
        ([("random", "a=1,2")], 0, "give 1 or more"),
        ([], None, "Nothing to sweep over"),
    ],
)
def test_what_is_no_space_is_refused(flags, count, said):
    with pytest.raises(ValueError, match=said):
        space.points(flags, count)
