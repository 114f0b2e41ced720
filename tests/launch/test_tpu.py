"""Cloud TPU VMs, against a stand-in for gcloud: the order of the calls, preemption, quotas, names that exist, and mistakes."""

import shlex
from pathlib import Path

import pytest
from cloud_tools import Tools

from launch import accelerators, job, sent, tpu

ROOT = Path(__file__).parents[2]
JOB = ["--", "pretrain", "--config", "configs/pretrain/tiny_bytes.py:tiny", "--workdir", "gs://bucket/run"]
MACHINES = ["--name", "r7", "--zone", "us-east5-a", "--topology", "v5e:2x4"]  # two hosts
NONE = {"code": 1, "err": "ERROR: NOT_FOUND"}
DONE = {"out": "[0] step 1\njaxllm-exit 0\njaxllm-exit 0\n"}


@pytest.fixture
def tools(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    found = Tools(tmp_path / "bin", "gcloud")
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:/usr/bin:/bin")
    monkeypatch.setattr(tpu, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(job.Restarts, "wait", _quick(job.Restarts.wait))
    monkeypatch.setattr(sent, "check", lambda arguments, devices: checked.append(devices))
    checked.clear()
    return found


checked = []


def _quick(wait):
    return lambda self, code: None if wait(self, code) is None else 0.01


def acts(tools):
    """The calls in short: create, describe, delete, scp, install, run."""
    short = []
    for words in tools.calls():
        command = next((word for word in words if word.startswith("--command=")), "")
        verb = "run" if "-m jaxllm" in command else "install" if "pip install" in command else words[3]
        short.append("known" if "accelerator-types" in words else verb)
    return short


def states(*names):
    return ("queued-resources", "describe"), [NONE if name is None else {"out": f"{name}\n"} for name in names]


def test_created_waited_for_shipped_run_streamed_and_deleted(tools, capfd):
    tools.play(states(None, "WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE"), (("-m jaxllm",), DONE))
    assert tpu.main([*MACHINES, "--spot", *JOB]) == 0
    assert acts(tools) == ["known", "describe", "create", "describe", "describe", "describe", "scp", "install", "run", "delete"]
    create = tools.calls()[2]
    for word in ("--accelerator-type=v5litepod-8", "--runtime-version=v2-alpha-tpuv5-lite", "--node-id=r7", "--spot", "--zone=us-east5-a"):
        assert word in create
    assert checked == [8]
    out = capfd.readouterr().out
    assert "[0] step 1" in out and "jaxllm-exit" not in out and "r7: waiting for resources" in out


def test_after_a_preemption_other_machines_are_asked_for_without_using_the_budget(tools):
    tools.play(
        states(None, "ACTIVE", "SUSPENDED", "ACTIVE", "SUSPENDING", "ACTIVE"),
        (("-m jaxllm",), [{"out": "step 1\n", "code": 255}, {"code": 255}, DONE]),
    )
    assert tpu.main([*MACHINES, "--restarts", "0", *JOB]) == 0
    assert acts(tools).count("create") == 3 and acts(tools).count("run") == 3 and acts(tools)[-1] == "delete"


def test_a_failure_on_machines_that_are_there_costs_a_restart_and_a_mistake_ends_it(tools):
    failed = {"out": "jaxllm-exit 1\njaxllm-exit 1\n"}
    tools.play(states(None, "ACTIVE"), (("-m jaxllm",), failed))
    assert tpu.main([*MACHINES, "--restarts", "2", *JOB]) == 1
    assert acts(tools).count("run") == 3 and acts(tools).count("create") == 1 and acts(tools)[-1] == "delete"
    (tools.folder / "calls.jsonl").unlink()
    tools.play(states(None, "ACTIVE"), (("-m jaxllm",), {"out": "jaxllm-exit 2\njaxllm-exit 2\n"}))
    assert tpu.main([*MACHINES, *JOB]) == 2 and acts(tools).count("run") == 1
    (tools.folder / "calls.jsonl").unlink()
    tools.play(states(None, "ACTIVE"), (("-m jaxllm",), [{"out": "jaxllm-exit 75\njaxllm-exit 75\n"}, {"out": "jaxllm-exit 0\n"}, DONE]))
    assert tpu.main([*MACHINES, "--restarts", "1", "--keep", *JOB]) == 0  # saved, one worker silent, done
    assert acts(tools).count("run") == 3 and "delete" not in acts(tools)


def test_several_slices_are_several_nodes_of_one_request(tools):
    tools.play(states(None, "ACTIVE"), (("-m jaxllm",), DONE))
    assert tpu.main([*MACHINES, "--num-slices", "2", *JOB]) == 0
    calls = tools.calls()
    assert {"--node-count=2", "--node-prefix=r7"} <= set(calls[2]) and checked == [16]
    assert sorted(words[4] for words in calls if "ssh" in words and any("-m jaxllm" in word for word in words)) == ["r7-0", "r7-1"]


@pytest.mark.parametrize(
    "scenes, said",
    [
        (
            [(("accelerator-types",), {"code": 1, "err": "ERROR: (gcloud) NOT_FOUND: zone us-east5-a has no v5litepod-8\n"})],
            "has no v5litepod-8",
        ),
        ([states("ACTIVE")], "A queued resource 'r7' is there already (ACTIVE). Choose another --name, or: gcloud"),
        (
            [states(None), (("create",), {"code": 1, "err": "long\nERROR: RESOURCE_EXHAUSTED: quota TPUV5sPerProject exceeded\n"})],
            "quota TPUV5sPer",
        ),
        ([states(None, "ACCEPTED", "FAILED")], "ended as FAILED"),
    ],
)
def test_what_the_cloud_refuses_is_one_line(tools, capsys, scenes, said):
    tools.play(*scenes)
    assert tpu.main([*MACHINES, *JOB]) == 2
    err = capsys.readouterr().err
    assert said in err and err.count("\n") == 1
    assert ("create" in acts(tools)) == ("RESOURCE" in str(scenes) or "FAILED" in str(scenes)) and "run" not in acts(tools)
    assert ("delete" in acts(tools)) == ("FAILED" in str(scenes))


@pytest.mark.parametrize(
    "words, said",
    [
        (["--topology", "v5ee:2x4"], "Unknown accelerator 'v5ee:2x4'. Did you mean v5e?"),
        (["--topology", "v5e:2x4x4"], "v5e has 2 dims"),
        (["--topology", "v5e:3x3"], "filled by hosts of 4 chips"),
        (["--topology", "tpu7x:2x2x1"], "not to be had as Cloud TPU VMs. Use launch.gke"),
        (["--name", "R_7"], "use lower-case letters"),
        (["--num-slices", "0"], "give 1 or more"),
        (["--spot", "--reserved"], "exclude each other"),
        (["--env", "HF_TOKEN=x"], "looks like a secret"),
    ],
)
def test_mistakes_are_one_line_before_any_call(tools, capsys, words, said):
    assert tpu.main([*MACHINES, *words, *JOB]) == 2
    err = capsys.readouterr().err
    assert said in err and err.count("\n") == 1 and tools.calls() == []


def test_a_folder_of_this_machine_no_gcloud_and_a_mesh_of_another_size(tools, capsys, monkeypatch):
    assert tpu.main([*MACHINES, *JOB[:-1], "runs/here"]) == 2 and "Choose a bucket: gs://BUCKET/here" in capsys.readouterr().err
    monkeypatch.setenv("PATH", "/nowhere")
    assert tpu.main([*MACHINES, *JOB]) == 2 and "No gcloud on the PATH" in capsys.readouterr().err
    monkeypatch.undo()
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("PATH", f"{tools.folder}:/usr/bin:/bin")
    assert tpu.main([*MACHINES, *JOB, "--config.parallel.fsdp=4"]) == 2
    err = capsys.readouterr().err
    assert "parallel" in err and "8" in err and err.count("\n") == 1 and tools.calls() == []


def test_a_dry_run_prints_the_commands_and_calls_none(tools, capsys):
    assert tpu.main([*MACHINES, "--env", "A=b c", "--dry-run", *JOB]) == 0
    lines = [shlex.split(line) for line in capsys.readouterr().out.splitlines()]
    assert [line[3:5] for line in lines] == [
        ["accelerator-types", "describe"],
        ["queued-resources", "describe"],
        ["queued-resources", "create"],
        ["queued-resources", "describe"],
        ["tpu-vm", "scp"],
        ["tpu-vm", "ssh"],
        ["tpu-vm", "ssh"],
        ["queued-resources", "delete"],
    ]
    assert "env A='b c' ~/jaxllm-venv/bin/python -m jaxllm pretrain --config configs/pretrain/tiny_bytes.py:tiny" in " ".join(lines[6])
    assert tools.calls() == []


def test_slices_have_the_names_that_the_cloud_gives_them():
    found = {name: accelerators.tpu(name).accelerator_type for name in ("v4:2x2x4", "v5e:4x4", "v5p:4x4x4", "v6e:16x16")}
    assert found == {"v4:2x2x4": "v4-32", "v5e:4x4": "v5litepod-16", "v5p:4x4x4": "v5p-128", "v6e:16x16": "v6e-256"}
    assert (accelerators.tpu("v5e:4x4").hosts, accelerators.tpu("v5e:1x1").hosts) == (4, 1)
