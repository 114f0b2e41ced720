"""What would fit, and the search that compiles as little as it can."""

import math

import pytest

from jaxllm.planning.search import Choice, Outcome, search
from jaxllm.planning.topologies import parse
from jaxllm.planning.verdict import fsdp_minimum, remedy
from jaxllm.stages import plan, setup
from jaxllm.stages.config import resolve

GB = 10**9


def test_the_formula_of_fsdp():
    sent = fsdp_minimum(layers=800, once=80, whole=880, ways=8, microbatches=2)
    assert sent == {("all-gather", "fsdp"): 2 * (1600 + 80) * 7 / 8, ("reduce-scatter", "fsdp"): 2 * 880 * 7 / 8}
    assert fsdp_minimum(800, 80, 880, ways=1) == {}


@pytest.mark.parametrize(
    ("slice_name", "used", "state", "rows", "says"),
    [
        ("v5e:4x4", 30 * GB, 4 * GB, 8, "would fit: 4 times the microbatches, or v5e:8x4 with fsdp=-1; remat=full"),
        ("v5e:4x4", 30 * GB, 4 * GB, 1, "would fit: v5e:8x4 with fsdp=-1 and batch_size at least 2 times as large"),
        ("v5e:4x4", 100 * GB, 90 * GB, 8, "would fit: v5e:16x8 with fsdp=-1;"),
        ("v5e:16x16", 40 * GB, 20 * GB, 1, "No v5e slice would hold it by proportion"),
    ],
)
def test_what_would_fit_by_proportion(slice_name, used, state, rows, says):
    assert says in remedy(parse(slice_name), used, state, rows, "none")
    assert "remat" not in remedy(parse(slice_name), used, state, rows, "full")


def freely(choice, other):
    return True


def test_the_search_stops_where_nothing_faster_is_left():
    """Bounds 1, 2, 3, 4; the first does not fit, the second takes 3.5: the third may be faster and is, the fourth cannot be."""
    outcomes = {1.0: Outcome(False, 1.0), 2.0: Outcome(True, 3.5), 3.0: Outcome(True, 3.1), 4.0: Outcome(True, 4.0)}
    asked = []

    def evaluate(choice):
        asked.append(choice.bound)
        return outcomes[choice.bound]

    found, missed = search([Choice({}, bound) for bound in (4.0, 2.0, 1.0, 3.0)], evaluate, 10, freely)
    assert asked == [1.0, 2.0, 3.0] and missed == 0
    assert [choice.bound for choice, _ in found] == [3.0, 2.0, 1.0]


def test_when_nothing_fits_everything_was_tried():
    choices = [Choice({}, 1.0), Choice({}, 2.0), Choice({}, 3.0)]
    found, missed = search(choices, lambda choice: Outcome(False, choice.bound), 10, freely)
    assert len(found) == 3 and not found[0][1].fits and missed == 0
    assert search(choices, lambda choice: Outcome(False, choice.bound), 2, freely)[1] == 1


def test_what_needs_as_much_as_what_did_not_fit_is_passed_over():
    asked = []

    def evaluate(choice):
        asked.append(choice.overrides["size"])
        return Outcome(choice.overrides["size"] < 3, choice.bound)

    choices = [Choice({"size": size}, bound) for bound, size in enumerate((5, 7, 4, 6, 2))]
    found, missed = search(choices, evaluate, 10, lambda a, b: a.overrides["size"] < b.overrides["size"])
    assert asked == [5, 4, 2] and found[0][0].overrides == {"size": 2} and missed == 0


def test_what_cannot_be_compiled_rules_out_nothing_else():
    outcomes = {1.0: None, 2.0: Outcome(True, 2.5)}
    found, missed = search([Choice({}, 1.0), Choice({}, 2.0)], lambda choice: outcomes[choice.bound], 10, lambda a, b: False)
    assert [choice.bound for choice, _ in found] == [2.0] and missed == 0
    assert search([Choice({}, 1.0), Choice({}, 2.0)], lambda choice: outcomes[choice.bound], 1, freely) == ([], 1)


def test_choices_are_those_that_the_slice_can_run():
    config = resolve(
        {"batch_size": 64, "sequence_length": 128, "model": {"preset": "tiny_llama3"}, "data": {"tokenizer": {"kind": "bytes"}}}
    )
    shape = setup.model_config(config)  # 4 heads
    for name, slices in (("v5e:2x2", 1), ("v5e:2x2", 2), ("v5p:2x2x1", 1), ("v5e:4x4", 1)):
        topology = parse(name, slices)
        found = plan.choices(config, topology, shape, 2, 197e12)
        assert found
        for overrides, bound in found:
            sizes = [overrides[f"parallel.{axis}"] for axis in ("replica", "fsdp", "tensor", "context")]
            assert math.prod(sizes) == topology.num_devices and sizes[2] in (1, 2, 4) and bound > 0
            assert 64 % (sizes[0] * sizes[1] * overrides["microbatches"]) == 0


def test_a_choice_needs_less_by_policy_microbatches_or_other_ways():
    def choice(remat, parts, tensor):
        return Choice({"remat": remat, "microbatches": parts, "parallel.tensor": tensor}, 1.0)

    base = choice("dots", 2, 1)
    assert all(plan.needs_less(x, base) for x in (choice("full", 1, 1), choice("none", 4, 1), choice("none", 1, 2)))
    assert not any(plan.needs_less(x, base) for x in (base, choice("minimal", 2, 1), choice("none", 1, 1)))
