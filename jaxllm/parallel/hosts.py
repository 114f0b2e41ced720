"""Many processes that start, agree and end as one; with a single process all of it costs nothing."""

import ctypes
import itertools
import json
import os
import re
import signal
import sys
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
from jax._src import distributed  # the coordinator's key-value store has no public face: this is the one file that knows it

HEARTBEAT_SECONDS = 20  # a process that was silent for this long is lost, and all the others end
SHUTDOWN_SECONDS = 10  # how long a failing process waits for the others before it goes
AGREE_SECONDS = 1200  # how long one process waits for the word of another; a lost one ends all of them long before

_numbers = itertools.count()
_on_abort: Any = None  # keeps the C callback alive


class Cluster(NamedTuple):
    """Where the first process is, how many there are, which one this is, and its devices (None: all it can see)."""

    address: str
    num_processes: int
    process_id: int
    devices: list[int] | None = None


def start(address: str | None = None, num_processes: int | None = None, process_id: int | None = None) -> None:
    """Joins the processes of a job into one JAX runtime; the first thing a program does, before any device is touched.

    Looks, in this order, at the arguments, at JAX_COORDINATOR_ADDRESS / JAX_NUM_PROCESSES / JAX_PROCESS_ID (which is how a Kubernetes Job
    says it), at SLURM, and at Cloud TPU.

    Raises:
      ValueError: only some of the three are given, or they do not fit together.
    """
    cluster = from_values(address, num_processes, process_id) or from_environment(os.environ)
    if cluster is None and not _on_tpu_pod(os.environ):
        return
    if os.environ.get("JAX_PLATFORMS", "") == "cpu":
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
    settings: dict[str, Any] = {"heartbeat_timeout_seconds": HEARTBEAT_SECONDS, "shutdown_timeout_seconds": SHUTDOWN_SECONDS}
    if cluster is not None:
        settings |= {"coordinator_address": cluster.address, "num_processes": cluster.num_processes, "process_id": cluster.process_id}
        settings |= {"local_device_ids": cluster.devices, "cluster_detection_method": "deactivate"}
    jax.distributed.initialize(**settings)
    _abort_means_exit_1()


def finish() -> None:
    """Waits until every process is done, then leaves the runtime; without it the first to end would take the rest with it."""
    if distributed.global_state.client is not None:
        sync("finish")
        jax.distributed.shutdown()


def from_values(address: str | None, num_processes: int | None, process_id: int | None) -> Cluster | None:
    """The cluster described by three explicit values; None when none is given, or when there is one process only.

    Raises:
      ValueError: only some are given, or the process id is not one of them.
    """
    if address is None and num_processes is None and process_id is None:
        return None
    if address is None or num_processes is None or process_id is None:
        raise ValueError(
            f"coordinator address={address!r}, num_processes={num_processes}, process_id={process_id}:"
            " give all three, or none to let them be detected."
        )
    if not 0 <= process_id < num_processes:
        raise ValueError(f"process_id={process_id} is not one of {num_processes} processes. Choose from 0 to {num_processes - 1}.")
    return Cluster(address, num_processes, process_id) if num_processes > 1 else None


def from_environment(env: Mapping[str, str]) -> Cluster | None:
    """The cluster that the environment speaks of, or None: a single process, or a TPU pod, which JAX itself knows how to ask."""
    if "JAX_COORDINATOR_ADDRESS" in env or "JAX_NUM_PROCESSES" in env:
        index = env.get("JAX_PROCESS_ID", env.get("JOB_COMPLETION_INDEX"))  # an Indexed Job of Kubernetes numbers its pods
        count = env.get("JAX_NUM_PROCESSES")
        return from_values(env.get("JAX_COORDINATOR_ADDRESS"), int(count) if count else None, int(index) if index else None)
    if {"SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_NTASKS", "SLURM_PROCID"} <= env.keys() and int(env["SLURM_NTASKS"]) > 1:
        return from_slurm(env)
    if "KUBERNETES_SERVICE_HOST" in env and "JOB_COMPLETION_INDEX" in env and "TPU_WORKER_HOSTNAMES" not in env:
        raise ValueError(
            f"This is pod {env['JOB_COMPLETION_INDEX']} of an Indexed Job, and it is not said how many there are."
            " Set JAX_COORDINATOR_ADDRESS=<host of pod 0>:8476 and JAX_NUM_PROCESSES in the Job (1 for a single pod)."
        )
    return None


def from_slurm(env: Mapping[str, str]) -> Cluster:
    """The cluster of a SLURM step: the first node coordinates, on a port that follows from the job and the step."""
    first = re.match(r"([^,\[]+)(?:\[(\d+))?", env["SLURM_STEP_NODELIST"])
    assert first is not None, env["SLURM_STEP_NODELIST"]
    step = env.get("SLURM_STEP_ID", "0")
    port = 61440 + (int(env["SLURM_JOB_ID"]) * 16 + (int(step) if step.isdigit() else 0)) % 4096
    visible = [device for device in env.get("CUDA_VISIBLE_DEVICES", "").split(",") if device]
    alone = env.get("SLURM_STEP_TASKS_PER_NODE", "1").split("(")[0] == "1"
    devices = None if alone or len(visible) <= 1 else [int(env.get("SLURM_LOCALID", "0"))]
    return Cluster("".join(part or "" for part in first.groups()) + f":{port}", int(env["SLURM_NTASKS"]), int(env["SLURM_PROCID"]), devices)


def _on_tpu_pod(env: Mapping[str, str]) -> bool:
    """True on a Cloud TPU host, of which JAX can ask the others' names; one host alone needs no runtime of many."""
    if "tpu" not in env.get("JAX_PLATFORMS", "tpu"):
        return False
    if "TPU_WORKER_HOSTNAMES" in env or "MEGASCALE_NUM_SLICES" in env:
        return len(env.get("TPU_WORKER_HOSTNAMES", "").split(",")) > 1 or int(env.get("MEGASCALE_NUM_SLICES", "1")) > 1
    from jax._src import cloud_tpu_init

    return bool(cloud_tpu_init.running_in_cloud_tpu_vm) and "TPU_SKIP_MDS_QUERY" not in env


def _abort_means_exit_1() -> None:
    """JAX aborts (SIGABRT, 134) when the coordinator reports a lost peer; our exit code for that is 1."""
    global _on_abort
    libc = ctypes.CDLL(None)
    libc.signal.argtypes, libc.signal.restype = (ctypes.c_int, ctypes.c_void_p), ctypes.c_void_p

    def end(number: int) -> None:
        os.write(2, b"A process of this job was lost or failed; this one ends too (exit 1). Run again to resume.\n")
        os._exit(1)

    _on_abort = ctypes.CFUNCTYPE(None, ctypes.c_int)(end)
    libc.signal(signal.SIGABRT, ctypes.cast(_on_abort, ctypes.c_void_p))


def is_first() -> bool:
    """True in the process that writes files and talks to the user."""
    return jax.process_index() == 0


def say(line: str) -> None:
    """One line to the user, from the first process only."""
    if is_first():
        print(line, file=sys.stderr, flush=True)


def fresh(name: str) -> str:
    """A key for `collect` and `tell` that was not used before; ask in the main thread, in the same order in all processes."""
    return f"{name}/{next(_numbers)}"


def collect(key: str, value: Any) -> list[Any]:
    """Brings one small JSON value of every process to the first one, without touching a device: safe in a background thread.

    Args:
      key: of `fresh`.
      value: what this process has to say.

    Returns:
      In the first process the values in the order of the processes; elsewhere an empty list.
    """
    if jax.process_count() == 1:
        return [value]
    store: Any = distributed.global_state.client
    if not is_first():
        store.key_value_set(f"jaxllm/{key}/{jax.process_index()}", json.dumps(value))
        return []
    names = [f"jaxllm/{key}/{p}" for p in range(1, jax.process_count())]
    values = [json.loads(store.blocking_key_value_get(name, AGREE_SECONDS * 1000)) for name in names]
    store.key_value_delete(f"jaxllm/{key}/")
    return [value, *values]


def tell(key: str, value: Any = None) -> Any:
    """The first process's small JSON value, in every process; as `collect`, it touches no device.

    Args:
      key: of `fresh`.
      value: read in the first process only.
    """
    if jax.process_count() == 1:
        return value
    store: Any = distributed.global_state.client
    if is_first():
        store.key_value_set(f"jaxllm/{key}", json.dumps(value))
        return value
    return json.loads(store.blocking_key_value_get(f"jaxllm/{key}", AGREE_SECONDS * 1000))


def sync(name: str) -> None:
    """Waits until every process has come here; call it in the main thread, in the same order everywhere."""
    if jax.process_count() > 1:
        store: Any = distributed.global_state.client
        store.wait_at_barrier(fresh(f"jaxllm/{name}"), AGREE_SECONDS * 1000)
