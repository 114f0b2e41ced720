"""A job, or an array of them, under SLURM: on CPUs or GPUs, put back into the queue where it was preempted, stopped or failed.

python -m launch.slurm --nodes 2 --gpus-per-node 8 --partition gpu --time 12:00:00 \\
    -- pretrain --config configs/pretrain/llama3_8b_h100_8.py --config.parallel.replica=2 --workdir /shared/runs/llama
"""

import argparse
import os
import re
import shlex
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from launch import job, sent

# How the script ends: 75 goes back into the queue for nothing, other failures as often as the budget says, later each time.
SCRIPT = """#!/bin/bash
{directives}
set -u
unset SLURM_EXPORT_ENV  # what was left behind at sbatch must not be left behind at srun
{exports}
failures={folder}/$SLURM_JOB_ID.failures
trap : TERM  # of a preemption or the time limit: the processes get it too, and save
srun --kill-on-bad-exit=0 {command} &
step=$!
code=0
while wait $step; code=$?; kill -0 $step 2>/dev/null; do :; done
case $code in
  0|2) exit $code ;;
  75) echo "stopped early and saved (exit 75): goes back into the queue" ;;
  *)
    used=$(cat "$failures" 2>/dev/null || echo 0)
    [ "$used" -ge {restarts} ] && exit $code
    echo $((used + 1)) > "$failures"
    echo "failed (exit $code), restart $((used + 1)) of {restarts}"
    sleep $((used > 8 ? 600 : 2 << used)) ;;
esac
scontrol requeue "$SLURM_JOB_ID" 2>/dev/null || true  # SLURM may have done so already
exit $code
"""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    found = argparse.ArgumentParser(
        prog="python -m launch.slurm", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = found.add_argument
    add("--name", default="jaxllm", help="of the job; one of the same name that waits or runs is not joined by another (default jaxllm)")
    add("--nodes", type=int, default=1, metavar="N", help="machines (default 1)")
    add("--tasks-per-node", type=int, default=1, metavar="N", help="processes on each (default 1, which has all its GPUs)")
    add("--gpus-per-node", type=int, default=0, metavar="N", help="GPUs on each (default 0: CPUs)")
    add("--cpus-per-task", type=int, metavar="N", help="cores of a process")
    for name in ("partition", "account", "qos", "time", "mem", "constraint"):
        add(f"--{name}", metavar="VALUE", help=f"as sbatch's --{name}")
    add("--array", metavar="SPEC", help="as sbatch's --array; launch.sweep gives it")
    add("--sweep", metavar="DIR", help="run the points of this sweep as the tasks of --array; launch.sweep gives it")
    add("--restarts", type=int, default=3, metavar="N", help="failures that are followed by another start (default 3)")
    add("--grace", type=int, default=120, metavar="SECONDS", help="before the time limit processes are told to save (default 120)")
    add("--env", action="append", default=[], metavar="NAME=VALUE", help="for the processes; no secrets")
    add("--follow", action="store_true", help="show the output until the job has ended, and return its exit code")
    add("--dry-run", action="store_true", help="print the script and the command, and submit nothing")
    add("arguments", nargs="*", metavar="-- STAGE ...", help="what follows `python -m jaxllm`")
    return found


def directives(options: argparse.Namespace, folder: str) -> dict[str, str]:
    """What the script asks of SLURM: name -> value, in order."""
    given = {name: getattr(options, name) for name in ("partition", "account", "qos", "time", "mem", "constraint", "array")}
    return {
        "job-name": options.name,
        "nodes": str(options.nodes),
        "ntasks-per-node": str(options.tasks_per_node),
        **({"cpus-per-task": str(options.cpus_per_task)} if options.cpus_per_task else {}),
        **({"gpus-per-node": str(options.gpus_per_node)} if options.gpus_per_node else {}),
        **{name: value for name, value in given.items() if value},
        "output": f"{folder}/{'%A_%a' if options.array else '%j'}.txt",
        "open-mode": "append",
        "signal": f"TERM@{options.grace}",
        "export": "PATH,HOME,USER,LANG",  # nothing else of the environment here travels: there may be secrets in it
    }


def script(options: argparse.Namespace, found: job.Job, folder: str, extra: Mapping[str, str]) -> str:
    """The batch script of a job whose code lies in `extra`'s PYTHONPATH."""
    asked = "\n".join(f"#SBATCH --{name}={value}" for name, value in directives(options, folder).items()) + "\n#SBATCH --requeue"
    words = [shlex.quote(word) if word != "$SLURM_ARRAY_TASK_ID" else '"$SLURM_ARRAY_TASK_ID"' for word in found.arguments]
    return SCRIPT.format(
        directives=asked,
        exports="\n".join(f"export {name}={shlex.quote(value)}" for name, value in extra.items()),
        folder=shlex.quote(folder),
        command=" ".join([shlex.quote(found.python), "-m", found.module, *words]),
        restarts=0 if options.sweep else options.restarts,  # a point has its own budget
    )


def main(argv: list[str] | None = None) -> int:
    """Runs the command line; returns 0 where the job was handed over (with --wait the job's own code), 2 for a mistake."""
    options = parser().parse_args(argv)
    try:
        return _submit(options)
    except ValueError as error:
        print(f"launch.slurm: {error}", file=sys.stderr)
        return 2


def _submit(options: argparse.Namespace) -> int:
    for name in ("nodes", "tasks_per_node"):
        if getattr(options, name) < 1:
            raise ValueError(f"--{name.replace('_', '-')} {getattr(options, name)}: give 1 or more.")
    extra = sent.environment(options.env, options.arguments)
    if bool(options.sweep) != bool(options.array) or bool(options.sweep) == bool(options.arguments):
        raise ValueError("Give what to run behind --, or --array and --sweep, which launch.sweep gives.")
    place = Path(os.path.abspath(options.sweep or sent.workdir(options.arguments, remote=False)))
    packed, words = sent.pack(options.arguments)
    if options.sweep:
        found = job.Job(
            ("--workdir", str(place), "--restarts", str(options.restarts), "--point", "$SLURM_ARRAY_TASK_ID"), ({},), module="launch.sweep"
        )
    else:
        asked = sent.flag(words, "--workdir")
        found = job.Job(tuple(word.replace(asked, str(place)) if asked and asked in word else word for word in words), ({},))
    code = place / "slurm" / f"code-{sent.fingerprint(packed)}"
    extra = {"PYTHONPATH": str(code), "PYTHONSAFEPATH": "1", **({} if options.gpus_per_node else {"JAX_PLATFORMS": "cpu"}), **extra}
    rendered = script(options, found, str(place / "slurm"), extra)
    command = ["sbatch", "--parsable", f"--chdir={code}", str(place / "slurm" / "job.sh")]
    if options.dry_run:
        print(f"# {place}/slurm/job.sh\n{rendered}\n# {len(packed):,} bytes of code into {code}\n{shlex.join(command)}")
        return 0
    sent.need("sbatch", "Call this on a login node of the cluster.")
    if same := sent.call(["squeue", "--noheader", "--me", "--format=%i", f"--name={options.name}"]).split():
        raise ValueError(f"Job {same[0]} of the name {options.name!r} waits or runs already. Choose another --name, or: scancel {same[0]}")
    if options.arguments:
        per_node = options.gpus_per_node or options.tasks_per_node
        sent.check(options.arguments, options.nodes * per_node)
    sent.unpack(packed, code)
    (place / "slurm" / "job.sh").write_text(rendered)
    number = sent.call(command).strip().partition(";")[0]
    logs = f"{place}/slurm/{number}{'_*' if options.array else ''}.txt"
    print(f"Job {number}. Its output: tail -F {logs}; its end: scancel {number}", flush=True)
    return follow(number, Path(logs)) if options.follow and not options.array else 0


def follow(number: str, log: Path, seconds: float = 2.0) -> int:
    """Shows the output of a job, through all its starts, until it has ended; returns its exit code. Ctrl-C ends the showing alone."""
    at = 0
    while True:
        lives = bool(sent.call(["squeue", "--noheader", f"--jobs={number}", "--format=%t"]).strip())
        text = log.read_bytes()[at:] if log.exists() else b""
        at += len(text)
        print(text.decode(errors="replace"), end="", flush=True)
        if not lives:
            break
        time.sleep(seconds)
    ended = re.search(r"ExitCode=(\d+):(\d+)", sent.call(["scontrol", "show", "job", number]))
    assert ended is not None
    return int(ended[1]) or int(ended[2] != "0")


if __name__ == "__main__":
    sys.exit(main())
