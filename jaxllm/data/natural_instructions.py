"""Natural Instructions: a task's definition, examples and instances as a prompt for each (Wang et al. 2022, arXiv 2204.07705)."""

from collections.abc import Mapping
from typing import Any

HINTS = {"emphasis": "Emphasis", "things_to_avoid": "Things to avoid", "prompt": "Prompt"}  # of version 1 only
PARTS = ("definition", "positive_examples", "negative_examples", "instances")


def lowered(task: Mapping[str, Any]) -> dict[str, Any]:
    """A record with its names in small letters and underscores; where two become one, that which was so counts."""
    small = {name.lower().replace(" ", "_"): part for name, part in task.items()}
    return small | {name: task[name] for name in small if name in task}


def instances(task: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The instances of a task, each with the definition and the examples.

    Args:
      task: a file of version 2 (Definition, Positive Examples, Negative Examples, Instances), or a record with these names in small letters
        and underscores.

    Raises:
      ValueError: it is neither.
    """
    task = lowered(task)
    if missing := [name for name in PARTS if name not in task]:
        raise ValueError(
            f"has no {' and no '.join(missing)}; a task file has Definition, Positive Examples, Negative Examples and Instances"
        )
    definition = task["definition"] if isinstance(task["definition"], str) else "\n".join(task["definition"])
    common = {name: task[name] for name in ("task", "positive_examples", "negative_examples", *HINTS) if name in task}
    return [{**common, "definition": definition, "input": one["input"], "output": one["output"]} for one in task["instances"]]


def prompt(row: Mapping[str, Any], positives: int = 2, negatives: int = 0, explanations: bool = False) -> str:
    """The definition, the examples and the input, laid out as Tk-Instruct's; the answer follows after a space.

    Args:
      row: an instance.
      positives, negatives: how many good and bad examples are shown; fewer where there are fewer.
      explanations: whether the reason given for each is shown.
    """
    parts = [f"Definition: {row['definition'].strip()}"]
    parts += [f"{title}: {row[name].strip()}" for name, title in HINTS.items() if str(row.get(name) or "-").strip() not in ("", "-")]
    for kind, number in (("positive", positives), ("negative", negatives)):
        examples = row[f"{kind}_examples"][:number]
        parts += [f"{kind.title()} example {i} -\n{_example(example, explanations)}" for i, example in enumerate(examples, 1)]
    return "\n\n".join([*parts, f"Now complete the following example -\nInput: {row['input'].strip()}\nOutput:"])


def _example(example: Mapping[str, str], explanations: bool) -> str:
    lines = f"Input: {example['input'].strip()}\nOutput: {example['output'].strip()}"
    reason = example.get("explanation") or example.get("reason") or ""
    return f"{lines}\nExplanation: {reason.strip()}" if explanations and reason.strip() else lines
