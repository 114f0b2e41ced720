"""Checkpoints come back bit for bit on any mesh, and a broken one is never taken for whole."""

import os
import subprocess
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from jaxllm.parallel.mesh import make_mesh
from jaxllm.training import loading
from jaxllm.training.checkpoints import Checkpoints


class Moments(NamedTuple):
    mu: jax.Array
    nu: jax.Array | None


def make_state(fsdp=8, seed=0):
    mesh = make_mesh({"fsdp": fsdp, "replica": -1})
    cut, whole = NamedSharding(mesh, PartitionSpec("fsdp")), NamedSharding(mesh, PartitionSpec())

    def born():
        kernel = jax.random.normal(jax.random.key(seed), (16, 8))
        return {"params": {"dense": {"kernel": kernel}}, "opt_state": (Moments(kernel * 2, None), ()), "step": jnp.int32(seed)}

    shardings = {"params": {"dense": {"kernel": cut}}, "opt_state": (Moments(cut, None), ()), "step": whole}
    return jax.jit(born, out_shardings=shardings)()


def same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    return all(np.array_equal(np.asarray(x), np.asarray(y)) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


def feed_state(position):
    return {"position": position, "epochs": {"books": 1.5}, "seen": np.arange(3), "flag": np.bool_(True), "names": ["a", None]}


def saved(folder, steps=(1, 2), said=None, **kwargs):
    checkpoints = Checkpoints(folder, every=1, say=(said if said is not None else []).append, **kwargs)
    for step in steps:
        assert checkpoints.maybe_save(step, make_state(seed=step), feed_state(step))
    checkpoints.close()
    return checkpoints


def test_restores_equal_onto_every_mesh(tmp_path):
    saved(tmp_path, metadata={"tokenizer": "abc"})
    for fsdp in (8, 4, 1):
        like = make_state(fsdp, seed=7)
        state, feed, metadata, step = Checkpoints(tmp_path).restore(like)
        assert (step, metadata) == (2, {"tokenizer": "abc"})
        assert same(state, make_state(seed=2))
        assert jax.tree.map(lambda x: x.sharding, state) == jax.tree.map(lambda x: x.sharding, like)
        assert feed["position"] == 2 and feed["epochs"] == {"books": 1.5} and feed["names"] == ["a", None]
        assert np.array_equal(feed["seen"], np.arange(3)) and feed["flag"]


def test_nothing_there_is_nothing_to_restore(tmp_path):
    assert Checkpoints(tmp_path / "new").restore(make_state()) is None


def test_a_step_that_is_there_is_not_saved_again(tmp_path):
    saved(tmp_path, steps=(1,))
    again = Checkpoints(tmp_path, every=2)
    assert not again.maybe_save(1, make_state(), {}, force=True)
    assert not again.maybe_save(0, make_state(), {})
    assert not again.maybe_save(3, make_state(), {})
    assert again.maybe_save(4, make_state(), {})
    again.close()
    assert again.steps() == [1, 4]


def test_the_state_may_be_donated_at_once(tmp_path):
    update = jax.jit(lambda s: jax.tree.map(lambda x: x + 1, s), donate_argnums=0)
    checkpoints = Checkpoints(tmp_path, every=1, keep=10)
    state = make_state(seed=1)
    checkpoints.prepare(state)
    expected = {}
    for step in range(1, 6):
        expected[step] = jax.tree.map(np.array, state)
        checkpoints.maybe_save(step, state, {"position": step})
        state = update(update(state))
    checkpoints.close()
    for step in expected:
        assert same(checkpoints.restore(state, step=step).state, expected[step])


def files_of(folder, step):
    return [path for path in sorted((folder / str(step)).rglob("*")) if path.is_file() and path.stat().st_size]


def flip_a_bit(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(bytes(data))


@pytest.mark.parametrize(
    "harm, word",
    [(flip_a_bit, "altered"), (lambda path: os.truncate(path, path.stat().st_size - 1), "bytes in"), (os.unlink, "lacks its file")],
)
def test_harm_to_any_file_is_found(tmp_path, harm, word):
    saved(tmp_path)
    for name in [path.relative_to(tmp_path / "2") for path in files_of(tmp_path, 2) if path.name != "manifest.json"]:
        path, said = tmp_path / "2" / name, []
        before = path.read_bytes()
        harm(path)
        found = Checkpoints(tmp_path, say=said.append).restore(make_state())
        assert found.step == 1 and same(found.state, make_state(seed=1))
        assert len(said) == 1 and word in said[0] and said[0].startswith("Checkpoint 2 "), said
        path.write_bytes(before)
    assert Checkpoints(tmp_path).restore(make_state()).step == 2


@pytest.mark.parametrize("harm", [flip_a_bit, lambda path: os.truncate(path, path.stat().st_size - 1), lambda path: os.truncate(path, 0)])
def test_a_harmed_manifest_is_found(tmp_path, harm):
    saved(tmp_path)
    harm(tmp_path / "2" / "manifest.json")
    said = []
    assert Checkpoints(tmp_path, say=said.append).restore(make_state()).step == 1
    assert "manifest" in said[0]


def test_a_half_written_checkpoint_is_removed_and_said(tmp_path):
    saved(tmp_path)
    (tmp_path / "2" / "manifest.json").unlink()
    (tmp_path / "3.orbax-checkpoint-tmp-1").mkdir()
    said = []
    assert Checkpoints(tmp_path, say=said.append).restore(make_state()).step == 1
    assert len(said) == 2 and "half-written" in said[0]
    assert sorted(os.listdir(tmp_path)) == ["1"]


def test_none_whole_is_an_error_and_not_a_new_start(tmp_path):
    saved(tmp_path)
    flip_a_bit(files_of(tmp_path, 1)[-1])
    flip_a_bit(files_of(tmp_path, 2)[-1])
    with pytest.raises(ValueError, match="No whole checkpoint"):
        Checkpoints(tmp_path, say=lambda line: None).restore(make_state())


def test_a_broken_step_is_written_anew(tmp_path):
    saved(tmp_path)
    flip_a_bit(files_of(tmp_path, 2)[-1])
    checkpoints = Checkpoints(tmp_path, every=1, say=lambda line: None)
    assert checkpoints.restore(make_state()).step == 1
    assert checkpoints.maybe_save(2, make_state(seed=2), feed_state(2))
    checkpoints.close()
    assert same(Checkpoints(tmp_path).restore(make_state()).state, make_state(seed=2))


def test_another_format_is_refused_with_a_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr("jaxllm.training.manifest.FORMAT", 999)
    saved(tmp_path)
    monkeypatch.undo()
    with pytest.raises(ValueError, match="format 999"):
        Checkpoints(tmp_path).restore(make_state())


def test_another_structure_or_source_is_refused(tmp_path):
    saved(tmp_path, metadata={"frozen": "base@1"})
    state = make_state()
    checkpoints = Checkpoints(tmp_path)
    with pytest.raises(ValueError, match=r"the state has state/ema and it has not \(1 differences\)"):
        checkpoints.restore(state | {"ema": state["step"]})
    with pytest.raises(ValueError, match=r"state/step is int32\[\] in it and float32\[2\] in the state"):
        checkpoints.restore(state | {"step": jnp.zeros(2)})
    with pytest.raises(ValueError, match=r"frozen='base@1', and this run has 'base@2'"):
        checkpoints.restore(state, expect={"frozen": "base@2"})
    assert checkpoints.restore(state, expect={"frozen": "base@1"}).step == 2
    assert checkpoints.restore(state, step=checkpoints.newest_whole()).step == 2


def test_a_part_is_loaded_alone_and_cast(tmp_path):
    saved(tmp_path)
    manifest = loading.whole(tmp_path, 2)
    sharding = NamedSharding(make_mesh({"fsdp": 4, "replica": 2}), PartitionSpec(None, "fsdp"))
    part = {"kernel": jax.ShapeDtypeStruct((16, 8), jnp.bfloat16, sharding=sharding)}
    kernel = loading.load_part(tmp_path, manifest, part, prefix="state/params/dense")["kernel"]
    assert kernel.sharding == sharding
    assert np.array_equal(kernel, make_state(seed=2)["params"]["dense"]["kernel"].astype(jnp.bfloat16))
    wrong = {"kernel": jax.ShapeDtypeStruct((16, 9), jnp.float32, sharding=sharding)}
    with pytest.raises(ValueError, match=r"\[16, 8\].*\[16, 9\]"):
        loading.load_part(tmp_path, manifest, wrong, prefix="state/params/dense")


def test_a_reader_finds_the_newest_whole_one_and_changes_nothing(tmp_path):
    assert loading.newest_whole(tmp_path / "none") == (None, [])
    saved(tmp_path, steps=(1, 2, 3, 4))
    flip_a_bit(files_of(tmp_path, 3)[-1])
    (tmp_path / "4" / "manifest.json").unlink()  # as while it is being written
    said = []
    manifest, broken = loading.newest_whole(tmp_path, say=said.append)
    assert (manifest.step, broken, len(said)) == (2, [3], 1)
    assert sorted(os.listdir(tmp_path)) == ["2", "3", "4"]


def test_the_last_few_and_the_best_stay(tmp_path):
    checkpoints = Checkpoints(tmp_path, every=1, keep=2, best=("loss", "min"))
    for step, loss in enumerate([3.0, 1.0, float("nan"), 2.0, 1.0, 4.0], start=1):
        checkpoints.maybe_save(step, make_state(), {}, {"loss": loss})
    checkpoints.close()
    assert checkpoints.steps() == loading.steps(tmp_path) == [2, 5, 6]
    later = Checkpoints(tmp_path, every=1, keep=1, best=("loss", "min"))  # knows the metrics from the manifests
    later.maybe_save(7, make_state(), {}, {"loss": 0.5})
    later.close()
    assert loading.steps(tmp_path) == [7]


def test_the_clock_makes_a_save_due(tmp_path, monkeypatch):
    now = [100.0]
    monkeypatch.setattr("jaxllm.training.checkpoints.time.monotonic", lambda: now[0])
    checkpoints = Checkpoints(tmp_path, every_minutes=2)
    assert not checkpoints.maybe_save(1, make_state(), {})
    now[0] += 121
    assert checkpoints.maybe_save(2, make_state(), {})
    assert not checkpoints.maybe_save(3, make_state(), {})
    checkpoints.close()


@pytest.mark.parametrize("kwargs", [{"keep": 0}, {"every": 0}, {"best": ("loss", "low")}])
def test_senseless_settings_are_refused(tmp_path, kwargs):
    with pytest.raises(ValueError, match=next(iter(kwargs))):
        Checkpoints(tmp_path, **kwargs)


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 3 MB: a real one where we may mount."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(folder)], capture_output=True).returncode:
        pytest.skip("mounting a tmpfs needs root")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_fails_one_save_and_nothing_else(small_disk):
    large = {"kernel": jax.random.normal(jax.random.key(0), (300_000,))}  # 1.2 MB: two fit, three do not
    said = []
    checkpoints = Checkpoints(small_disk / "checkpoints", every=1, say=said.append)
    for step in (1, 2):
        checkpoints.maybe_save(step, large, {})
    assert checkpoints.wait() and not said
    checkpoints.maybe_save(3, large, {})
    assert not checkpoints.wait()
    assert len(said) == 1 and said[0].startswith("SAVE FAILED at step 3: No space left on device.") and "\n" not in said[0]
    assert sorted(os.listdir(small_disk / "checkpoints")) == ["1", "2"]
    with pytest.raises(OSError, match="The last whole checkpoint is step 2"):
        checkpoints.close()
    checkpoints.maybe_save(4, {"kernel": large["kernel"][:1000]}, {})
    checkpoints.close()
    assert checkpoints.steps() == [1, 2, 4]
    assert Checkpoints(small_disk / "checkpoints").restore(large, step=2).step == 2


@pytest.mark.parametrize("kind", [OSError, Exception])  # gcsfs raises of all kinds
@pytest.mark.parametrize("when", ["bytes", "manifest"])
def test_a_failing_writer_fails_one_save_and_nothing_else(tmp_path, monkeypatch, when, kind):
    def full(*args, **kwargs):
        raise kind(28, "No space left on device")

    said = []
    checkpoints = Checkpoints(tmp_path, every=1, say=said.append)
    checkpoints.maybe_save(1, make_state(seed=1), {})
    checkpoints.wait()
    where = {"bytes": "jaxllm.training.manifest.describe", "manifest": "jaxllm.training.manifest.os.replace"}[when]
    with monkeypatch.context() as patch:
        patch.setattr(where, full)
        checkpoints.maybe_save(2, make_state(seed=2), {})
        assert not checkpoints.wait()
    assert os.listdir(tmp_path) == ["1"] and "No space left" in said[0]
    assert checkpoints.maybe_save(2, make_state(seed=2), {}, force=True)
    checkpoints.close()
    assert same(checkpoints.restore(make_state()).state, make_state(seed=2))
