"""What travels with a job to other machines: code, config and environment, all checked here first; never a secret."""

import hashlib
import io
import itertools
import re
import shutil
import subprocess
import tarfile
from collections.abc import Sequence
from pathlib import Path

from launch import job

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("jaxllm", "launch", "configs")  # their *.py travel, and nothing else of them: no data, no .env, no key files
FILES = ("pyproject.toml", "constraints.txt", "README.md", "LICENSE")
SECRET_NAME = re.compile(r"token|secret|passw|credential|api_?key|private_?key|access_?key", re.IGNORECASE)
SECRET_VALUE = re.compile(r"hf_\w{20}|sk-[\w-]{20}|AIza[\w-]{30}|gh[pousr]_\w{30}|AKIA\w{16}|-----BEGIN|(^|\W)ya29\.")


def need(tool: str, remedy: str) -> None:
    """Refuses to go on without a program.

    Raises:
      ValueError: it is not on the PATH.
    """
    if shutil.which(tool) is None:
        raise ValueError(f"No {tool} on the PATH. {remedy}")


def environment(pairs: Sequence[str], arguments: Sequence[str] = ()) -> dict[str, str]:
    """NAME=VALUE words as a table.

    Raises:
      ValueError: another form, or what looks like a secret, there or in the arguments: it would be written down on the way.
    """
    found = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not re.fullmatch(r"[A-Za-z_]\w*", name):
            raise ValueError(f"--env {pair}: write NAME=VALUE.")
        if SECRET_NAME.search(name) or SECRET_VALUE.search(value):
            raise ValueError(
                f"--env {name}=... looks like a secret, and would be written down where others read it. Keep it on the machines."
            )
        found[name] = value
    for word in arguments:
        key, _, value = word.rpartition("=")
        if SECRET_VALUE.search(value):
            raise ValueError(
                f"{key or value[:6]}=... looks like a secret, and would be written down where others read it. Keep it on the machines."
            )
    return found


def flag(arguments: Sequence[str], name: str) -> str | None:
    """The value of a flag, given as two words or with =; None where it is not there."""
    for word, after in itertools.zip_longest(arguments, arguments[1:], fillvalue=""):
        if word == name:
            return after
        if word.startswith(f"{name}="):
            return word.partition("=")[2]
    return None


def workdir(arguments: Sequence[str], remote: bool) -> str:
    """The --workdir of a job for other machines.

    Raises:
      ValueError: none, or one that all of them do not see.
    """
    found = flag(arguments, "--workdir")
    if not found:
        raise ValueError("A job needs --workdir behind its --, so that it can go on after a stop.")
    if remote and "://" not in found:
        raise ValueError(f"--workdir {found} is on no disk that all machines share. Choose a bucket: gs://BUCKET/{Path(found).name}")
    return found


def check(arguments: Sequence[str], devices: int | None) -> None:
    """Runs `jaxllm ... --check` here, for a mesh of so many devices; nothing else happens.

    Raises:
      ValueError: its last line: a mistake in the config, or a mesh that does not match the devices.
    """
    words, skip = [], False
    for word in arguments:
        if not skip and word != "--workdir" and not word.startswith("--workdir="):
            words.append(word)
        skip = word == "--workdir"
    more = ["--check", *(["--devices", str(devices)] if devices else [])]
    extra = {"JAX_PLATFORMS": "cpu"}
    process = job.start(job.Job((*words, *more), (extra,)), extra)
    said, _ = process.communicate()
    if process.returncode:
        raise ValueError((said.strip().splitlines() or [f"--check ended with {process.returncode}"])[-1].removeprefix("jaxllm: "))


def pack(arguments: Sequence[str]) -> tuple[bytes, list[str]]:
    """The code as a tar.xz, the same bytes for the same code, and the arguments as they hold in the folder where it is unpacked."""
    paths = {str(path.relative_to(ROOT)): path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))}
    paths |= {name: ROOT / name for name in FILES if (ROOT / name).exists()}
    words = list(arguments)
    if config := flag(arguments, "--config"):
        file, colon, arg = (config, "", "") if Path(config).exists() else config.partition(":")
        if not Path(file).is_file():
            raise ValueError(f"No config file {file!r}. Give the path of a file with get_config().")
        here = Path(file).resolve()
        name = str(here.relative_to(ROOT)) if here.is_relative_to(ROOT) else f"configs/{here.name}"
        paths[name] = here
        words = [word.replace(config, f"{name}{colon}{arg}") if word in (config, f"--config={config}") else word for word in words]
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:xz", preset=9) as archive:
        for name, path in sorted(paths.items()):
            entry, content = tarfile.TarInfo(name), path.read_bytes()
            entry.size, entry.mode = len(content), 0o644
            archive.addfile(entry, io.BytesIO(content))
    return buffer.getvalue(), words


def fingerprint(packed: bytes) -> str:
    """Ten letters that name these bytes."""
    return hashlib.sha256(packed).hexdigest()[:10]


def call(command: Sequence[str], stdin: str | None = None) -> str:
    """Runs a program and returns what it printed.

    Raises:
      ValueError: it failed; its last line.
    """
    done = subprocess.run(command, input=stdin, capture_output=True, text=True, errors="replace")
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.strip()] or [f"exit {done.returncode}"]
        raise ValueError(f"{command[0]}: {said[-1].strip()}")
    return done.stdout


def unpack(packed: bytes, folder: Path) -> None:
    """Puts the code into a folder of its own; one that is there already is the same."""
    if folder.exists():
        return
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
        archive.extractall(partial, filter="data")
    partial.rename(folder)
