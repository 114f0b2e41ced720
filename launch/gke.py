"""A job on GKE: a JobSet for TPU or GPU node pools, with its code beside it, submitted by kubectl; or the xpk command for the same.

python -m launch.gke --name run7 --topology v5p:4x4x4 --image REGION-docker.pkg.dev/PROJECT/REPO/jaxllm:1 --queue team \\
    -- pretrain --config configs/pretrain/llama3_8b.py --workdir gs://BUCKET/run7
"""

import argparse
import base64
import json
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

from launch import accelerators, job, sent

LIMIT = 1 << 20  # bytes of a ConfigMap
PORT = 8476  # of JAX's coordinator
LABEL = "jobset.sigs.k8s.io/jobset-name"
# Unpacks the code, waits the longer the more often it was started (a minute at most), and becomes the job.
START = (
    "mkdir -p /tmp/jaxllm && cd /tmp/jaxllm && tar -xJf /code/code.tar.xz && "
    '{ [ "$ATTEMPT" = 0 ] || sleep $((ATTEMPT > 5 ? 60 : 1 << ATTEMPT)); } && exec python -m jaxllm "$@"'
)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    found = argparse.ArgumentParser(prog="python -m launch.gke", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = found.add_argument
    add("--name", required=True, help="of the JobSet, new")
    where = found.add_mutually_exclusive_group(required=True)
    where.add_argument("--topology", help="a TPU slice: v5e:4x4, v5p:4x4x4, v6e:8x8, tpu7x:4x4x4, ...")
    where.add_argument("--gpu", metavar="KIND:N", help="nodes with N GPUs each: nvidia-h100-80gb:8")
    add("--num-slices", type=int, default=1, metavar="N", help="slices of that shape, joined by DCN (default 1)")
    add("--nodes", type=int, default=1, metavar="N", help="of --gpu: how many nodes (default 1)")
    add("--image", required=True, help="a container image with Python, jaxllm's dependencies and JAX for these devices")
    add("--namespace", default="default")
    add("--queue", metavar="NAME", help="the Kueue LocalQueue that admits it")
    add("--spot", action="store_true", help="on Spot nodes")
    add("--service-account", metavar="NAME", help="the Kubernetes service account, bound to rights on the bucket")
    add("--secret", action="append", default=[], metavar="NAME", help="a Secret of the cluster whose entries become environment variables")
    add("--grace", type=int, default=120, metavar="SECONDS", help="between being told to save and being killed (default 120)")
    add("--restarts", type=int, default=3, metavar="N", help="failures that are followed by another start; stops are free (default 3)")
    add("--env", action="append", default=[], metavar="NAME=VALUE", help="for the processes; no secrets")
    add("--xpk", metavar="CLUSTER", help="through xpk workload create, on this cluster, instead of kubectl")
    add("--follow", action="store_true", help="show the output until the job has ended, and return its exit code")
    add("--dry-run", action="store_true", help="print the manifest or the command, and create nothing")
    add("arguments", nargs="+", metavar="-- STAGE ...", help="what follows `python -m jaxllm`; --workdir on gs://")
    return found


class Machines:
    """What the pods of a job need, and how many there are."""

    def __init__(self, options: argparse.Namespace):
        if options.topology:
            shape = accelerators.tpu(options.topology)
            self.pods, self.slices = shape.hosts, options.num_slices
            self.devices = shape.chips * shape.facts.devices * options.num_slices
            self.selector = {"cloud.google.com/gke-tpu-accelerator": shape.facts.gke, "cloud.google.com/gke-tpu-topology": shape.shape}
            self.limits = {"google.com/tpu": str(min(shape.chips, accelerators.CHIPS_PER_HOST))}
            self.xpk = f"--tpu-type={shape.facts.accelerator or 'tpu7x-'}{shape.chips * shape.facts.counted}"
        else:
            label, count = accelerators.gpu(options.gpu)
            self.pods, self.slices, self.devices = options.nodes, 1, options.nodes * count
            self.selector = {"cloud.google.com/gke-accelerator": label}
            self.limits = {"nvidia.com/gpu": str(count)}
            self.xpk = f"--device-type={label.removeprefix('nvidia-')}-{count}"
        if options.spot:
            self.selector["cloud.google.com/gke-spot"] = "true"


def environment(options: argparse.Namespace, machines: Machines, extra: dict[str, str]) -> list[dict[str, Any]]:
    """The variables of a container. GKE tells TPU pods of each other; GPU pods are told here, and the Job numbers them."""
    found = {"PYTHONPATH": "/tmp/jaxllm", "PYTHONUNBUFFERED": "1", **extra}
    if options.gpu and machines.pods > 1:
        found |= {"JAX_COORDINATOR_ADDRESS": f"{options.name}-workers-0-0.{options.name}:{PORT}", "JAX_NUM_PROCESSES": str(machines.pods)}
    attempt = {"fieldRef": {"fieldPath": "metadata.labels['jobset.sigs.k8s.io/restart-attempt']"}}
    return [{"name": "ATTEMPT", "valueFrom": attempt}, *({"name": name, "value": value} for name, value in found.items())]


def manifest(options: argparse.Namespace, machines: Machines, words: Sequence[str], extra: dict[str, str]) -> dict[str, Any]:
    """The JobSet (jobset.sigs.k8s.io/v1alpha2): one Job for each slice, one pod for each machine.

    A pod that ends with 75, or that is disrupted, fails its Job at once for a reason of its own (its podFailurePolicy), and the JobSet
    starts all Jobs again without counting; any other failure counts on `maxRestarts`.
    """
    container = {
        "name": "jaxllm",
        "image": options.image,
        "command": ["bash", "-c", START, "jaxllm", *words],
        "env": environment(options, machines, extra),
        **({"envFrom": [{"secretRef": {"name": name}} for name in options.secret]} if options.secret else {}),
        "resources": {"limits": machines.limits},
        "ports": [{"containerPort": PORT}],
        "volumeMounts": [{"name": "code", "mountPath": "/code", "readOnly": True}],
    }
    pod = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": options.grace,
        "nodeSelector": machines.selector,
        **({"serviceAccountName": options.service_account} if options.service_account else {}),
        "containers": [container],
        "volumes": [{"name": "code", "configMap": {"name": f"{options.name}-code"}}],
    }
    free = [
        {"action": "FailJob", "onExitCodes": {"containerName": "jaxllm", "operator": "In", "values": [job.STOPPED]}},
        {"action": "FailJob", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
    ]
    work = {
        "completionMode": "Indexed",
        "parallelism": machines.pods,
        "completions": machines.pods,
        "backoffLimit": 0,
        "podFailurePolicy": {"rules": free},
        "template": {"spec": pod},
    }
    # Each slice has a node pool of its own.
    alone = {"alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"} if options.topology else {}
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": {
            "name": options.name,
            "namespace": options.namespace,
            **({"labels": {"kueue.x-k8s.io/queue-name": options.queue}} if options.queue else {}),
            **({"annotations": alone} if alone else {}),
        },
        "spec": {
            "failurePolicy": {
                "maxRestarts": options.restarts,
                "restartStrategy": "BlockingRecreate",  # no pod of the last attempt beside those of the next
                "rules": [{"name": "stopped", "action": "RestartJobSetAndIgnoreMaxRestarts", "onJobFailureReasons": ["PodFailurePolicy"]}],
            },
            "network": {"enableDNSHostnames": True, "publishNotReadyAddresses": True},
            "replicatedJobs": [{"name": "workers", "replicas": machines.slices, "template": {"spec": work}}],
        },
    }


def code(options: argparse.Namespace, packed: bytes) -> dict[str, Any]:
    """The ConfigMap that the pods unpack the code from.

    Raises:
      ValueError: it would be too large.
    """
    text = base64.b64encode(packed).decode()
    if len(text) > LIMIT - 4096:
        raise ValueError(
            f"The code is {len(text):,} bytes as base64; a ConfigMap holds {LIMIT:,}. Take large files out of configs/ and jaxllm/."
        )
    metadata = {"name": f"{options.name}-code", "namespace": options.namespace}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "binaryData": {"code.tar.xz": text}}


def xpk(options: argparse.Namespace, machines: Machines, words: Sequence[str], extra: dict[str, str]) -> list[str]:
    """The same job for xpk, which brings a JobSet of its own; xpk's --script-dir puts the checkout into the image."""
    image = ["--base-docker-image", options.image, "--script-dir", str(sent.ROOT)]
    env = [word for name, value in extra.items() for word in ("--env", f"{name}={value}")]
    slices = ["--num-nodes", str(machines.pods)] if options.gpu else ["--num-slices", str(machines.slices)]
    command = ["--command", shlex.join(["python", "-m", "jaxllm", *words])]
    restarts = ["--max-restarts", str(options.restarts)]
    return [
        "xpk",
        "workload",
        "create",
        "--workload",
        options.name,
        "--cluster",
        options.xpk,
        machines.xpk,
        *slices,
        *image,
        *restarts,
        *env,
        *command,
    ]


def main(argv: list[str] | None = None) -> int:
    """Runs the command line; returns 0 where the job was handed over (with --follow the job's own end), 2 for a mistake."""
    options = parser().parse_args(argv)
    try:
        return _launch(options)
    except ValueError as error:
        print(f"launch.gke: {error}", file=sys.stderr)
        return 2


def _launch(options: argparse.Namespace) -> int:
    machines = Machines(options)
    if not re.fullmatch(r"[a-z]([a-z0-9-]{0,38}[a-z0-9])?", options.name):  # it becomes part of the pods' names, 63 letters at most
        raise ValueError(f"--name {options.name}: use lower-case letters, digits and -, beginning with a letter, 40 at most.")
    if options.num_slices < 1 or options.nodes < 1:
        raise ValueError(f"--num-slices {options.num_slices} --nodes {options.nodes}: give 1 or more.")
    extra = sent.environment(options.env, options.arguments)
    sent.workdir(options.arguments, remote=True)
    packed, words = sent.pack(options.arguments)
    objects = [code(options, packed), manifest(options, machines, words, extra)]
    text = json.dumps({"apiVersion": "v1", "kind": "List", "items": objects}, indent=1)
    kubectl = ["kubectl", f"--namespace={options.namespace}"]
    end = shlex.join([*kubectl, "delete", f"jobset/{options.name}", f"configmap/{options.name}-code"])
    command = xpk(options, machines, words, extra) if options.xpk else [*kubectl, "create", "--filename=-"]
    if options.dry_run:
        print(shlex.join(command) if options.xpk else f"{text}\n# {shlex.join(command)}")
        return 0
    if options.xpk:
        sent.need("xpk", "pip install xpk")
    else:
        sent.need("kubectl", "Install it, and choose a cluster: gcloud container clusters get-credentials CLUSTER")
    sent.check(options.arguments, machines.devices)
    if options.xpk:
        return subprocess.run(command).returncode
    if sent.call([*kubectl, "get", "jobset", options.name, "--ignore-not-found", "--output=name"]).strip():
        raise ValueError(f"A JobSet {options.name!r} is there already. Choose another --name, or: {end}")
    if options.queue:
        sent.call([*kubectl, "get", "localqueue", options.queue, "--output=name"])
    sent.call([*command, "--dry-run=server"], text)  # the cluster's own word on quotas, fields and rights, before anything is there
    sent.call(command, text)
    logs = [*kubectl, "logs", "--follow", "--prefix", f"--selector={LABEL}={options.name}", "--max-log-requests=64"]
    print(
        f"JobSet {options.name}. Its output: {shlex.join(logs)}; its end: {end}",
        flush=True,
    )
    return follow(kubectl, options.name, logs) if options.follow else 0


def follow(kubectl: Sequence[str], name: str, logs: Sequence[str], seconds: float = 5.0) -> int:
    """Shows the output of all pods, through all restarts, until the JobSet has ended; 0 where it completed, else 1."""
    while True:
        state = json.loads(sent.call([*kubectl, "get", "jobset", name, "--output=json"])).get("status", {}).get("terminalState")
        if state:
            print(f"JobSet {name}: {state.lower()}", flush=True)
            return 0 if state == "Completed" else 1
        subprocess.run(logs, stderr=subprocess.DEVNULL)  # ends with the pods; there are none before they are admitted
        time.sleep(seconds)


if __name__ == "__main__":
    sys.exit(main())
