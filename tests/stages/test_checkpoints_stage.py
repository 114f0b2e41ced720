"""`jaxllm checkpoints`: lists, verifies, prunes, and never deletes the last whole one."""

from argparse import Namespace

import jax.numpy as jnp
import pytest

from jaxllm.stages import checkpoints as stage
from jaxllm.training import loading
from jaxllm.training.checkpoints import Checkpoints
from jaxllm.training.lock import hold


@pytest.fixture
def workdir(tmp_path):
    checkpoints = Checkpoints(tmp_path / "checkpoints", every=1, keep=9)
    for step in (1, 2, 3):
        checkpoints.maybe_save(step, {"x": jnp.full(100, step)}, {}, {"held/loss": 4.0 - step})
    checkpoints.close()
    return tmp_path


def run(workdir, verify=False, prune=None):
    return stage.main(Namespace(workdir=str(workdir), verify=verify, prune=prune), [])


def flip(path):
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))


def largest(folder):
    return max(
        (path for path in folder.rglob("*") if path.is_file() and path.name != "manifest.json"), key=lambda path: path.stat().st_size
    )


def test_it_lists_step_time_size_and_metrics(workdir, capsys):
    assert run(workdir) == 0
    said = capsys.readouterr().out
    assert "held/loss 1" in said and "held/loss 3" in said and "kB" in said and said.count("complete") == 3


def test_a_flipped_bit_is_found_by_verify_alone(workdir, capsys):
    flip(largest(workdir / "checkpoints" / "2"))
    assert run(workdir) == 0
    assert run(workdir, verify=True) == 1
    said = " ".join(capsys.readouterr().out.split())
    assert said.count("verified") == 2 and "checksum" in said


def test_prune_keeps_whole_ones_and_deletes_broken_ones(workdir, capsys):
    flip(largest(workdir / "checkpoints" / "3"))
    assert run(workdir, verify=True, prune=1) == 0
    assert loading.steps(workdir / "checkpoints") == [2]
    assert "Deleted: 1, 3." in capsys.readouterr().out


def test_prune_refuses_when_nothing_is_whole_or_somebody_writes(workdir):
    with pytest.raises(ValueError, match="--prune 0"):
        run(workdir, prune=0)
    with hold(workdir), pytest.raises(ValueError, match="is being written by process"):
        run(workdir, prune=1)
    for step in (1, 2, 3):
        (workdir / "checkpoints" / str(step) / "manifest.json").unlink()
    with pytest.raises(ValueError, match="nothing is deleted"):
        run(workdir, prune=1)
    assert loading.steps(workdir / "checkpoints") == [1, 2, 3]


def test_wrong_folders_and_flags_are_mistakes(tmp_path):
    with pytest.raises(ValueError, match="no checkpoints/ folder"):
        run(tmp_path)
    with pytest.raises(ValueError, match="does not know '--step'"):
        stage.main(Namespace(workdir=str(tmp_path), verify=False, prune=None), ["--step"])


@pytest.mark.parametrize("count, text", [(0, "0 B"), (999, "999 B"), (1200, "1.2 kB"), (1.25e9, "1.25 GB"), (7e12, "7 TB")])
def test_sizes(count, text):
    assert stage.size(count) == text
