"""The order of the loop is a contract: recorded by fakes that write down every call."""

import contextlib
import dataclasses

import jax
import jax.numpy as jnp
import pytest

from jaxllm.training.checkpoints import Checkpoints
from jaxllm.training.loop import EarlyStopping, Eval, fit


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class State:
    step: jax.Array


class Recorder:
    """Feed, writer, checkpoints and step in one, all writing into the same list."""

    def __init__(self, recorded=(), history=()):
        self.calls, self.recorded, self.history, self.saved = [], set(recorded), list(history), []

    def __call__(self, state, frozen):
        self.calls.append(f"feed {int(state.step)}")
        return frozen

    def state(self):
        return {"position": len(self.calls)}

    def restore(self, saved):
        raise AssertionError("fit restores nothing")

    def step(self, state, frozen, batch):
        assert batch is frozen
        self.calls.append(f"step {int(state.step)}")
        return State(state.step + 1), {"loss": state.step * 1.0}

    def rewind(self, to):
        self.calls.append(f"rewind {to}")

    def write(self, step, report):
        self.calls.append(f"write {step}")
        assert float(report["loss"]) == step - 1

    def record_eval(self, step, name, values):
        self.calls.append(f"eval {name} {step}")

    def has_eval(self, step, name):
        return (step, name) in self.recorded

    def flush(self):
        self.calls.append("flush")

    def eval_history(self, name):
        return self.history

    @contextlib.contextmanager
    def timed(self, what):
        before = len(self.calls)
        yield
        for call in self.calls[before:]:
            assert call.split()[0] in {"eval": (), "save": ("flush", "save", "close"), "data": ("feed",), "step": ("step",)}[what]

    def maybe_save(self, step, state, feed_state, metrics=None, force=False):
        assert int(state.step) == step
        before = len(self.calls)
        assert feed_state() == {"position": before + 1} and self.calls.pop() == "flush"  # the record first, then the feed
        self.calls.append(f"save {step}" + " forced" * force)
        self.saved.append(dict(metrics))

    def close(self):
        self.calls.append("close")


def run(recorder, start=0, until=2, **kwargs):
    return fit(
        State(jnp.int32(start)), {"frozen": 1}, recorder, recorder.step, until=until, writer=recorder, checkpoints=recorder, **kwargs
    )


def scores(*values):
    remaining = iter(values)
    return lambda state: {"loss": next(remaining)}


def test_the_order_is_rewind_evals_save_feed_step_write():
    recorder = Recorder()
    ended = run(recorder, evals=[Eval("held", 1, scores(3.0, 2.0)), Eval("start", 5, scores(9.0, 8.0), at_start=True)])
    assert recorder.calls == [
        "rewind 0",
        *("eval start 0", "save 0", "feed 0", "step 0", "write 1"),
        *("eval held 1", "save 1", "feed 1", "step 1", "write 2"),
        *("eval held 2", "eval start 2", "save 2 forced", "close"),
    ]
    assert recorder.saved == [{"start/loss": 9.0}, {"held/loss": 3.0}, {"held/loss": 2.0, "start/loss": 8.0}]
    assert (ended.step, ended.reason, int(ended.state.step)) == (2, "done", 2)


def test_an_eval_that_is_recorded_is_not_run_again_and_a_missing_one_is():
    recorder = Recorder(recorded={(4, "a"), (5, "b")})
    run(recorder, start=4, until=5, evals=[Eval("a", 2, scores(1.0)), Eval("b", 2, scores(1.0, 2.0))])
    assert [call for call in recorder.calls if call.startswith("eval")] == ["eval b 4", "eval a 5", "eval b 5"]


def test_a_stop_saves_at_once_leaves_the_evals_and_ends():
    recorder = Recorder()
    ended = run(recorder, until=9, evals=[Eval("held", 1, scores(*range(9)))], stop=lambda step: step == 2)
    assert recorder.calls[-4:] == ["step 1", "write 2", "save 2 forced", "close"]
    assert (ended.reason, ended.step) == ("stopped", 2)


def test_a_finished_run_only_makes_sure_of_its_evals_and_checkpoint():
    recorder = Recorder()
    assert run(recorder, start=2, until=2, evals=[Eval("held", 7, scores(1.0))]).reason == "done"
    assert recorder.calls == ["rewind 2", "eval held 2", "save 2 forced", "close"]


def test_a_run_that_is_past_the_end_does_nothing():
    recorder = Recorder()
    assert run(recorder, start=5, until=2).step == 5
    assert recorder.calls == ["rewind 5", "close"]


@pytest.mark.parametrize("history, expected", [([], 5), ([(1, {"loss": 0.5}), (2, {"loss": 0.7})], 4)])
def test_early_stopping_counts_what_was_recorded_before_a_resume(history, expected):
    recorder = Recorder(recorded={(step, "held") for step, _ in history}, history=history)
    early = EarlyStopping("held/loss", patience=3)
    start = len(history)
    ended = run(
        recorder, start, until=9, evals=[Eval("held", 1, scores(*([1.0, 0.9] if not history else []), 0.9, 0.95, 2.0, 0.1))], early=early
    )
    assert (ended.reason, ended.step) == ("early", expected)
    assert recorder.calls[-2:] == [f"save {expected} forced", "close"]


@pytest.mark.parametrize(
    "values, over",
    [
        ([], False),
        ([3, 2, 1], False),
        ([1, 2, 3], True),
        ([1, float("nan"), float("nan")], True),
        ([1, 2, 0.5, 2], False),
        ([1, 0.999, 0.998], True),
    ],
)
def test_patience(values, over):
    early = EarlyStopping("a/b", patience=2, least=0.01)
    assert early.is_over(values) == over
    assert EarlyStopping("a/b", patience=2, mode="max", least=0.01).is_over([-value for value in values]) == over


def test_a_nan_on_record_is_no_improvement_after_a_resume():
    history = [(1, {"loss": 0.5}), (2, {"loss": None})]  # as it comes back from evals.jsonl
    recorder = Recorder(recorded={(1, "held"), (2, "held")}, history=history)
    ended = run(recorder, 2, until=9, evals=[Eval("held", 1, scores(0.6))], early=EarlyStopping("held/loss", patience=2))
    assert (ended.reason, ended.step) == ("early", 3)


@pytest.mark.parametrize("options, message", [({"patience": 0}, "patience=0.*1 or more"), ({"mode": "low"}, "mode='low'.*min, max")])
def test_senseless_early_stopping_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        EarlyStopping("held/loss", **{"patience": 3} | options)


def test_a_last_save_that_failed_is_not_a_success():
    class Failing(Recorder):
        def close(self):
            raise OSError("The last save failed")

    with pytest.raises(OSError, match="last save"):
        run(Failing())


def test_an_eval_on_record_reaches_the_checkpoint_of_its_step():
    """Killed between the record and the checkpoint's manifest: the eval is not run again, its numbers are not lost either."""
    recorder = Recorder(recorded=[(0, "held")], history=[(0, {"loss": 2.5, "odd": None})])
    seen = []
    recorder.maybe_save = lambda step, state, feed, metrics, force: seen.append((step, metrics))
    run(recorder, evals=[Eval("held", 100, scores(1.0), at_start=True)], until=1)
    assert seen == [(0, {"held/loss": 2.5}), (1, {"held/loss": 1.0})]


def test_resumed_equals_uninterrupted_with_real_checkpoints(tmp_path):
    def train(folder, until, stop=lambda step: False):
        class Feed(Recorder):
            position = 0

            def __call__(self, state, frozen):
                self.position += 1
                return self.position

            def state(self):
                return {"position": self.position}

        feed, state = Feed(), State(jnp.int32(0))

        @jax.jit
        def update(state, batch):
            return State(state.step + 1), {"loss": state.step * 1.0}

        checkpoints = Checkpoints(folder, every=2)
        if (restored := checkpoints.restore(state)) is not None:
            state, feed.position = restored.state, restored.feed_state["position"]
        ended = fit(
            state, None, feed, lambda s, f, b: update(s, b), until=until, writer=feed, checkpoints=checkpoints, stop=stop
        )  # fmt: skip
        return ended, feed

    ended, _ = train(tmp_path, 9, stop=lambda step: step == 3)
    assert ended.reason == "stopped"
    ended, feed = train(tmp_path, 9)
    assert (ended.reason, ended.step, feed.position) == ("done", 9, 9)
    assert [call for call in feed.calls if call.startswith(("rewind", "write"))] == ["rewind 3", *(f"write {i}" for i in range(4, 10))]
