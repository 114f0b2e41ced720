"""`make bench`: our own figures, and, where the peers' scripts are at hand, W1 interleaved with them, all with the same XLA switches."""

import argparse
import os
import shlex
import subprocess
import sys
from pathlib import Path

from jaxllm.stages.setup import ONEDNN_FLAGS

ROOT = Path(__file__).resolve().parents[1]
PEERS = Path(os.environ.get("BENCH_SCRIPTS", ROOT.parent / "shared" / "bench"))  # the peers' half of every benchmark, where there is one


def w1_commands(dtype: str, steps: int, peers: list[str]) -> list[str]:
    """The command lines of the interleaved run: ours first, it is what ratios are taken against."""
    ours = f"cd {ROOT} && {sys.executable} -m benchmarks.w1"
    lines = [f"w1_pretrain.py --external {shlex.quote(ours)} --dtype {dtype} --steps {steps}"]
    return lines + [f"w1_pretrain.py --peer {peer} --dtype {dtype} --steps {steps}" for peer in peers]


def main() -> int:
    """Runs everything in turn on this machine; returns the first exit code that is not 0."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run", description=__doc__)
    parser.add_argument("--rounds", type=int, default=2, help="of the interleaved run")
    parser.add_argument("--steps", type=int, default=3, help="timed steps in each process")
    parser.add_argument("--dtypes", nargs="+", default=["bfloat16", "float32"])
    parser.add_argument("--peers", nargs="*", default=["tunix", "jax-plain", "maxtext", "levanter", "torch-compile"])
    options = parser.parse_args()
    codes = [subprocess.run([sys.executable, "-m", f"benchmarks.{name}"], cwd=ROOT).returncode for name in ("startup", "save")]
    if not (PEERS / "interleave.py").is_file():
        print(f"The peers' scripts are not at {PEERS} (set BENCH_SCRIPTS): W1 is not compared.", file=sys.stderr)
        return max(codes)
    for dtype in options.dtypes:
        command = [sys.executable, str(PEERS / "interleave.py"), "--rounds", str(options.rounds), "--base", "0", "--timeout", "400"]
        out = ["--out", str(ROOT / ".cache" / f"w1-{dtype}.jsonl")]
        lines = w1_commands(dtype, options.steps, options.peers)
        codes.append(subprocess.run([*command, *out, *lines], env=os.environ | {"XLA_FLAGS": ONEDNN_FLAGS}).returncode)
    return max(codes)


if __name__ == "__main__":
    sys.exit(main())
