"""Sampling: prompts in, text out, from the last whole checkpoint of a work directory."""

import itertools
import json
import sys
import zlib
from argparse import Namespace
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
from etils import epath
from ml_collections import ConfigDict

from jaxllm.models import stacks
from jaxllm.models.adapted import Adapted
from jaxllm.parallel import hosts
from jaxllm.parallel.mesh import make_mesh
from jaxllm.sampling.logits import Sampling
from jaxllm.sampling.text import Sample, Texts
from jaxllm.stages import scored, setup, workdir
from jaxllm.stages.config import parse_overrides, resolve
from jaxllm.stages.opened import identity, open_model, open_tokenizer
from jaxllm.stages.scored import Ranking

DRAWN = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")  # what of the config says how a token is drawn
RANKINGS: dict[str, Ranking] = {
    "mean_log_prob": lambda samples: [sample.mean_log_prob for sample in samples]
}  # what --rank-by takes the best by


class Prompt(NamedTuple):
    """What is asked, and through which adapter (None: the first there is)."""

    text: str
    adapter: str | None = None


def read_prompts(args: Namespace) -> list[Prompt]:
    """The prompts of the command line: --prompt, and --prompts as a file or standard input.

    A line of it is a prompt, or {"prompt": ..., "adapter": ...}.

    Raises:
      ValueError: none at all, or a file that is not there.
    """
    prompts = [Prompt(text) for text in args.prompt or []]
    if args.prompts:
        if args.prompts != "-" and not Path(args.prompts).is_file():
            raise ValueError(f"No prompt file {args.prompts!r}. Give a file with one prompt a line, or - for standard input.")
        text = sys.stdin.read() if args.prompts == "-" else Path(args.prompts).read_text(encoding="utf-8")
        prompts += [_prompt(line) for line in text.split("\n") if line]
    if not prompts:
        raise ValueError("No prompt. Give --prompt TEXT, or --prompts FILE.")
    return prompts


def _prompt(line: str) -> Prompt:
    """A line as it stands, or the "prompt" of a JSON object that has one: code may begin with a brace too."""
    try:
        found = json.loads(line)
    except (json.JSONDecodeError, RecursionError):
        return Prompt(line)
    if not isinstance(found, dict) or not isinstance(found.get("prompt"), str):
        return Prompt(line)
    return Prompt(found["prompt"], found.get("adapter"))


def through(prompts: Sequence[Prompt], folders: Sequence[str]) -> list[int] | None:
    """Which of the adapters each prompt goes through; None: there are none.

    Raises:
      ValueError: a prompt names one that is not among them.
    """
    for prompt in prompts:
        if prompt.adapter is not None and prompt.adapter not in folders:
            known = ", ".join(folders) or "none; give --adapters DIR,DIR"
            raise ValueError(f"A prompt asks for adapter {prompt.adapter!r}. There are: {known}.")
    return [folders.index(prompt.adapter or folders[0]) for prompt in prompts] if folders else None


def stacked(folders: Sequence[str], base: str, params: Any, model: Any, mesh: Any) -> Any:
    """A model with the LoRAs of runs that started from it; `base` is its identity.

    Raises:
      ValueError: a run that is of another base, or trained something else than LoRAs.
    """
    trees = []
    for folder in folders:
        there, found, _ = open_model(folder, mesh)
        source = workdir.read(folder)["config"]["init_from"]
        if not isinstance(found, Adapted) or source is None or identity(source) != base:
            raise ValueError(f"--adapters: {folder} is no run of adapters over these weights (it started from {source}). Leave it out.")
        trees.append(there.relayout(found.adapters, model.scan_layers) if there.scan_layers != model.scan_layers else found.adapters)
    return Adapted(params, stacks.stack(trees))


def start(args: Namespace, overrides: Sequence[str]) -> ConfigDict:
    """The run's own config with the command line's overrides; JAX and the processes are ready after it."""
    config = resolve(workdir.read(args.workdir)["config"], parse_overrides(overrides))
    setup.backend_flags(config, trains=False)
    hosts.start(config.parallel.coordinator, config.parallel.num_processes, config.parallel.process_id)
    setup.keep_compiled_programs()
    return config


def open_texts(args: Namespace, config: ConfigDict, mesh: Any, **more: Any) -> tuple[Texts, Any, int]:
    """What samples from a work directory: `Texts`, the parameters, and the step they are of; `more` goes to `Texts`.

    On a CPU the layers stand one by one: a scan would copy a layer's cache at every step to look at it.
    """
    model, params, step = _opened(args.workdir, mesh, args.step, config)
    tokenizer, section = open_tokenizer(args.workdir, config.peft.task), config.sample
    names = ("max_new_tokens", "stop", "stop_tokens", "long_prompt", "num_beams", "num_draft")
    options = {"slots": -(-section.slots // mesh.size) * mesh.size} | {name: section[name] for name in names} | more
    if args.draft:
        if workdir.own_tokenizer(args.draft).fingerprint != tokenizer.fingerprint:
            raise ValueError(
                f"--draft {args.draft} has another tokenizer than {args.workdir}. Give a model that was trained with the same one."
            )
        options["draft"], proposes, args.draft_step = _opened(args.draft, mesh, None, None)
        params = params, proposes
    return Texts(model, tokenizer, sampling=Sampling(**{name: section[name] for name in DRAWN}), **options), params, step


def _opened(folder: str, mesh: Any, step: int | None, config: ConfigDict | None) -> tuple[Any, Any, int]:
    model, params, step = open_model(folder, mesh, step, config)
    return *setup.unrolled(model, params), step


def main(args: Namespace, overrides: Sequence[str]) -> int:
    """`jaxllm sample --workdir D --prompt TEXT`; text on the terminal, JSON lines in samples.jsonl."""
    asked, folders = read_prompts(args), args.adapters.split(",") if args.adapters else []
    prompts, chosen = [prompt.text for prompt in asked], through(asked, folders)
    if args.rank_by not in RANKINGS and not scored.is_one(args.rank_by):
        raise ValueError(
            f"Unknown --rank-by {args.rank_by!r}. Choose one of: {', '.join(RANKINGS)}; or give the work directory of a reward model."
        )
    if args.best_of is not None and args.best_of < 1:
        raise ValueError(f"--best-of {args.best_of} keeps the best of nothing. Give at least 1.")
    config = start(args, overrides)
    if args.best_of and config.sample.num_samples != 1:
        given = f"sample.num_samples={config.sample.num_samples}"
        raise ValueError(f"--best-of {args.best_of} keeps one sample of each prompt: leave out {given}.")
    if args.best_of and config.sample.num_beams > 1:
        raise ValueError(
            f"--best-of {args.best_of} ranks draws, and sample.num_beams={config.sample.num_beams} draws none. Give one of them."
        )
    if config.sample.slots < 1:
        raise ValueError(f"sample.slots={config.sample.slots} decodes nothing. Give at least 1.")
    output = args.output or str(epath.Path(args.workdir) / "samples.jsonl")
    mesh = make_mesh()  # rows are independent: every device gets its own
    with jax.set_mesh(mesh):
        texts, params, step = open_texts(args, config, mesh)
        if folders:
            params = stacked(folders, identity(args.workdir, step), params, texts.model, mesh)
        each = args.best_of or config.sample.num_samples
        kept = 1 if args.best_of else each
        how = settings(config, args, [(folder, identity(folder)) for folder in folders], chosen)
        done = made_before(output, prompts, kept, how | {"step": step}) if args.resume else 0
        skip = done // kept * each + done % kept
        samples = texts.samples(params, prompts, seed=config.seed, num_samples=each, skip=skip, adapters=chosen)
        if args.best_of:
            samples = best(samples, RANKINGS.get(args.rank_by) or scored.ranking(args.rank_by, mesh))
        write(samples, how | {"step": step}, output, total=len(prompts) * kept, done=done)
    if args.draft and texts.speed() and hosts.is_first():
        print(texts.speed(), file=sys.stderr)
    if texts.cut and hosts.is_first():
        print(f"{texts.cut} prompts were longer than the context; only their last tokens were used.", file=sys.stderr)
    hosts.finish()
    return 0


def best(samples: Iterable[Sample], rank_by: Ranking) -> Iterator[Sample]:
    """The best sample of each prompt; of equal ones the first. Samples of one prompt follow one another, and their numbers start at 0."""
    group: list[Sample] = []
    for sample in itertools.chain(samples, [None]):
        if group and (sample is None or sample.number == 0):
            scores = rank_by(group)
            yield group[max(range(len(group)), key=scores.__getitem__)]
            group = []
        if sample is not None:
            group.append(sample)


def settings(config: ConfigDict, args: Namespace, adapters: Sequence[Any] = (), through: Any = None) -> dict[str, Any]:
    """What a line says of how it was made: the seed, and a checksum of everything else that decides its tokens."""
    section = {name: value for name, value in config.sample.to_dict().items() if name != "slots"}
    said = json.dumps(
        [section, args.best_of, args.rank_by if args.best_of else None, args.draft, args.draft and args.draft_step, adapters, through],
        sort_keys=True,
    )
    return {"seed": config.seed, "settings": f"{zlib.crc32(said.encode()):08x}"}


def made_before(output: str, prompts: Sequence[str], each: int, how: Mapping[str, Any]) -> int:
    """How many samples of this very command are in the output; a last line that was cut off is taken away.

    Args:
      output: the file.
      prompts: of the command.
      each: samples for each of them.
      how: what every line says of how it was made.

    Raises:
      ValueError: the file holds something else.
    """
    path = epath.Path(output)
    if not path.exists():
        return 0
    text = path.read_text()
    whole = text[: text.rfind("\n") + 1]
    lines = whole.split("\n")[:-1]  # not splitlines: a text may hold other line ends
    for at, line in enumerate(lines):
        expected = {**how, "prompt": prompts[at // each]} if at < len(prompts) * each else {"prompt": None}
        expected |= {"number": at % each} if each > 1 else {}
        try:
            found = json.loads(line)
        except (json.JSONDecodeError, RecursionError):
            found = None
        if not isinstance(found, dict) or any(found.get(name, "") != value for name, value in expected.items()):
            raise ValueError(
                f"--resume: line {at + 1} of {output} is not of this command (another prompt, seed, setting or step of the model)."
                " Give another --output, or leave out --resume to append."
            )
    if whole != text:
        path.write_text(whole)
    return len(lines)


def write(samples: Iterable[Sample], how: Mapping[str, Any], output: str, total: int, done: int = 0) -> None:
    """Prints each sample as it comes and appends it to a JSON-lines file; a progress bar where the samples are not on the terminal."""
    from rich.progress import MofNCompleteColumn, Progress, TimeElapsedColumn

    shown = sys.stdout.isatty()
    columns = (*Progress.get_default_columns(), MofNCompleteColumn(), TimeElapsedColumn())
    bar = Progress(*columns, disable=shown or not sys.stderr.isatty() or not hosts.is_first(), transient=True)
    bar.console.stderr = True
    with bar:
        task = bar.add_task("samples", total=total, completed=done)
        for sample in samples:
            if not hosts.is_first():
                continue
            print(f"{sample.prompt}\033[1m{sample.text}\033[0m\n" if shown else f"{sample.prompt}{sample.text}\n", flush=True)
            line = json.dumps({**how, **sample._asdict()}, ensure_ascii=False) + "\n"
            if "://" in output:
                path = epath.Path(output)
                path.write_text((path.read_text() if path.exists() else "") + line)
            else:
                with open(output, "a", encoding="utf-8") as file:
                    file.write(line)
            bar.advance(task)
