"""The ledger adds up over restarts, and a kill -9 costs it at most a few seconds."""

import json
import os
import signal
import subprocess
import sys

import pytest

from jaxllm.training.goodput import Ledger, goodput, process_age
from jaxllm.training.sinks import JsonLines


def test_it_adds_up_over_a_crash():
    records = [
        {"kind": "start", "time": 1010.0, "seconds": 10.0},
        {"kind": "compile", "time": 1030.0, "seconds": 20.0},
        {"kind": "step", "time": 1070.0, "seconds": 40.0, "step": 4, "steps": 4},
        {"kind": "save", "time": 1071.0, "seconds": 1.0},
        {"kind": "step", "time": 1101.0, "seconds": 30.0, "step": 7, "steps": 3},
        # killed; 49 seconds later a new process begins, and starts from step 5
        {"kind": "start", "time": 1160.0, "seconds": 10.0},
        {"kind": "rollback", "time": 1160.0, "from": 7, "to": 5},
        {"kind": "step", "time": 1200.0, "seconds": 40.0, "step": 8, "steps": 3},
    ]
    found = goodput(records)
    assert found["total_seconds"] == 200 and found["restarts"] == 1
    assert found["lost_seconds"] == pytest.approx(20)  # two of the three steps past the save
    assert found["goodput"] == pytest.approx(90 / 200)
    assert found["seconds"] == {"start": 20, "compile": 20, "step": 110, "save": 1, "down": 49, "rollback": 0}


def test_an_empty_ledger():
    assert goodput([])["goodput"] == 0.0


def test_rollback_is_noted_only_when_steps_are_lost(tmp_path):
    def open_at(step):
        ledger = Ledger(JsonLines(tmp_path / "g.jsonl"))
        ledger.rewind(step)
        return ledger

    ledger = open_at(0)
    for step in (1, 2, 3):
        ledger.add("step", 1.0, step)
    ledger.flush()
    open_at(3).flush()
    open_at(1).flush()
    open_at(1).flush()
    rollbacks = [r for r in JsonLines(tmp_path / "g.jsonl").read() if r["kind"] == "rollback"]
    assert [(r["from"], r["to"]) for r in rollbacks] == [(3, 1)]


def test_it_is_written_every_few_seconds(tmp_path):
    now = [0.0]
    ledger = Ledger(JsonLines(tmp_path / "g.jsonl"), clock=lambda: now[0])
    for step in range(1, 25):
        now[0] += 1.0
        ledger.add("step", 1.0, step)
    written = [r for r in JsonLines(tmp_path / "g.jsonl").read() if r["kind"] == "step"]
    assert [(r["step"], r["steps"]) for r in written] == [(11, 11), (22, 11)]
    with ledger.timed("save"):
        now[0] += 2.0
    ledger.flush()
    assert {r["kind"]: r["seconds"] for r in JsonLines(tmp_path / "g.jsonl").read()}["save"] == 2.0


KILLED = """
import sys
from jaxllm.training.goodput import Ledger
from jaxllm.training.sinks import JsonLines
import jaxllm.training.goodput as goodput
goodput.FLUSH_SECONDS = 0.0
ledger = Ledger(JsonLines(sys.argv[1]))
ledger.rewind(int(sys.argv[2]))
step = int(sys.argv[2])
while True:
    step += 1
    with ledger.timed("data"):
        pass
    ledger.add("step", 0.001, step)
    print(step, flush=True)
"""


def test_a_process_killed_at_once(tmp_path):
    """Real processes, killed with -9 in the middle of writing; the next one reads and goes on."""
    path = tmp_path / "g.jsonl"
    for start in (0, 10):
        process = subprocess.Popen(
            [sys.executable, "-c", KILLED, str(path), str(start)], stdout=subprocess.PIPE, env=os.environ | {"JAX_PLATFORMS": "cpu"}
        )
        assert process.stdout is not None
        while int(process.stdout.readline()) < start + 30:
            pass
        process.send_signal(signal.SIGKILL)
        process.wait()
    found = goodput(JsonLines(path).read())
    assert found["restarts"] == 1 and found["lost_seconds"] > 0.015 and 0 < found["goodput"] < 1
    assert [json.loads(line)["to"] for line in path.read_text().splitlines() if "rollback" in line] == [10]


def test_process_age():
    assert 0 < process_age() < 1e6
