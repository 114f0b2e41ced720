"""A work directory's config.json: what ran, with which versions, on what; and what a resumed run may not change."""

import datetime
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
from etils import epath
from ml_collections import ConfigDict

from jaxllm import __version__
from jaxllm.data.sources import absolute
from jaxllm.data.tokenizer_kinds import INFO_FILE, Tokenizer
from jaxllm.data.tokenizers import load_tokenizer
from jaxllm.stages.config import as_dict, differences, flatten
from jaxllm.training.schedules import depends_on_steps

NAME = "config.json"
TOKENIZER = "tokenizer"
ORIGIN = "huggingface"  # what a folder of others says besides weights and tokenizer: its settings, its chat template
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")


ALONE = ("coordinator", "num_processes", "process_id")


def facts() -> dict[str, Any]:
    """When, with what, and on what this process runs."""
    devices = jax.devices()
    return {
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": _commit(),
        "versions": {"jaxllm": __version__, "python": platform.python_version(), **{p: importlib.metadata.version(p) for p in PACKAGES}},
        "flags": {name: os.environ[name] for name in ("XLA_FLAGS", "LIBTPU_INIT_ARGS") if os.environ.get(name)},
        "device": devices[0].device_kind,
        "num_devices": len(devices),
        "num_processes": jax.process_count(),
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
    }


def _commit() -> str | None:
    """The git commit of a checkout (with + where files were changed since), or None for an installed package."""
    here = Path(__file__).resolve().parent
    try:
        head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, timeout=10)
        changed = subprocess.run(["git", "status", "--porcelain", "-uno"], cwd=here, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return (head.stdout.strip() + "+" * bool(changed.stdout.strip())) if head.returncode == 0 else None


def read(workdir: str | os.PathLike[str]) -> dict[str, Any]:
    """The record of a work directory.

    Raises:
      ValueError: there is none.
    """
    path = epath.Path(workdir) / NAME
    if not path.exists():
        raise ValueError(f"{workdir} is not a work directory: it has no {NAME}. Give the --workdir of a run.")
    try:
        found = json.loads(path.read_text())
    except json.JSONDecodeError:
        raise ValueError(f"{path} is broken. Bring it back from a copy, or choose another --workdir.") from None
    if not isinstance(found, dict) or not {"stage", "config"} <= found.keys():
        raise ValueError(
            f"{path} is not one that jaxllm wrote. Give the work directory of a run; of a Hugging Face folder `jaxllm convert` makes one."
        )
    found["config"]["parallel"].update(dict.fromkeys(ALONE))  # which process was which is no business of those who read a run
    return found


def enter(stage: str, config: ConfigDict, workdir: str | os.PathLike[str]) -> list[str]:
    """Checks that this config may go on in this work directory; writes nothing.

    Returns:
      Sentences to show the user: what differs and is allowed to, and matters.

    Raises:
      ValueError: another stage, or a key that a resumed run must not change; old and new values are shown.
    """
    if not (epath.Path(workdir) / NAME).exists():
        return []
    record = read(workdir)
    if record["stage"] != stage:
        raise ValueError(f"{workdir} holds a {record['stage']} run. Choose another --workdir for {stage}.")
    old, new = with_absolute_paths(record["config"]), with_absolute_paths(as_dict(config))
    changed = differences(old, new)
    if changed:
        before, after = flatten(old), flatten(new)
        shown = "; ".join(f"{key} was {before.get(key)!r}, is {after.get(key)!r}" for key in changed[:5])
        raise ValueError(f"{workdir} is the run of another config: {shown}. Set these back, or choose another --workdir.")
    said = []
    if old["steps"] != new["steps"] and depends_on_steps(new["schedule"]["name"], new["schedule"]["warmup"]):
        name = new["schedule"]["name"]
        said.append(f"steps was {old['steps']}, is {new['steps']}: the {name} schedule depends on it, so the learning rate jumps here.")
    return said


def with_absolute_paths(config: dict[str, Any]) -> dict[str, Any]:
    """The config, its paths such that they hold in whatever folder the run is read or resumed."""
    data = config["data"]
    lists = [data.get(name) or [] for name in ("train", "eval", "text", "dialogues")]
    places = [(entry, "path") for entry in (*(entry for entries in lists for entry in entries), data["tokenizer"] or {})]
    places += [(data, name) for name in ("prepared", "stage_to", "cache")] + [(config, "init_from"), (config.get("rollout", {}), "file")]
    places.append((config.get("peft", {}), "init_from"))
    rollout, rl = config.get("rollout", {}), config.get("rl", {})
    named = [entry for entry in (*rl.get("rewards", ()), *rollout.get("tools", ())) if isinstance(entry, dict)]
    places += [(rl, "critic_init_from"), *((entry, "path") for entry in named if entry.get("kind") != "function")]
    for entry in named:
        file, colon, function = str(entry.get("path", "")).rpartition(":")
        if entry.get("kind") == "function" and file.endswith(".py"):
            entry["path"] = absolute(file) + colon + function
    if rollout.get("corpus"):
        rollout["corpus"] = [absolute(one) if isinstance(one, str) else one for one in rollout["corpus"]]
    if "=" in (rollout.get("task") or ""):
        task, equals, file = rollout["task"].partition("=")
        rollout["task"] = task + equals + absolute(file)
    for table, key in places:
        if table.get(key):
            task, equals, path = table[key].partition("=") if table[key].startswith("task:") else ("", "", table[key])
            table[key] = f"{task}{equals}{absolute(path) if path else ''}"
    chat = config.get("chat", {})
    if chat.get("template") and os.path.isfile(chat["template"]):
        chat["template"] = absolute(chat["template"])
    return config


def record(stage: str, config: ConfigDict, workdir: str | os.PathLike[str], extra: Mapping[str, Any]) -> None:
    """Writes config.json, and adds this start to its history."""
    path = epath.Path(workdir) / NAME
    history = read(workdir).get("history", []) if path.exists() else []
    body = {"stage": stage, "config": with_absolute_paths(as_dict(config)), **extra, "history": [*history, facts()]}
    text = json.dumps(body, indent=1, ensure_ascii=False) + "\n"
    if "://" in os.fspath(path):
        path.write_text(text)
        return
    partial = Path(f"{os.fspath(path)}.partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, os.fspath(path))


def keep_tokenizer(tokenizer: Tokenizer, workdir: str | os.PathLike[str]) -> None:
    """Puts the tokenizer into the work directory, so that the model can be talked to wherever its data has gone."""
    place = epath.Path(workdir) / TOKENIZER
    if (place / INFO_FILE).exists():
        return
    place.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as local:
        tokenizer.save(local)
        for path in sorted(Path(local).iterdir(), key=lambda p: p.name == INFO_FILE):  # what makes it whole comes last
            (place / path.name).write_bytes(path.read_bytes())


def own_tokenizer(workdir: str | os.PathLike[str]) -> Tokenizer:
    """The tokenizer of a run.

    Raises:
      ValueError: it is not there, or it was changed.
    """
    place = epath.Path(workdir) / TOKENIZER
    if not place.exists():
        raise ValueError(f"{workdir} has no {TOKENIZER}/. Start its training once more: it is written there.")
    with tempfile.TemporaryDirectory() as local:
        for path in place.iterdir():
            (Path(local) / path.name).write_bytes(path.read_bytes())
        tokenizer = load_tokenizer(local)
    if tokenizer.fingerprint != read(workdir)["tokenizer"]:
        raise ValueError(f"{place} is not the tokenizer that the run was trained with. Bring it back from a copy.")
    return tokenizer
