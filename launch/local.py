"""Many processes on this machine, each with some faked CPU devices: a pod in a nutshell, for trying out and for tests.

python -m launch.local --processes 2 --devices 4 -- pretrain --config configs/pretrain/tiny_bytes.py --workdir /tmp/run
"""

import argparse
import os
import socket
import sys
import threading

from launch import job


def environments(processes: int, devices: int, port: int) -> tuple[dict[str, str], ...]:
    """What each process must have in its environment to be one of `processes` with `devices` CPU devices."""
    flags = f"--xla_force_host_platform_device_count={devices} --xla_cpu_collective_call_terminate_timeout_seconds=600"
    common = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {flags}".strip()}
    if processes == 1:
        return (common,)
    common |= {"JAX_COORDINATOR_ADDRESS": f"localhost:{port}", "JAX_NUM_PROCESSES": str(processes)}
    return tuple({**common, "JAX_PROCESS_ID": str(i)} for i in range(processes))


def free_port() -> int:
    """A port that nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


def main(argv: list[str] | None = None) -> int:
    """Runs the command line; returns the job's exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m launch.local", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--processes", type=int, default=1, help="how many processes (default 1)")
    parser.add_argument("--devices", type=int, default=1, help="faked CPU devices in each (default 1)")
    parser.add_argument("--port", type=int, help="of the coordinator on localhost (default: a free one)")
    parser.add_argument("--restarts", type=int, default=0, metavar="N", help="failures that are followed by another start (default 0)")
    parser.add_argument("--dry-run", action="store_true", help="print what would run, and run nothing")
    parser.add_argument("arguments", nargs="+", metavar="-- STAGE ...", help="what follows `python -m jaxllm`")
    options = parser.parse_args(argv)
    if options.processes < 1 or options.devices < 1:
        parser.error(f"--processes {options.processes} --devices {options.devices}: give 1 or more of each.")
    told = threading.Event()

    def start() -> int:
        port = options.port or free_port()
        return job.run(job.Job(tuple(options.arguments), environments(options.processes, options.devices, port)), told=told)

    if options.dry_run:
        found = job.Job(tuple(options.arguments), environments(options.processes, options.devices, options.port or free_port()))
        print("\n".join(found.lines()))
        return 0
    return job.repeat(start, job.Restarts(options.restarts), told)


if __name__ == "__main__":
    sys.exit(main())
