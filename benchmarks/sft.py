"""Instruction tuning by itself: LoRA beside full weights in turn, how full packed rows are, how quickly dialogues become tokens.

python -m benchmarks.sft lora | packing FILE | encoding FILE [--tokenizer tokenizer.json]
FILE: dialogues in any form that `data.train` takes.
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from jaxllm.stages.setup import ONEDNN_FLAGS, give_memory_back

ASSETS = Path(os.environ.get("BENCH_ASSETS", Path.home() / ".cache" / "jaxllm-peers" / "assets"))
WAYS: dict[str, dict[str, Any]] = {"full": {}, "lora": {"peft.name": "lora", "peft.rank": 8}}
PACKED = {"batch_size": 3, "sequence_length": 1024, "seed": 2}  # W2's


def say(**found: Any) -> None:
    """One JSON line."""
    print(json.dumps(found), flush=True)


def peak() -> float:
    """MiB that this process has had at most; `getrusage` would count the process that started it too."""
    return int(re.findall(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[0]) / 1024


def lora(options: argparse.Namespace) -> None:
    """Steps of both ways in turn in one process, what their programs take, and the peak of a process each."""
    import jax

    from benchmarks.tuned import read_examples, start

    examples, overrides = read_examples(ASSETS / "w2.jsonl"), json.loads(options.settings)
    made, times, losses = {}, {way: [] for way in options.ways}, {way: [] for way in options.ways}
    for way in options.ways:
        one = start(ASSETS / "model", examples, PACKED, WAYS[way] | overrides)
        with jax.set_mesh(one.mesh):
            compiled = one.update.lower(one.state, one.frozen, one.feed()).compile()
        found = compiled.memory_analysis()
        parts = {name: getattr(found, f"{name}_size_in_bytes") / 2**20 for name in ("argument", "temp")}
        say(way=way, metric="memory_analysis", unit="MiB", value=sum(parts.values()), **parts)
        made[way] = one._replace(update=compiled)
    for _ in range(options.steps + 1):
        for way, one in made.items():
            with jax.set_mesh(one.mesh):
                begin = time.perf_counter()
                state, report = one.update(one.state, one.frozen, one.feed())
                losses[way].append(float(report["loss"]))
            times[way].append(time.perf_counter() - begin)
            made[way] = one._replace(state=state)
    for way, one in made.items():
        say(way=way, metric="step_time", unit="s", value=statistics.median(times[way][1:]), times=times[way][1:], losses=losses[way])
        one.feed.close()
    if len(made) == 1:
        say(way=way, metric="peak_rss", unit="MiB", value=peak())
        return
    ratios = [b / a for a, b in zip(*(times[way][1:] for way in made), strict=True)]
    say(metric="ratio of step times", value=statistics.median(ratios), spread=[min(ratios), max(ratios)])
    for way in made:
        words = [sys.executable, "-m", "benchmarks.sft", "lora", "--ways", way, "--steps", "1", "--settings", options.settings]
        print(*(line for line in subprocess.check_output(words, text=True).splitlines() if "peak_rss" in line), flush=True)


def dialogues(options: argparse.Namespace) -> tuple[list[Any], Any, Any, str]:
    """The dialogues of the file, a template, a tokenizer and its file."""
    from jaxllm.data.conversations import Reading, Tally, records
    from jaxllm.data.tokenizers import make_tokenizer
    from jaxllm.stages import dialogues
    from jaxllm.stages.config import resolve

    (source,) = dialogues.sources_of([{"path": options.file}], "FILE")
    found = [one for _, rows in records(source, Reading(source.format, (), 2, 0), Tally(source.name)) for one in rows]
    path = options.tokenizer or trained([message.content for one in found for message in one.messages])
    tokenizer = make_tokenizer({"kind": "tokenizer.json", "path": path})
    said = dialogues.encoding_of(resolve({"chat": {"template": options.template}}), tokenizer)[1]
    return found, said.template, tokenizer, path


def trained(texts: list[str]) -> str:
    """A byte-level BPE of 16,000 ids, trained on these texts; where it lies."""
    import tokenizers

    model = tokenizers.Tokenizer(tokenizers.models.BPE())
    model.pre_tokenizer, model.decoder = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False), tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    how = {"vocab_size": 16_000, "special_tokens": special, "initial_alphabet": alphabet, "show_progress": False}
    model.train_from_iterator(texts, tokenizers.trainers.BpeTrainer(**how))
    model.save(path := f"{tempfile.mkdtemp()}/tokenizer.json")
    return path


def packing(options: argparse.Namespace) -> None:
    """The share of places in packed rows that hold a token."""
    from benchmarks.tuned import read_examples
    from jaxllm.data.chat import encode_batch
    from jaxllm.data.example_rows import ExampleReader
    from jaxllm.data.examples import Example, write_examples

    if options.file.endswith("w2.jsonl"):
        store = read_examples(Path(options.file))
    else:
        rows, template, tokenizer, _ = dialogues(options)
        encoded = [one for one in encode_batch(rows, template, tokenizer) if isinstance(one, Example)]
        folder = Path(tempfile.mkdtemp()) / "examples"
        store = write_examples(folder, encoded, vocab_size=tokenizer.vocab_size, fingerprint=options.file)
    for length in (512, 1024, 2048, 4096):
        reader = ExampleReader({"file": store}, sequence_length=length, batch_size=8, seed=0, too_long="truncate")
        said = reader.statistics()
        trained = said["trained"] / said["tokens"]
        say(metric="packing", sequence_length=length, value=said["efficiency"], trained=trained, truncated=said["truncated"])


def encoding(options: argparse.Namespace) -> None:
    """Characters a second of one core's own time: `encode_batch`, and the tokenizer's library alone, in turn."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    import tokenizers

    from jaxllm.data.chat import encode_batch
    from jaxllm.data.examples import Example

    rows, template, tokenizer, path = dialogues(options)
    texts = ["".join(part.text for part in template.render(one, [len(one.messages) - 1], False) if not part.token) for one in rows]
    size, library = sum(map(len, texts)), tokenizers.Tokenizer.from_file(path)
    for _ in range(options.rounds):
        begin = time.process_time()
        found = encode_batch(rows, template, tokenizer)
        middle = time.process_time()
        library.encode_batch(texts, add_special_tokens=False)
        end = time.process_time()
        rates = {"ours": size / (middle - begin), "library": size / (end - middle)}
        whole = sum(isinstance(one, Example) for one in found)
        say(metric="encoding", unit="characters/s", ratio=rates["ours"] / rates["library"], dialogues=whole, **rates)


WHAT = {"lora": lora, "packing": packing, "encoding": encoding}


def main() -> None:
    """Prints one JSON line per figure."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sft", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("what", choices=list(WHAT))
    parser.add_argument("file", nargs="?")
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=list(WAYS))
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--settings", default="{}", help="JSON: keys of a config, for both ways")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--template", default="chatml")
    parser.add_argument("--tokenizer", help="a tokenizer.json")
    options = parser.parse_args()
    os.environ["JAX_PLATFORMS"] = "cpu"
    give_memory_back()
    os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", ONEDNN_FLAGS)
    WHAT[options.what](options)


if __name__ == "__main__":
    main()
