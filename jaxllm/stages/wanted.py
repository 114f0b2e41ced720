"""Which tasks a config or a command line asks for: by name, by name=FILE, or all whose files are there."""

import dataclasses
from collections.abc import Callable, Sequence

from ml_collections import ConfigDict

from jaxllm.evaluation.prompts import Split, split
from jaxllm.evaluation.suite import How
from jaxllm.tasks.catalog import TASKS, NoFile, entry, find_files, open_task
from jaxllm.tasks.task import Generation, Task, Text

ALL = "all"  # instead of a name: every task whose files are under tasks.path


@dataclasses.dataclass(frozen=True)
class Asked:
    """One task of a config or a command line, with its rows."""

    name: str
    task: Task
    rows: Split
    hows: tuple[How, ...]  # one for each temperature
    by_name: bool = True  # False: because it was there


def wanted(config: ConfigDict, names: Sequence[str], say: Callable[[str], None] = lambda line: None) -> list[Asked]:
    """The tasks by name, or by name=FILE, each with its rows read and checked; `all` stands for every other whose files are found.

    Args:
      config: its tasks.*.
      names: what is asked for.
      say: is told which tasks `all` leaves out, and why.

    Raises:
      ValueError: an unknown task, no files, wrong rows, or options that do not go together.
    """
    section, found = config.tasks, list[Asked]()
    if not names:
        raise ValueError("No task to ask. Name some, as in --tasks arithmetic; `jaxllm tasks` lists them.")
    if section.limit is not None and section.limit < 1:
        raise ValueError(f"tasks.limit={section.limit} asks nothing. Give at least 1, or leave it out.")
    if section.shots is not None and section.shots < 0:
        raise ValueError(f"tasks.shots={section.shots} is below 0. Give how many solved examples to show.")
    ways = hows(config)
    for word in names:
        name, _, path = str(word).partition("=")
        if word == ALL:
            continue
        if name in [other.name for other in found]:
            raise ValueError(f"Task {name!r} is named twice, and its records would mix. Ask one after the other.")
        found.append(_opened(config, name, path, ways))
    if ALL in names:
        found += _others(config, [one.name for one in found], ways, say)
    return found


def _opened(config: ConfigDict, name: str, path: str, ways: tuple[How, ...]) -> Asked:
    """One task, from this file or from those under tasks.path."""
    section, known = config.tasks, entry(name)
    paths = [path] if path else find_files(name, section.path) if section.path and known.files else []
    shots = (section.shots or 0) if section.limit else 0
    task, rows = open_task(name, paths, seed=config.seed, count=section.limit and section.limit + shots)
    if section.shots is not None and not isinstance(task, Text):
        task = dataclasses.replace(task, **{task.SHOTS: section.shots})
    parts = split(task, rows)
    return Asked(name, task, Split(parts.shown, parts.asked[: section.limit]), ways if isinstance(task, Generation) else (How(),))


def _others(config: ConfigDict, named: Sequence[str], ways: tuple[How, ...], say: Callable[[str], None]) -> list[Asked]:
    """Every task that is not named and whose files are there; the rest is told."""
    if not config.tasks.path:
        raise ValueError("--tasks all asks every task whose files are there. Say where to look: --config.tasks.path=FOLDER.")
    found, missing = list[Asked](), list[str]()
    for name, task in TASKS.items():
        if name in named or task.taught:
            continue
        try:
            found.append(dataclasses.replace(_opened(config, name, "", ways), by_name=False))
        except NoFile:
            missing.append(name)
        except ValueError as error:
            say(f"Left out: {name}. {error}")
    if missing:
        say(f"No files under {config.tasks.path} of: {', '.join(missing)}. Any of them can be given as NAME=FILE.")
    return found


def hows(config: ConfigDict) -> tuple[How, ...]:
    """How answers are drawn: one temperature for all k of pass@k, or one for each.

    Raises:
      ValueError: k that are more than the samples, or another number of temperatures.
    """
    section = config.tasks
    if section.max_new_tokens is not None and section.max_new_tokens < 1:
        raise ValueError(f"tasks.max_new_tokens={section.max_new_tokens} writes nothing. Give at least 1, or leave it out.")
    ks, heat = [int(k) for k in section.k], [float(t) for t in section.temperature]
    if section.num_samples < 1 or not ks or min(ks) < 1 or max(ks) > section.num_samples:
        raise ValueError(f"tasks.k={ks} of tasks.num_samples={section.num_samples}: give k from 1 to the number of samples.")
    if len(heat) not in (1, len(ks)):
        raise ValueError(f"tasks.temperature={heat} for tasks.k={ks}: give one temperature, or one for each k.")
    groups = {
        t: tuple(k for k, own in zip(ks, heat if len(heat) > 1 else heat * len(ks), strict=True) if own == t) for t in dict.fromkeys(heat)
    }
    if section.num_samples > 1 and 0.0 in groups:
        raise ValueError(
            f"tasks.num_samples={section.num_samples} equal answers: tasks.temperature=0 always takes the likeliest. Give 0.2, say."
        )
    top_p = section.top_p if section.top_p is not None else 0.95 if section.num_samples > 1 else 1.0  # arXiv 2107.03374, section 3.1
    shared = {"num_samples": section.num_samples, "top_p": top_p, "max_new_tokens": section.max_new_tokens, "seed": config.seed}
    return tuple(How(k=own, temperature=t, **shared) for t, own in groups.items())
