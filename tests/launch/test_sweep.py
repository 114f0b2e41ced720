"""Sweeps: what is checked, run, run again, stopped early and refused; and a real one, which ends in a page with a scaling law."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import pytest

from launch import job, runs, sweep

HERE = Path(__file__).parent
ROOT = HERE.parents[1]


@pytest.fixture(autouse=True)
def found(monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}{os.pathsep}{HERE}")


@pytest.fixture
def stub(monkeypatch):
    """Runs are those of stub_run; gives a function that says what they do."""
    monkeypatch.setattr(job.Job.__init__, "__defaults__", (sys.executable, "stub_run"))
    monkeypatch.setattr(job.Restarts.__init__, "__defaults__", (3, 0.05, 0))
    return lambda **plan: monkeypatch.setenv("STUB", json.dumps(plan))


def starts(workdir):
    return {path.parent.name: int(path.read_text()) for path in sorted(workdir.glob("*/starts"))}


def states(workdir):
    return {path.stem: json.loads(path.read_text()) for path in sorted((workdir / "points").glob("*.json"))}


def call(workdir, *words):
    return sweep.main([*map(str, words), "--workdir", str(workdir)])


def go(workdir, *words):
    return sweep.main([*map(str, words), "--workdir", str(workdir), "--", "pretrain", "--config", "c.py", "--config.steps=4"])


def test_every_point_runs_once_and_a_second_call_runs_none(tmp_path, stub, capfd):
    assert go(tmp_path, "--grid", "x=1,2,3", "--parallel", 2) == 0
    said = capfd.readouterr().out
    assert said.count(" started\n") == 3 and said.endswith(f"report of {tmp_path}\n") and "001 (x=2) done: loss 2.25" in said
    assert starts(tmp_path) == {"000": 1, "001": 1, "002": 1}
    assert go(tmp_path, "--grid", "x=1,2,3") == 0 and call(tmp_path) == 0
    assert starts(tmp_path) == {"000": 1, "001": 1, "002": 1} and capfd.readouterr().out.count("done before") == 6


def test_a_stop_is_free_a_failure_costs_and_a_mistake_is_not_tried_again(tmp_path, stub, capfd):
    stub(**{"1": [75, 75, 75, 75, 75, 1, 0], "2": [1, 1, 1, 1], "3": [2]})
    assert go(tmp_path, "--grid", "x=1,2,3", "--restarts", 2, "--parallel", 3) == 1
    assert starts(tmp_path) == {"000": 7, "001": 3, "002": 1}
    assert states(tmp_path) == {
        "000": {"state": "done", "restarts": 1},
        "001": {"state": "failed", "code": 1, "restarts": 2},
        "002": {"state": "failed", "code": 2, "restarts": 0},
    }
    said = capfd.readouterr().out
    assert "restart 2 of 2" in said and "002 (x=3) failed (exit 2): ends with 2" in said
    assert call(tmp_path) == 0  # the stub's plans are used up but for point 1's last, which the restart budget bears
    assert starts(tmp_path) == {"000": 7, "001": 5, "002": 2}


def test_back_off_doubles_and_the_budget_ends():
    restarts = job.Restarts(3, 2.0)
    assert [restarts.wait(code) for code in (1, 75, -9, 75, 1, 1)] == [2.0, 1.0, 4.0, 1.0, 8.0, None]
    assert job.Restarts(3).wait(0) is None and job.Restarts(3).wait(2) is None
    assert job.Restarts(99, 2.0, used=30).wait(1) == 600.0


def test_at_most_so_many_run_at_a_time(tmp_path, stub, monkeypatch):
    monkeypatch.setenv("STUB_SECONDS", "0.05")
    most, start = [0], job.start

    def counted(*arguments):
        processes.append(start(*arguments))
        most.append(sum(process.poll() is None for process in processes))
        return processes[-1]

    processes = []
    (tmp_path / sweep.RECORD).write_text(
        json.dumps({"arguments": ["pretrain"], "metric": "loss", "mode": "min", "halving": None, "runs": None, "points": []})
    )
    points = [{"name": f"{i:03}", "settings": {"x": str(i)}} for i in range(5)]
    (tmp_path / sweep.RECORD).write_text(json.dumps({**json.loads((tmp_path / sweep.RECORD).read_text()), "points": points}))
    monkeypatch.setattr(job, "start", counted)
    assert call(tmp_path, "--parallel", 2) == 0
    assert max(most) == 2 and len(starts(tmp_path)) == 5


def test_losers_are_stopped_and_going_on_does_not_bring_them_back(tmp_path, stub, capfd, monkeypatch):
    monkeypatch.setenv("STUB_SECONDS", "0.1")
    words = ["--grid", "x=4,1,3,2", "--parallel", 4, "--halving", "2:2"]
    arguments = ["--workdir", str(tmp_path), "--", "pretrain", "--config", "c.py", "--config.steps=12"]
    assert sweep.main([*map(str, words), *arguments]) == 0
    steps = {name: runs.last_step(tmp_path / name) for name in ("000", "001", "002", "003")}
    assert steps["001"] == 12 and max(steps["000"], steps["002"]) < 6 and steps["003"] < 12
    assert {name: state["state"] for name, state in states(tmp_path).items()} == {
        "000": "dropped",
        "001": "done",
        "002": "dropped",
        "003": "dropped",
    }
    assert (states(tmp_path)["000"]["at"], states(tmp_path)["003"]["at"]) == (2, 4)
    before = starts(tmp_path)
    assert call(tmp_path) == 0 and starts(tmp_path) == before


def test_more_may_be_better(tmp_path, stub, monkeypatch):
    monkeypatch.setenv("STUB_SECONDS", "0.1")
    assert go(tmp_path, "--grid", "x=1,2", "--halving", "2:1", "--mode", "max", "--parallel", 2) == 0
    assert states(tmp_path)["000"]["state"] == "dropped" and states(tmp_path)["001"]["state"] == "done"


def test_rungs_end_with_one():
    assert runs.rungs("3:100", 10) == [(100, 4), (300, 2), (900, 1)]
    assert runs.rungs(None, 10) == [] and runs.rungs("2:5", 1) == []
    for bad in ("2", "1:5", "2:0", "a:b", "2:5:6"):
        with pytest.raises(ValueError, match="write ETA:STEP"):
            runs.rungs(bad, 4)


def test_scores_are_finite_and_not_from_behind_the_step(tmp_path):
    lines = [{"step": 1, "loss": 3.0}, {"step": 2, "loss": float("nan")}, {"step": 3, "loss": 1.0}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"st')
    (tmp_path / "evals.jsonl").write_text('{"step": 2, "name": "a", "loss": 5.0}\n{"step": 2, "name": "b", "loss": 6.0}\n')
    assert [runs.score(tmp_path, "loss", step) for step in (0, 1, 2, 3)] == [None, 3.0, 3.0, 1.0]
    assert runs.score(tmp_path, "b/loss", 9) == 6.0 and runs.score(tmp_path, "c/loss", 9) is None


def test_halving_by_a_metric_that_is_not_there_yet_is_one_line(tmp_path, stub, capsys):
    assert go(tmp_path, "--grid", "x=1,2", "--halving", "2:1", "--metric", "text/loss") == 2
    assert "no text/loss at or before step 1" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words, said",
    [
        (["--grid", "z=1,2"], "Unknown config key 'z'. Did you mean 'x'? Nothing was started."),
        (["--grid", "x=1", "--workdir", "/dev/null/no"], "/dev/null is no folder"),
        (["--grid", "x=1", "--engine", "slrm"], "Choose one of: local, slurm, gke."),
        (["--grid", "x=1", "--engine", "slurm", "--halving", "2:1"], "only --engine local can"),
        (["--grid", "x=1", "--parallel", "0"], "give 1 or more"),
        (["--grid", "x=1", "--point", "1"], "has the points 0 to 0"),
    ],
)
def test_mistakes_are_one_line_before_anything_starts(tmp_path, stub, capsys, words, said):
    place = [] if "--workdir" in words else ["--workdir", str(tmp_path / "sweep")]
    assert sweep.main([*words, *place, "--", "pretrain", "--config", "c.py"]) == 2
    err = capsys.readouterr().err
    assert said in err and err.count("\n") == 1 and not (tmp_path / "sweep").exists()


def test_a_folder_is_the_place_of_one_sweep(tmp_path, stub, capsys):
    assert call(tmp_path) == 2 and "holds no sweep" in capsys.readouterr().err
    assert go(tmp_path, "--grid", "x=1") == 0
    assert go(tmp_path, "--grid", "x=2") == 2 and "holds another sweep (points differ)" in capsys.readouterr().err
    assert sweep.main(["--grid", "x=1", "--workdir", str(tmp_path), "--", "pretrain", "--workdir=b"]) == 2
    assert call(tmp_path, "--grid", "x=1") == 2 and "Give it behind --" in capsys.readouterr().err


def test_a_dry_run_prints_every_command_and_does_nothing(tmp_path, capsys):
    assert go(tmp_path / "s", "--grid", "x=1,2", "--dry-run", "--plan", "v5e:2x2") == 0
    run = "python -m jaxllm pretrain --config c.py --config.steps=4"
    plan = "python -m jaxllm plan --topology v5e:2x2 --config c.py --config.steps=4"
    checks = [line for x in "12" for line in (f"{run} --config.x={x} --check", f"{plan} --config.x={x}")]
    whole = [f"{run} --workdir {tmp_path}/s/00{i} --config.x={i + 1}" for i in (0, 1)]
    assert capsys.readouterr().out.splitlines() == [*checks, *whole, f"python -m jaxllm report {tmp_path}/s"]
    assert not (tmp_path / "s").exists()
    assert go(tmp_path / "s", "--grid", "x=1", "--dry-run", "--engine", "local --processes 2") == 0
    assert (
        f"python -m launch.local --processes 2 -- pretrain --config c.py --config.steps=4 --workdir {tmp_path}/s/000"
        in capsys.readouterr().out
    )


def test_other_engines_get_an_array_or_a_job_for_each_point(tmp_path, capsys):
    place = tmp_path / "s"
    assert go(place, "--grid", "x=1,2", "--dry-run", "--parallel", 2, "--engine", "slurm --partition low") == 0
    said = capsys.readouterr().out
    assert "#SBATCH --array=0-1%2\n" in said and "#SBATCH --partition=low\n" in said
    assert f'-m launch.sweep --workdir {place} --restarts 3 --point "$SLURM_ARRAY_TASK_ID" &' in said
    words = ["--grid", "batch_size=8,16", "--workdir", str(place), "--dry-run", "--engine", "gke --topology v5e:2x4 --image i"]
    behind = ["--", "pretrain", "--config", "configs/pretrain/tiny_bytes.py:tiny"]
    assert sweep.main([*words, *behind]) == 2 and "--runs gs://BUCKET/FOLDER goes with --engine gke" in capsys.readouterr().err
    assert sweep.main([*words, "--runs", "gs://bucket/s", *behind]) == 0
    said = capsys.readouterr().out
    assert '"name": "s-000"' in said and '"gs://bucket/s/001",' in said and '"--config.batch_size=16"' in said
    assert not place.exists()


def test_sigterm_stops_all_and_the_next_call_goes_on(tmp_path, stub):
    program = (
        "import sys; from launch import job, sweep; job.Job.__init__.__defaults__ = (sys.executable, 'stub_run'); sys.exit(sweep.main())"
    )
    words = ["--grid", "x=1,2,3", "--parallel", "2", "--workdir", str(tmp_path), "--", "pretrain"]
    env = {**os.environ, "STUB": json.dumps({"1": ["hang"], "2": ["hang"]})}
    process = subprocess.Popen([sys.executable, "-c", program, *words], env=env, stdout=subprocess.PIPE, text=True)
    end = time.monotonic() + 60
    while time.monotonic() < end and not all(runs.last_step(tmp_path / name) for name in ("000", "001")):
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 75
    assert starts(tmp_path) == {"000": 1, "001": 1} and states(tmp_path) == {}
    assert call(tmp_path) == 0 and starts(tmp_path) == {"000": 2, "001": 2, "002": 1}
    assert [runs.last_step(tmp_path / f"00{i}") for i in range(3)] == [4, 4, 4]


def test_six_tiny_runs_over_learning_rate_and_depth_end_in_one_page_with_a_scaling_law(tmp_path, monkeypatch):
    text = tmp_path / "text.jsonl"
    text.write_text("".join(json.dumps({"text": f"{i} and {i + 1} are {2 * i + 1}. " * 20}) + "\n" for i in range(400)))
    monkeypatch.setenv("JAXLLM_CACHE", str(tmp_path / "tokens"))
    monkeypatch.setenv("XLA_FLAGS", "--xla_backend_optimization_level=0")
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", jax.config.jax_compilation_cache_dir)  # conftest has set it
    words = (
        f"--config configs/pretrain/depth.py:tiny --config.steps=8 --config.eval.every=2 --config.eval.batches=2 --config.data.train={text}"
    )
    grid = ["--grid", "optimizer.learning_rate=3e-3,1e-2", "--grid", "depth=1,2,3", "--parallel", "2"]
    assert sweep.main([*grid, "--workdir", str(tmp_path / "sweep"), "--", "pretrain", *words.split(), "--config.sequence_length=32"]) == 0
    assert [state["state"] for state in states(tmp_path / "sweep").values()] == ["done"] * 6
    page = (tmp_path / "sweep" / "report.html").read_text()
    assert "6 runs by text/loss" in page and page.count("<td>done</td>") == 6
    assert "<h4>Chinchilla: L = E + A / N^alpha + B / D^beta</h4>" in page and "<h4>Kaplan:" in page
    assert page.count("Fitted to 9 losses") == 2 and "<td>depth</td>" in page and "Not fitted" not in page
