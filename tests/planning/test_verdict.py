"""What would fit, and the search that compiles as little as it can."""

import pytest

from jaxllm.planning.search import Choice, Outcome, search
from jaxllm.planning.topologies import parse
from jaxllm.planning.verdict import fsdp_minimum, remedy

GB = 10**9


def test_the_formula_of_fsdp():
    sent = fsdp_minimum(layers=800, once=80, whole=880, ways=8, microbatches=2)
    assert sent == {("all-gather", "fsdp"): 2 * (1600 + 80) * 7 / 8, ("reduce-scatter", "fsdp"): 2 * 880 * 7 / 8}
    assert fsdp_minimum(800, 80, 880, ways=1) == {}


@pytest.mark.parametrize(
    ("used", "state", "rows", "says"),
    [
        (30 * GB, 4 * GB, 8, "would fit: 4 times the microbatches, or v5e:8x4 with fsdp=-1; remat=full"),
        (30 * GB, 4 * GB, 1, "would fit: v5e:8x4 with fsdp=-1"),
        (100 * GB, 90 * GB, 8, "would fit: v5e:16x8 with fsdp=-1"),
    ],
)
def test_what_would_fit_by_proportion(used, state, rows, says):
    assert says in remedy(parse("v5e:4x4"), used, state, rows, "none")
    assert "remat" not in remedy(parse("v5e:4x4"), used, state, rows, "full")


def test_the_search_stops_where_nothing_faster_is_left():
    """Bounds 1, 2, 3, 4; the first does not fit, the second takes 3.5: the third may be faster and is, the fourth cannot be."""
    outcomes = {1.0: Outcome(False, 1.0, 9), 2.0: Outcome(True, 3.5, 5), 3.0: Outcome(True, 3.1, 4), 4.0: Outcome(True, 4.0, 1)}
    asked = []

    def evaluate(choice):
        asked.append(choice.bound)
        return outcomes[choice.bound]

    found, missed = search([Choice({}, bound) for bound in (4.0, 2.0, 1.0, 3.0)], evaluate, 10)
    assert asked == [1.0, 2.0, 3.0] and missed == 0
    assert [choice.bound for choice, _ in found] == [3.0, 2.0, 1.0]


def test_when_nothing_fits_everything_was_tried():
    choices = [Choice({}, 1.0), Choice({}, 2.0), Choice({}, 3.0)]
    found, missed = search(choices, lambda choice: Outcome(False, choice.bound, 9), 10)
    assert len(found) == 3 and not found[0][1].fits and missed == 0
    assert search(choices, lambda choice: Outcome(False, choice.bound, 9), 2)[1] == 1
