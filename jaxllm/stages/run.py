"""`jaxllm run`: several stages one after the other, each in an ordinary work directory; begun again, it goes on where it was."""

import difflib
import json
import os
import pprint
import re
import signal
import subprocess
import sys
from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from jaxllm.stages.config import flatten, nest, parse_overrides, read_file, resolve
from jaxllm.stages.keys import STAGES, TRAINS
from jaxllm.training.lock import hold

RECORD = "run.json"
CONFIGS = "configs"  # the config of every stage, as a file that can be run by itself
FIELDS = ("stage", "name", "config", "settings", "arguments")
CONFIGURED = ("prepare", "label", *TRAINS)  # stages that read a config; the others take arguments alone
MENTION = re.compile(r"@([\w-]+)((?:/.*)?)")


class Step(NamedTuple):
    """One stage of a run.

    Attributes:
      stage: what `jaxllm` is asked to do.
      folder: NN-name, below the work directory of the run.
      settings: its config, flat; None: it takes none.
      arguments: further words of its command line.
    """

    stage: str
    folder: str
    settings: dict[str, Any] | None
    arguments: tuple[str, ...]


def plan(config: Mapping[str, Any], overrides: Mapping[str, str], workdir: Path) -> list[Step]:
    """The steps of a config with `stages`.

    Each of them is {stage, name (default: the stage), config (a file: its settings), settings (over those of the file), arguments}. What
    stands beside `stages` goes for all that read a config. A word '@name' or '@name/file' is the work directory of an earlier step.

    Raises:
      ValueError: no stages, an unknown stage or field, a name twice, or an '@name' that is no earlier step.
    """
    shared, entries = {key: value for key, value in config.items() if key != "stages"}, config.get("stages")
    if not isinstance(entries, list | tuple) or not entries:
        raise ValueError("The config of `jaxllm run` has no stages. Give stages = [{'stage': 'pretrain', 'config': FILE}, ...].")
    found, folders = list[Step](), dict[str, str]()
    for number, entry in enumerate(entries, 1):
        stage, name = _checked(number, entry)
        if name in folders:
            raise ValueError(f"stages: two are called {name!r}. Give each its own name.")
        settings = _settings(entry, shared, overrides) if stage in CONFIGURED else None
        known = {other: str(workdir / folder) for other, folder in folders.items()}
        folders[name] = f"{number:02}-{name}"
        arguments = tuple(_mentioned(str(word), known, name) for word in entry.get("arguments", ()))
        found.append(Step(stage, folders[name], settings and _mentioned(settings, known, name), arguments))
    return found


def _checked(number: int, entry: Any) -> tuple[str, str]:
    """The stage and the name of an entry."""
    if not isinstance(entry, Mapping) or "stage" not in entry:
        raise ValueError(f"stages: entry {number} is {entry!r}. Each is a table with a stage: {', '.join(STAGES)}.")
    if unknown := sorted(set(entry) - set(FIELDS)):
        raise ValueError(f"stages: entry {number} has {unknown[0]!r}. Choose from: {', '.join(FIELDS)}.")
    stage = str(entry["stage"])
    if stage not in STAGES or stage == "run":
        near = difflib.get_close_matches(stage, STAGES, n=1)
        raise ValueError(
            f"stages: unknown stage {stage!r}. {f'Did you mean {near[0]!r}?' if near else f'Choose one of: {chr(44).join(STAGES)}.'}"
        )
    if stage not in CONFIGURED and (entry.get("config") or entry.get("settings")):
        raise ValueError(f"stages: {stage} takes no config. Give its command line as arguments: ['--workdir', '@name', ...].")
    name = str(entry.get("name", stage))
    if not re.fullmatch(r"[\w-]+", name):
        raise ValueError(f"stages: {name!r} cannot be the name of a folder. Use letters, digits, - and _.")
    return stage, name


def _settings(entry: Mapping[str, Any], shared: Mapping[str, Any], overrides: Mapping[str, str]) -> dict[str, Any]:
    """One step's config, flat: what all share, its file, its own settings, the command line."""
    file = flatten(read_file(entry["config"])) if entry.get("config") else {}
    found = {**flatten(shared), **file, **flatten(entry.get("settings", {})), **overrides}
    checked = flatten(resolve({}, found).to_dict())  # says what is wrong with it before anything runs
    return {key: value for key, value in checked.items() if any(said == key or said.startswith(f"{key}.") for said in found)}


def _mentioned(value: Any, known: Mapping[str, str], name: str) -> Any:
    """The value with every '@name' in it replaced by that step's work directory."""
    if isinstance(value, Mapping):
        return {key: _mentioned(one, known, name) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_mentioned(one, known, name) for one in value]
    found = MENTION.fullmatch(value) if isinstance(value, str) else None
    if found is None:
        return value
    if found[1] not in known:
        raise ValueError(f"stages: {name} names {value!r}, which is no earlier step. There are: {', '.join(known) or 'none before it'}.")
    return known[found[1]] + found[2]


def command(step: Step, workdir: Path) -> list[str]:
    """The command line of a step, after `jaxllm`."""
    words = [step.stage]
    if step.settings is not None:
        words += ["--config", str(workdir / CONFIGS / f"{step.folder}.py"), "--workdir", str(workdir / step.folder)]
    return [*words, *step.arguments]


def write_config(step: Step, workdir: Path) -> None:
    """The config of a step as a file that can be run by itself."""
    assert step.settings is not None
    path = workdir / CONFIGS / f"{step.folder}.py"
    path.parent.mkdir(parents=True, exist_ok=True)
    body = pprint.pformat(nest(step.settings).to_dict(), width=120, sort_dicts=False).replace("\n", "\n        ")
    head = f'"""Step {step.folder} of `jaxllm run`, which wrote this file."""\n\nfrom ml_collections import ConfigDict\n\n\n'
    path.write_text(f"{head}def get_config():\n    return ConfigDict(\n        {body}\n    )\n", encoding="utf-8")


def main(args: Namespace, overrides: Sequence[str]) -> int:
    """`jaxllm run --config F --workdir D`."""
    workdir = Path(os.path.abspath(args.workdir))
    steps = plan(read_file(args.config), parse_overrides(overrides), workdir)
    if args.check:
        for step in steps:
            print(f"{step.folder}: jaxllm {' '.join(command(step, workdir))}")
        return 0
    jax.config.update("jax_platforms", "cpu")  # the devices are for the steps
    with hold(workdir):
        done = check_done(steps, workdir)
        for step in steps:
            if step.folder in done:
                print(f"{step.folder}: done before.", file=sys.stderr)
                continue
            check_fresh(step, steps, workdir)
            code = run(step, workdir, f"{step.folder} ({steps.index(step) + 1} of {len(steps)})")
            if code:
                return code
            done[step.folder] = said(step)
            partial = workdir / f"{RECORD}.partial"
            partial.write_text(json.dumps(done, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
            os.replace(partial, workdir / RECORD)
    return 0


def check_fresh(step: Step, steps: Sequence[Step], workdir: Path) -> None:
    """Refuses to begin a step anew where later ones are there already: they were made from what it was before.

    Raises:
      ValueError: names their folders.
    """
    later = [other.folder for other in steps[steps.index(step) + 1 :] if (workdir / other.folder).exists()]
    if later and not (workdir / step.folder).exists():
        raise ValueError(
            f"{workdir}: {step.folder} begins anew, and {', '.join(later)} came from what it was. Delete those folders and"
            f" {workdir / RECORD} too, or choose another --workdir."
        )


def said(step: Step) -> Any:
    """What the record keeps of a step, as JSON gives it back."""
    return json.loads(json.dumps([step.stage, step.settings, step.arguments]))


def check_done(steps: Sequence[Step], workdir: Path) -> dict[str, Any]:
    """The steps that are done already, by their folder.

    Raises:
      ValueError: one of them was another.
    """
    path = workdir / RECORD
    done = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    now = {step.folder: said(step) for step in steps}
    for folder, before in done.items():
        if now.get(folder) != before:
            raise ValueError(
                f"{workdir}: step {folder} is done, and was another than this config says. Delete it, what came after it and {path} to"
                " run it again, or choose another --workdir."
            )
    return done


def run(step: Step, workdir: Path, title: str) -> int:
    """One step as a process of its own; returns its exit code."""
    print(f"\n== {title} ==", file=sys.stderr, flush=True)
    if step.settings is not None:
        write_config(step, workdir)
    process = subprocess.Popen([sys.executable, "-m", "jaxllm", *command(step, workdir)])
    before = signal.signal(signal.SIGTERM, lambda *_: process.terminate())  # the step saves, and ends with 75
    try:
        while True:
            try:
                return process.wait()
            except KeyboardInterrupt:  # the step has been told as well, and saves
                continue
    finally:
        signal.signal(signal.SIGTERM, before)
