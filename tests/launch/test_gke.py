"""GKE, against a stand-in for kubectl: manifests that hold to the API, what the cluster refuses, and mistakes."""

import base64
import io
import json
import subprocess
import tarfile
from pathlib import Path

import jobset_schema
import pytest
from cloud_tools import Tools

from launch import accelerators, gke, sent

ROOT = Path(__file__).parents[2]
JOB = ["--", "pretrain", "--config", "configs/pretrain/tiny_bytes.py:tiny", "--workdir", "gs://bucket/run"]
TPU = ["--name", "r7", "--topology", "v5e:4x4", "--image", "image:1"]
GPU = ["--name", "r7", "--gpu", "nvidia-h100-80gb:8", "--nodes", "2", "--image", "image:1"]


@pytest.fixture
def tools(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    found = Tools(tmp_path / "bin", "kubectl", "xpk")
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:/usr/bin:/bin")
    monkeypatch.setattr(sent, "check", lambda arguments, devices: checked.append(devices))
    checked.clear()
    return found


checked = []


def objects(capsys, *words):
    """The ConfigMap and the JobSet of a dry run."""
    assert gke.main([*words, "--dry-run", *JOB]) == 0
    return json.loads(capsys.readouterr().out.rpartition("\n#")[0])["items"]


@pytest.mark.parametrize(
    "words",
    [
        TPU,
        GPU,
        [*TPU, "--num-slices", "4", "--queue", "team", "--spot", "--service-account", "trainer", "--secret", "hub", "--env", "A=b"],
        [*TPU, "--topology", "tpu7x:4x4x4"],
        [*TPU, "--topology", "v5p:2x2x1"],
        [*GPU, "--nodes", "1", "--gpu", "nvidia-l4:1"],
    ],
)
def test_manifests_hold_to_the_api(tools, capsys, words):
    _, jobset = objects(capsys, *words)
    assert jobset_schema.errors(jobset, jobset_schema.JOBSET) == []


def test_the_schema_refuses_what_the_api_does_not_have(tools, capsys):
    _, jobset = objects(capsys, *TPU)
    jobset["spec"]["failurePolicy"]["maxRestart"] = "3"
    jobset["spec"]["replicatedJobs"][0]["template"]["spec"]["completionMode"] = "indexed"
    del jobset["metadata"]["name"]
    assert jobset_schema.errors(jobset, jobset_schema.JOBSET) == [
        "jobset.metadata has no name",
        "jobset.spec.failurePolicy has an unknown maxRestart",
        "jobset.spec.replicatedJobs[0].template.spec.completionMode is 'indexed'",
    ]


def test_slices_hosts_chips_and_what_is_free(tools, capsys):
    _, jobset = objects(capsys, *TPU, "--num-slices", "4", "--queue", "team", "--restarts", "7")
    assert jobset["metadata"]["labels"] == {"kueue.x-k8s.io/queue-name": "team"}
    assert jobset["metadata"]["annotations"] == {"alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"}
    assert jobset["spec"]["failurePolicy"]["maxRestarts"] == 7
    (jobs,) = jobset["spec"]["replicatedJobs"]
    spec = jobs["template"]["spec"]
    assert (jobs["replicas"], spec["parallelism"], spec["completions"], spec["backoffLimit"]) == (4, 4, 4, 0)
    pod = spec["template"]["spec"]
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v5-lite-podslice",
        "cloud.google.com/gke-tpu-topology": "4x4",
    }
    assert pod["containers"][0]["resources"]["limits"] == {"google.com/tpu": "4"}
    assert spec["podFailurePolicy"]["rules"][0]["onExitCodes"]["values"] == [75]
    assert jobset["spec"]["failurePolicy"]["rules"][0]["onJobFailureReasons"] == ["PodFailurePolicy"]


def test_gpu_pods_are_told_of_each_other(tools, capsys):
    _, jobset = objects(capsys, *GPU)
    pod = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    env = {entry["name"]: entry.get("value") for entry in pod["containers"][0]["env"]}
    assert (env["JAX_COORDINATOR_ADDRESS"], env["JAX_NUM_PROCESSES"]) == ("r7-workers-0-0.r7:8476", "2")
    assert pod["nodeSelector"] == {"cloud.google.com/gke-accelerator": "nvidia-h100-80gb"} and "annotations" not in jobset["metadata"]


def test_the_code_travels_and_starts_and_secrets_do_not(tools, capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_abcdefghijklmnopqrstuvwxyz")
    config, jobset = objects(capsys, *TPU, "--secret", "hub")
    packed = base64.b64decode(config["binaryData"]["code.tar.xz"])
    with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
        names = archive.getnames()
    assert {"jaxllm/__main__.py", "launch/gke.py", "configs/pretrain/tiny_bytes.py", "pyproject.toml"} <= set(names)
    assert all(name.endswith(".py") or name in sent.FILES for name in names)
    text = json.dumps(jobset)
    assert "hf_" not in text and '"secretRef": {"name": "hub"}' in text and len(config["binaryData"]["code.tar.xz"]) < 1 << 20
    # What the container does, here: the code is unpacked and becomes the job.
    (tmp_path / "python").write_text('#!/bin/sh\necho ran "$@" in $(ls -d jaxllm)\n')
    (tmp_path / "python").chmod(0o755)
    (tmp_path / "code.tar.xz").write_bytes(packed)
    command = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]["containers"][0]["command"]
    command = [word.replace("/code/", f"{tmp_path}/").replace("/tmp/jaxllm", f"{tmp_path}/work") for word in command]
    env = {"PATH": f"{tmp_path}:/usr/bin:/bin", "ATTEMPT": "0"}
    said = subprocess.run(command, env=env, capture_output=True, text=True)
    assert said.stdout == f"ran -m jaxllm {' '.join(JOB[1:])} in jaxllm\n", said.stderr
    assert sent.pack(JOB[1:])[0] == packed  # the same code, the same bytes


def test_checked_by_the_cluster_first_then_created(tools, capsys):
    assert gke.main([*TPU, "--queue", "team", *JOB]) == 0
    calls = tools.calls()
    assert [words[1:3] for words in calls] == [
        ["get", "jobset"],
        ["get", "localqueue"],
        ["create", "--filename=-"],
        ["create", "--filename=-"],
    ]
    assert calls[2][-1] == "--dry-run=server" and "--dry-run=server" not in calls[3] and checked == [16]
    handed = [record["stdin"] for record in tools.records()]
    assert handed[2] == handed[3] and json.loads(handed[3])["items"][1]["kind"] == "JobSet"
    assert "kubectl --namespace=default logs --follow" in capsys.readouterr().out


def test_followed_to_its_end(tools, capsys, monkeypatch):
    monkeypatch.setattr(gke.time, "sleep", lambda seconds: None)
    lives, done = {"out": "{}"}, {"out": '{"status": {"terminalState": "Completed"}}'}
    tools.play((("--ignore-not-found",), {}), (("get", "jobset"), [lives, lives, done]), (("logs",), {"out": "step 1\n"}))
    assert gke.main([*TPU, "--follow", *JOB]) == 0 and sum("logs" in words for words in tools.calls()) == 2
    tools.play((("--ignore-not-found",), {}), (("get", "jobset"), {"out": '{"status": {"terminalState": "Failed"}}'}))
    assert gke.main([*TPU, "--follow", *JOB]) == 1


@pytest.mark.parametrize(
    "scene, said",
    [
        (
            (("--ignore-not-found",), {"out": "jobset.jobset.x-k8s.io/r7\n"}),
            "A JobSet 'r7' is there already. Choose another --name, or: kubectl",
        ),
        (
            (("localqueue",), {"code": 1, "err": 'Error from server (NotFound): localqueues "team" not found\n'}),
            'localqueues "team" not found',
        ),
        ((("--dry-run=server",), {"code": 1, "err": "Error from server (Forbidden): exceeded quota: tpus\n"}), "exceeded quota: tpus"),
        ((("--ignore-not-found",), {"code": 1, "err": "error: current-context is not set\n"}), "current-context is not set"),
    ],
)
def test_what_the_cluster_refuses_is_one_line_and_nothing_is_created(tools, capsys, scene, said):
    tools.play(scene)
    assert gke.main([*TPU, "--queue", "team", *JOB]) == 2
    err = capsys.readouterr().err
    assert said in err and err.count("\n") == 1
    assert not any("create" in words and "--dry-run=server" not in words for words in tools.calls())


@pytest.mark.parametrize(
    "words, said",
    [
        (["--topology", "v7:4x4"], "Unknown accelerator 'v7:4x4'"),
        (["--name", "r_7"], "use lower-case letters"),
        (["--num-slices", "0"], "give 1 or more"),
        (["--env", "MY_API_KEY=1"], "looks like a secret"),
    ],
)
def test_mistakes_are_one_line_before_any_call(tools, capsys, words, said):
    assert gke.main([*TPU, *words, *JOB]) == 2
    err = capsys.readouterr().err
    assert said in err and err.count("\n") == 1 and tools.calls() == []


def test_unknown_gpus_no_kubectl_and_code_that_is_too_large(tools, capsys, monkeypatch):
    assert gke.main([*GPU, "--gpu", "nvidia-h100:8", *JOB]) == 2 and "Did you mean nvidia-h100-80gb?" in capsys.readouterr().err
    assert gke.main([*GPU, "--gpu", "nvidia-l4", *JOB]) == 2 and "say how many a node has" in capsys.readouterr().err
    monkeypatch.setattr(sent, "pack", lambda arguments: (bytes(1 << 20), list(arguments)))
    assert gke.main([*TPU, *JOB]) == 2 and "a ConfigMap holds 1,048,576" in capsys.readouterr().err
    monkeypatch.undo()
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("PATH", "/nowhere")
    assert gke.main([*TPU, *JOB]) == 2 and "No kubectl on the PATH" in capsys.readouterr().err


def test_xpk_gets_the_same_job(tools, capsys):
    assert gke.main([*TPU, "--xpk", "cluster", "--num-slices", "2", "--dry-run", *JOB]) == 0
    said = capsys.readouterr().out
    assert said.startswith("xpk workload create --workload r7 --cluster cluster --tpu-type=v5litepod-16 --num-slices 2 ")
    assert "--command 'python -m jaxllm pretrain" in said and tools.calls() == []
    assert gke.main([*TPU, "--xpk", "cluster", *JOB]) == 0
    assert [record["tool"] for record in tools.records()] == ["xpk"]


def test_every_generation_has_a_label():
    assert {facts.gke for facts in accelerators.GENERATIONS.values()} == {
        "tpu-v4-podslice",
        "tpu-v5-lite-podslice",
        "tpu-v5p-slice",
        "tpu-v6e-slice",
        "tpu7x",
    }
