"""A config file and its overrides into one checked ConfigDict; every mistake is one line that names the nearest key."""

import ast
import dataclasses
import difflib
import importlib.util
import json
import math
import re
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from jaxllm.models.config import ModelConfig
from jaxllm.stages.key import Key
from jaxllm.stages.keys import ALIASES, LABEL, PREFERENCE, REWARD, SAMPLE, SHARED, TASKS
from jaxllm.stages.rl_keys import RL, ROLLOUT

KEYS = SHARED | REWARD | PREFERENCE | TASKS | ROLLOUT | RL | LABEL | SAMPLE
WORDS = {int: "a whole number", float: "a number", str: "a word", bool: "True or False", list: "a list", dict: "a table"}


def model_fields() -> list[str]:
    """The ModelConfig fields that may stand beside `model.preset`."""
    return [f"model.{f.name}" for f in dataclasses.fields(ModelConfig)]


COUNTS = (
    "reward.answers",
    "reward.members",
    "reward.classes",
    "steps",
    "batch_size",
    "sequence_length",
    "microbatches",
    "checkpoint.keep",
    "log.every",
    "early_stopping.patience",
    *(f"rollout.{name}" for name in ("prompts", "samples_per_prompt", "epochs", "max_new_tokens", "limit")),
)
SIZES = (
    "checkpoint.every",
    "checkpoint.every_minutes",
    "eval.every",
    "eval.batches",
    "z_loss",
    "reward.centering",
    "reward.prior",
    "schedule.final",
    "data.max_bad_share",
    "data.workers",
    "optimizer.unfreeze_every",
    "model.logprobs_chunk",
    *(f"rollout.{name}" for name in ("slots", "check_every", "log_samples", "shots")),
    *(f"rl.{name}" for name in ("kl_coefficient", "ptx_coefficient", "ptx_rows", "entropy_coefficient")),
    *(f"rl.{name}" for name in ("importance_cap", "value_clip", "value_coefficient")),
    *(f"rl.{name}" for name in ("critic_learning_rate", "multiplier", "multiplier_rate")),
    *(f"optimizer.{name}" for name in ("clip_norm", "learning_rate", "eps", "weight_decay", "spike_sigma")),
)
SHARES = ("schedule.decay", "optimizer.b1", "optimizer.b2", "optimizer.momentum", "optimizer.ema_decay", "data.eval_fraction")
POSITIVE = ("rl.kl_target", "rl.kl_horizon", "rl.constant", "rollout.temperature")
RANGES: dict[str, tuple[float, float, str]] = {  # at least, less than, in words
    **dict.fromkeys(COUNTS, (1.0, math.inf, "1 or more")),
    **dict.fromkeys(SIZES, (0.0, math.inf, "0 or more")),
    **dict.fromkeys(POSITIVE, (math.ulp(0), math.inf, "above 0")),
    **dict.fromkeys(("rl.discount", "rl.decay"), (0.0, math.nextafter(1, 2), "from 0 to 1")),
    **dict.fromkeys(SHARES, (0.0, 1.0, "at least 0 and less than 1")),
    "seed": (0, 1 << 32, "at least 0 and less than 2**32"),  # of a larger one jax.random.key takes the lower 32 bits alone
}
REGEXES = ("init_skip", "optimizer.decay", "optimizer.freeze")


def nearest(word: str, choices: Sequence[str]) -> str:
    """The end of an error sentence: the nearest choice if one is near, else the choices."""
    tail = word.split(".")[-1]
    known = [ALIASES[tail]] if ALIASES.get(tail) in choices else []
    same = [c for c in choices if c.split(".")[-1] == tail]  # the right key in the wrong section
    close = known or same or difflib.get_close_matches(word, choices, n=1, cutoff=0.75)
    if close:
        return f"Did you mean {close[0]!r}?"
    return f"Choose from: {', '.join(choices)}."


def read_file(spec: str) -> dict[str, Any]:
    """Runs `get_config(arg)` of a config file given as PATH or PATH:arg.

    Raises:
      ValueError: no such file, no `get_config`, or an argument that the file does not know.
    """
    path, _, arg = spec.partition(":") if not Path(spec).exists() else (spec, "", "")
    if not Path(path).is_file():
        known = sorted(str(p) for p in Path("configs").glob("**/*.py") if not p.name.startswith("_"))
        near = difflib.get_close_matches(path, known, n=1)
        remedy = (
            f"Did you mean {near[0]!r}?" if near else f"Give the path of a file with get_config(){': ' * bool(known)}{', '.join(known)}."
        )
        raise ValueError(f"No config file {path!r}. {remedy}")
    module_spec = importlib.util.spec_from_file_location("jaxllm_config", path)
    if module_spec is None or module_spec.loader is None:
        raise ValueError(f"{path} is not a Python file. A config is a .py file with get_config().")
    module = importlib.util.module_from_spec(module_spec)
    try:
        module_spec.loader.exec_module(module)
        if not hasattr(module, "get_config"):
            raise ValueError("it has no get_config(); a config file defines get_config() returning an ml_collections.ConfigDict")
        config = module.get_config(arg) if arg else module.get_config()
    except Exception as error:  # whatever a config file does wrong is its writer's to mend
        line = error.lineno if isinstance(error, SyntaxError) else _line_in(path, error)
        where = path if line is None else f"{path}:{line}"
        raise ValueError(f"The config {spec!r} does not load: {type(error).__name__}: {error} ({where}).") from None
    return config.to_dict() if isinstance(config, ConfigDict) else dict(config)


def _line_in(path: str, error: BaseException) -> int | None:
    """The last line of the config file that the error passed through."""
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if Path(frame.filename).absolute() == Path(path).absolute()]
    return lines[-1] if lines else None


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested sections to dotted keys; a key whose value is itself a mapping stays whole."""
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        dotted = f"{prefix}{name}"
        whole = dotted in KEYS or dotted in model_fields() or not isinstance(value, Mapping)
        flat.update({dotted: value} if whole else flatten(value, dotted + "."))
    return flat


def parse_overrides(arguments: Sequence[str]) -> dict[str, str]:
    """Turns --config.a.b=value (or --config.a.b value) into {'a.b': 'value'}.

    Raises:
      ValueError: an argument of another form, or one without a value.
    """
    overrides, rest = {}, list(arguments)
    while rest:
        word = rest.pop(0)
        match = re.fullmatch(r"--config\.([\w.]+)(?:=(.*))?", word, flags=re.DOTALL)
        if not match:
            raise ValueError(f"Unknown argument {word!r}. Overrides look like --config.steps=100; see `jaxllm STAGE --help`.")
        key, value = match.groups()
        if value is None:
            if not rest:
                raise ValueError(f"--config.{key} has no value. Write --config.{key}=VALUE.")
            value = rest.pop(0)
        overrides[key] = value
    return overrides


def _literal(text: Any) -> Any:
    if not isinstance(text, str):
        return text
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return {"true": True, "false": False, "none": None}.get(text.lower(), text)


def convert(key: str, value: Any, spec: Key) -> Any:
    """Checks a value against its key, turning text, ints and lists into what the key wants.

    Raises:
      ValueError: the value is not of the key's kind.
    """
    if spec.kind is list and isinstance(value, str):
        parsed = _literal(value)
        value = list(parsed) if isinstance(parsed, list | tuple) else [part for part in value.split(",") if part]
    elif isinstance(value, str) and spec.kind is not str:
        value = _literal(value)
    elif isinstance(value, str) and value.lower() == "none" and spec.default is None:
        value = None
    if value is None and spec.default is None:
        return None
    if spec.kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if spec.kind is list and isinstance(value, tuple):
        value = list(value)
    if not isinstance(value, spec.kind) or (spec.kind is int and isinstance(value, bool)):
        raise ValueError(f"{key}={value!r} is not {WORDS[spec.kind]}. {spec.help[0].upper()}{spec.help[1:]}.")
    return value


def resolve(settings: Mapping[str, Any], overrides: Mapping[str, Any] | None = None) -> ConfigDict:
    """Defaults, then the file's settings, then the overrides, checked key by key.

    Returns:
      A locked ConfigDict with every key of `KEYS` and the ModelConfig fields that were given.

    Raises:
      ValueError: an unknown key (the nearest is named) or a value of the wrong kind.
    """
    flat = {key: spec.default for key, spec in KEYS.items()}
    given: dict[str, Any] = {}
    for key, value in [*flatten(settings).items(), *(overrides or {}).items()]:
        section, _, inner = key.rpartition(".")
        if section in KEYS and KEYS[section].kind is dict:  # data.tokenizer.kind: one entry of a key that is a table
            given[section] = {**(given.get(section) or KEYS[section].default or {}), inner: _literal(value)}
        elif key in KEYS:
            given[key] = convert(key, value, KEYS[key])
        elif key in model_fields():
            given[key] = _literal(value)
        else:
            raise ValueError(f"Unknown config key {key!r}. {nearest(key, [*KEYS, *model_fields()])}")
    if given.get("depth") is not None:
        if given.get("model.preset") is not None:
            raise ValueError(
                f"depth={given['depth']} and model.preset={given['model.preset']!r} both set the shape of the model."
                " Give one: --config.depth=none, or --config.model.preset=none."
            )
        flat.update(_from_depth(given["depth"], {**flat, **given}, given))
    flat.update(given)
    for key, (least, below, words) in RANGES.items():
        if flat[key] is not None and not least <= flat[key] < below:
            raise ValueError(f"{key}={flat[key]} must be {words}. {_meaning(key)}.")
    for key in REGEXES:
        _check_regexes(key, flat[key])
    for name in ("data.train", "data.eval"):
        bad = [entry for entry in flat[name] if not isinstance(entry, str | Mapping)]
        if bad:
            raise ValueError(f"{name} has the entry {bad[0]!r}. Each is a path, or a table {{path, weight, format, field}}.")
        flat[name] = [{"path": entry} if isinstance(entry, str) else dict(entry) for entry in flat[name]]
    return nest(flat).lock()


def _meaning(key: str) -> str:
    """What the key is for, as the beginning of a sentence."""
    return KEYS[key].help[0].upper() + KEYS[key].help[1:]


def _check_regexes(key: str, patterns: Sequence[Any]) -> None:
    for pattern in patterns:
        try:
            re.compile(pattern)
        except (re.error, TypeError) as error:
            raise ValueError(
                f"{key} has {pattern!r}, which is no regular expression ({error}). {_meaning(key)}; write \\( for a bracket."
            ) from None


def _from_depth(num_layers: int, flat: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """What the one dial sets, to stand under what was given."""
    from jaxllm.models.presets import depth

    tokenizer = flat["data.tokenizer"] or ({} if flat["data.prepared"] else {"kind": "bytes"})
    vocab_size = flat.get("model.vocab_size") or tokenizer.get("vocab_size") or (320 if tokenizer.get("kind") == "bytes" else None)
    if vocab_size is None:
        raise ValueError("depth needs the size of the vocabulary. Set model.vocab_size, or data.tokenizer.vocab_size.")
    dial = depth(num_layers, vocab_size=vocab_size, sequence_length=flat["sequence_length"])
    shape = {f"model.{f.name}": getattr(dial.config, f.name) for f in dataclasses.fields(dial.config)}
    rows = given.get("batch_size", dial.batch_size)  # another batch takes more or fewer steps for the same tokens
    steps = -(-dial.tokens // (rows * flat["sequence_length"])) if rows >= 1 else dial.steps
    return shape | {"batch_size": rows, "steps": steps, "optimizer.learning_rate": dial.learning_rate}


def nest(flat: Mapping[str, Any]) -> ConfigDict:
    """Dotted keys back to sections."""
    tree: dict[str, Any] = {}
    for key, value in flat.items():
        *sections, leaf = key.split(".")
        node = tree
        for section in sections:
            node = node.setdefault(section, {})
        node[leaf] = value
    return ConfigDict(tree, convert_dict=True)


def load(spec: str, overrides: Sequence[str] = ()) -> ConfigDict:
    """A config file (PATH or PATH:arg) with command-line overrides, resolved."""
    return resolve(read_file(spec), parse_overrides(overrides))


def as_dict(config: ConfigDict) -> dict[str, Any]:
    """A resolved config as plain JSON-able values."""
    return json.loads(json.dumps(config.to_dict()))


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Dotted keys whose values differ and which a resumed run must not change."""
    before, after = flatten(old), flatten(new)
    return [
        key for key in sorted(before.keys() | after.keys()) if before.get(key) != after.get(key) and not (key in KEYS and KEYS[key].resume)
    ]
