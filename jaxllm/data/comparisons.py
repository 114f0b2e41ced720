"""What people said of answers, in the forms they have it in (pairs, rankings, votes, labels, verdicts), told by fields and said."""

import dataclasses
import itertools
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from jaxllm.data.dialogues import ASSISTANT, Dialogue, Message, WrongDialogue
from jaxllm.data.messages import Problem, check_encodable, messages_of, text_of, tools_of
from jaxllm.data.objects import SUFFIXES, read_objects
from jaxllm.data.sources import Source, list_files

TURN = re.compile(r"(?:^|\n\n)(Human|Assistant):[ \t]?")  # of HH-RLHF's transcripts
STEP = "\n"  # between the steps of a solution
RULE = "The rule: {rule}\nDoes the assistant break it in what follows?\n\n{content}"  # Sparrow: the rule stands in the prompt


@dataclasses.dataclass(frozen=True)
class Reading:
    """How records are read.

    Attributes:
      format: one of `FORMATS`; None: told by each record's fields.
      participants: see `conversations.Reading`.
    """

    format: str | None = None
    participants: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.format is not None and self.format not in FORMATS:
            raise ValueError(
                f"Unknown format {self.format!r} of comparisons. Choose one of: {', '.join(FORMATS)}; or none, to tell by fields."
            )


class Judged(NamedTuple):
    """Answers to one prompt and what was said of them.

    Attributes:
      dialogues: the prompt with each answer, best first; the answer's turns alone are trained on.
      ranks: of each, smaller is better, equal is a tie.
      value: of a single answer: its rating or class, or 1 and 0 for yes and no; NaN where answers are compared.
      margin: how much better the first of a pair is said to be; 0: nothing is said.
      where: `file:line`.
    """

    dialogues: tuple[Dialogue, ...]
    ranks: tuple[float, ...]
    value: float = math.nan
    margin: float = 0.0
    where: str = ""


Turns = list[Message]
Answers = list[tuple[Turns, float]]  # each with its rank


def transcript(text: str) -> Turns:
    """The turns of one of HH-RLHF's transcripts, "\\n\\nHuman: ...\\n\\nAssistant: ..."."""
    before, *rest = TURN.split(text)
    if before.strip() or not rest:
        raise Problem("has a dialogue that is neither messages nor a transcript of turns that begin with Human: and Assistant:")
    turns = zip(rest[::2], rest[1::2], strict=True)
    return [Message("user" if who == "Human" else ASSISTANT, said.strip()) for who, said in turns]


def _turns(said: Any, reading: Reading) -> Turns:
    """Messages of any kind: a list of them, one, or a transcript."""
    if isinstance(said, str):
        return transcript(said)
    many = [said] if isinstance(said, Mapping) else said
    sharegpt = isinstance(many, list) and bool(many) and isinstance(many[0], Mapping) and "from" in many[0]
    return messages_of(many, *(("from", "value") if sharegpt else ("role", "content")), reading.participants)


def _answer(said: Any, reading: Reading) -> Turns:
    if said is None:
        raise Problem("lacks an answer")
    return [Message(ASSISTANT, text_of(said, "answer"))] if isinstance(said, str) else _turns(said, reading)


def _prompt(record: Mapping[str, Any], reading: Reading) -> Turns | None:
    """What the answers of a record answer; None: it says nothing of it."""
    system = text_of(record.get("system"), "system")
    head = [Message("system", system)] if system else []
    head += [
        Message(role, text_of(text, "history"))
        for pair in record.get("history") or ()
        for role, text in zip(("user", ASSISTANT), pair, strict=True)
    ]
    for name in ("prompt", "query", "question", "messages", "conversations"):
        if name in record:
            said = record[name]
            plain = isinstance(said, str) and not TURN.match(said)
            return [*head, *([Message("user", said)] if plain else _turns(said, reading))]
    if "instruction" in record:
        return [*head, Message("user", text_of(record["instruction"], "instruction"), input=text_of(record.get("input"), "input"))]
    if "input" in record:  # LLMBar
        return [*head, Message("user", text_of(record["input"], "input"))]
    return None


def _needed(prompt: Turns | None) -> Turns:
    if not prompt:
        raise Problem("has no prompt (one of prompt, query, question, messages, conversations, instruction, input)")
    return prompt


def _pair(record: Mapping[str, Any], reading: Reading) -> tuple[Turns, Answers, float, float]:
    prompt, margin = _prompt(record, reading), record.get("margin")
    if margin is None and "score_chosen" in record and "score_rejected" in record:
        margin = _number(record["score_chosen"], "score_chosen") - _number(record["score_rejected"], "score_rejected")
    both = [record[name] for name in ("chosen", "rejected")]
    if prompt is not None and all(isinstance(said, list) and said[: len(prompt)] != said for said in both):
        whole = [_turns(said, reading) for said in both]
        answers = [turns[len(prompt) :] if turns[: len(prompt)] == prompt else turns for turns in whole]  # some repeat the prompt
    elif prompt is not None:
        answers = [_answer(said, reading) for said in both]
    else:
        prompt, answers = _split([_turns(said, reading) for said in both])
    return prompt, [(answers[0], 0.0), (answers[1], 1.0)], math.nan, 0.0 if margin is None else _number(margin, "margin")


def _split(dialogues: list[Turns]) -> tuple[Turns, list[Turns]]:
    """What whole dialogues have in common before their last answers, and those answers."""
    shared = 0
    while all(len(turns) > shared + 1 and turns[shared] == dialogues[0][shared] for turns in dialogues):
        shared += 1
    while shared and dialogues[0][shared - 1].role == ASSISTANT:  # equal answers are answers: what comes of them is told as such
        shared -= 1
    return dialogues[0][:shared], [turns[shared:] for turns in dialogues]


def _two(record: Mapping[str, Any], reading: Reading) -> tuple[Turns, Answers, float, float]:
    """Two outputs and which is better: 1 or 2; 0 or 1.5 for a tie."""
    said = record["label"] if "label" in record else record["preference"]
    first, second = (_answer(record[name], reading) for name in ("output_1", "output_2"))
    return _needed(_prompt(record, reading)), _voted(first, second, said), math.nan, 0.0


def _voted(first: Turns, second: Turns, said: Any) -> Answers:
    votes = {1: (0.0, 1.0), 2: (1.0, 0.0), 0: (0.0, 0.0), 1.5: (0.0, 0.0)}
    if isinstance(said, bool) or said not in votes:
        raise Problem(f"prefers {said!r}, which is none of 1 and 2 (the better output), 0 and 1.5 (a tie)")
    return list(zip((first, second), votes[said], strict=True))


def _annotated(record: Mapping[str, Any], reading: Reading) -> tuple[Turns, Answers, float, float]:
    """Two responses and the votes of annotators (0: a tie, 1, 2): what most of them say; where two say most, a tie."""
    votes = Counter(record[name] for name in record if re.fullmatch(r"annotator\d+", name))
    most = [vote for vote, count in votes.items() if count == max(votes.values())]
    first, second = (_answer(record[name], reading) for name in ("response1", "response2"))
    return _needed(_prompt(record, reading)), _voted(first, second, most[0] if len(most) == 1 else 0), math.nan, 0.0


def _ranking(record: Mapping[str, Any], reading: Reading) -> tuple[Turns, Answers, float, float]:
    """Answers with their places (`ranking`: 1 is best), their `scores` (more is better), or the number of the `best`, from 0."""
    given = record["answers"]
    if not isinstance(given, list) or len(given) < 2:
        raise Problem("has answers that are no list of two or more")
    if "best" in record:
        best = record["best"]
        if isinstance(best, bool) or best not in range(len(given)):
            raise Problem(f"has best={best!r}, which is no number of its {len(given)} answers, from 0")
        ranks = [float(i != best) for i in range(len(given))]
    else:
        name, sign = ("ranking", 1.0) if "ranking" in record else ("scores", -1.0)
        said = record[name]
        if not isinstance(said, list) or len(said) != len(given):
            raise Problem(f"has {len(given)} answers and a {name} that is no list of as many numbers")
        numbers = [sign * _number(one, name) for one in said]
        ranks = [float(sorted(set(numbers)).index(number)) for number in numbers]
    return _needed(_prompt(record, reading)), [(_answer(a, reading), r) for a, r in zip(given, ranks, strict=True)], math.nan, 0.0


def _rule(record: Mapping[str, Any], reading: Reading) -> tuple[Turns, Answers, float, float]:
    """A dialogue, a rule, and whether the last answer breaks it: the rule is put in front (Sparrow, arXiv 2209.14375)."""
    turns, rule = _turns(record["dialogue"], reading), text_of(record["rule"], "rule")
    if not rule.strip() or len(turns) < 2:
        raise Problem("has no rule, or no dialogue with an answer")
    return asked_of_rule(turns[:-1], rule), [(turns[-1:], 0.0)], float(_verdict(record["verdict"])), 0.0


def asked_of_rule(turns: Sequence[Message], rule: str) -> Turns:
    """The turns before an answer, with the rule that it is judged by in front."""
    return [turns[0]._replace(content=RULE.format(rule=rule, content=turns[0].content)), *turns[1:]]


def _verdict(said: Any) -> bool:
    if not isinstance(said, bool) and said not in (0, 1):
        raise Problem(f"has a verdict {said!r}, which is none of true and 1 (the rule is broken), false and 0")
    return bool(said)


def _label(record: Mapping[str, Any], reading: Reading) -> tuple[Turns, Answers, float, float]:
    """One answer with its label: true or false, a rating, or the number of a class."""
    value = _number(record["label"], "label")
    name = next((name for name in ("completion", "response", "answer", "output") if name in record), None)
    if name is not None:
        return _needed(_prompt(record, reading)), [(_answer(record[name], reading), 0.0)], value, 0.0
    turns = _needed(_prompt(record, reading))
    return turns[:-1], [(turns[-1:], 0.0)], value, 0.0


def _steps(record: Mapping[str, Any], reading: Reading) -> tuple[Turns, Answers, float, float]:
    """The last step of a solution, behind those before it, with its label (process rewards: arXiv 2211.14275, 2305.20050)."""
    steps, labels = (record[name] for name in fields_of(record, FORMATS["steps"]) or ())
    if not (isinstance(steps, list) and isinstance(labels, list) and 0 < len(steps) == len(labels)):
        raise Problem("has steps that are no list, or not as many labels")
    text = STEP.join(text_of(step, "step").strip(STEP) for step in steps)
    return _needed(_prompt(record, reading)), [(_answer(text, reading), 0.0)], _number(labels[-1], "label"), 0.0


def unfolded(record: Mapping[str, Any], reading: Reading) -> list[Mapping[str, Any]]:
    """A record; of one with K steps K records, what it says of each: itself, cut off behind that step."""
    names = fields_of(record, FORMATS["steps"]) if reading.format in (None, "steps") else None
    lengths = [len(record[name]) if isinstance(record[name], list) else 0 for name in names or ()]
    if names is None or not lengths[0] or lengths[0] != lengths[1]:
        return [record]
    return [{**record, **{name: record[name][:count] for name in names}} for count in range(1, lengths[0] + 1)]


def prefixes(text: str) -> list[str]:
    """A solution up to each of its steps, as `steps` records have it: a step is a line that says something."""
    lines = text.split(STEP)
    return [STEP.join(lines[: i + 1]) for i, line in enumerate(lines) if line.strip()]


def _number(said: Any, what: str) -> float:
    if not isinstance(said, bool | int | float) or not math.isfinite(said):
        raise Problem(f"has a {what} {said!r} that is no number")
    return float(said)


class Format(NamedTuple):
    """A form of records: the fields that tell it (of several names with | between, one), and what makes answers of one."""

    fields: tuple[str, ...]
    read: Callable[[Mapping[str, Any], Reading], tuple[Turns, Answers, float, float]]


FORMATS: dict[str, Format] = {
    "pair": Format(("chosen", "rejected"), _pair),
    "two_outputs": Format(("output_1", "output_2", "label|preference"), _two),
    "annotated": Format(("response1", "response2", "annotator1"), _annotated),
    "ranking": Format(("answers", "ranking|scores|best"), _ranking),
    "rule": Format(("dialogue", "rule", "verdict"), _rule),
    "steps": Format(("steps|completions", "labels"), _steps),
    "label": Format(("label", "completion|response|answer|output|messages|conversations"), _label),
}


def fields_of(record: Mapping[str, Any], form: Format) -> tuple[str, ...] | None:
    """The fields of a record that make it of a form; None: it is of another."""
    found = [next((name for name in names.split("|") if name in record), None) for names in form.fields]
    return None if None in found else tuple(filter(None, found))


def detect(record: Mapping[str, Any]) -> tuple[str, tuple[str, ...]]:
    """The format of a record by its fields, and the fields that it was told by.

    Raises:
      Problem: it fits none, or several.
    """
    fitting = {name: found for name, form in FORMATS.items() if (found := fields_of(record, form)) is not None}
    if len(fitting) != 1:
        fields = ", ".join(sorted(map(str, record))[:8]) or "nothing"
        said = f"fits the formats {', '.join(fitting)}" if fitting else f"fits no format of comparisons ({', '.join(FORMATS)})"
        raise Problem(f"{said}: its fields are {fields}; set the format")
    return next(iter(fitting.items()))


def judged(record: Mapping[str, Any], where: str, reading: Reading) -> Judged:
    """What a record says.

    Args:
      record: its fields.
      where: `file:line`.
      reading: how.

    Raises:
      WrongDialogue: it fits no format, or not the one it was said to have, or two answers of it are the same and judged differently.
    """
    name = reading.format
    try:
        name = name or detect(record)[0]
        if fields_of(record, FORMATS[name]) is None:
            raise Problem(f"lacks fields of the format {name!r}, which are {', '.join(FORMATS[name].fields)}")
        prompt, answers, value, margin = FORMATS[name].read(record, reading)
        tools = tools_of(record.get("tools") or record.get("functions"))
        if any(one == other and rank != worse for (one, rank), (other, worse) in itertools.combinations(answers, 2)):
            raise Problem("prefers an answer to the very same one")
        check_encodable((prompt, answers, tools))
    except (Problem, KeyError, TypeError, AttributeError, ValueError, RecursionError) as error:
        problem = str(error) if isinstance(error, Problem) else f"is not of the format {name!r}: {type(error).__name__}: {error}"
        raise WrongDialogue(Dialogue((), where=where), problem) from None
    asked = [message._replace(weight=0.0) for message in prompt]
    answers = sorted(answers, key=lambda pair: pair[1])
    found = tuple(Dialogue((*asked, *turns), tools, where) for turns, _ in answers)
    return Judged(found, tuple(rank for _, rank in answers), value, margin, where)


@dataclasses.dataclass
class Tally:
    """What became of the records of a source; see `conversations.Tally`."""

    source: str
    records: int = 0
    formats: Counter[tuple[str, tuple[str, ...]]] = dataclasses.field(default_factory=Counter)
    wrong: list[WrongDialogue] = dataclasses.field(default_factory=list)

    def __str__(self) -> str:
        kinds = [f"{count:,} {name} ({', '.join(fields)})" for (name, fields), count in self.formats.most_common()]
        bad = f"; {len(self.wrong):,} of no use" if self.wrong else ""
        return f"{self.source}: {self.records:,} records: {', '.join(kinds) or 'none'}{bad}."


def records(source: Source, reading: Reading, tally: Tally) -> Iterator[Judged]:
    """What the records of a source say, in their order; `tally` learns what was seen, wrong records included.

    Raises:
      ValueError: see `sources.list_files`, and a file of plain text.
    """
    files, _ = list_files(dataclasses.replace(source, format=None), SUFFIXES)
    for file in files:
        for line, whole, problem in read_objects(file):
            where = f"{file.path}:{line}"
            for record in [None] if whole is None else unfolded(whole, reading):
                tally.records += 1
                try:
                    if record is None:
                        raise WrongDialogue(Dialogue((), where=where), str(problem))
                    found = judged(record, where, reading)
                    told = (reading.format, ("as said",)) if reading.format else detect(record)
                except WrongDialogue as error:
                    tally.wrong.append(error)
                    continue
                tally.formats[told] += 1
                yield found
