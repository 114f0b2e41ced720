"""Stands in for `jaxllm` in tests of sweeps: writes the metrics of a run whose loss is known, and does what `STUB` has it do.

A point's loss at a step is x + 1 / step, x being --config.x. STUB is JSON: x -> a list of what its starts do, one after another: an exit
code, or "hang" for a run that goes on until it gets SIGTERM.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path


def main() -> int:
    words = sys.argv[1:]
    if words[0] == "report":
        print("report of", words[1])
        return 0
    given = dict(word.removeprefix("--config.").split("=") for word in words if word.startswith("--config."))
    if unknown := set(given) - {"x", "y", "steps"}:
        print(f"jaxllm: Unknown config key {unknown.pop()!r}. Did you mean 'x'?")
        return 2
    if "--check" in words:
        print("ok")
        return 0
    folder = Path(words[words.index("--workdir") + 1])
    folder.mkdir(parents=True, exist_ok=True)
    starts = int((folder / "starts").read_text()) if (folder / "starts").exists() else 0
    (folder / "starts").write_text(str(starts + 1))
    plan = json.loads(os.environ.get("STUB", "{}")).get(given["x"], [])
    does = plan[starts] if starts < len(plan) else 0
    if does not in (0, "hang"):
        print(f"ends with {does}")
        return does
    stopped = []
    signal.signal(signal.SIGTERM, lambda *_: stopped.append(1))
    path = folder / "metrics.jsonl"
    begun = len(path.read_text().splitlines()) if path.exists() else 0
    for step in range(begun + 1, int(given.get("steps", 4)) + 1):
        with path.open("a") as file:
            file.write(json.dumps({"step": step, "loss": float(given["x"]) + 1 / step}) + "\n")
        time.sleep(float(os.environ.get("STUB_SECONDS", "0")))
        while does == "hang" and not stopped:
            time.sleep(0.02)
        if stopped:
            return 75
    return 0


if __name__ == "__main__":
    sys.exit(main())
