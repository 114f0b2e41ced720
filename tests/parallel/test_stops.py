"""Signals become requests, and the handlers of before come back."""

import os
import signal
import subprocess
import sys

import pytest

from jaxllm.parallel.stops import StopRequests


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_is_a_request(number):
    before = signal.getsignal(number)
    with StopRequests() as stop:
        assert not stop(0)
        os.kill(os.getpid(), number)
        assert stop(1) and stop(2)
    assert signal.getsignal(number) is before


def test_the_second_interrupt_exits_at_once():
    program = """
import os, signal
from jaxllm.parallel.stops import StopRequests
with StopRequests():
    os.kill(os.getpid(), signal.SIGINT)
    print("alive", flush=True)
    os.kill(os.getpid(), signal.SIGINT)
    print("never", flush=True)
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stdout) == (1, "alive\n") and "Ctrl-C again" in ended.stderr
