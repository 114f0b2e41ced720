"""The whole life of a tiny model, in minutes: base (killed, resumed), sums taught, a reward model, PPO against it, GRPO, one page."""

import os
import shutil
import signal
import subprocess
import sys
import time
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxllm.data.remote import is_remote
from jaxllm.stages import report
from jaxllm.stages.report import read_jsonl
from jaxllm.training.goodput import goodput

ROOT = Path(__file__).resolve().parents[2]
CONFIG = ROOT / "configs" / "run" / "life.py"
KILL_AT = 0.45  # share of the first stage's steps after which everything is killed


def main(args: Namespace, overrides: Sequence[str]) -> int:
    """`jaxllm demo [--workdir D]`; exit code 0 only if the killed run came back and beat the unigram baseline."""
    if not CONFIG.is_file():
        raise ValueError(f"The demo's config is not at {CONFIG}. Run the demo from a checkout of jaxllm.")
    if is_remote(args.workdir):
        raise ValueError(f"The demo runs on this machine, and --workdir {args.workdir} does not lie here. Give a local folder.")
    workdir, began = Path(os.path.abspath(args.workdir)), time.monotonic()
    life = workdir / "life"
    if life.exists() and not args.keep:
        shutil.rmtree(life)
    words = [sys.executable, "-m", "jaxllm", "run", "--config", f"{CONFIG}{':tiny' * args.tiny}", "--workdir", str(life), *overrides]

    title("1/3  A small model of the Python standard library's own source; it is going to be killed (kill -9) on the way")
    killed_at = run_and_kill(words, life)

    came_back = f" (killed at step {killed_at})" if killed_at else ""
    title(f"2/3  The same command again: it goes on from the last whole checkpoint{came_back}, and through the other stages")
    code = subprocess.run(words, cwd=ROOT).returncode
    if code:
        return code

    title("3/3  One page of all that")
    runs = trained(life)
    page = report.write_report(runs, workdir / "report.html")
    return verdict(runs, page, killed_at, time.monotonic() - began)


def title(text: str) -> None:
    """A headline on standard error."""
    print(f"\n\033[1m{text}\033[0m" if sys.stderr.isatty() else f"\n{text}", file=sys.stderr, flush=True)


def trained(life: Path) -> list[Path]:
    """The work directories of a run's stages that trained something, in their order."""
    return sorted(path.parent for path in life.glob("*/metrics.jsonl"))


def run_and_kill(words: Sequence[str], life: Path) -> int | None:
    """Starts the run and kills it, hard, some steps after a checkpoint of its first stage; returns the step that had reached, None if the
    stage ended before.

    Raises:
      SystemExit: with the run's own exit code, when it failed.
    """
    process = subprocess.Popen(words, cwd=ROOT, start_new_session=True)  # the stages are its children: all are killed together
    try:
        while process.poll() is None:
            for base in trained(life)[:1]:
                metrics, steps = read_jsonl(base / "metrics.jsonl"), total_steps(base)
                last = metrics[-1]["step"] if metrics else 0
                if steps and KILL_AT * steps <= last < steps and any((base / "checkpoints").glob("*/manifest.json")):
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()
                    print(f"killed at step {last}", file=sys.stderr, flush=True)
                    return last
            time.sleep(0.2)
    except BaseException:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait()
        raise
    if process.returncode:
        raise SystemExit(process.returncode)
    return None


def total_steps(run: Path) -> int:
    """How many steps the run has been asked for; 0 before it has said so."""
    from jaxllm.stages import workdir

    return workdir.read(run)["config"]["steps"] if (run / workdir.NAME).exists() else 0


def asked(run: Path) -> list[dict[str, Any]]:
    """What a run scored in sums that none was trained on, over its steps."""
    return [record for record in read_jsonl(run / "evals.jsonl") if "exact_match" in record]


def verdict(runs: Sequence[Path], page: str, killed_at: int | None, seconds: float) -> int:
    """Says in a few lines what happened, and whether the base model beat the baseline."""
    from jaxllm.stages import workdir

    base, baselines = runs[0], workdir.read(runs[0])["baselines"]
    evals = [record for record in read_jsonl(base / "evals.jsonl") if "loss" in record]
    first, last = evals[0], evals[-1]
    spent = goodput(read_jsonl(base / "goodput.jsonl"))
    better = last["bits_per_byte"] < baselines["unigram_bits_per_byte"]
    sums = [f"{run.name[3:]} {found[-1]['exact_match']:.1%} of {found[-1]['rows']:.0f}" for run in runs if (found := asked(run))]
    print(
        f"held-out bits per byte: {first['bits_per_byte']:.3f} at step {first['step']},"
        f" {last['bits_per_byte']:.3f} at step {last['step']}"
        f" (unigram baseline {baselines['unigram_bits_per_byte']:.3f})\n"
        f"sums right, none of which was trained on: {', '.join(sums) or 'not asked'}\n"
        f"restarts: {spent['restarts']}; steps taken again: {max(0.0, spent['lost_seconds']):.1f} s of work\n"
        f"{seconds:.0f} s in all on {os.cpu_count()} cores. Open {page}",
        file=sys.stderr,
    )
    return 0 if better and (killed_at is None or spent["restarts"] >= 1) else 1
