"""Which checkpoints stay is a pure function of their metrics."""

import pytest

from jaxllm.training.retention import best_step, to_delete

NAN = float("nan")


@pytest.mark.parametrize(
    "losses, keep, best, expected",
    [
        ({1: 1.0, 2: 2.0, 3: 3.0}, 2, None, [1]),
        ({1: 1.0, 2: 2.0, 3: 3.0, 4: 4.0}, 1, ("loss", "min"), [2, 3]),
        ({1: 1.0, 2: 2.0, 3: 3.0, 4: 1.0}, 1, ("loss", "max"), [1, 2]),
        ({1: 1.0, 2: 1.0, 3: 3.0}, 1, ("loss", "min"), [2]),  # the earliest of equals
        ({1: NAN, 2: 2.0, 3: NAN}, 1, ("loss", "min"), [1]),
        ({1: NAN, 2: NAN}, 1, ("loss", "min"), [1]),
        ({1: 1.0, 2: 2.0}, 1, ("accuracy", "max"), [1]),  # nobody has it
        ({}, 3, ("loss", "min"), []),
        ({10: 1.0, 9: 0.0}, 1, None, [9]),  # by number, not by name
    ],
)
def test_the_last_few_and_the_best(losses, keep, best, expected):
    assert to_delete({step: {"loss": loss} for step, loss in losses.items()}, keep, best) == expected


def test_best_of_nothing_is_none():
    assert best_step({}, ("loss", "min")) is None
