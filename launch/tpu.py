"""A job on Cloud TPU VMs by queued resources: create, wait, ship, run on all workers, stream, go on after a preemption, delete.

python -m launch.tpu --name run7 --zone us-east5-a --topology v5p:4x4x4 --spot \\
    -- pretrain --config configs/pretrain/llama3_8b.py --workdir gs://BUCKET/run7
"""

import argparse
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path

from launch import accelerators, job, sent

GONE = ("SUSPENDING", "SUSPENDED", "FAILED", "DELETING", "")  # states of a queued resource whose machines are not there
POLL_SECONDS = 20.0
EXIT = "jaxllm-exit"  # what each worker prints behind its run, with the exit code: gcloud's own tells of ssh


def parser() -> argparse.ArgumentParser:
    """The command line."""
    found = argparse.ArgumentParser(prog="python -m launch.tpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = found.add_argument
    add("--name", required=True, help="of the queued resource, new")
    add("--zone", required=True, help="where the chips are: us-east5-a, say")
    add("--project", help="(default: that of gcloud)")
    add("--topology", required=True, help="v5e:4x4, v5p:4x4x4, v6e:8x8, ... as `jaxllm plan` takes it")
    add("--num-slices", type=int, default=1, metavar="N", help="slices of that shape, joined by DCN (default 1)")
    add("--spot", action="store_true", help="cheaper, and taken away at any time")
    add("--reserved", action="store_true", help="from a reservation")
    add("--runtime", help="image of the VMs (default: that of the generation)")
    add("--service-account", metavar="EMAIL", help="whose rights the VMs have: how they read the bucket, without any key")
    add(
        "--restarts", type=int, default=3, metavar="N", help="failures that are followed by another start; preemptions are free (default 3)"
    )
    add("--env", action="append", default=[], metavar="NAME=VALUE", help="for the processes; no secrets")
    add("--keep", action="store_true", help="do not delete the machines at the end")
    add("--dry-run", action="store_true", help="print the commands, and run none")
    add("arguments", nargs="+", metavar="-- STAGE ...", help="what follows `python -m jaxllm`; --workdir on gs://")
    return found


class Pod:
    """The commands of one queued resource."""

    def __init__(self, options: argparse.Namespace, shape: accelerators.Slice):
        self.options, self.shape = options, shape
        self.nodes = [options.name] if options.num_slices == 1 else [f"{options.name}-{i}" for i in range(options.num_slices)]

    def gcloud(self, *words: str) -> list[str]:
        """A command about TPUs."""
        project = [f"--project={self.options.project}"] if self.options.project else []
        return ["gcloud", "compute", "tpus", *words, f"--zone={self.options.zone}", *project, "--quiet"]

    def known(self) -> list[str]:
        """Fails where the zone or the accelerator is unknown there."""
        return self.gcloud("accelerator-types", "describe", self.shape.accelerator_type)

    def create(self) -> list[str]:
        """Asks for the machines."""
        o = self.options
        nodes = [f"--node-id={o.name}"] if o.num_slices == 1 else [f"--node-count={o.num_slices}", f"--node-prefix={o.name}"]
        more = [f"--{name}" for name in ("spot", "reserved") if getattr(o, name)]
        more += [f"--service-account={o.service_account}"] if o.service_account else []
        runtime = o.runtime or self.shape.facts.runtime
        asked = [f"--accelerator-type={self.shape.accelerator_type}", f"--runtime-version={runtime}", *nodes, *more]
        return self.gcloud("queued-resources", "create", o.name, *asked)

    def state(self) -> list[str]:
        """Says the state of the request."""
        return self.gcloud("queued-resources", "describe", self.options.name, "--format=value(state.state)")

    def delete(self) -> list[str]:
        """Gives the machines back, running or not."""
        return self.gcloud("queued-resources", "delete", self.options.name, "--force")

    def ship(self, node: str, archive: str) -> list[list[str]]:
        """Copies the code to all workers, and installs what it needs."""
        folder = Path(archive).name.removesuffix(".tar.xz")
        install = f"mkdir -p {folder} && tar -xJf {folder}.tar.xz -C {folder} && cd {folder} && python3 -m venv ~/jaxllm-venv"
        install += " && ~/jaxllm-venv/bin/pip install --quiet -c constraints.txt -e '.[tpu]'"
        return [
            self.gcloud("tpu-vm", "scp", archive, f"{node}:", "--worker=all"),
            self.gcloud("tpu-vm", "ssh", node, "--worker=all", f"--command={install}"),
        ]

    def run(self, node: str, folder: str, words: Sequence[str], extra: dict[str, str]) -> list[str]:
        """Runs the job on all workers."""
        given = " ".join(f"{name}={shlex.quote(value)}" for name, value in extra.items())
        line = f"exec env {given} ~/jaxllm-venv/bin/python -m jaxllm {shlex.join(words)}".replace("  ", " ")
        inner = f"cd {folder} && (echo $BASHPID > ~/jaxllm.pid; {line}); echo {EXIT} $?"
        return self.gcloud("tpu-vm", "ssh", node, "--worker=all", f"--command={inner}")

    def stop(self, node: str) -> list[str]:
        """Asks the processes of a node to save and end."""
        return self.gcloud("tpu-vm", "ssh", node, "--worker=all", "--command=kill -TERM $(cat ~/jaxllm.pid)")


def main(argv: list[str] | None = None) -> int:
    """Runs the command line; returns the job's exit code, 2 for a mistake."""
    options = parser().parse_args(argv)
    try:
        return _launch(options)
    except ValueError as error:
        print(f"launch.tpu: {error}", file=sys.stderr)
        return 2


def _launch(options: argparse.Namespace) -> int:
    shape = accelerators.tpu(options.topology)
    if not re.fullmatch(r"[a-z]([a-z0-9-]{0,60}[a-z0-9])?", options.name):
        raise ValueError(f"--name {options.name}: use lower-case letters, digits and -, beginning with a letter, 62 at most.")
    if options.num_slices < 1:
        raise ValueError(f"--num-slices {options.num_slices}: give 1 or more.")
    if options.spot and options.reserved:
        raise ValueError("--spot and --reserved exclude each other. Give one.")
    extra = sent.environment(options.env, options.arguments)
    sent.workdir(options.arguments, remote=True)
    packed, words = sent.pack(options.arguments)
    pod, folder = Pod(options, shape), f"jaxllm-{sent.fingerprint(packed)}"
    runs = [pod.run(node, folder, words, extra) for node in pod.nodes]
    if options.dry_run:
        ship = [command for node in pod.nodes for command in pod.ship(node, f"{folder}.tar.xz")]
        last = [] if options.keep else [pod.delete()]
        print("\n".join(shlex.join(command) for command in [pod.known(), pod.state(), pod.create(), pod.state(), *ship, *runs, *last]))
        return 0
    sent.need("gcloud", "Install the Google Cloud CLI: https://cloud.google.com/sdk/docs/install")
    sent.check(options.arguments, shape.chips * shape.facts.devices * options.num_slices)
    sent.call(pod.known())
    if before := _state(pod):
        raise ValueError(
            f"A queued resource {options.name!r} is there already ({before}). Choose another --name, or: {shlex.join(pod.delete())}"
        )
    with tempfile.TemporaryDirectory() as place:
        archive = Path(place) / f"{folder}.tar.xz"
        archive.write_bytes(packed)
        return _until_done(options, pod, str(archive), runs)


def _state(pod: Pod) -> str:
    """Of the queued resource; nothing where there is none."""
    done = subprocess.run(pod.state(), capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else ""


def _until_done(options: argparse.Namespace, pod: Pod, archive: str, runs: Sequence[Sequence[str]]) -> int:
    """Creates, runs, and creates anew where the machines were taken away; deletes whatever there is at the end."""
    restarts, told, created = job.Restarts(options.restarts), threading.Event(), False

    def asked(number: int, frame: object) -> None:
        told.set()
        for node in pod.nodes:
            subprocess.Popen(pod.stop(node), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def start() -> int:
        nonlocal created
        if not created:
            sent.call(pod.create())
            created = True
            wait(pod, told)
            for node in pod.nodes:
                for command in pod.ship(node, archive):
                    sent.call(command)
        code = stream(runs, pod.shape.hosts)
        if code not in (0, 2) and not told.is_set() and _state(pod) in GONE:
            print(f"{options.name} was preempted: asking for other machines", flush=True)
            subprocess.run(pod.delete(), capture_output=True)
            created = False
            return job.STOPPED
        return code

    before = {number: signal.signal(number, asked) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        return job.repeat(start, restarts, told)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if created and not options.keep:
            subprocess.run(pod.delete(), capture_output=True)


def wait(pod: Pod, told: threading.Event) -> None:
    """Waits until the machines are there.

    Raises:
      ValueError: they will not be, or the user has had enough.
    """
    shown = None
    while (state := _state(pod)) != "ACTIVE":
        if state in ("FAILED", "SUSPENDED"):
            raise ValueError(f"The request {pod.options.name} ended as {state}. Look at: {shlex.join(pod.state()[:-2])}")
        if state != shown:
            print(f"{pod.options.name}: {state.lower().replace('_', ' ') or 'accepted'}", flush=True)
            shown = state
        if told.wait(POLL_SECONDS):
            raise ValueError(f"Stopped while waiting for {pod.options.name}; the request is taken back.")


def stream(commands: Sequence[Sequence[str]], workers: int) -> int:
    """Runs the job on all nodes, each of so many workers, shows what it says, and returns its exit code; who told none has failed."""
    codes: list[int] = []

    def show(process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        ended = 0
        for line in process.stdout:
            if found := re.search(rf"{EXIT} (\d+)\s*$", line):
                codes.append(int(found[1]))
                ended += 1
            else:
                print(line, end="", flush=True)
        process.wait()
        codes.extend([1] * (workers - ended))

    processes = [subprocess.Popen(c, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True) for c in commands]
    readers = [threading.Thread(target=show, args=(process,)) for process in processes]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join()
    return job.exit_code(codes)


if __name__ == "__main__":
    sys.exit(main())
