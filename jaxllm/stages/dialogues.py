"""The dialogues of a config: which template, which sources, what is held out, how they are mixed, and the rows of all that."""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from jaxllm.data.conversations import FORMATS, Reading
from jaxllm.data.example_rows import ExampleEvalReader, ExampleReader
from jaxllm.data.examples import Example, Examples
from jaxllm.data.held_out import Part, hold_out
from jaxllm.data.mixing import by_group, rates
from jaxllm.data.sources import Source, make_sources
from jaxllm.data.tokenizer_kinds import Tokenizer
from jaxllm.data.tokenizers import make_tokenizer
from jaxllm.parallel import hosts
from jaxllm.stages import inputs, instructions
from jaxllm.stages.mixed import MixedData
from jaxllm.stages.prepare import EVAL_FRACTION, prepare, settings_of
from jaxllm.stages.recipe import Data, Soft
from jaxllm.stages.spoken import Spoken, of_config

HOLD_OUT = ("categories", "tasks", "instances")


class Joined:
    """Several stores as one, one after the other."""

    def __init__(self, parts: Sequence[Examples]):
        self.parts = list(parts)
        self._firsts = np.cumsum([0, *(part.num_examples for part in parts)])
        self.num_examples = int(self._firsts[-1])

    @cached_property
    def lengths(self) -> np.ndarray:
        """int32 [n]."""
        return np.concatenate([part.lengths for part in self.parts])

    @cached_property
    def trained(self) -> np.ndarray:
        """int32 [n]."""
        return np.concatenate([part.trained for part in self.parts])

    def example(self, index: int) -> Example:
        """Example `index` of 0..n-1."""
        part = int(np.searchsorted(self._firsts, index, side="right")) - 1
        return self.parts[part].example(index - int(self._firsts[part]))


class DialogueData:
    """Encoded dialogues as the data of a run. See `recipe.Data`.

    Attributes:
      train: source, or source/task -> its examples.
      evals: set -> its examples.
      groups: name in `train` -> the source it is of.
      said: the template.
      given: source -> its weight, where the config gives any.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        train: dict[str, Examples],
        evals: dict[str, Examples],
        groups: dict[str, str],
        said: Spoken,
        given: Mapping[str, float] | None = None,
    ):
        self.tokenizer, self.train, self.evals, self.groups, self.said, self.given = tokenizer, train, evals, groups, said, given
        self.train_content, self.content = f"{contents(train)} {given or ''}", contents(train | evals)

    def check(self, config: ConfigDict, folder: str, whole: Any = None) -> None:
        keys = ("train", "eval", "hold_out", "text", "text_share", "eval_fraction", "dedup", "shown", "shown_negative", "participants")
        inputs.check_content(config, whole or self, folder, keys)

    def reader(self, config: ConfigDict, soft: Soft | None = None, turns: bool = False) -> ExampleReader:
        section = config.data
        return ExampleReader(
            self.train,
            sequence_length=config.sequence_length,
            batch_size=config.batch_size,
            seed=config.seed,
            mode=section.packing,
            weights=self.weights(config),
            too_long=section.too_long,
            prefixes=self.prefixes(soft),
            turns=turns,
            multiple=2 * config.parallel.context if config.parallel.context > 1 else 1,  # zigzag order
        )

    def shown(self, config: ConfigDict, step: int, row: int) -> tuple[Mapping[str, Any], Sequence[Sequence[str]] | None]:
        reader = self.reader(config, turns=True)
        return reader.rows(step, [row]), reader.roles(step, row)

    def weights(self, config: ConfigDict) -> dict[str, float] | None:
        """Name -> share of the examples drawn; None: in proportion to their numbers."""
        section, counts = config.data, {name: store.num_examples for name, store in self.train.items()}
        options = {"cap": section.cap} if section.cap and section.mixing != "equal" else {}
        options |= {"temperature": section.temperature} if section.mixing == "temperature" else {}
        found = rates(section.mixing, counts, **options)
        if self.given is not None:
            return by_group(found, self.groups, self.given)
        return None if section.mixing == "proportional" and not options else found

    def prefixes(self, soft: Soft | None) -> dict[str, np.ndarray]:
        """Name -> the soft tokens in front of its examples; each source has its own."""
        if soft is None:
            return {}
        sources = list(dict.fromkeys(self.groups.values()))
        return {name: soft.ids(sources.index(source)) for name, source in self.groups.items()}

    def eval_names(self) -> list[str]:
        return list(self.evals)

    def eval_reader(self, config: ConfigDict, name: str, soft: Soft | None = None) -> ExampleEvalReader:
        prefix = np.zeros(0, np.int32) if soft is None else soft.ids(self._task_of(config, name, soft))
        return ExampleEvalReader(
            self.evals[name],
            sequence_length=config.sequence_length,
            batch_size=config.batch_size,
            max_batches=config.eval.batches or None,
            too_long="truncate" if config.data.too_long == "refuse" else config.data.too_long,
            prefix=prefix,
            name=name,
        )

    def _task_of(self, config: ConfigDict, name: str, soft: Soft) -> int:
        """Whose soft prompt an eval set is read with: its own source's, or that of `peft.task`.

        Raises:
          ValueError: there are several, and neither says which.
        """
        sources = self.tasks()
        known = name if name in sources else config.peft.task
        if soft.num_tasks > 1 and known not in sources:
            raise ValueError(f"Which soft prompt is {name!r} read with? Set peft.task to one of: {', '.join(sources)}.")
        return sources.index(known) if known in sources else 0

    def tasks(self) -> list[str]:
        """The sources, each of which has its own soft prompt."""
        return list(dict.fromkeys(self.groups.values()))

    def baselines(self) -> dict[str, float]:
        return {}

    def record(self) -> dict[str, Any]:
        return {"chat": self.said._asdict(), "tasks": self.tasks()}

    def steps(self, config: ConfigDict, soft: Soft | None = None) -> int | None:
        return self.reader(config, soft).steps_for(config.epochs) if config.epochs else None

    def lines(self, config: ConfigDict, soft: Soft | None = None) -> list[str]:
        return self.reader(config, soft).describe()


def contents(stores: Mapping[str, Any]) -> str:
    """What some examples are, whatever they were made from: names, and every token with its weight and turn."""
    digest = hashlib.blake2b(digest_size=16)

    def add(store: Any) -> None:
        if isinstance(store, Joined):
            for part in store.parts:
                add(part)
        elif isinstance(store, Part):
            digest.update(store.which.astype("<i8").tobytes())
            add(store.examples)
        else:
            digest.update(store.content.encode())

    for name, store in stores.items():
        digest.update(f"\0{name}\0{store.num_examples}\0".encode())
        add(store)
    return digest.hexdigest()


def open_data(config: ConfigDict) -> Data:
    """The dialogues of `data.train` and `data.eval`, and the share of text among them that is asked for.

    Raises:
      ValueError: see `open_dialogues` and `prepare.prepare`.
    """
    section = config.data
    own = open_dialogues(config, section.train, section.eval)
    if not section.text:
        return own
    asked = settings_of(config) | {"train": [dict(entry) for entry in section.text], "eval_fraction": 0.0}
    asked |= {"tokenizer": dict(section.tokenizer or {"kind": "bytes"})}
    text = inputs.TextData(prepare({key: value for key, value in asked.items() if key != "eval"}, say=hosts.say))
    return MixedData(("dialogues", own), ("text", text), section.text_share)


def open_dialogues(
    config: ConfigDict, of_train: Sequence[Any], of_eval: Sequence[Any] = (), tokenizer: Tokenizer | None = None
) -> DialogueData:
    """Dialogues, encoded where they are not yet (and said).

    Args:
      config: resolved: how they are read, written, split and mixed.
      of_train: the entries of `data.train`, or of another list of sources.
      of_eval: those that are scored only.
      tokenizer: None: as `data.tokenizer` says.

    Raises:
      ValueError: no dialogues, an unknown template, wrong rows beyond `data.max_bad_share`, or nothing left to train on.
    """
    section = config.data
    if not of_train:
        raise ValueError("data.train is empty. Name dialogues to train on: .jsonl, .json or .parquet, in any of the usual forms.")
    tokenizer = tokenizer or make_tokenizer(section.tokenizer or {"kind": "bytes"})
    said, encoding = encoding_of(config, tokenizer)
    fraction = section.eval_fraction if section.eval_fraction is not None else 0.0 if of_eval else EVAL_FRACTION
    train = sources_of(of_train, "data.train")
    evals = sources_of(of_eval, "data.eval", [source.name for source in train])
    found = {}
    for source, share in [*((source, fraction) for source in train), *((source, 0.0) for source in evals)]:
        rules = instructions.Rules(share, section.dedup, section.max_bad_share)
        found[source.name] = instructions.open_source(source, reading_of(config, source), encoding, rules, hosts.say)
    held = {source.name: out for source in train if (out := found[source.name].eval()) is not None}
    told = {source.name: found[source.name].store for source in evals}
    stores, levels, groups = split_tasks({source.name: found[source.name] for source in train}, section.hold_out)
    given = {source.name: float(source.weight) for source in train if source.weight is not None}
    return DialogueData(tokenizer, stores, {**held, **levels, **told}, groups, said, given or None)


def sources_of(entries: Sequence[Any], key: str, taken: Sequence[str] = ()) -> list[Source]:
    """The sources of a list; `format` there is that of dialogues."""
    return make_sources(entries, key, taken, formats=FORMATS)


def reading_of(config: ConfigDict, source: Source) -> Reading:
    """How the records of a source are read."""
    section = config.data
    return Reading(source.format, tuple(section.participants), section.shown, section.shown_negative)


def split_tasks(
    found: Mapping[str, instructions.SourceExamples], said: Mapping[str, Any]
) -> tuple[dict[str, Examples], dict[str, Examples], dict[str, str]]:
    """What is trained on, by source or by task; the eval sets of each held-out level; and the source of each name.

    Raises:
      ValueError: an unknown key of `data.hold_out`, or tasks to hold out where no source has any.
    """
    if unknown := sorted(set(said) - set(HOLD_OUT)):
        raise ValueError(f"Unknown key data.hold_out.{unknown[0]}. Choose from: {', '.join(HOLD_OUT)}.")
    parts, table, train, groups = dict[str, Examples](), dict[str, str](), dict[str, Examples](), dict[str, str]()
    names = Counter(task for source in found.values() for task in source.of_tasks())
    for name, source in found.items():
        tasks = source.of_tasks()
        for task, (category, which) in tasks.items():
            known = task if names[task] == 1 else f"{name}/{task}"  # the same task in two sources
            parts[known], table[known], groups[known] = Part(source.store, which), category, name
        rest = np.setdiff1d(np.arange(source.store.num_examples), np.concatenate([source.held, *(own for _, own in tasks.values())]))
        if not tasks:
            train[name], groups[name] = source.train(), name
        elif len(rest):
            train[name], groups[name] = Part(source.store, rest), name
    if said and not parts:
        raise ValueError("data.hold_out names tasks, and no source has any. They come from files of Natural Instructions.")
    if not parts:
        return train, {}, groups
    out = hold_out(
        parts, table, categories=said.get("categories", ()), held_tasks=said.get("tasks", ()), instances=said.get("instances", 0.0)
    )
    levels: dict[str, Examples] = {f"held_out_{level}": Joined(list(stores.values())) for level, stores in out.evals.items() if stores}
    return train | out.train, levels, {name: groups[name] for name in (*train, *out.train)}


def encoding_of(config: ConfigDict, tokenizer: Tokenizer) -> tuple[Spoken, instructions.Encoding]:
    """How the dialogues of a config become tokens, and the template to remember."""
    said = of_config(config.chat.template, config.init_from)
    encoding = instructions.Encoding(said.template(tokenizer), said.identity(), tokenizer, config.chat.loss, config.chat.each_answer)
    return said, encoding
