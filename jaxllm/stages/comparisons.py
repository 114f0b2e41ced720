"""The comparisons of a config: what people said of answers, encoded, held out, mixed, and the rows of all that."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from jaxllm.data.comparisons import Reading
from jaxllm.data.group_rows import GroupReader, Partners, Shape
from jaxllm.data.groups import Groups, singles
from jaxllm.data.mixing import rates
from jaxllm.data.tokenizer_kinds import Tokenizer
from jaxllm.data.tokenizers import make_tokenizer
from jaxllm.parallel import hosts
from jaxllm.stages import inputs, judgements
from jaxllm.stages.dialogues import sources_of
from jaxllm.stages.instructions import Encoding, Rules
from jaxllm.stages.prepare import EVAL_FRACTION
from jaxllm.stages.recipe import Soft
from jaxllm.stages.spoken import Spoken, of_config


class Wants(NamedTuple):
    """What a stage's loss needs of its data.

    Attributes:
      loss: as the config calls it, for errors.
      shape: of batches.
      compared: whether answers are compared, or each has a value of its own.
      alone: whether every answer stands by itself: compared ones are taken apart into good and bad.
      partners: see `GroupReader`.
    """

    loss: str
    shape: Shape
    compared: bool = True
    alone: bool = False
    partners: Partners | None = None


class ComparisonData:
    """Encoded comparisons as the data of a run. See `recipe.Data`.

    Attributes:
      train, evals: name -> groups of answers.
      said: the template.
      given: source -> its weight, where the config gives any.
      wants: what the stage needs.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        train: dict[str, Groups],
        evals: dict[str, Groups],
        said: Spoken,
        given: dict[str, float] | None,
        wants: Wants,
    ):
        self.tokenizer, self.train, self.evals, self.said, self.given, self.wants = tokenizer, train, evals, said, given, wants
        self.train_content, self.content = f"{contents(train)} {given or ''}", contents(train | evals)

    def check(self, config: ConfigDict, folder: str, whole: Any = None) -> None:
        inputs.check_content(config, whole or self, folder, ("train", "eval", "eval_fraction", "dedup", "participants"))

    def reader(self, config: ConfigDict, soft: Soft | None = None) -> GroupReader:
        section = config.data
        return GroupReader(
            self.train,
            self.wants.shape,
            seed=config.seed,
            packing=section.packing,
            weights=self.weights(config),
            too_long=section.too_long,
            prefixes=self.prefixes(soft),
            partners=self.wants.partners,
        )

    def weights(self, config: ConfigDict) -> dict[str, float] | None:
        """Name -> share of the groups drawn; None: in proportion to their numbers."""
        section, counts = config.data, {name: len(groups.said.ends) for name, groups in self.train.items()}
        if self.given is not None:
            return self.given
        options = {"cap": section.cap} if section.cap and section.mixing != "equal" else {}
        options |= {"temperature": section.temperature} if section.mixing == "temperature" else {}
        return None if section.mixing == "proportional" and not options else rates(section.mixing, counts, **options)

    def prefixes(self, soft: Soft | None) -> dict[str, np.ndarray]:
        """Name -> the soft tokens in front of its answers."""
        return {} if soft is None else {name: soft.ids(number) for number, name in enumerate(self.train)}

    def eval_names(self) -> list[str]:
        return list(self.evals)

    def eval_reader(self, config: ConfigDict, name: str, soft: Soft | None = None) -> GroupReader:
        number = list(self.train).index(name) if name in self.train else 0
        return GroupReader(
            {name: self.evals[name]},
            self.wants.shape,
            seed=None,
            packing=config.data.packing,
            too_long="truncate" if config.data.too_long == "refuse" else config.data.too_long,
            prefixes={} if soft is None else {name: soft.ids(number)},
            partners=self.wants.partners,
            max_batches=config.eval.batches or None,
        )

    def tasks(self) -> list[str]:
        return list(self.train)

    def steps(self, config: ConfigDict, soft: Soft | None = None) -> int | None:
        return self.reader(config, soft).steps_for(config.epochs) if config.epochs else None

    def baselines(self) -> dict[str, float]:
        return {}

    def shown(self, config: ConfigDict, step: int, row: int) -> tuple[Mapping[str, Any], Sequence[Sequence[str]]]:
        reader, shape = self.reader(config), self.wants.shape
        roles: list[Sequence[str]] = [()] * (shape.groups * shape.answers)
        for g, placed in enumerate(reader.placed(step, row)[1]):
            for k, answer in enumerate(placed.answers()):
                roles[g * shape.answers + k] = answer.roles
        return reader.rows(step, [row], turns=True), roles

    def record(self) -> dict[str, Any]:
        return {"chat": self.said._asdict(), "tasks": self.tasks()}

    def lines(self, config: ConfigDict, soft: Soft | None = None) -> list[str]:
        return self.reader(config, soft).describe()


def contents(stores: Mapping[str, Groups]) -> str:
    """What some groups are, whatever they were made from: names, what was said, and the tokens of a few answers."""
    digest = hashlib.blake2b(digest_size=16)
    for name, groups in stores.items():
        answers = groups.answers
        digest.update(f"{name}\0{answers.num_examples}\0".encode())
        for array in (*groups.said, answers.lengths, answers.trained):
            digest.update(np.ascontiguousarray(array).tobytes())
        for index in {0, answers.num_examples // 2, answers.num_examples - 1}:
            digest.update(answers.example(index).tokens.tobytes())
    return digest.hexdigest()


def open_data(config: ConfigDict, wants: Callable[[ConfigDict], Wants]) -> ComparisonData:
    """The comparisons of `data.train` and `data.eval`, encoded where they are not yet (and said).

    Args:
      config: resolved.
      wants: config -> what the stage needs.

    Raises:
      ValueError: none, an unknown template, wrong records beyond `data.max_bad_share`, or data that do not fit the loss.
    """
    section, needs = config.data, wants(config)
    if not section.train:
        raise ValueError("data.train is empty. Name comparisons to train on: .jsonl, .json or .parquet, in any of the usual forms.")
    tokenizer = make_tokenizer(section.tokenizer or {"kind": "bytes"})
    said = of_config(config.chat.template, config.init_from)
    encoding = Encoding(said.template(tokenizer), said.identity(), tokenizer, "assistant", False)
    fraction = section.eval_fraction if section.eval_fraction is not None else 0.0 if section.eval else EVAL_FRACTION
    train = sources_of(section.train, "data.train")
    evals = sources_of(section.eval, "data.eval", [source.name for source in train])
    found = {}
    for source, share in [*((source, fraction) for source in train), *((source, 0.0) for source in evals)]:
        rules = Rules(share, section.dedup, section.max_bad_share)
        reading = Reading(source.format, tuple(section.participants))
        found[source.name] = judgements.open_source(source, reading, encoding, rules, hosts.say)
    for name, one in found.items():
        check_kind(name, one.store, needs)
    held = {source.name: out for source in train if (out := found[source.name].eval()) is not None}
    told: dict[str, Groups] = {source.name: found[source.name].store for source in evals}
    parted: list[dict[str, Groups]] = [
        {name: singles(groups) if needs.alone else groups for name, groups in part.items()}
        for part in ({source.name: found[source.name].train() for source in train}, held | told)
    ]
    given = {source.name: float(source.weight) for source in train if source.weight is not None}
    return ComparisonData(tokenizer, parted[0], parted[1], said, given or None, needs)


def check_kind(name: str, groups: Groups, needs: Wants) -> None:
    """Refuses data that a loss cannot learn from.

    Raises:
      ValueError: names the loss, what the data are, and losses that would do.
    """
    valued = ~np.isnan(groups.said.values)
    if needs.compared and not needs.alone and valued.any():
        raise ValueError(
            f"{needs.loss} compares answers, and {int(valued.sum()):,} of {len(valued):,} records of {name!r} have a label for one answer."
            " Choose reward.loss=binary, rating or multiclass, or preference.loss=kto."
        )
    if not needs.compared and not needs.alone and not valued.all():
        raise ValueError(
            f"{needs.loss} learns from labels, and {int((~valued).sum()):,} of {len(valued):,} records of {name!r} compare answers."
            " Choose reward.loss=bradley_terry, ranking or pick_best."
        )
    values = groups.said.values[valued]
    if needs.alone and not (np.isin(values, (0.0, 1.0)) if needs.partners else (values >= 0) & (values <= 1)).all():
        kind = "true and false (1 and 0)" if needs.partners else "from 0 to 1"
        raise ValueError(f"{needs.loss} wants labels {kind}, and {name!r} has others.")
