"""The endless sequence of examples is its definition, element by element."""

import numpy as np
import pytest

from jaxllm.data.example_order import Order, fit
from jaxllm.data.mixtures import Mixture, shuffle_key, shuffled
from tests.data.drawn_examples import Memory, tagged

SOURCES = [fit(name, Memory(tagged(number, count)), 16) for number, (name, count) in enumerate([("a", 30), ("b", 7), ("c", 55)])]
COUNTS = [30, 7, 55]


def plain(seed, weights, i):
    """(source, item, epoch) of element i."""
    if weights is None:
        epoch, index = divmod(i, 92)
        place = index if seed is None else int(shuffled(np.array([index]), 92, shuffle_key(seed, "a", "b", "c", epoch))[0])
        source = 0 if place < 30 else 1 if place < 37 else 2
        return source, place - [0, 30, 37][source], epoch
    source, count = Mixture(weights)[i]
    epoch, index = divmod(count, COUNTS[source])
    return source, int(shuffled(np.array([index]), COUNTS[source], shuffle_key(seed, "abc"[source], epoch))[0]), epoch


@pytest.mark.parametrize(("seed", "weights"), [(None, None), (5, None), (5, [1, 2, 0.5])])
def test_elements_are_the_definition(seed, weights):
    order = Order(SOURCES, seed, weights)
    for start, stop in ((0, 200), (150, 160), (10**9, 10**9 + 100)):
        found = order.elements(start, stop)
        wanted = [plain(seed, weights, i) for i in range(start, stop)]
        assert list(zip(*(array.tolist() for array in found), strict=True)) == wanted
        np.testing.assert_array_equal(order.lengths(found), [SOURCES[source].lengths[item] for source, item, _ in wanted])


def test_how_much_is_needed_for_so_many_epochs():
    assert Order(SOURCES, 0).needed(3) == 3 * 92
    order = Order(SOURCES, 0, [1, 2, 1])
    assert order.needed(2) == pytest.approx(2 * 55 * 4)  # c, the slowest, comes every fourth time
    assert order.epochs(440) == {"a": pytest.approx(110 / 30), "b": pytest.approx(220 / 7), "c": pytest.approx(2)}
