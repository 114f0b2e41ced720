"""Plans every config that names a slice (its PLANNED table) and prints what came out beside what it says."""

import argparse
import os
import runpy
import time
from pathlib import Path
from typing import Any

FOLDER = Path("configs/pretrain")


def configs() -> dict[str, dict[str, Any]]:
    """Path -> PLANNED: topology, num_slices, hbm_gb, sent_gb, step_seconds, mfu."""
    found = {os.fspath(path): runpy.run_path(os.fspath(path)).get("PLANNED") for path in sorted(FOLDER.glob("*.py"))}
    return {path: planned for path, planned in found.items() if planned}


def short(value: float) -> float:
    """Four digits."""
    return float(f"{value:.4g}")


def measure(path: str) -> dict[str, Any]:
    """The same table, from the compiler."""
    from jaxllm.planning import topologies
    from jaxllm.stages import plan
    from jaxllm.stages.config import load

    said, begin = configs()[path], time.monotonic()
    topology = topologies.parse(said["topology"], said.get("num_slices", 1))
    (found,) = plan.plan(load(path + said.get("arg", "")), topology)
    speed = {} if found.speed is None else {"step_seconds": short(found.speed.step), "mfu": short(found.speed.mfu)}
    sent = short(sum(flow.sent for flow in found.flows) / 1e9)
    return {**said, "hbm_gb": short(found.used / 1e9), "sent_gb": sent, **speed, "seconds": round(time.monotonic() - begin)}


def main() -> int:
    """Prints a line for each; returns 1 if one no longer fits what it says."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.plans", description=__doc__)
    parser.add_argument("configs", nargs="*", help="default: all that name a slice")
    os.environ["JAX_PLATFORMS"] = "cpu"
    code = 0
    for path in parser.parse_args().configs or configs():
        said, found = configs()[path], measure(path)
        print(path, found, flush=True)
        code |= any(said.get(key) and found[key] > 1.02 * said[key] for key in ("hbm_gb", "sent_gb"))
    return code


if __name__ == "__main__":
    raise SystemExit(main())
