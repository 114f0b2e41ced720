"""Work directories into one page: curves, tables, samples, and where the time went; sweeps beside one another."""

import html
import json
import os
from argparse import Namespace
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from jaxllm.stages import figures, sweeps
from jaxllm.stages.page import curves, table, write
from jaxllm.training.goodput import goodput

CURVES = {  # of metrics.jsonl, where a run has them
    "reward": "reward",
    "kl_k3": "KL from the start (nats a token, k3)",
    "entropy_sampled": "entropy (nats a token, of the samples)",
    "completion_tokens": "tokens of a completion",
    "learning_rate": "learning rate",
    "grad_norm": "gradient norm",
    "tokens_per_second": "tokens per second",
}


def read_jsonl(path: os.PathLike | str) -> list[dict[str, Any]]:
    """The records of a JSON-lines file; none where there is no file, and a half-written last line (a killed run) is left out."""
    file, records = epath.Path(path), []
    for line in file.read_bytes().split(b"\n") if file.exists() else []:
        try:
            records.append(json.loads(line))
        except ValueError:  # half a line, or half a character
            continue
    return records


def points(records: Sequence[Mapping[str, Any]], key: str) -> tuple[list[float], list[float]]:
    """The steps and values of the records that have a number under this key."""
    found = [(r["step"], r[key]) for r in records if isinstance(r.get(key), int | float)]
    return [s for s, _ in found], [v for _, v in found]


def eval_points(evals: Sequence[Mapping[str, Any]], key: str) -> dict[str, tuple[list[float], list[float]]]:
    """Set name -> (steps, values) of one metric of evals.jsonl."""
    names = sorted({r["name"] for r in evals if isinstance(r.get(key), int | float)})
    return {name: points([r for r in evals if r["name"] == name], key) for name in names}


def goodput_rows(ledger: Sequence[Mapping[str, Any]]) -> list[tuple[str, float, str]]:
    """Seconds and share of each kind of work in goodput.jsonl, the largest first, and the goodput itself."""
    found = goodput(ledger)
    total = found["total_seconds"] or 1.0
    parts = sorted((pair for pair in found["seconds"].items() if pair[1]), key=lambda pair: -pair[1])
    lost = [("steps taken again after a kill", found["lost_seconds"])] if found["lost_seconds"] else []
    return [(name, float(value), f"{value / total:.1%}") for name, value in [*parts, *lost]] + [
        (f"goodput over {found['restarts']} restart(s)", float(total), f"{found['goodput']:.1%}")
    ]


def _evals(workdir: epath.Path) -> list[dict[str, Any]]:
    """The records of evals.jsonl without those of single rows."""
    return [record for record in read_jsonl(workdir / "evals.jsonl") if "/" not in record["name"]]


def section(workdir: epath.Path) -> str:
    """One run: what it was, its curves, its scores, its samples, its time."""
    config = json.loads((workdir / "config.json").read_bytes()) if (workdir / "config.json").exists() else {}
    metrics, evals = read_jsonl(workdir / "metrics.jsonl"), _evals(workdir)
    judged, asked = figures.judged(evals), figures.task_records(evals)
    evals = [r for r in evals if r not in judged and not any(r in own for own in asked.values())]
    guides = config.get("baselines", {})
    parts = [f"<h2>{html.escape(workdir.name)}</h2>"]
    if metrics:
        loss = {"train": points(metrics, "loss"), **eval_points(evals, "loss")}
        unigram = {"unigram baseline": guides["unigram_loss"]} if "unigram_loss" in guides else {}
        parts += ["<h3>Loss (nats per token)</h3>", curves(loss, "loss", unigram)]
        bits = eval_points(evals, "bits_per_byte")
        if bits:
            unigram = {"unigram baseline": guides["unigram_bits_per_byte"]} if "unigram_bits_per_byte" in guides else {}
            parts += ["<h3>Bits per byte</h3>", curves(bits, "bits per byte", unigram)]
        for key, label in CURVES.items():
            if points(metrics, key)[0]:
                parts += [f"<h3>{label[0].upper()}{label[1:]}</h3>", curves({label: points(metrics, key)}, label)]
        parts += figures.over_optimisation(metrics, config.get("config", {}).get("rl", {}).get("rewards", []))
    epochs = [r for r in evals if r["name"] == "epochs"]
    if epochs:
        rows = [(name, float(times)) for name, times in epochs[-1].items() if name not in ("step", "name")]
        parts += ["<h3>Epochs of each source</h3>", table(rows, ["source", "times seen"])]
        evals = [r for r in evals if r["name"] != "epochs"]
    if evals:
        last = {r["name"]: r for r in evals}
        keys = [k for k in ("step", "loss", "perplexity", "bits_per_byte", "tokens") if any(k in r for r in last.values())]
        parts += ["<h3>Evaluation</h3>", table([[name, *(r.get(k, "") for k in keys)] for name, r in last.items()], ["set", *keys])]
    parts += figures.tasks(asked) + figures.judges(judged)
    samples = read_jsonl(workdir / "samples.jsonl")
    if samples:
        blocks = [f'<pre><span class="prompt">{html.escape(r["prompt"])}</span>{html.escape(r["text"])}</pre>' for r in samples[-6:]]
        parts += ["<h3>Samples</h3>", *blocks]
    ledger = read_jsonl(workdir / "goodput.jsonl")
    if ledger:
        parts += ["<h3>Where the time went</h3>", table(goodput_rows(ledger), ["", "seconds", "share"])]
    if config:
        shown = json.dumps(config, indent=2, ensure_ascii=False)
        parts += [f"<details><summary>Config, versions and history</summary><pre>{html.escape(shown)}</pre></details>"]
    return "\n".join(parts)


def write_report(workdirs: Sequence[os.PathLike | str], output: os.PathLike | str) -> str:
    """Writes one self-contained HTML page for these work directories, here or remote; returns where it is.

    Raises:
      ValueError: a directory that holds no run.
    """
    folders = [epath.Path(workdir) for workdir in workdirs]
    for folder in folders:
        if not sweeps.is_sweep(folder) and not (folder / "config.json").exists() and not (folder / "metrics.jsonl").exists():
            raise ValueError(f"{folder} is not a work directory: it has no config.json. Give the --workdir of a run, or of a sweep.")
    asked = {folder.name: figures.task_records(_evals(folder)) for folder in folders if not sweeps.is_sweep(folder)}
    parts = [sweeps.section(folder, read_jsonl) if sweeps.is_sweep(folder) else section(folder) for folder in folders]
    body = "\n".join(figures.stages(asked)) + "\n<hr>\n".join(parts)
    return write(output, ", ".join(folder.name for folder in folders), f"<h1>jaxllm report</h1>{body}")


def main(args: Namespace, overrides: Sequence[str]) -> int:
    """`jaxllm report WORKDIR...`"""
    if overrides:
        raise ValueError(f"jaxllm report takes no {overrides[0]!r}. See `jaxllm report --help`.")
    print(write_report(args.workdirs, args.output or epath.Path(args.workdirs[0]) / "report.html"))
    return 0
