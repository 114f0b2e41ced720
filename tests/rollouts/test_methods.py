"""Every name that the table of methods uses is a row of the table it means."""

import inspect

import pytest

from jaxllm.losses.policy import DENOMINATORS, LEVELS, SURROGATES
from jaxllm.rollouts.advantages import OUTCOME
from jaxllm.rollouts.methods import METHODS


@pytest.mark.parametrize("name", METHODS)
def test_names_resolve(name):
    method = METHODS[name]
    assert method.level in LEVELS and method.over in DENOMINATORS and method.kl in ("reward", "loss", "none")
    assert method.advantages in OUTCOME or method.advantages in ("gae", "greedy", "to_go")
    assert set(method.options) <= set(inspect.signature(SURROGATES[method.surrogate]).parameters)
    if method.scale:
        assert set(method.scale) <= set(inspect.signature(OUTCOME[method.advantages]).parameters)
