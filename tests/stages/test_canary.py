"""The canary: agreement where flags only reorder sums, and a flag that changes numbers is seen."""

import pytest

from jaxllm.stages import canary as stage
from jaxllm.stages import pretrain, setup
from jaxllm.stages.canary import Update, compare
from jaxllm.stages.config import resolve

TINY = {
    "batch_size": 8,
    "sequence_length": 16,
    "steps": 4,
    "model": {"preset": "tiny_llama3", "vocab_size": 320},
    "data": {"tokenizer": {"kind": "bytes"}},
}
HARMLESS = {"xla_backend_optimization_level": 1}


def run(options, steps=2, **more):
    return stage.canary(resolve(TINY | {"xla": {"options": options}} | more), pretrain.RECIPE, steps)


def test_flags_that_change_nothing_pass(capsys):
    assert run(HARMLESS, parallel={"fsdp": 4, "tensor": 2}) == 0
    said = capsys.readouterr()
    assert "xla_backend_optimization_level=1" in said.out and "0.0001 is allowed for float32" in said.err


def test_flags_that_change_numbers_are_seen(monkeypatch):
    """A compiler that computes another rate with the flags on."""
    true = stage.jit_step

    def corrupted(step, state, options):
        update = true(step, state, {})

        def run(state, frozen, batch):
            state, report = update(state, frozen, batch)
            return state, report | {"grad_norm": report["grad_norm"] * (1.001 if options else 1.0)}

        return run

    monkeypatch.setattr(stage, "jit_step", corrupted)
    assert run(HARMLESS) == 1


def test_a_nan_is_infinitely_far():
    assert compare([Update(float("nan"), 1.0)], [Update(1.0, 1.0)])[1] == float("inf")
    assert compare([Update(1.0, 1.0)], [Update(1.0, 2.0)])[1] == pytest.approx(0.5)


def test_what_there_is_nothing_to_compare_with():
    with pytest.raises(ValueError, match="no flags for cpu to compare with none"):
        run({}, xla={"flags": "none"})
    with pytest.raises(ValueError, match="--canary 0 compares nothing"):
        run(HARMLESS, steps=0)
    with pytest.raises(ValueError, match=r"Unknown xla\.flags='quick'\. Choose one of: fast, none"):
        setup.compiler_options(resolve(TINY | {"xla": {"flags": "quick"}}), None)
