"""Checkpoints of a work directory: lists them, verifies every byte, deletes old ones."""

from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table

from jaxllm.training import loading, retention
from jaxllm.training import manifest as manifests
from jaxllm.training.lock import hold
from jaxllm.training.manifest import BrokenCheckpoint, Manifest

DONE, BROKEN = 0, 1


class Row(NamedTuple):
    """One checkpoint: its manifest if that can be read, and what is wrong (None: nothing was found)."""

    step: int
    manifest: Manifest | None
    trouble: str | None


def inspect(folder: Any, verify: bool) -> list[Row]:
    """Looks at every checkpoint of a folder: at its manifest and the files' sizes, or with `verify` at every byte."""
    rows = []
    for step in loading.steps(folder):
        path, manifest = loading.open_folder(folder) / str(step), None
        try:
            manifest = manifests.read(path)
            trouble = manifests.trouble(path, manifest.files, contents=verify)
        except (BrokenCheckpoint, ValueError) as error:
            trouble = str(error)
        rows.append(Row(step, manifest, trouble))
    return rows


def table(rows: Sequence[Row], verified: bool) -> Table:
    """The rows for people to read."""
    result = Table()
    for name, justify in (("step", "right"), ("saved (UTC)", "left"), ("size", "right"), ("metrics", "left"), ("state", "left")):
        result.add_column(name, justify=justify)  # type: ignore[arg-type]
    for row in rows:
        good = "whole, verified" if verified else "complete"
        state = f"[red]{row.trouble}[/red]" if row.trouble else f"[green]{good}[/green]"
        if row.manifest is None:
            result.add_row(str(row.step), "", "", "", state)
            continue
        metrics = ", ".join(f"{name} {value:.4g}" for name, value in sorted(row.manifest.metrics.items()))
        result.add_row(str(row.step), row.manifest.saved_at.split("+")[0].replace("T", " "), size(row.manifest.num_bytes), metrics, state)
    return result


def size(num_bytes: float) -> str:
    """Bytes as people write them: 1.2 GB."""
    for unit in ("B", "kB", "MB", "GB"):
        if num_bytes < 1000:
            return f"{num_bytes:.3g} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:.3g} TB"


def prune(folder: Any, rows: Sequence[Row], keep: int) -> list[int]:
    """Deletes all but the last `keep` whole checkpoints, and the broken ones; never the last whole one.

    Raises:
      ValueError: `keep` is less than 1, or no checkpoint is whole: then nothing is deleted.
    """
    if keep < 1:
        raise ValueError(f"--prune {keep}: give 1 or more; the last whole checkpoint is never deleted.")
    whole = {row.step: row.manifest.metrics for row in rows if row.manifest is not None and row.trouble is None}
    if rows and not whole:
        raise ValueError(f"No whole checkpoint in {folder}: nothing is deleted. Look with --verify.")
    going = sorted({*retention.to_delete(whole, keep), *(row.step for row in rows if row.step not in whole)})
    retention.delete(loading.open_folder(folder), going)
    return going


def main(args: Namespace, overrides: Sequence[str] = ()) -> int:
    """`jaxllm checkpoints WORKDIR [--verify] [--prune K]`: 0, or 1 when a checkpoint is broken."""
    if overrides:
        raise ValueError(f"jaxllm checkpoints does not know {overrides[0]!r}. Choose from: --verify, --prune K.")
    workdir = loading.open_folder(args.workdir)
    folder, console = workdir / "checkpoints", Console()
    if not folder.exists():
        raise ValueError(f"{Path(args.workdir)} has no checkpoints/ folder. Give the work directory of a run.")
    if args.prune is None:
        rows = inspect(folder, args.verify)
    else:
        with hold(workdir):  # what is being written looks half-written, and must not be deleted
            rows = inspect(folder, args.verify)
            gone = prune(folder, rows, args.prune)
        console.print(f"Deleted: {', '.join(map(str, gone)) or 'nothing'}.")
        rows = [row for row in rows if row.step not in gone]
    if not rows:
        console.print(f"No checkpoint in {folder} yet.")
        return DONE
    console.print(f"{folder}", soft_wrap=True)
    console.print(table(rows, args.verify))
    return BROKEN if any(row.trouble for row in rows) else DONE
