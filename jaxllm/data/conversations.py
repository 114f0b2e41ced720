"""The forms that people have their dialogues in, told by the fields of a record and said; each record becomes dialogues, or its error."""

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

from jaxllm.data import natural_instructions
from jaxllm.data.dialogues import ASSISTANT, Dialogue, Message, WrongDialogue
from jaxllm.data.messages import Problem, check_encodable, messages_of, text_of, tools_of
from jaxllm.data.objects import SUFFIXES, read_objects
from jaxllm.data.sources import Source, list_files

OTHER_DATA = ("chosen", "rejected", "label")  # preferences and votes hold answers that are not to be learnt


@dataclasses.dataclass(frozen=True)
class Reading:
    """How records are read.

    Attributes:
      format: one of `FORMATS`; None: told by each record's fields.
      participants: roles beside system, user, assistant and tool; a role that is none of these is refused.
      positives, negatives, explanations: of Natural Instructions: how many examples are shown, and whether with their reasons.
    """

    format: str | None = None
    participants: tuple[str, ...] = ()
    positives: int = 2
    negatives: int = 0
    explanations: bool = False

    def __post_init__(self) -> None:
        if self.format is not None and self.format not in FORMATS:
            raise ValueError(
                f"Unknown format {self.format!r} of dialogues. Choose one of: {', '.join(FORMATS)}; or none, to tell by fields."
            )


Read = Callable[[Mapping[str, Any], Reading], list[list[Message]]]


def _messages(record: Mapping[str, Any], reading: Reading) -> list[list[Message]]:
    return [messages_of(record["messages"], "role", "content", reading.participants)]


def _sharegpt(record: Mapping[str, Any], reading: Reading) -> list[list[Message]]:
    said = record["conversations"]
    keys = (
        ("role", "content") if isinstance(said, list) and said and isinstance(said[0], Mapping) and "role" in said[0] else ("from", "value")
    )
    return [messages_of(said, *keys, reading.participants)]


def _instruction(record: Mapping[str, Any], reading: Reading, *, answer: str) -> list[list[Message]]:
    """Alpaca's {instruction, input, output}, Dolly's {instruction, context, response}; what was said before in {history}."""
    earlier = [
        Message(role, text_of(text, "history"))
        for pair in record.get("history") or ()
        for role, text in zip(("user", ASSISTANT), pair, strict=True)
    ]
    asked = text_of(record["instruction"], "instruction")
    asks = Message("user", asked, input=text_of(record.get("input") or record.get("context"), "input"))
    return [[*earlier, asks, Message(ASSISTANT, text_of(record[answer], answer))]]


def _self_instruct(record: Mapping[str, Any], reading: Reading) -> list[list[Message]]:
    return [_instruction({"instruction": record["instruction"], **one}, reading, answer="output")[0] for one in record["instances"]]


def _natural(record: Mapping[str, Any], reading: Reading) -> list[list[Message]]:
    shown = (reading.positives, reading.negatives, reading.explanations)
    found = []
    for row in natural_instructions.instances(record):
        output = row["output"] if isinstance(row["output"], str) else next(iter(row["output"]), "")
        found.append([Message("user", natural_instructions.prompt(row, *shown)), Message(ASSISTANT, output.strip())])
    return found


def _pair(record: Mapping[str, Any], reading: Reading, *, prompt: str, answer: str) -> list[list[Message]]:
    """A prompt and its answer, as texts or (TRL) as lists of messages, of which only the answer's are trained on."""
    asked, answered = record[prompt], record[answer]
    if isinstance(asked, list) and isinstance(answered, list):
        before = [message._replace(weight=0.0) for message in messages_of(asked, "role", "content", reading.participants)]
        return [[*before, *messages_of(answered, "role", "content", reading.participants)]]
    return [[Message("user", text_of(asked, prompt)), Message(ASSISTANT, text_of(answered, answer))]]


def _labelled(record: Mapping[str, Any], reading: Reading) -> list[list[Message]]:
    """A text, or a premise and a hypothesis, and the label as the answer: classification as soft prompts learn it."""
    asked = "\n".join(text_of(record[name], name) for name in ("text", "premise", "hypothesis") if name in record)
    return [[Message("user", asked), Message(ASSISTANT, str(record["label"]))]]


class Format(NamedTuple):
    """A form of records: the fields that tell it, and what makes dialogues of one."""

    fields: tuple[str, ...]
    read: Read


def _pairs(prompt: str, answer: str) -> Format:
    return Format((prompt, answer), partial(_pair, prompt=prompt, answer=answer))


def _instructions(answer: str) -> Format:
    return Format(("instruction", answer), partial(_instruction, answer=answer))


FORMATS: dict[str, Format] = {
    "messages": Format(("messages",), _messages),
    "sharegpt": Format(("conversations",), _sharegpt),
    "natural_instructions": Format(natural_instructions.PARTS, _natural),
    "self_instruct": Format(("instruction", "instances"), _self_instruct),
    "alpaca": _instructions("output"),
    "instruction_response": _instructions("response"),
    "prompt_completion": _pairs("prompt", "completion"),
    "prompt_response": _pairs("prompt", "response"),
    "query_answer": _pairs("query", "answer"),
    "question_answer": _pairs("question", "answer"),
    "text_label": Format(("text", "label"), _labelled),  # these two never by their fields alone: a label is to be learnt if it is said
    "premise_hypothesis": Format(("premise", "hypothesis", "label"), _labelled),
}


def detect(record: Mapping[str, Any]) -> tuple[str, tuple[str, ...]]:
    """The format of a record by its fields, and the fields that it was told by.

    Raises:
      Problem: it fits none, or several, or holds answers that are not to be learnt.
    """
    there = set(natural_instructions.lowered(record))
    if other := [name for name in OTHER_DATA if name in there]:
        raise Problem(f"has {', '.join(other)}: answers to compare, not to learn; set the format to train on it all the same")
    fitting = [name for name, one in FORMATS.items() if there.issuperset(one.fields)]
    if len(fitting) != 1:
        fields = ", ".join(sorted(map(str, record))[:8]) or "nothing"
        said = f"fits the formats {', '.join(fitting)}" if fitting else f"fits no format of dialogues ({', '.join(FORMATS)})"
        raise Problem(f"{said}: its fields are {fields}; set the format")
    return fitting[0], FORMATS[fitting[0]].fields


def dialogues(record: Mapping[str, Any], where: str, reading: Reading) -> list[Dialogue]:
    """The dialogues of a record: one, or one for every instance of a task.

    Args:
      record: its fields.
      where: `file:line`.
      reading: how.

    Raises:
      WrongDialogue: it fits no format, or not the one it was said to have, or its text is none.
    """
    record = natural_instructions.lowered(record)
    try:
        name = reading.format or detect(record)[0]
        missing = [field for field in FORMATS[name].fields if field not in record]
        if missing:
            raise Problem(f"has no {' and no '.join(missing)}, which format {name!r} needs")
        found = FORMATS[name].read(record, reading)
        tools = tools_of(record.get("tools") or record.get("functions"))
        system = text_of(record.get("system"), "system")
        check_encodable((found, tools, system))
    except (Problem, KeyError, TypeError, AttributeError, ValueError, RecursionError) as error:
        problem = str(error) if isinstance(error, Problem) else f"is not of the format {name!r}: {type(error).__name__}: {error}"
        raise WrongDialogue(Dialogue((), where=where), problem) from None
    head = (Message("system", system),) if system else ()
    places = [where] if len(found) == 1 else [f"{where} instance {i}" for i in range(1, len(found) + 1)]
    return [Dialogue((*head, *messages), tools, place) for messages, place in zip(found, places, strict=True)]


@dataclasses.dataclass
class Tally:
    """What became of the records of a source.

    Attributes:
      source: its name.
      records: how many there were.
      formats: how many of each format, with the fields it was told by ("as said": `format` was set).
      dialogues: how many came of them.
      wrong: those that fit none.
    """

    source: str
    records: int = 0
    dialogues: int = 0
    formats: Counter[tuple[str, tuple[str, ...]]] = dataclasses.field(default_factory=Counter)
    wrong: list[WrongDialogue] = dataclasses.field(default_factory=list)

    def __str__(self) -> str:
        kinds = [f"{count:,} {name} ({', '.join(fields)})" for (name, fields), count in self.formats.most_common()]
        bad = f"; {len(self.wrong):,} of no use" if self.wrong else ""
        return f"{self.source}: {self.dialogues:,} dialogues of {self.records:,} records: {', '.join(kinds) or 'none'}{bad}."


def records(source: Source, reading: Reading, tally: Tally) -> Iterator[tuple[Mapping[str, Any], list[Dialogue]]]:
    """The records of a source in their order, each with its dialogues; `tally` learns what was seen, wrong records included.

    Args:
      source: where; its own `format` says how dialogues are written, and is left to `reading`.
      reading: how.
      tally: filled in as the dialogues come.

    Raises:
      ValueError: see `sources.list_files`, and a file of plain text.
    """
    files, _ = list_files(dataclasses.replace(source, format=None), SUFFIXES)
    for file in files:
        for line, record, problem in read_objects(file):
            tally.records += 1
            where = f"{file.path}:{line}"
            try:
                if record is None:
                    raise WrongDialogue(Dialogue((), where=where), str(problem))
                found = dialogues(record, where, reading)
                told = (reading.format, ("as said",)) if reading.format else detect(record)
            except WrongDialogue as error:
                tally.wrong.append(error)
                continue
            tally.formats[told] += 1
            tally.dialogues += len(found)
            yield record, found


def read(source: Source, reading: Reading, tally: Tally) -> Iterator[Dialogue]:
    """The dialogues of a source in their order; see `records`."""
    for _, found in records(source, reading, tally):
        yield from found


def check_share(name: str, wrong: Sequence[WrongDialogue], seen: int, max_share: float) -> None:
    """Refuses a source too much of which cannot be trained on.

    Args:
      name: of the source.
      wrong: the errors of its rows, in order.
      seen: how many rows there are, wrong ones included.
      max_share: of them that may be wrong.

    Raises:
      ValueError: names the share and the first three.
    """
    if len(wrong) > max_share * seen:
        first = "; ".join(map(str, wrong[:3])).replace(".;", ";")
        raise ValueError(
            f"{len(wrong):,} of {seen:,} rows of source {name!r} cannot be trained on ({len(wrong) / seen:.1%}), more than"
            f" data.max_bad_share={max_share:g}. The first: {first} Mend them, set format, or raise data.max_bad_share."
        )
