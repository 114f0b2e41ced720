"""One writer: the second is told who the first is, and a dead one's lock is free."""

import concurrent.futures
import json
import subprocess
import sys
import time

import pytest
from etils import epath

from jaxllm.training import lock

HOLDER = """
import fcntl, sys, time
file = open(sys.argv[1], "a+")
fcntl.flock(file, fcntl.LOCK_EX)
file.write('{"pid": 4711, "host": "elsewhere"}')
file.flush()
print("held", flush=True)
time.sleep(600)
"""


def whole(path):
    """What the lease says; a disk may be read between the truncation and the write."""
    end = time.monotonic() + 30
    while time.monotonic() < end:
        try:
            return json.loads(path.read_text())
        except ValueError:
            time.sleep(0.001)
    raise AssertionError("the lease never says anything")


def wait_for_a_later_beat(path):
    before, end = whole(path)["beat"], time.monotonic() + 30
    while time.monotonic() < end and whole(path)["beat"] <= before:
        time.sleep(0.01)
    assert whole(path)["beat"] > before


def test_a_second_writer_is_refused_and_a_killed_one_leaves_no_lock(tmp_path):
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path / ".lock")], stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(ValueError, match=r"process 4711 on elsewhere.*another --workdir"), lock.hold(tmp_path):
        raise AssertionError("two writers")
    holder.kill()
    holder.wait()
    with lock.hold(tmp_path):
        assert json.loads((tmp_path / ".lock").read_text())["host"]


def test_it_is_free_after_the_block(tmp_path):
    for _ in range(2):
        with lock.hold(tmp_path / "new"):
            pass


def test_a_lease_is_renewed_and_given_back(tmp_path):
    path = epath.Path(tmp_path / "lease")
    with lock.lease(path, beat=0.05, stale=0.5):
        wait_for_a_later_beat(path)
    assert not path.exists()


def test_a_heartbeat_survives_whatever_the_store_raises(tmp_path, monkeypatch, capsys):
    path = epath.Path(tmp_path / "lease")
    with lock.lease(path, beat=0.05, stale=0.5):
        with monkeypatch.context() as patch:
            patch.setattr(lock.json, "loads", lambda text: (_ for _ in ()).throw(Exception("Error 503")))  # as gcsfs does
            said, end = "", time.monotonic() + 30
            while "could not be renewed: Error 503" not in said and time.monotonic() < end:
                time.sleep(0.05)
                said += capsys.readouterr().err
        assert "could not be renewed: Error 503" in said
        wait_for_a_later_beat(path)


def test_a_living_lease_refuses_a_second_and_survives_it(tmp_path):
    path = epath.Path(tmp_path / "lease")
    with lock.lease(path, beat=0.05, stale=20.0):
        with pytest.raises(ValueError, match="is being written by process"), lock.lease(path, beat=0.05, stale=20.0):
            raise AssertionError("two writers")
        time.sleep(0.2)  # still there, and still renewed
    assert not path.exists()


def test_a_lease_read_in_the_middle_of_a_renewal_is_read_again(tmp_path):
    path = epath.Path(tmp_path / "lease")
    path.write_text(json.dumps({"id": "other", "pid": 7, "host": "h", "beat": 3}))

    def renew():
        time.sleep(0.2)
        path.write_text("")  # what a reader sees between the truncation and the write
        time.sleep(0.3)
        path.write_text(json.dumps({"id": "other", "pid": 7, "host": "h", "beat": 4}))

    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        renewed = pool.submit(renew)
        with pytest.raises(ValueError, match="is being written by process 7 on h"), lock.lease(path, beat=0.05, stale=20.0):
            raise AssertionError("two writers")
        renewed.result()


def test_a_dead_lease_is_taken_over_after_watching_it(tmp_path, capsys):
    path = epath.Path(tmp_path / "lease")
    path.write_text(json.dumps({"id": "gone", "pid": 1, "host": "h", "beat": 3}))
    begin = time.monotonic()
    with lock.lease(path, beat=0.05, stale=0.4):
        assert time.monotonic() - begin > 0.4
        assert whole(path)["id"] != "gone"
    assert "whether its owner is alive" in capsys.readouterr().err


def test_a_process_that_lost_its_lease_ends(tmp_path):
    program = f"""
import time
from etils import epath
from jaxllm.training import lock
path = epath.Path({str(tmp_path / "lease")!r})
with lock.lease(path, beat=0.05, stale=0.2):
    for _ in range(200):  # a renewal may be under way, and write last
        path.write_text('{{"id": "other", "pid": 7, "host": "h"}}')
        time.sleep(0.1)
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert ended.returncode == 1 and "lost its lease" in ended.stderr and "process 7 on h" in ended.stderr
