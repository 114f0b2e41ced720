"""Every config that names a slice still plans there as it says."""

import os
from pathlib import Path

import pytest

from benchmarks.plans import configs, measure

FLAGSHIPS = ("llama3_8b.py", "llama3_70b_v5p_512.py", "tiny_bytes.py")  # the others by `python -m benchmarks.plans`: minutes each


@pytest.mark.parametrize("name", FLAGSHIPS)
def test_the_plan_is_the_one_it_carries(name):
    path = Path("configs/pretrain") / name
    expected, found = configs()[os.fspath(path)], measure(os.fspath(path))
    for key in ("hbm_gb", "sent_gb", "step_seconds"):
        assert found[key] == pytest.approx(expected[key], rel=0.02), key
