"""The writer: late, averaged, timed, and taken back to a checkpoint in every file."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxllm.training import metrics
from jaxllm.training.metrics import Writer, average


class Clock:
    """A clock that moves when told to."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def report(loss=1.0, tokens=100.0, **more):
    return {"loss": jnp.float32(loss), "tokens": jnp.float32(tokens), "skipped": jnp.float32(0), **more}


class Running:
    """A scalar that the device has not computed yet; reading it would wait."""

    def __init__(self, value):
        self.value, self.read = value, False

    def is_ready(self):
        return False

    def __array__(self, dtype=None, copy=None):
        self.read = True
        return np.asarray(self.value)


def test_a_report_is_read_one_step_late(tmp_path):
    writer, first, second = Writer(tmp_path, tensorboard=False), Running(1.5), Running(2.5)
    writer.write(1, {"loss": first})
    assert not first.read and not (tmp_path / "metrics.jsonl").exists()
    writer.write(2, {"loss": second})
    assert first.read and not second.read
    assert [r["step"] for r in lines(tmp_path / "metrics.jsonl")] == [1]
    writer.close()
    assert [(r["step"], r["loss"]) for r in lines(tmp_path / "metrics.jsonl")] == [(1, 1.5), (2, 2.5)]


def test_it_does_not_wait_for_the_step_that_is_running(tmp_path):
    """A report that is still being computed is handed over without blocking on it."""
    slow = jax.jit(lambda x: jax.lax.fori_loop(0, 300, lambda i, x: jnp.tanh(x @ x), x).sum())
    x = jnp.eye(256)
    slow(x).block_until_ready()
    writer = Writer(tmp_path, tensorboard=False)
    running = slow(x)
    writer.write(1, {"loss": running})
    assert not running.is_ready()
    writer.close()


def test_records_are_averages_of_every_few_steps(tmp_path):
    writer = Writer(tmp_path, every=3, tensorboard=False)
    for step in range(1, 8):
        skipped, rate = jnp.float32(step == 2), jnp.float32(0.1 * step)
        writer.write(step, report(loss=step) | {"skipped": skipped, "skipped_nonfinite": jnp.int32(step), "learning_rate": rate})
    writer.close()
    first, second, rest = lines(tmp_path / "metrics.jsonl")
    assert (first["step"], second["step"], rest["step"]) == (3, 6, 7)
    assert first["loss"] == 2 and second["loss"] == 5 and rest["loss"] == 7
    assert first["tokens"] == 300 and first["skipped"] == 1 and second["skipped"] == 0
    assert first["skipped_nonfinite"] == 3 and first["learning_rate"] == pytest.approx(0.3)


def test_an_average_is_over_what_is_finite():
    window = [{"loss": 1.0}, {"loss": float("nan")}, {"loss": 3.0}]
    assert average(window)["loss"] == 2.0
    assert np.isnan(average(window[1:2])["loss"])


def test_what_is_not_finite_is_null_and_every_line_is_json(tmp_path):
    writer = Writer(tmp_path, tensorboard=False)
    writer.write(1, report(loss=float("inf")))
    writer.close()
    assert lines(tmp_path / "metrics.jsonl")[0]["loss"] is None


def test_flush_closes_the_window_so_that_a_checkpoint_sees_the_same_record_either_way(tmp_path):
    def run(folder, kill):
        writer = Writer(folder, every=4, tensorboard=False)
        for step in range(1, 11):
            writer.write(step, report(loss=step))
            if step == 6:
                writer.flush()
                if kill:
                    writer.write(7, report(loss=7))
                    writer.write(8, report(loss=8))
                    writer = Writer(folder, every=4, tensorboard=False)
                    writer.rewind(6)
        writer.close()
        return [(r["step"], r["loss"]) for r in lines(folder / "metrics.jsonl")]

    assert run(tmp_path / "a", kill=False) == run(tmp_path / "b", kill=True) == [(4, 2.5), (6, 5.5), (8, 7.5), (10, 9.5)]


def test_rewind_takes_every_file_back(tmp_path):
    writer = Writer(tmp_path)
    for step in range(1, 7):
        writer.write(step, report(loss=step))
        writer.record_eval(step, "heldout", {"loss": 10.0 + step})
    (tmp_path / "samples.jsonl").write_text("".join(json.dumps({"step": s, "text": "é"}) + "\n" for s in range(6)))
    writer.close()
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 7, "lo')  # what a kill leaves

    again = Writer(tmp_path)
    again.rewind(to=4)
    assert [r["step"] for r in lines(tmp_path / "metrics.jsonl")] == [1, 2, 3, 4]
    assert [r["step"] for r in lines(tmp_path / "samples.jsonl")] == [0, 1, 2, 3, 4]
    assert again.has_eval(4, "heldout") and not again.has_eval(5, "heldout") and not again.has_eval(4, "other")
    assert again.eval_history("heldout")[-1] == (4, {"loss": 14.0})
    again.write(5, report(loss=50))
    again.close()
    assert [(r["step"], r["loss"]) for r in lines(tmp_path / "metrics.jsonl")][-1] == (5, 50)


def test_only_the_first_process_writes(tmp_path):
    writer = Writer(tmp_path, active=False, until=3)
    writer.rewind(0)
    for step in (1, 2):
        with writer.timed("step"):
            writer.write(step, report())
    writer.record_eval(2, "heldout", {"loss": 1.0})
    writer.event("start")
    writer.close()
    assert not writer.has_eval(2, "heldout") and list(tmp_path.iterdir()) == []


def test_speed_leaves_out_the_first_step_evals_and_saves(tmp_path, monkeypatch):
    monkeypatch.setattr(metrics, "mfu", lambda rate, flops, kind, count: {"mfu": rate * flops / (count * 1e3)})
    clock = Clock()
    writer = Writer(tmp_path, every=2, tensorboard=False, clock=clock, flops_per_token=2.0, devices=jax.devices()[:4])
    writer.rewind(0)

    def step(number, seconds):
        with writer.timed("step"):
            clock.now += seconds
        writer.write(number, report())

    step(1, 60.0)  # compiles
    step(2, 5.0)
    with writer.timed("eval"):
        clock.now += 100.0
    step(3, 5.0)
    with writer.timed("save"):
        clock.now += 30.0
    with writer.timed("data"):  # the report of step 3 is ready: the device waits
        clock.now += 5.0
    step(4, 5.0)
    writer.close()
    first, second = lines(tmp_path / "metrics.jsonl")
    assert first["step_seconds"] == pytest.approx(5.0) and first["tokens_per_second"] == pytest.approx(20.0)
    assert second["step_seconds"] == pytest.approx(7.5) and second["tokens_per_second"] == pytest.approx(200 / 15)
    assert second["mfu"] == pytest.approx(200 / 15 * 2 / 4e3)
    spent = {}
    for record in lines(tmp_path / "goodput.jsonl"):
        spent[record["kind"]] = spent.get(record["kind"], 0) + record["seconds"]
    assert {k: v for k, v in spent.items() if k != "start"} == {"compile": 60, "eval": 100, "save": 30, "data": 5, "step": 15}


def test_a_save_does_not_pay_for_the_steps_that_it_waits_for(tmp_path):
    clock = Clock()

    class Slow(Running):
        def __array__(self, dtype=None, copy=None):
            clock.now += 5.0  # reading it waits
            return super().__array__(dtype, copy)

    writer = Writer(tmp_path, tensorboard=False, clock=clock)
    writer.rewind(0)
    for number in (1, 2, 3, 4):
        writer.write(number, {"loss": Slow(1.0)})
        with writer.timed("save"):
            clock.now += 1.0  # the save before this one
            if number == 3:
                writer.flush()
                clock.now += 30.0
    writer.close()
    assert [r.get("step_seconds") for r in lines(tmp_path / "metrics.jsonl")] == [None, 5.0, 5.0, 5.0]
    spent = {"save": 0.0, "step": 0.0}
    for record in lines(tmp_path / "goodput.jsonl")[1:]:
        spent[record["kind"]] += record["seconds"]
    assert spent == {"save": 34.0, "step": 20.0}


def test_data_that_is_hidden_behind_the_device_is_no_waiting(tmp_path):
    clock = Clock()
    writer = Writer(tmp_path, tensorboard=False, clock=clock)
    writer.write(1, {"loss": Running(1.0)})
    with writer.timed("data"):
        clock.now += 3.0
    writer.close()
    spent = {r["kind"]: r["seconds"] for r in lines(tmp_path / "goodput.jsonl")}
    assert "data" not in spent and spent["step"] == 3.0


def test_no_mfu_on_an_unknown_device(tmp_path):
    writer = Writer(tmp_path, tensorboard=False, flops_per_token=1e6)
    for step in (1, 2):
        writer.write(step, report())
    writer.close()
    record = lines(tmp_path / "metrics.jsonl")[-1]
    assert "mfu" not in record and record["tokens_per_second"] > 0


def test_profiler_window(tmp_path):
    writer = Writer(tmp_path, tensorboard=False, profile=(2, 2))
    writer.rewind(0)
    for step in range(1, 5):
        writer.write(step, report())
        assert bool(list(tmp_path.glob("profile/**/*.xplane.pb"))) == (step >= 3)
    writer.close()


def test_errors(tmp_path):
    with pytest.raises(ValueError, match=r"log.every=0"):
        Writer(tmp_path, every=0)
    with pytest.raises(ValueError, match=r"profile.start=-1, profile.steps=2 is no window"):
        Writer(tmp_path, profile=(-1, 2))


def test_what_was_evaluated_afterwards_is_not_of_training(tmp_path):
    writer = Writer(tmp_path, tensorboard=False)
    writer.record_eval(4, "heldout", {"loss": 2.0})
    writer.close()
    with open(tmp_path / "evals.jsonl", "a") as file:
        file.write(json.dumps({"step": 5, "name": "heldout", "loss": 1.0, **metrics.AFTERWARDS}) + "\n")
    again = Writer(tmp_path, tensorboard=False)
    assert again.eval_history("heldout") == [(4, {"loss": 2.0})] and not again.has_eval(5, "heldout")
    again.close()
