"""The data of a config on its mesh: token files, readers, and batches as global arrays."""

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath
from jax.sharding import NamedSharding
from ml_collections import ConfigDict

from jaxllm.data.pipeline import EvalReader, Feed, Reader
from jaxllm.data.prepared import Prepared, open_prepared
from jaxllm.data.remote import is_remote
from jaxllm.data.sources import make_sources
from jaxllm.evaluation.perplexity import unigram
from jaxllm.ops.attention import zigzag_order
from jaxllm.parallel import hosts, rules
from jaxllm.parallel.rows import make_global, rows_needed
from jaxllm.stages import workdir
from jaxllm.stages.config import as_dict, resolve
from jaxllm.stages.prepare import EVAL_FRACTION, prepare, settings_of
from jaxllm.stages.recipe import EvalRows, Soft

BASELINE_TOKENS = 2_000_000  # of each source, for the unigram baseline
FILES = {"sentencepiece": "tokenizer.model", "tokenizer.json": "tokenizer.json"}  # what `Tokenizer.save` writes


class TextData:
    """Token files as the data of a run: windows of a stream of documents. See `recipe.Data`."""

    def __init__(self, prepared: Prepared):
        self.prepared, self.tokenizer = prepared, prepared.tokenizer
        self.content, self.train_content = prepared.content, prepared.train_content

    def check(self, config: ConfigDict, workdir: str, whole: Any = None) -> None:
        check_data(config, self.prepared, workdir, whole)

    def reader(self, config: ConfigDict, soft: Soft | None = None) -> Reader:
        if soft is not None:
            raise ValueError(
                f"peft.name={config.peft.name!r} puts soft tokens in front of examples, and text has none. Use it in `jaxllm sft`."
            )
        return reader(config, self.prepared)

    def eval_names(self) -> list[str]:
        return list(self.prepared.streams("eval"))

    def eval_reader(self, config: ConfigDict, name: str, soft: Soft | None = None) -> EvalReader:
        size = {"sequence_length": config.sequence_length, "batch_size": config.batch_size}
        return EvalReader(self.prepared.streams("eval")[name], **size, max_batches=config.eval.batches or None)

    def tasks(self) -> list[str]:
        return []

    def steps(self, config: ConfigDict, soft: Soft | None = None) -> int | None:
        if config.epochs:
            raise ValueError(f"epochs={config.epochs} counts how often dialogues are gone through. Of text, give steps.")
        return None

    def baselines(self) -> dict[str, float]:
        return unigram_baseline(self.prepared)

    def shown(self, config: ConfigDict, step: int, row: int) -> tuple[Mapping[str, Any], None]:
        return self.reader(config).rows(step, [row]), None

    def record(self) -> dict[str, Any]:
        return {"prepared": self.prepared.folder}

    def lines(self, config: ConfigDict, soft: Soft | None = None) -> list[str]:
        return []


def data(config: ConfigDict) -> TextData:
    """The prepared token files of a config: opened where they are, made where they are not (and said)."""
    return TextData(prepare(settings_of(config), say=hosts.say))


def data_of_run(config: ConfigDict, folder: str, anew: bool) -> TextData:
    """The token files of a run, for those who read it: the very folder it was trained from, or other text through the run's own tokenizer.

    Args:
      config: the run's config, with whatever was overridden.
      folder: its work directory.
      anew: the data of the config was changed, so it must be prepared.

    Raises:
      ValueError: the folder is gone, or its tokenizer is another.
    """
    tokenizer, record = workdir.own_tokenizer(folder), workdir.read(folder)
    if not anew:
        if "prepared" not in record:
            raise ValueError(
                f"{folder} was converted, not trained: it has no text of its own. Name text to score: --config.data.eval=FILE."
            )
        return TextData(open_prepared(record["prepared"], tokenizer=tokenizer))
    with tempfile.TemporaryDirectory() as local:
        tokenizer.save(local)
        spec = (
            {"kind": tokenizer.kind} if tokenizer.kind == "bytes" else {"kind": tokenizer.kind, "path": f"{local}/{FILES[tokenizer.kind]}"}
        )
        return TextData(prepare({**settings_of(config), "tokenizer": spec}, trains=False, say=hosts.say))


TEXT_KEYS = ("train", "eval", "prepared", "eval_fraction", "dedup", "filters")
REMEDY = "Set it back, or choose another --workdir."


def check_data(config: ConfigDict, prepared: Any, folder: str, whole: Any = None) -> None:
    """Refuses to go on with other training data than a run began with; their content counts, not where they lie or how they are said.

    Raises:
      ValueError: another tokenizer, other tokens to train on, or other weights of the sources.
    """
    if not (epath.Path(folder) / workdir.NAME).exists():
        return
    check_content(config, whole or prepared, folder, TEXT_KEYS)
    record, names = workdir.read(folder), list(prepared.streams("train"))
    weights = [source_weights(said, names) for said in (resolve(record["config"]), config)]
    if weights[0] != weights[1]:
        raise ValueError(f"{folder} was trained with other weights of data.train: they were {weights[0]}, are {weights[1]}. {REMEDY}")


def check_content(config: ConfigDict, data: Any, folder: str, keys: Sequence[str]) -> None:
    """Refuses another tokenizer, or other content to train on, than a run began with.

    Args:
      config: of the run that starts.
      data: has `tokenizer`, `content` and `train_content`.
      folder: the work directory.
      keys: of the config's `data` that may be why.

    Raises:
      ValueError: shows which of them differ.
    """
    if not (epath.Path(folder) / workdir.NAME).exists():
        return
    record = workdir.read(folder)
    was, is_ = (workdir.with_absolute_paths(said)["data"] for said in (record["config"], as_dict(config)))
    if record["tokenizer"] != data.tokenizer.fingerprint:
        shown = f"data.tokenizer was {was['tokenizer']}, is {is_['tokenizer']}"
        raise ValueError(f"{folder} was trained with another tokenizer: {shown}. {REMEDY}")
    key, content = ("train_data", data.train_content) if "train_data" in record else ("data", data.content)
    if record[key] != content:
        shown = "; ".join(f"data.{name} was {was.get(name)!r}, is {is_[name]!r}" for name in keys if was.get(name) != is_[name])
        if was["eval_fraction"] is None and bool(was["eval"]) != bool(is_["eval"]):
            shown += f"; data.eval_fraction={0.0 if was['eval'] else EVAL_FRACTION} keeps the share that was held out then"
        raise ValueError(
            f"{folder} was trained on other text: {shown or 'every key of data is as it was'}."
            " Set that back, or the files of data.train if they were changed, or choose another --workdir."
        )
    if record["data"] != data.content and record[key] == content and key == "train_data":
        hosts.say("The validation text is another than before: earlier evals in this work directory do not compare with those to come.")


def row_shardings(mesh: Any) -> dict[int, NamedSharding]:
    """How the arrays of a batch lie, by their rank: [B], [B, T] and [B, G, K], of groups of answers."""
    axes = {1: ("batch",), 2: ("batch", "sequence"), 3: ("batch", None, None)}
    return {rank: NamedSharding(mesh, rules.spec(names, rules.COMPUTE)) for rank, names in axes.items()}


def placement(config: ConfigDict, mesh: Any) -> Callable[[Mapping[str, Any], Any], dict[str, Any]]:
    """A function from this process's rows to global arrays on the mesh; along T in the order that balances the context axis."""
    ways, shardings = mesh.shape["context"], row_shardings(mesh)

    def place(rows: Mapping[str, Any], indices: Any) -> dict[str, Any]:
        order = zigzag_order(rows["tokens"].shape[1], ways)
        permuted = {name: array[:, order] if array.ndim == 2 and ways > 1 else array for name, array in rows.items()}
        return {name: make_global(array, shardings[array.ndim], config.batch_size) for name, array in permuted.items()}

    return place


def own_rows(config: ConfigDict, mesh: Any) -> Any:
    """Which rows of the global batch this process reads."""
    return rows_needed(row_shardings(mesh)[1], config.batch_size)


def reader(config: ConfigDict, prepared: Any) -> Any:
    """The rows of the training split: a pure function of the step."""
    streams = prepared.streams("train")
    return Reader(
        streams,
        sequence_length=config.sequence_length,
        batch_size=config.batch_size,
        seed=config.seed,
        weights=source_weights(config, list(streams)),
        threads=16 if is_remote(prepared.folder) else 1,
    )


def feed(config: ConfigDict, mesh: Any, rows: Any) -> Any:
    """The endless batches of a reader, on the mesh."""
    return Feed(rows, placement(config, mesh), rows=own_rows(config, mesh), prefetch=config.data.prefetch)


def source_weights(config: ConfigDict, names: list[str]) -> dict[str, float] | None:
    """Source name -> weight, where the config gives any; None: each source in proportion to its size.

    Raises:
      ValueError: only some sources have a weight.
    """
    entries = [dict(entry) for entry in config.data.train]
    given = [entry for entry in entries if entry.get("weight") is not None]
    if not given:
        return None
    if len(given) < len(entries):
        bare = next(entry["path"] for entry in entries if entry.get("weight") is None)
        raise ValueError(f"data.train: {bare!r} has no weight and others have. Give every source a weight, or none.")
    weights = {source.name: float(entry["weight"]) for source, entry in zip(make_sources(entries, "data.train"), entries, strict=True)}
    return {name: weights[name] for name in names}


def eval_batches(config: ConfigDict, mesh: Any, rows: EvalRows) -> Iterator[Any]:
    """The batches of a validation set, on the mesh, each row once."""
    place, own = placement(config, mesh), own_rows(config, mesh)
    return (place(rows.rows(step, own), own) for step in range(rows.num_batches))


def unigram_baseline(prepared: Prepared) -> dict[str, float]:
    """What knowing only how often each token occurs would score on the held-out text (counted on the first tokens of each).

    As in training, the first token of a document (its beginning-of-text token, where there is one) is never predicted: it does not count.
    """
    size = prepared.tokenizer.vocab_size

    def targets(stream: Any) -> np.ndarray:
        stop = min(stream.num_tokens, BASELINE_TOKENS)
        return np.delete(stream.read(0, stop), [0, *stream.ends(0, stop - 1)])

    def counts(split: str) -> np.ndarray:
        parts = [np.bincount(targets(stream), minlength=size) for stream in prepared.streams(split).values()]
        return sum(parts, np.zeros(size, np.int64))

    held_out = counts("eval")
    return unigram(counts("train"), held_out, prepared.tokenizer.token_bytes()) if held_out.sum() else {}
