"""The whole life of a tiny code model, in minutes: prepare, train, be killed, resume, sample, be taught sums, report."""

import os
import shutil
import signal
import subprocess
import sys
import time
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from jaxllm.data.remote import is_remote
from jaxllm.stages import report
from jaxllm.stages.report import read_jsonl
from jaxllm.training.goodput import goodput

CONFIG = Path(__file__).resolve().parents[2] / "configs" / "pretrain" / "stdlib_code.py"
TAUGHT = CONFIG.parents[1] / "sft" / "arithmetic.py"
SHARED = ("--config.model.", "--config.parallel.", "--config.seed")  # overrides that the second stage takes too
PROMPTS = ("def read_file(path):\n", "import os\nimport sys\n\n", "class Node:\n    ", "    for i in range(", "    if not isinstance(")
KILL_AT = 0.45  # share of the steps after which the run is killed


def main(args: Namespace, overrides: Sequence[str]) -> int:
    """`jaxllm demo [--workdir D]`; exit code 0 only if the killed run came back and beat the unigram baseline."""
    if not CONFIG.is_file():
        raise ValueError(f"The demo's config is not at {CONFIG}. Run the demo from a checkout of jaxllm.")
    if is_remote(args.workdir):
        raise ValueError(f"The demo runs on this machine, and --workdir {args.workdir} does not lie here. Give a local folder.")
    workdir, began = Path(args.workdir), time.monotonic()
    run, taught = workdir / "stdlib_code", workdir / "arithmetic"
    for folder in (run, taught):
        if folder.exists() and not args.keep:
            shutil.rmtree(folder)
    train = ["pretrain", "--config", str(CONFIG), "--workdir", str(run), *overrides]

    title("1/6  The Python standard library's own source becomes a tokenizer and token files")
    call("prepare", "--config", str(CONFIG), *overrides)

    title("2/6  A small model learns it; it is going to be killed (kill -9) on the way")
    killed_at = train_and_kill(train, run)

    title(f"3/6  The same command again: it goes on from the last whole checkpoint{f' (killed at step {killed_at})' if killed_at else ''}")
    call(*train)

    title("4/6  It writes code (temperature 0.7)")
    asked = [word for prompt in PROMPTS for word in ("--prompt", prompt)]
    call("sample", "--workdir", str(run), *asked, "--config.sample.max_new_tokens=48", "--config.sample.temperature=0.7")

    title("5/6  It is taught sums, and asked others than it was taught")
    more = [word for word in overrides if word.startswith(SHARED)]
    call("sft", "--config", str(TAUGHT), "--workdir", str(taught), f"--config.init_from={run}", *more)

    title("6/6  One page of all that")
    page = report.write_report([run, taught], workdir / "report.html")
    return verdict(run, taught, page, killed_at, time.monotonic() - began)


def title(text: str) -> None:
    """A headline on standard error."""
    print(f"\n\033[1m{text}\033[0m" if sys.stderr.isatty() else f"\n{text}", file=sys.stderr, flush=True)


def command(*arguments: str) -> list[str]:
    """`jaxllm ...` with this Python."""
    return [sys.executable, "-m", "jaxllm", *arguments]


def call(*arguments: str) -> None:
    """Runs one stage.

    Raises:
      SystemExit: with the stage's own exit code, when it is not 0.
    """
    code = subprocess.run(command(*arguments)).returncode
    if code:
        raise SystemExit(code)


def train_and_kill(arguments: Sequence[str], run: Path) -> int | None:
    """Starts training and kills it, hard, some steps after a checkpoint; returns the step it had reached, None if it ended before.

    Raises:
      SystemExit: with the stage's own exit code, when it failed.
    """
    process = subprocess.Popen(command(*arguments))
    try:
        while process.poll() is None:
            metrics, steps = read_jsonl(run / "metrics.jsonl"), total_steps(run)
            last = metrics[-1]["step"] if metrics else 0
            if steps and last >= KILL_AT * steps and any((run / "checkpoints").glob("*/manifest.json")):
                process.send_signal(signal.SIGKILL)
                process.wait()
                print(f"killed at step {last}", file=sys.stderr, flush=True)
                return last
            time.sleep(0.2)
    except BaseException:
        process.terminate()
        process.wait()
        raise
    if process.returncode:
        raise SystemExit(process.returncode)
    return None


def total_steps(run: Path) -> int:
    """How many steps the run has been asked for; 0 before it has said so."""
    from jaxllm.stages import workdir

    return workdir.read(run)["config"]["steps"] if (run / workdir.NAME).exists() else 0


def sums(run: Path) -> str:
    """How many sums a run got right, at which steps."""
    asked = [record for record in read_jsonl(run / "evals.jsonl") if record["name"] == "arithmetic"]
    said = [f"{record['exact_match']:.2f} of {record['rows']:.0f} at step {record['step']}" for record in (*asked[:1], *asked[1:][-1:])]
    return ", ".join(said) or "not asked"


def verdict(run: Path, taught: Path, page: str, killed_at: int | None, seconds: float) -> int:
    """Says in a few lines what happened, and whether the model beat the baseline."""
    from jaxllm.stages import workdir

    baselines = workdir.read(run)["baselines"]
    evals = [record for record in read_jsonl(run / "evals.jsonl") if "loss" in record]
    first, last = evals[0], evals[-1]
    spent = goodput(read_jsonl(run / "goodput.jsonl"))
    better = last["bits_per_byte"] < baselines["unigram_bits_per_byte"]
    print(
        f"held-out bits per byte: {first['bits_per_byte']:.3f} at step {first['step']},"
        f" {last['bits_per_byte']:.3f} at step {last['step']}"
        f" (unigram baseline {baselines['unigram_bits_per_byte']:.3f})\n"
        f"sums right before it was taught any: {sums(run)}; while it was: {sums(taught)}\n"
        f"restarts: {spent['restarts']}; steps taken again: {max(0.0, spent['lost_seconds']):.1f} s of work\n"
        f"{seconds:.0f} s in all on {os.cpu_count()} cores. Open {page}",
        file=sys.stderr,
    )
    return 0 if better and (killed_at is None or spent["restarts"] >= 1) else 1
