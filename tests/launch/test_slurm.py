"""SLURM: what is rendered and refused; and a real cluster of two nodes on which a job of two processes is preempted and goes on."""

import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import slurm_cluster

from launch import job, sent, slurm

ROOT = Path(__file__).parents[2]
JOB = ["--", "pretrain", "--config", "configs/pretrain/tiny_bytes.py:tiny"]


@pytest.fixture(autouse=True)
def here(monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """Puts programs that say and do what they are told to on an otherwise empty PATH."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")

    def make(name, body):
        (folder / name).write_text(f"#!/bin/sh\n{body}\n")
        (folder / name).chmod(0o755)

    return make


def test_the_script_asks_for_what_was_asked_and_carries_no_environment(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_abcdefghijklmnopqrstuvwxyz")
    words = [
        "--name",
        "run7",
        "--nodes",
        "2",
        "--gpus-per-node",
        "8",
        "--partition",
        "gpu",
        "--time",
        "1:00:00",
        "--env",
        "XLA_FLAGS=-a -b",
    ]
    assert slurm.main([*words, "--dry-run", *JOB, "--workdir", str(tmp_path / "r")]) == 0
    said = capsys.readouterr().out
    for line in ("job-name=run7", "nodes=2", "gpus-per-node=8", "partition=gpu", "time=1:00:00", "requeue", "export=PATH,HOME,USER,LANG"):
        assert f"#SBATCH --{line}\n" in said
    assert f"-m jaxllm pretrain --config configs/pretrain/tiny_bytes.py:tiny --workdir {tmp_path}/r &\n" in said
    assert "export XLA_FLAGS='-a -b'\n" in said and "hf_" not in said and "JAX_PLATFORMS" not in said
    assert said.splitlines()[-1].startswith("sbatch --parsable --chdir=") and not (tmp_path / "r").exists()
    assert subprocess.run(["bash", "-n"], input=said, text=True).returncode == 0


@pytest.mark.parametrize(
    "words, said",
    [
        (JOB, "A job needs --workdir"),
        ([*JOB, "--workdir", "W", "--config.dept=2"], "Unknown config key 'dept'. Did you mean 'depth'?"),
        (["--nodes", "3", *JOB, "--workdir", "W"], "batch_size=8 does not divide by replica*fsdp=3"),
        (["--nodes", "0", *JOB, "--workdir", "W"], "--nodes 0: give 1 or more"),
        (["--env", "WANDB_API_KEY=x", *JOB, "--workdir", "W"], "--env WANDB_API_KEY=... looks like a secret"),
        (["--env", "X=hf_abcdefghijklmnopqrstuvwxyz", *JOB, "--workdir", "W"], "--env X=... looks like a secret"),
        ([*JOB, "--workdir", "W", "--config.data.train=sk-abcdefghijklmnopqrstuv"], "looks like a secret"),
        (["--env", "1=2", *JOB, "--workdir", "W"], "write NAME=VALUE"),
        (["--", "pretrain", "--config", "no.py", "--workdir", "W"], "No config file 'no.py'"),
        ([], "Give what to run behind --"),
    ],
)
def test_mistakes_are_one_line_before_anything_is_submitted(tmp_path, fake, capsys, words, said):
    fake("squeue", "exit 0")
    fake("sbatch", f"touch {tmp_path}/submitted")
    assert slurm.main([str(tmp_path / "run") if word == "W" else word for word in words]) == 2
    err = capsys.readouterr().err
    assert said in err and err.count("\n") == 1
    assert not (tmp_path / "submitted").exists() and not (tmp_path / "run").exists()


def test_no_slurm_a_name_that_is_taken_and_what_sbatch_refuses(tmp_path, fake, capsys, monkeypatch):
    words = [*JOB, "--workdir", str(tmp_path / "run")]
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert slurm.main(words) == 2 and "No sbatch on the PATH" in capsys.readouterr().err
    monkeypatch.undo()
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:/usr/bin:/bin")
    fake("squeue", "echo 17")
    fake("sbatch", "exit 9")
    assert slurm.main(words) == 2 and "Job 17 of the name 'jaxllm' waits or runs already" in capsys.readouterr().err
    fake("squeue", "exit 0")
    fake("sbatch", "echo 'sbatch: error: invalid partition specified: x' >&2; exit 1")
    monkeypatch.setattr(sent, "check", lambda arguments, devices: None)
    assert slurm.main(words) == 2 and "invalid partition specified: x" in capsys.readouterr().err


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    if missing := slurm_cluster.missing():
        pytest.skip(f"SLURM is not installed ({', '.join(missing)}): make slurm")
    folder = tmp_path_factory.mktemp("slurm")
    with slurm_cluster.cluster(folder) as env, pytest.MonkeyPatch.context() as patch:
        for name in ("SLURM_CONF", "PATH"):
            patch.setenv(name, env[name])
        yield env


def output(workdir):
    return "".join(path.read_text() for path in sorted((workdir / "slurm").glob("*.txt")))


def test_a_job_of_two_processes_is_preempted_goes_back_into_the_queue_and_resumes(tmp_path, cluster, monkeypatch, capfd):
    """tiny_run stands in for a stage of jaxllm: its processes, its loop and its checkpoints are the same."""
    (tmp_path / "stage.py").write_text(
        "import sys, tiny_run\n"
        "words = sys.argv[1:]\nat = words.index('--workdir')\n"
        "sys.argv[1:] = [words[at + 1], *words[1:at], *words[at + 2:]]\nsys.exit(tiny_run.main())\n"
    )
    monkeypatch.setattr(job.Job.__init__, "__defaults__", (sys.executable, "stage"))
    monkeypatch.setattr(sent, "check", lambda arguments, devices: None)  # of the stand-in there is nothing to check
    monkeypatch.setenv("HF_TOKEN", "not to be seen")
    workdir, codes = tmp_path / "run", []
    path = os.pathsep.join(map(str, (ROOT, Path(__file__).parent, tmp_path)))
    words = ["--nodes", "2", "--partition", "low", "--env", f"PYTHONPATH={path}", "--follow", "--"]
    words += ["pretrain", "--workdir", str(workdir), "--until", "40", "--every", "1", "--sleep", "0.5"]
    following = threading.Thread(target=lambda: codes.append(slurm.main(words)))
    following.start()
    try:
        slurm_cluster.wait(lambda: _steps(workdir) >= 3, 300)
        high = ["sbatch", "--parsable", "--partition=high", "--nodes=2", "--ntasks-per-node=1", "--cpus-per-task=2", "--wrap=sleep 1"]
        subprocess.run([*high, f"--output={tmp_path}/high.txt"], env=cluster, check=True)
    finally:
        following.join(500)
    said = output(workdir)
    assert codes == [0], said
    assert "stopped at" in said and "goes back into the queue" in said and "not to be seen" not in said
    assert said.count("resumed at") == 1 and said.count("done at 40") == 1
    assert [json.loads(line)["step"] for line in (workdir / "metrics.jsonl").read_text().splitlines()] == list(range(1, 41))
    assert "done at 40" in capfd.readouterr().out


def _steps(workdir):
    path = workdir / "metrics.jsonl"
    return path.read_text().count("\n") if path.exists() else 0


def test_an_array_runs_the_points_of_a_sweep_and_failures_have_a_budget(tmp_path, cluster, monkeypatch):
    """stub_run stands in for jaxllm: point 0 stops twice (75) and then ends, point 1 fails for good."""
    place, plan = tmp_path / "sweep", {"1": [75, 75, 0], "2": [1] * 9}
    place.mkdir()
    points = [{"name": f"00{i}", "settings": {"x": str(i + 1)}} for i in range(2)]
    record = {"arguments": ["pretrain"], "metric": "loss", "mode": "min", "halving": None, "runs": None, "points": points}
    (place / "sweep.json").write_text(json.dumps(record))
    (tmp_path / "jaxllm.py").write_text("import sys, stub_run\nsys.exit(stub_run.main())\n")
    path = os.pathsep.join(map(str, (tmp_path, Path(__file__).parent, ROOT)))
    words = [
        "--array",
        "0-1%2",
        "--sweep",
        str(place),
        "--restarts",
        "0",
        "--env",
        f"STUB={json.dumps(plan)}",
        "--env",
        f"PYTHONPATH={path}",
    ]
    assert slurm.main(words) == 0
    states = place / "points"
    slurm_cluster.wait(lambda: (states / "000.json").exists() and (states / "001.json").exists(), 120)
    slurm_cluster.wait(lambda: not subprocess.run(["squeue", "-h"], env=cluster, capture_output=True, text=True).stdout, 120)
    assert json.loads((states / "000.json").read_text())["state"] == "done"
    assert json.loads((states / "001.json").read_text())["state"] == "failed"
    assert (place / "000" / "starts").read_text() == "3"
