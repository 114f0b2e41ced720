"""A sweep: one run for each point of a grid, a zip or draws of config keys, all checked first; it ends in one report.

python -m launch.sweep --grid optimizer.learning_rate=3e-3,1e-2 --grid depth=1,2,3 --workdir runs/sweep --parallel 2 \\
    -- pretrain --config configs/pretrain/depth.py:tiny

Run it again to go on: what is done is not run again. `--workdir runs/sweep` alone is enough for that.
"""

import argparse
import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from launch import job, runs, space

RECORD = "sweep.json"
ENGINES = ("local", "slurm", "gke")


class _Space(argparse.Action):
    """Keeps --grid, --zip, --random and --chain in the order in which they were given."""

    def __call__(self, parser, namespace, values, option_string=None):
        namespace.space = [*(namespace.space or []), ((option_string or "").lstrip("-"), values or "")]


def parser() -> argparse.ArgumentParser:
    """The command line."""
    found = argparse.ArgumentParser(
        prog="python -m launch.sweep", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = found.add_argument
    keys: dict[str, Any] = {"action": _Space, "dest": "space", "metavar": "KEY=V,V"}
    add("--grid", **keys, help="every value with every other")
    add("--zip", **keys, help="the values of all --zip side by side")
    add("--random", **keys, help="drawn: of a list, or between two ends, log:LOW:HIGH, uniform:LOW:HIGH, int:LOW:HIGH")
    add("--chain", action=_Space, dest="space", nargs=0, help="what follows is another group, whose points come after these")
    add("--count", type=int, metavar="N", help="draws of a group with --random")
    add("--seed", type=int, default=0, help="of the draws (default 0)")
    add("--workdir", required=True, type=Path, help="where the sweep lives; the run of point 7 is in its folder 007")
    add("--parallel", type=int, default=1, metavar="N", help="at most so many runs at a time (default 1)")
    add("--restarts", type=int, default=3, metavar="N", help="failures of a point that are followed by another start (default 3)")
    add("--metric", default="loss", help="what points are compared by: KEY of metrics.jsonl or SET/KEY of evals.jsonl (default loss)")
    add("--mode", choices=("min", "max"), default="min", help="whether less or more of it is better (default min)")
    add("--halving", metavar="ETA:STEP", help="at STEP the best 1/ETA of the points go on, at ETA * STEP 1/ETA of these, and so on")
    add("--plan", metavar="TOPOLOGY", help="each point must also fit there by `jaxllm plan`, before anything starts")
    add(
        "--engine",
        default="local",
        metavar="'ENGINE FLAGS'",
        help=f"where the runs are: {', '.join(ENGINES)} with its flags (default local)",
    )
    add("--runs", metavar="gs://DIR", help="where the runs write, of an engine that does not see --workdir (gke)")
    add("--point", type=int, metavar="N", help="run point N of a sweep that was begun; arrays use it")
    add("--dry-run", action="store_true", help="print the commands, and run nothing")
    add("arguments", nargs="*", metavar="-- STAGE ...", help="what follows `python -m jaxllm` in every run, without --workdir")
    return found


def described(options: argparse.Namespace) -> dict:
    """The sweep that was asked for, as sweep.json keeps it, or the one that is there already.

    Raises:
      ValueError: nothing asked for and nothing there, another sweep there, or arguments that no run can have.
    """
    path = options.workdir / RECORD
    if file := next((place for place in (options.workdir, *options.workdir.parents) if place.exists() and not place.is_dir()), None):
        raise ValueError(f"--workdir {options.workdir}: {file} is no folder. Name a folder: a new one, or that of a sweep.")
    before = json.loads(path.read_text()) if path.exists() else None
    if not options.space and not options.arguments:
        if before is None:
            raise ValueError(f"--workdir {options.workdir} holds no sweep. Give --grid KEY=V,V and, behind --, what to run.")
        return before
    if not options.arguments:
        raise ValueError("What is to be run? Give it behind --, as in: -- pretrain --config configs/pretrain/depth.py:tiny")
    if any(word.split("=")[0] == "--workdir" for word in options.arguments):
        raise ValueError(f"--workdir stands behind --: every point has its own folder in {options.workdir}. Leave it out there.")
    found = space.points(options.space or [], options.count, options.seed)
    points = [{"name": f"{i:03}", "settings": settings} for i, settings in enumerate(found)]
    asked = {
        "arguments": options.arguments,
        "metric": options.metric,
        "mode": options.mode,
        "halving": options.halving,
        "runs": options.runs,
        "points": points,
    }
    if before is not None and before != asked:
        differs = next(key for key in asked if before.get(key) != asked[key])
        raise ValueError(f"{options.workdir} holds another sweep ({differs} differ). Choose another --workdir, or give it alone to go on.")
    return asked


def arguments(sweep: dict, point: dict, workdir: Path | None) -> list[str]:
    """What follows `python -m jaxllm` for a point; without a workdir nothing is kept."""
    overrides = [f"--config.{key}={value}" for key, value in point["settings"].items()]
    place = workdir and (f"{sweep['runs'].rstrip('/')}/{point['name']}" if sweep["runs"] else str(workdir / point["name"]))
    return [*sweep["arguments"], *(["--workdir", place] if place else []), *overrides]


def checks(sweep: dict, workdir: Path, topology: str | None) -> list[tuple[dict, job.Job]]:
    """What must succeed before anything starts: (point, job) of each."""
    found = []
    for point in sweep["points"]:
        words = arguments(sweep, point, None)
        found.append((point, job.Job((*words, "--check"), ({},))))
        if topology:
            rest = tuple(word for word in words[1:] if word != "--check")
            found.append((point, job.Job(("plan", "--topology", topology, *rest), ({},))))
    return found


def local(sweep: dict, point: dict, workdir: Path, flags: Sequence[str]) -> job.Job:
    """The run of a point on this machine; with flags through launch.local."""
    words = arguments(sweep, point, workdir)
    return job.Job((*flags, "--", *words), ({},), module="launch.local") if flags else job.Job(tuple(words), ({},))


def submitted(sweep: dict, options: argparse.Namespace, engine: str, flags: Sequence[str]) -> list[list[str]]:
    """The command lines of `launch` that hand the runs to another engine: one array, or one job a point."""
    dry = ["--dry-run"] if options.dry_run else []
    restarts = ["--restarts", str(options.restarts)]
    if engine == "slurm":
        array = ["--array", f"0-{len(sweep['points']) - 1}%{options.parallel}", "--name", options.workdir.name]
        one = ["--sweep", str(options.workdir)]
        return [["slurm", *flags, *restarts, *array, *dry, *one]]
    if any(flag.split("=")[0] == "--name" for flag in flags):
        raise ValueError("--engine 'gke ... --name': every point is a job of its own, named after the sweep. Leave --name out.")
    names = [f"{options.workdir.name}-{point['name']}".lower().replace("_", "-") for point in sweep["points"]]
    return [
        ["gke", *flags, *restarts, "--name", name, *dry, "--", *arguments(sweep, point, options.workdir)]
        for name, point in zip(names, sweep["points"], strict=True)
    ]


def main(argv: list[str] | None = None) -> int:
    """Runs the command line; returns 0 where all points are done, 75 where it was stopped, 1 where some failed, 2 for a mistake."""
    options = parser().parse_args(argv)
    try:
        return _run(options)
    except ValueError as error:
        print(f"launch.sweep: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:  # while points were checked; runs have their own way to stop
        print("launch.sweep: interrupted; run the same command again.", file=sys.stderr)
        return 1


def _run(options: argparse.Namespace) -> int:
    sweep = described(options)
    if options.parallel < 1 or options.restarts < 0:
        raise ValueError(f"--parallel {options.parallel} --restarts {options.restarts}: give 1 or more, and 0 or more.")
    engine, *flags = shlex.split(options.engine) or [""]
    if engine not in ENGINES:
        raise ValueError(f"Unknown engine {engine!r}. Choose one of: {', '.join(ENGINES)}.")
    rungs = runs.rungs(sweep["halving"], len(sweep["points"]))
    if sweep["halving"] and engine != "local":
        raise ValueError(f"--halving compares runs while they run, which only --engine local can. Leave it out, or leave out {engine}.")
    if bool(sweep["runs"]) != (engine == "gke"):
        raise ValueError("--runs gs://BUCKET/FOLDER goes with --engine gke, whose machines do not see --workdir, and with no other.")
    report = job.Job(("report", str(options.workdir)), ({},))
    if options.point is not None and not 0 <= options.point < len(sweep["points"]):
        raise ValueError(f"--point {options.point}: this sweep has the points 0 to {len(sweep['points']) - 1}.")
    chosen = sweep["points"] if options.point is None else [sweep["points"][options.point]]
    jobs = {point["name"]: local(sweep, point, options.workdir, flags if engine == "local" else ()) for point in chosen}
    first = checks(sweep, options.workdir, options.plan) if options.point is None else []
    if options.dry_run:
        print("\n".join(line for _, check in first for line in check.lines()))
        if engine == "local":
            print("\n".join(line for found in [*jobs.values(), report] for line in found.lines()))
            return 0
        return _hand_over(submitted(sweep, options, engine, flags))
    fresh = not (options.workdir / RECORD).exists()
    if fresh or options.plan:
        runs.check(first, options.parallel)
    options.workdir.mkdir(parents=True, exist_ok=True)
    if fresh:
        (options.workdir / RECORD).write_text(json.dumps(sweep, indent=1) + "\n")
    if engine != "local" and options.point is None:
        return _hand_over(submitted(sweep, options, engine, flags))
    code = runs.Runs(options.workdir, jobs, sweep, options.parallel, options.restarts).halve(rungs)
    if options.point is None and code != job.STOPPED:
        code = job.run(report) or code
    return code


def _hand_over(commands: Sequence[Sequence[str]]) -> int:
    """Calls other launchers, one after another, until one refuses."""
    from launch import gke, slurm

    for name, *words in commands:
        if code := {"slurm": slurm.main, "gke": gke.main}[name](words):
            return code
    return 0


if __name__ == "__main__":
    sys.exit(main())
