"""Multiple choice on the same rows and the same weights: our suite beside lm-evaluation-harness with transformers, in turn, float32.

    python -m benchmarks.evals --model FOLDER --data FOLDER --text BOOK... --peer .venv-3.11/bin/python

The peers' model has a tokenizer that knows no words, so one is trained on the text first: byte-level BPE of 32,000. Both sides are
processes that stay: each reads the model, asks everything once (ours compiles, the harness's finds its best batch size), and is then
timed, A B A B, from the texts to the log-likelihoods. Their log-likelihoods have to agree.
"""

import argparse
import dataclasses
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

PEERS = os.path.expanduser("~/.cache/jaxllm-peers/assets/model")
TASKS = ("hellaswag", "arc_easy", "piqa", "boolq", "openbookqa", "winogrande")
BATCHES = (4, 8, 16, 32)
VOCABULARY = 32000
Found = dict[str, list[list[float]]]  # task -> rows -> the log-likelihood of each choice


def dressed(model: Path, texts: Sequence[str]) -> Path:
    """A folder with the same weights and a tokenizer trained on these files."""
    import gzip

    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    place = Path(".cache", "evals-model")
    place.mkdir(parents=True, exist_ok=True)
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer, bpe.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet, special = pre_tokenizers.ByteLevel.alphabet(), ["<pad>", "<s>", "</s>"]
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=special, initial_alphabet=alphabet, show_progress=False)
    bpe.train_from_iterator((gzip.decompress(Path(text).read_bytes()).decode() for text in texts), trainer)
    bpe.save(str(place / "tokenizer.json"))
    said = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "</s>", "pad_token": "<pad>"}
    (place / "tokenizer_config.json").write_text(json.dumps(said))
    for name in ("config.json", "model.safetensors"):
        shutil.copyfile(model / name, place / name)
    return place


def questions(options: argparse.Namespace) -> Iterator[tuple]:
    """(name, task without examples, the first rows) of every task."""
    from jaxllm.tasks.catalog import find_files, open_task

    for name in options.tasks:
        task, rows = open_task(name, find_files(name, options.data))
        yield name, dataclasses.replace(task, shots=0, description=""), rows[: options.rows]


def ours(options: argparse.Namespace) -> Callable[[], Found]:
    """What asks our suite everything."""
    from jaxllm.stages import setup
    from jaxllm.stages.config import resolve

    config = resolve({}, {})
    setup.backend_flags(config, trains=False)
    import jax

    from jaxllm.evaluation.prompts import Split
    from jaxllm.parallel.mesh import make_mesh
    from jaxllm.stages import tasks

    mesh = make_mesh()
    model, params, tokenizer, _ = tasks.open_source(options.model, mesh, None, config)
    with jax.set_mesh(mesh):
        suite = tasks.make_suite(config, model, tokenizer)
    asked = list(questions(options))

    def ask() -> Found:
        found: Found = {}
        for name, task, rows in asked:
            records: list = []
            with jax.set_mesh(mesh):
                suite.run(params, name, task, Split([], rows), write=records.append)
            found[name] = [record["log_probs"] for record in records]
        return found

    return ask


def harness(options: argparse.Namespace) -> Callable[[], Found]:
    """What asks the harness everything, with the batch size that is fastest here."""
    import torch
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    torch.set_num_threads(os.cpu_count() or 1)
    model = HFLM(options.model, dtype="float32", device="cpu")
    asked = {name: [(at, pair) for at, row in enumerate(rows) for pair in task.pairs(row)] for name, task, rows in questions(options)}

    def ask(share: int = 1) -> Found:
        found: Found = {}
        for name, pairs in asked.items():
            likes = model.loglikelihood([Instance("loglikelihood", {}, pair, 0) for _, pair in pairs[::share]], disable_tqdm=True)
            found[name] = [[] for _ in range(pairs[-1][0] + 1)]
            for (row, _), (log_prob, _) in zip(pairs[::share], likes, strict=True):
                found[name][row].append(log_prob)
        return found

    took = {}
    ask(8)
    for model.batch_size_per_gpu in options.batches:
        began = time.perf_counter()
        ask(4)
        took[model.batch_size_per_gpu] = time.perf_counter() - began
    model.batch_size_per_gpu = min(took, key=took.__getitem__)
    print(f"hf: seconds of a quarter by batch size: { {size: round(seconds, 1) for size, seconds in took.items()} }", file=sys.stderr)
    return ask


SIDES = {"jaxllm": ours, "hf": harness}


def side(options: argparse.Namespace) -> None:
    """One of the two processes: answers every line of its input with the seconds and the log-likelihoods."""
    ask = SIDES[options.side](options)
    found = ask()
    for _ in iter(sys.stdin.readline, ""):
        began, busy = time.perf_counter(), time.process_time()
        found = ask()
        said = {"seconds": time.perf_counter() - began, "cpu_seconds": time.process_time() - busy, "found": found}
        print(json.dumps(said), flush=True)


def compared(first: Found, second: Found) -> tuple[int, float]:
    """How many continuations there are, and how far apart the two sides are at most, as a share."""
    ways = [(a, b) for name in first for x, y in zip(first[name], second[name], strict=True) for a, b in zip(x, y, strict=True)]
    return len(ways), max(abs(a - b) / max(1.0, abs(b)) for a, b in ways)


def main() -> None:
    """Prints one JSON line per metric."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.evals", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", default=PEERS, help="a Hugging Face folder")
    parser.add_argument("--text", nargs="+", default=[], help="gzipped text to train a tokenizer on; none: the folder's own")
    parser.add_argument("--data", required=True, help="where the files of the tasks are")
    parser.add_argument("--peer", default=".venv-3.11/bin/python", help="a Python with lm-eval, torch and transformers")
    parser.add_argument("--tasks", nargs="+", default=TASKS)
    parser.add_argument("--rows", type=int, default=100, help="of each task")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batches", nargs="+", type=int, default=BATCHES)
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    if options.side:
        side(options)
        return
    place = dressed(Path(options.model), options.text) if options.text else options.model
    words = ["-m", "benchmarks.evals", *sys.argv[1:], "--model", str(place), "--side"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    both = {name: [python, *words, name] for name, python in (("jaxllm", sys.executable), ("hf", options.peer))}
    processes = {name: subprocess.Popen(command, **pipes) for name, command in both.items()}
    took: dict[str, list[dict]] = {name: [] for name in both}
    for _ in range(options.rounds + 1):  # the first shows that both are ready
        for name, process in processes.items():
            process.stdin.write("\n")
            process.stdin.flush()
            took[name].append(json.loads(process.stdout.readline()))
            print(name, *(round(took[name][-1][metric], 1) for metric in ("seconds", "cpu_seconds")), file=sys.stderr, flush=True)
    for process in processes.values():
        process.stdin.close()
        process.wait()
    found = {name: said[-1]["found"] for name, said in took.items()}
    count, apart = compared(found["jaxllm"], found["hf"])
    print(json.dumps({"metric": "continuations", "value": count, "rows": {name: len(rows) for name, rows in found["hf"].items()}}))
    for metric in ("seconds", "cpu_seconds"):  # the second says more on a machine with other work
        times = {name: [one[metric] for one in said[1:]] for name, said in took.items()}
        times["times_faster"] = [theirs / own for own, theirs in zip(times["jaxllm"], times["hf"], strict=True)]
        for name, values in times.items():
            every = [round(value, 2) for value in values]
            print(json.dumps({"metric": f"{name} {metric}", "value": round(statistics.median(values), 2), "all": every}))
    print(json.dumps({"metric": "largest_difference", "value": apart, "unit": "share of a log-likelihood"}))
    assert apart < 1e-3, "the two sides do not score the same thing"


if __name__ == "__main__":
    main()
