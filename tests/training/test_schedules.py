"""The schedules' values at their corners."""

import jax
import numpy as np
import pytest

from jaxllm.training.schedules import DEPENDS_ON_STEPS, SCHEDULES, depends_on_steps, make_schedule

STEPS, WARMUP, PEAK = 100, 10, 0.5


def at(name, step, **options):
    return float(make_schedule(name, PEAK, steps=STEPS, warmup=WARMUP, **options)(step))


@pytest.mark.parametrize("name", SCHEDULES)
def test_warm_up_rises_in_equal_stairs_to_the_peak(name):
    values = [at(name, step) for step in range(WARMUP + 1)]
    np.testing.assert_allclose(
        values, [PEAK * (i + 1) / WARMUP for i in range(WARMUP)] + [PEAK * (1 if name != "inverse_sqrt" else (10 / 11) ** 0.5)], rtol=1e-6
    )


@pytest.mark.parametrize(
    ("name", "options", "step", "share"),
    [
        ("constant", {}, 99, 1.0),
        ("constant", {}, 5000, 1.0),
        ("cosine", {}, 55, 0.55),
        ("cosine", {}, 100, 0.1),
        ("cosine", {"final": 0.0}, 55, 0.5),
        ("cosine", {}, 1000, 0.1),
        ("linear", {}, 55, 0.5),
        ("linear", {}, 100, 0.0),
        ("linear", {"final": 0.2}, 100, 0.2),
        ("linear", {"final": 0.2}, 55, 0.6),
        ("wsd", {}, 79, 1.0),
        ("wsd", {}, 80, 1.0),
        ("wsd", {}, 85, 0.5),
        ("wsd", {}, 100, 0.0),
        ("wsd", {"shape": "linear", "decay": 0.5, "final": 0.1}, 75, 0.55),
        ("inverse_sqrt", {}, 39, 0.5),
        ("inverse_sqrt", {}, 999, 0.1),
    ],
)
def test_corners(name, options, step, share):
    assert at(name, step, **options) == pytest.approx(PEAK * share, abs=1e-7)


@pytest.mark.parametrize("warmup", [0, 1, 2, 0.1, 0.5])
@pytest.mark.parametrize("name", SCHEDULES)
def test_only_these_depend_on_the_number_of_steps(name, warmup):
    short, long = (make_schedule(name, 1.0, steps=steps, warmup=warmup) for steps in (20, 40))
    assert depends_on_steps(name, warmup) == any(float(short(i)) != float(long(i)) for i in range(20))
    assert depends_on_steps(name) == (name in DEPENDS_ON_STEPS)


@pytest.mark.parametrize("name", SCHEDULES)
def test_without_warm_up_and_under_jit(name):
    schedule = make_schedule(name, PEAK, steps=STEPS)
    assert float(schedule(0)) == pytest.approx(PEAK)
    steps = np.arange(0, 120, 7)
    np.testing.assert_allclose(jax.jit(jax.vmap(schedule))(steps), [float(schedule(s)) for s in steps], rtol=1e-5, atol=1e-7)


def test_warm_up_as_a_share():
    assert float(make_schedule("constant", 1.0, steps=200, warmup=0.05)(4)) == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: make_schedule("cosin", 1.0, steps=9), "Unknown schedule 'cosin'.*Did you mean 'cosine'"),
        (lambda: make_schedule("cosine", 1.0, steps=9, finale=0), "no option 'finale'.*Did you mean 'final'"),
        (lambda: make_schedule("cosine", 1.0, steps=9, warmup=10), "warm-up of 10 steps does not fit a run of 9"),
        (lambda: make_schedule("wsd", 1.0, steps=9, shape="root")(8), "Unknown shape of the wsd schedule 'root'"),
    ],
)
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()
