"""The environment of each scheduler says the same three things; with one process, agreeing costs nothing."""

import pytest

from jaxllm.parallel import hosts
from jaxllm.parallel.hosts import Cluster, from_environment, from_values

SLURM = {"SLURM_JOB_ID": "77", "SLURM_STEP_ID": "1", "SLURM_NTASKS": "4", "SLURM_PROCID": "3", "SLURM_LOCALID": "1"}
PORT = 61440 + (77 * 16 + 1) % 4096


@pytest.mark.parametrize(
    "extra, address, devices",
    [
        ({"SLURM_STEP_NODELIST": "node7"}, "node7", None),
        ({"SLURM_STEP_NODELIST": "a1,b2"}, "a1", None),
        ({"SLURM_STEP_NODELIST": "gpu[003-006],x"}, "gpu003", None),
        ({"SLURM_STEP_NODELIST": "gpu[3,7-9]"}, "gpu3", None),
        ({"SLURM_STEP_NODELIST": "n1", "SLURM_STEP_TASKS_PER_NODE": "1(x4)", "CUDA_VISIBLE_DEVICES": "0,1"}, "n1", None),
        ({"SLURM_STEP_NODELIST": "n1", "SLURM_STEP_TASKS_PER_NODE": "2(x2)", "CUDA_VISIBLE_DEVICES": "0,1"}, "n1", [1]),
        ({"SLURM_STEP_NODELIST": "n1", "SLURM_STEP_TASKS_PER_NODE": "2(x2)", "CUDA_VISIBLE_DEVICES": "1"}, "n1", None),
    ],
)
def test_slurm(extra, address, devices):
    assert from_environment(SLURM | extra) == Cluster(f"{address}:{PORT}", 4, 3, devices)


def test_one_process_is_no_cluster():
    assert from_environment({}) is None
    assert from_environment(SLURM | {"SLURM_NTASKS": "1", "SLURM_STEP_NODELIST": "n1"}) is None
    assert from_environment({"SLURM_JOB_ID": "77", "SLURM_NTASKS": "4"}) is None  # inside salloc or sbatch, outside of srun
    assert from_environment({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}) is None
    assert from_values("a:1", 1, 0) is None


def test_explicit_variables_and_kubernetes():
    env = {"JAX_COORDINATOR_ADDRESS": "job-0.job:8476", "JAX_NUM_PROCESSES": "2"}
    assert from_environment(env | {"JAX_PROCESS_ID": "1"}) == Cluster("job-0.job:8476", 2, 1)
    assert from_environment(env | {"JOB_COMPLETION_INDEX": "0", "KUBERNETES_SERVICE_HOST": "x"}) == Cluster("job-0.job:8476", 2, 0)
    with pytest.raises(ValueError, match=r"pod 3 of an Indexed Job.*JAX_NUM_PROCESSES"):
        from_environment({"JOB_COMPLETION_INDEX": "3", "KUBERNETES_SERVICE_HOST": "x"})


@pytest.mark.parametrize(
    "values, words", [(("a:1", 2, None), "give all three"), ((None, 2, 0), "give all three"), (("a:1", 2, 2), "0 to 1")]
)
def test_half_a_cluster_is_refused(values, words):
    with pytest.raises(ValueError, match=words):
        from_values(*values)


def test_a_single_process_agrees_with_itself():
    assert hosts.is_first()
    assert hosts.collect(hosts.fresh("a"), {"x": 1}) == [{"x": 1}]
    assert hosts.tell(hosts.fresh("a"), [1]) == [1]
    assert hosts.fresh("a") != hosts.fresh("a")
    hosts.sync("b")
    hosts.finish()


@pytest.mark.parametrize(
    "env, pod",
    [
        ({"JAX_PLATFORMS": "cpu", "TPU_WORKER_HOSTNAMES": "a,b"}, False),
        ({"TPU_WORKER_HOSTNAMES": "a,b"}, True),
        ({"TPU_WORKER_HOSTNAMES": "a"}, False),
        ({"TPU_WORKER_HOSTNAMES": "a", "MEGASCALE_NUM_SLICES": "2"}, True),
        ({}, False),
    ],
)
def test_a_tpu_pod_is_told_from_a_lone_host(env, pod):
    assert hosts._on_tpu_pod(env) == pod
