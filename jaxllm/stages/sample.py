"""Sampling: prompts in, text out, from the last whole checkpoint of a work directory."""

import json
import sys
from argparse import Namespace
from collections.abc import Iterable, Sequence
from pathlib import Path

import jax
from etils import epath

from jaxllm.parallel import hosts
from jaxllm.parallel.mesh import make_mesh
from jaxllm.sampling.text import Sample, sample_texts
from jaxllm.stages import setup, workdir
from jaxllm.stages.config import parse_overrides, resolve
from jaxllm.stages.init_from import open_model


def read_prompts(args: Namespace) -> list[str]:
    """The prompts of the command line: --prompt, and --prompts as a file or standard input, a prompt a line (or {"prompt": ...}).

    Raises:
      ValueError: none at all, or a file that is not there.
    """
    prompts = list(args.prompt or [])
    if args.prompts:
        if args.prompts != "-" and not Path(args.prompts).is_file():
            raise ValueError(f"No prompt file {args.prompts!r}. Give a file with one prompt a line, or - for standard input.")
        text = sys.stdin.read() if args.prompts == "-" else Path(args.prompts).read_text(encoding="utf-8")
        prompts += [_prompt(line) for line in text.split("\n") if line]
    if not prompts:
        raise ValueError("No prompt. Give --prompt TEXT, or --prompts FILE.")
    return prompts


def _prompt(line: str) -> str:
    """A line as it stands, or the "prompt" of a JSON object that has one: code may begin with a brace too."""
    try:
        found = json.loads(line)
    except json.JSONDecodeError:
        return line
    return found["prompt"] if isinstance(found, dict) and isinstance(found.get("prompt"), str) else line


def main(args: Namespace, overrides: Sequence[str]) -> int:
    """`jaxllm sample --workdir D --prompt TEXT`; text on the terminal, JSON lines in samples.jsonl."""
    record = workdir.read(args.workdir)
    config = resolve(record["config"], parse_overrides(overrides))
    prompts = read_prompts(args)
    setup.backend_flags(config, trains=False)
    hosts.start(config.parallel.coordinator, config.parallel.num_processes, config.parallel.process_id)
    setup.keep_compiled_programs()
    mesh = make_mesh()  # rows are independent: every device gets its own
    tokenizer = workdir.own_tokenizer(args.workdir)
    model, params, step = open_model(args.workdir, mesh, args.step, config)
    section = config.sample
    with jax.set_mesh(mesh):
        samples = sample_texts(
            model,
            params,
            tokenizer,
            prompts,
            seed=config.seed,
            max_new_tokens=section.max_new_tokens,
            temperature=section.temperature,
            top_k=section.top_k,
            top_p=section.top_p,
            num_samples=section.num_samples,
            batch_size=-(-8 // mesh.size) * mesh.size,
        )
        write(samples, step, args.output or str(epath.Path(args.workdir) / "samples.jsonl"))
    hosts.finish()
    return 0


def write(samples: Iterable[Sample], step: int, output: str) -> None:
    """Prints each sample as it comes and appends it to a JSON-lines file."""
    for sample in samples:
        if not hosts.is_first():
            continue
        print(f"{sample.prompt}\033[1m{sample.text}\033[0m\n" if sys.stdout.isatty() else f"{sample.prompt}{sample.text}\n", flush=True)
        line = json.dumps({"step": step, **sample._asdict()}, ensure_ascii=False) + "\n"
        path = epath.Path(output)
        if "://" in output:
            path.write_text((path.read_text() if path.exists() else "") + line)
        else:
            with open(output, "a", encoding="utf-8") as file:
                file.write(line)
