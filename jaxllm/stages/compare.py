"""Two files of answers before a judge, and the judge beside what people said: `jaxllm evaluate --compare`, `--labels`."""

import collections
import json
import math
import shlex
import zlib
from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from etils import epath
from ml_collections import ConfigDict

from jaxllm.evaluation.agreement import agreement
from jaxllm.evaluation.judges import RUBRIC, command_judge, reward_judge, rubric_judge
from jaxllm.evaluation.pairs import Pairs, paired, read_answers, read_labelled
from jaxllm.evaluation.win_rate import Judge, Judged, judge_both_orders, length_controlled, preferences, win_rate
from jaxllm.parallel import hosts
from jaxllm.parallel.mesh import make_mesh
from jaxllm.sampling.logits import Sampling
from jaxllm.sampling.text import Texts, encode_prompt
from jaxllm.stages import opened, scored, scores, setup, tasks, workdir
from jaxllm.stages.config import parse_overrides, resolve
from jaxllm.training.lock import hold
from jaxllm.training.metrics import AFTERWARDS
from jaxllm.training.sinks import JsonLines

COMMAND = "cmd:"  # --judge 'cmd:PROGRAM ARGUMENTS'; anything else is the folder of a model
WORDS = 256  # tokens of a verdict, unless tasks.max_new_tokens says another number
CHUNK = 32  # pairs between two writes of records
READ = ("tasks.limit", "seed")  # keys that comparing reads, whoever judges
ASKED = ("tasks.max_new_tokens", "tasks.length", "tasks.slots", "model.dtype")  # those of a model that judges


class Bench(NamedTuple):
    """Who judges.

    Attributes:
      judge: see `evaluation.judges`.
      who: tells this judge from any other.
      steady: it judges the same the next time, so that it need not be asked again; nobody knows that of a program.
      reasons: why verdicts were missing.
    """

    judge: Judge
    who: str
    steady: bool
    reasons: collections.Counter[str]


def main(args: Namespace, overrides: Sequence[str]) -> int:
    """`jaxllm evaluate --compare A B --judge J`, `--labels FILE --judge J`, or both; tables, JSON lines, records in evals.jsonl."""
    if not args.judge:
        raise ValueError("Who judges? Give --judge 'cmd:PROGRAM ARGUMENTS', or --judge DIR, the folder of a model.")
    if args.tasks is not None or args.init_from or args.config:
        raise ValueError("--compare and --labels ask a judge, not a model about tasks. Leave out --tasks, --init-from and --config.")
    config = settings(args, overrides)
    compared = paired(*map(_answers, args.compare)) if args.compare else None
    labelled = read_labelled(args.labels) if args.labels else None
    place = where(args)
    if args.judge.startswith(COMMAND):
        jax.config.update("jax_platforms", "cpu")  # the program may want the device
    else:
        setup.backend_flags(config, trains=False)
        hosts.start(config.parallel.coordinator, config.parallel.num_processes, config.parallel.process_id)
        setup.keep_compiled_programs()
    mesh = make_mesh()
    with jax.set_mesh(mesh), hold(place):
        bench, file = open_judge(args, config, mesh), JsonLines(epath.Path(place) / "evals.jsonl")
        if compared is not None:
            said = {"first": args.compare[0], "second": args.compare[1], "judge": args.judge}
            won(compared.limited(config.tasks.limit), bench, file, said)
        if labelled is not None:
            agreed(labelled.limited(config.tasks.limit), bench, file, {"labels": args.labels, "judge": args.judge})
        file.close()
    hosts.finish()
    return 0


def _answers(path: str) -> Any:
    found = read_answers(path)
    hosts.say(f"{path}: {sum(map(len, found.of.values()))} answers to {len(found.of)} prompts, {{{', '.join(found.fields)}}}.")
    return found


def settings(args: Namespace, overrides: Sequence[str]) -> ConfigDict:
    """The config of the judge with the command line's overrides; only those that are read are taken.

    Raises:
      ValueError: another key, or one that cannot be.
    """
    given, program = parse_overrides(overrides), args.judge.startswith(COMMAND)
    read = READ if program else READ + ASKED
    if other := [key for key in given if key not in read]:
        raise ValueError(f"--compare and --labels with {'a program' if program else 'a model'} do not read {other[0]}: {', '.join(read)}.")
    if program and args.rubric:
        raise ValueError("--rubric is what a model is asked, and a program judges here. Leave it out.")
    config = resolve({} if program or not (epath.Path(args.judge) / workdir.NAME).exists() else _own(args.judge), given)
    if config.tasks.limit is not None and config.tasks.limit < 1:
        raise ValueError(f"tasks.limit={config.tasks.limit} compares nothing. Give at least 1, or leave it out.")
    return config


def _own(folder: str) -> dict[str, Any]:
    """The config of a run without its tasks.*, which are not about judging."""
    record = json.loads((epath.Path(folder) / workdir.NAME).read_text())
    if not isinstance(record.get("config"), dict):  # a Hugging Face folder
        return {}
    return {name: value for name, value in workdir.read(folder)["config"].items() if name != "tasks"}


def where(args: Namespace) -> str:
    """The work directory whose evals.jsonl takes the records: --workdir, or the one that the first answers lie in.

    Raises:
      ValueError: neither.
    """
    if args.workdir:
        return args.workdir
    beside = epath.Path(args.compare[0]).parent if args.compare else None
    if beside is None or not (beside / workdir.NAME).exists():
        raise ValueError("Say where the records go: --workdir DIR.")
    return str(beside)


def open_judge(args: Namespace, config: ConfigDict, mesh: Any) -> Bench:
    """The program or the model that --judge names; a reward model scores, another is asked in words.

    Raises:
      ValueError: nothing that can judge.
    """
    reasons: collections.Counter[str] = collections.Counter()
    if args.judge.startswith(COMMAND):
        try:
            words = shlex.split(args.judge.removeprefix(COMMAND))
        except ValueError as error:
            raise ValueError(f"--judge {args.judge!r} cannot be cut into words: {error}. Quote as in a shell.") from None
        return Bench(command_judge(words, reasons=reasons), args.judge, False, reasons)
    if scored.is_one(args.judge):
        if args.rubric:
            raise ValueError(f"--rubric is what a model is asked, and {args.judge} is a reward model, which scores. Leave it out.")
        model = scored.open_reward(args.judge, mesh)
        return Bench(reward_judge(model.scores, reasons), model.identity, True, reasons)
    if args.rubric and not Path(args.rubric).is_file():
        raise ValueError(f"There is no rubric {args.rubric!r}. Give a text file with {{prompt}}, {{first}} and {{second}} in it.")
    rubric = Path(args.rubric).read_text(encoding="utf-8") if args.rubric else RUBRIC
    rubric_judge(lambda texts: [], rubric)  # a rubric that leaves something out is told before the model is loaded
    writer, params, tokenizer, step = tasks.open_source(args.judge, mesh, None, config)
    section = config.tasks
    size = {
        "length": section.length,
        "slots": -(-section.slots // mesh.size) * mesh.size,
        "max_new_tokens": section.max_new_tokens or WORDS,
    }
    texts = Texts(writer, tokenizer, sampling=Sampling(temperature=0.0), **size)
    who = json.dumps([opened.identity(args.judge, step), rubric, texts.length, texts.max_new_tokens, writer.dtype, config.seed])
    return Bench(rubric_judge(asker(texts, params, config.seed), rubric, reasons), who, True, reasons)


def asker(texts: Texts, params: Any, seed: int) -> Any:
    """What writes a model's answers to prompts; None for one that does not fit. The prompts are plain text, no turns of a chat."""

    def generate(prompts: list[str]) -> list[str | None]:
        ids = [encode_prompt(texts.tokenizer, prompt) for prompt in prompts]
        fitting = [i for i, own in enumerate(ids) if len(own) <= texts.room]
        written = texts.samples(params, [ids[i] for i in fitting], seed=seed) if fitting else ()
        found = dict(zip(fitting, (sample.text for sample in written), strict=True))
        return [found.get(i) for i in range(len(prompts))]

    return generate


def verdicts(pairs: Pairs, bench: Bench, file: JsonLines, name: str) -> tuple[Judged, str]:
    """Both orders of every pair judged, those with a record already not again; and a checksum of the judge and the pairs."""
    asked = list(zip(pairs.prompts, pairs.first, pairs.second, strict=True))
    key = f"{zlib.crc32(json.dumps([bench.who, asked]).encode()):08x}"
    records = [r for r in file.read() if r.get("name") == name + tasks.ROWS and r.get("settings") == key] if hosts.is_first() else []
    recorded = {r["row"]: (r["forward"], r["backward"]) for r in records}
    told = hosts.tell(hosts.fresh("verdicts"), list(recorded.items()) if bench.steady else [])
    known = {row: tuple(both) for row, both in told}
    left = [row for row in range(len(asked)) if row not in known]
    chunk = CHUNK if bench.steady else len(left)  # a program is started once
    with scores.bar("pairs", len(asked), len(known)) as tell:
        for start in range(0, len(left), chunk):
            rows = left[start : start + chunk]
            prompts, first, second = ([column[row] for row in rows] for column in (pairs.prompts, pairs.first, pairs.second))
            judged = judge_both_orders(prompts, first, second, bench.judge)
            for row, *both in zip(rows, judged.forward.tolist(), judged.backward.tolist(), strict=True):
                known[row] = tuple(None if math.isnan(x) else x for x in both)
                if hosts.is_first() and recorded.get(row) != known[row]:
                    said = {"row": row, "settings": key, "prompt": asked[row][0], "forward": known[row][0], "backward": known[row][1]}
                    file.write({"step": pairs.step, "name": name + tasks.ROWS, **said, **AFTERWARDS})
            tell(len(rows))
    forward, backward = np.array([known[row] for row in range(len(asked))], np.float64).T  # None becomes NaN
    return Judged(forward, backward), key


def won(pairs: Pairs, bench: Bench, file: JsonLines, said: Mapping[str, str]) -> None:
    """How often the first answers win."""
    judged, key = verdicts(pairs, bench, file, "win_rate")
    found = win_rate(judged, pairs.groups)
    first, second = ([len(text) for text in own] for own in (pairs.first, pairs.second))
    numbers = {"win_rate": found.win_rate.mean, "win_rate_low": found.win_rate.low, "win_rate_high": found.win_rate.high}
    try:
        equal = length_controlled(preferences(judged), first, second, groups=pairs.groups)
        numbers |= {"length_controlled": equal.win_rate, "length_controlled_low": equal.low, "length_controlled_high": equal.high}
    except ValueError as error:
        hosts.say(f"No length-controlled rate. {error}")
    numbers |= {"ties": found.ties, "disagreement": found.disagreement, "shown_first": found.shown_first}
    numbers |= {"first_length": float(np.mean(first)), "second_length": float(np.mean(second))}
    counts = {"pairs": len(pairs.prompts), "unjudged": found.win_rate.num_missing}
    told(
        {"step": pairs.step, "name": "win_rate", **said, **numbers, **counts}, bench, file, key, f"{said['first']} against {said['second']}"
    )


def agreed(pairs: Pairs, bench: Bench, file: JsonLines, said: Mapping[str, str]) -> None:
    """How often the judge says what people say."""
    assert pairs.labels is not None
    judged, key = verdicts(pairs, bench, file, "judge")
    found, places = agreement(preferences(judged), pairs.labels), win_rate(judged, pairs.groups)
    numbers: dict[str, float] = {}
    for name in ("agreement", "decided"):
        interval = getattr(found, name)
        numbers |= {name: interval.mean, f"{name}_low": interval.low, f"{name}_high": interval.high}
    numbers |= {"kappa": found.kappa, "people": found.people, "people_kappa": found.people_kappa}
    numbers |= {"disagreement": places.disagreement, "shown_first": places.shown_first}
    counts = {"pairs": len(pairs.prompts), "unjudged": found.num_unjudged, "undecided": found.num_undecided}
    told({"step": 0, "name": "judge", **said, **numbers, **counts}, bench, file, key, f"The judge beside the people of {said['labels']}")


def told(record: Mapping[str, Any], bench: Bench, file: JsonLines, key: str, title: str) -> None:
    """A record in evals.jsonl and on standard output, and a table."""
    plain = {name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in record.items()}
    whole = {**plain, "settings": key, **AFTERWARDS}
    if hosts.is_first():
        if whole not in file.read():
            file.write(whole)
        print(json.dumps(plain, ensure_ascii=False), flush=True)
        scores.show_judged(plain, title)
    for reason, count in bench.reasons.most_common():
        hosts.say(f"{count} verdicts were missing: {reason}.")
    bench.reasons.clear()
