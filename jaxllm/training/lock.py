"""One writer at a time for a work directory: flock on a disk, a lease with a heartbeat on an object store."""

import contextlib
import fcntl
import json
import os
import socket
import sys
import threading
import time
import uuid
from collections.abc import Iterator

from etils import epath

from jaxllm.parallel import hosts
from jaxllm.training.loading import open_folder
from jaxllm.training.manifest import is_local

NAME = ".lock"
BEAT_SECONDS = 15.0  # a lease is renewed this often
STALE_SECONDS = 60.0  # a lease that was not renewed for so long, as seen by the one who waits, is dead


@contextlib.contextmanager
def hold(workdir: str | os.PathLike[str]) -> Iterator[None]:
    """Makes this job the writer of the work directory for as long as the block lasts. Readers take no lock.

    The first process takes it for all of them; after `kill -9` a disk's lock is free at once, a lease within a minute.

    Raises:
      ValueError: somebody else writes there; names who.
    """
    folder, taken, refusal = open_folder(workdir), contextlib.ExitStack(), None
    if hosts.is_first():
        folder.mkdir(parents=True, exist_ok=True)
        try:
            taken.enter_context(_flock(folder) if is_local(folder) else lease(folder / NAME))
        except ValueError as error:
            refusal = str(error)
    refusal = hosts.tell(hosts.fresh("lock"), refusal)
    if refusal:
        raise ValueError(refusal)
    with taken:
        yield


def _owner() -> dict[str, str | int]:
    return {"host": socket.gethostname(), "pid": os.getpid(), "id": uuid.uuid4().hex}


def _refusal(folder: object, text: str) -> ValueError:
    try:
        owner = json.loads(text)
        who = f"process {owner['pid']} on {owner['host']}"
    except (ValueError, KeyError, TypeError):
        who = "another process"
    return ValueError(f"{folder} is being written by {who}. Wait for it, stop it, or choose another --workdir.")


@contextlib.contextmanager
def _flock(folder: epath.Path) -> Iterator[None]:
    with open(os.fspath(folder / NAME), "a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise _refusal(folder, file.read()) from None
        file.truncate(0)
        file.write(json.dumps(_owner()))
        file.flush()
        yield  # closing the file lets go


@contextlib.contextmanager
def lease(path: epath.Path, beat: float = BEAT_SECONDS, stale: float = STALE_SECONDS) -> Iterator[None]:
    """Holds an object that says who writes, renewed from a thread; a process that finds it taken over ends with code 1.

    Clocks of machines differ, so whether a lease lives is decided by watching whether it changes, never by the time written in it.
    A store that does not replace an object at once may be read in the middle of a renewal: what does not parse is read again.

    Args:
      path: the object.
      beat: seconds between renewals.
      stale: seconds without a change after which a foreign lease is dead.

    Raises:
      ValueError: the lease of another process is alive.
    """
    _wait_until_dead(path, stale, beat)
    owner, done = _owner(), threading.Event()
    path.write_text(json.dumps(owner | {"beat": 0}))
    time.sleep(min(2.0, beat))  # two that found it dead at the same time: the later writer has it
    if not _is_mine(path, owner):
        raise _refusal(path.parent, path.read_text())
    thread = threading.Thread(target=_renew, args=(path, owner, beat, done), name="lease", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        if _is_mine(path, owner):
            path.unlink(missing_ok=True)


def _wait_until_dead(path: epath.Path, stale: float, beat: float) -> None:
    try:
        first = path.read_text()
    except FileNotFoundError:
        return
    hosts.say(f"{path} is there: watching for {stale:.0f} s whether its owner is alive.")
    end = time.monotonic() + stale
    while time.monotonic() < end:
        time.sleep(min(beat / 4, 5.0))
        try:
            if (now := path.read_text()) != first and _is_whole(now):
                raise _refusal(path.parent, now)
        except FileNotFoundError:
            return


def _is_whole(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def _is_mine(path: epath.Path, owner: dict[str, str | int]) -> bool:
    try:
        return json.loads(path.read_text()).get("id") == owner["id"]
    except (FileNotFoundError, ValueError):
        return False


def _renew(path: epath.Path, owner: dict[str, str | int], beat: float, done: threading.Event) -> None:
    count = 0
    while not done.wait(beat):
        count += 1
        try:
            text = path.read_text()
            if json.loads(text).get("id") != owner["id"]:
                print(f"{_refusal(path.parent, text)} This process lost its lease and ends.", file=sys.stderr, flush=True)
                os._exit(1)
            path.write_text(json.dumps(owner | {"beat": count}))
        except Exception as error:  # the store is away for a moment, with an error of whatever kind: the next beat tries again
            print(f"The lease {path} could not be renewed: {error}", file=sys.stderr, flush=True)
