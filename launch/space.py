"""Which points a sweep has: grids, zips, draws and chains of config keys, as text that the command line of jaxllm takes."""

import itertools
import math
import random
from collections.abc import Mapping, Sequence

Settings = dict[str, str]  # config key -> its value, as one writes it behind --config.KEY=
DRAWS = {  # how a value is drawn between two ends
    "uniform": lambda draw, low, high: f"{draw.uniform(low, high):.4g}",
    "log": lambda draw, low, high: f"{math.exp(draw.uniform(math.log(low), math.log(high))):.4g}",
    "int": lambda draw, low, high: str(draw.randint(int(low), int(high))),
}


def split(text: str) -> list[str]:
    """A list of values at its commas, leaving alone those inside brackets, braces and quotes."""
    parts, depth, quote = [""], 0, ""
    for letter in text:
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "'\"":
            quote = letter
        else:
            depth += (letter in "([{") - (letter in ")]}")
        if letter == "," and not depth and not quote:
            parts.append("")
        else:
            parts[-1] += letter
    return parts


def entry(flag: str, text: str) -> tuple[str, list[str]]:
    """The key and the values of KEY=VALUE,VALUE.

    Raises:
      ValueError: another form.
    """
    key, equals, rest = text.partition("=")
    key = key.strip().removeprefix("--").removeprefix("config.")
    found = [value.strip() for value in split(rest)]
    if not key or not equals or not all(found):
        raise ValueError(f"{flag} {text}: write KEY=VALUE,VALUE, as in {flag} optimizer.learning_rate=1e-3,3e-3.")
    return key, found


def drawn(key: str, values: Sequence[str], draw: random.Random) -> str:
    """One value: of a list, or between two ends (log:1e-4:1e-2, uniform:0:0.2, int:1:8).

    Raises:
      ValueError: ends that are no numbers, not in order, or (log) not above 0.
    """
    kind, colon, ends = values[0].partition(":")
    if len(values) > 1 or not colon or kind not in DRAWS:
        return draw.choice(values)
    try:
        low, high = map(float, ends.split(":"))
    except ValueError:
        low, high = 1.0, 0.0
    if not low <= high or (kind == "log" and low <= 0):
        raise ValueError(f"--random {key}={values[0]}: write {kind}:LOW:HIGH, two numbers in order" + ", above 0." * (kind == "log"))
    return DRAWS[kind](draw, low, high)


def points(flags: Sequence[tuple[str, str]], count: int | None = None, seed: int = 0) -> list[Settings]:
    """The points that these flags speak of, each once, in order.

    Between two `chain` stands a group. Its `grid` keys multiply, its `zip` keys go side by side, and of its `random` keys `count`
    values are drawn; the three multiply. The groups come one after another.

    Args:
      flags: (grid, zip, random or chain; KEY=VALUES).
      count: draws of each group that has random keys.
      seed: of the draws.

    Raises:
      ValueError: a key twice in a group, zips of different lengths, random keys without a count or the other way round.
    """
    groups: list[dict[str, dict[str, list[str]]]] = [{"grid": {}, "zip": {}, "random": {}}]
    for kind, text in flags:
        if kind == "chain":
            groups.append({"grid": {}, "zip": {}, "random": {}})
            continue
        key, values = entry(f"--{kind}", text)
        if any(key in keys for keys in groups[-1].values()):
            raise ValueError(f"--{kind} {text}: {key} is there already. Give all its values at once, or begin another group with --chain.")
        groups[-1][kind][key] = values
    if any(group["random"] for group in groups) != (count is not None):
        raise ValueError("--random and --count go together: --random optimizer.learning_rate=log:1e-4:1e-2 --count 8.")
    if count is not None and count < 1:
        raise ValueError(f"--count {count}: give 1 or more.")
    draw = random.Random(seed)
    found = [point for group in groups if any(group.values()) for point in _group(group, count or 1, draw)]
    if not found:
        raise ValueError("Nothing to sweep over. Give --grid, --zip or --random KEY=VALUE,VALUE.")
    return [dict(point) for point in dict.fromkeys(tuple(point.items()) for point in found)]


def _group(group: Mapping[str, Mapping[str, list[str]]], count: int, draw: random.Random) -> list[Settings]:
    grid, zipped, drawn_keys = group["grid"], group["zip"], group["random"]
    if len({len(values) for values in zipped.values()}) > 1:
        raise ValueError(f"--zip: {', '.join(f'{key} has {len(values)} values' for key, values in zipped.items())}. Give as many of each.")
    crossed = [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]
    beside = [dict(zip(zipped, values, strict=True)) for values in zip(*zipped.values(), strict=True)] or [{}]
    draws = [{key: drawn(key, values, draw) for key, values in drawn_keys.items()} for _ in range(count if drawn_keys else 1)]
    return [one | other | third for one in crossed for other in beside for third in draws]
