"""How many programs a second the sandbox judges: the published solutions of HumanEval, which all have to pass.

python -m benchmarks.judge --data FOLDER
"""

import argparse
import json
import statistics
import time

from jaxllm.tasks.catalog import find_files, open_task
from jaxllm.tasks.code import Code
from jaxllm.tasks.sandbox import Sandbox


def main() -> None:
    """Prints one JSON line per metric."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.judge", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", required=True, help="where humaneval's file is")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    task, rows = open_task("humaneval", find_files("humaneval", options.data))
    assert isinstance(task, Code)
    programs, sandbox = [task.program(row, task.target(row)) for row in rows], Sandbox()
    rates = []
    for _ in range(options.rounds + 1):
        began = time.perf_counter()
        verdicts = list(sandbox.run_all(programs))
        rates.append(len(programs) / (time.perf_counter() - began))
        assert all(verdict.passed for verdict in verdicts), [v for v in verdicts if not v.passed]
    shared = {"workload": "judge", "jail": sandbox.kind, "workers": sandbox.workers, "programs": len(programs)}
    print(
        json.dumps(
            {**shared, "metric": "programs_per_s", "value": round(statistics.median(rates[1:]), 1), "all": [round(r, 1) for r in rates[1:]]}
        )
    )


if __name__ == "__main__":
    main()
