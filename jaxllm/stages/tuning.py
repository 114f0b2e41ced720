"""What of a model a run trains: all of its parameters, or a small tree beside a frozen base (`peft.name`)."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict

from jaxllm.data.tokenizer_kinds import Tokenizer
from jaxllm.interop import peft_folders, settings
from jaxllm.models import heads, peft, quantized
from jaxllm.models.adapted import Adapted
from jaxllm.models.model import Model
from jaxllm.parallel import rules
from jaxllm.stages import setup
from jaxllm.stages.recipe import Beside, Soft
from jaxllm.training.step import purpose_key

NOTHING = Beside()
OPTIONS = ("rank", "alpha", "targets", "dropout", "length", "layers")  # keys of `peft` that a method takes by these names
TEXTS = ("text", "labels")  # options that a config gives as text, and a method takes as ids


class Tuned(NamedTuple):
    """A model, and what of it is trained.

    Attributes:
      model: the whole model.
      method: the way of tuning; None: the parameters themselves.
      quantize: how the frozen base is stored: "none", "int8", "nf4".
      beside: what the stage needs beside it: a head that is trained too, a frozen reference.
    """

    model: Model
    method: Any = None
    quantize: str = "none"
    beside: Beside = NOTHING

    def axes(self) -> Any:
        """Logical axes of what is trained."""
        own = self.model.axes() if self.method is None else self.method.axes()
        return own if self.beside.head is None else {**own, heads.NAME: self.beside.head.axes(own)}

    def still(self) -> list[str]:
        """Regexes of what is in the trained tree, and is not trained."""
        head = self.beside.head
        return [*(self.beside.still if self.method is None else ()), *([heads.PRIOR] if head is not None and head.prior else [])]

    def optimizer(self, config: ConfigDict) -> Any:
        """The optimizer of what is trained."""
        return self.beside.paced(setup.optimizer(config, self.axes(), self.still()))

    def whole(self, trained: Any, frozen: Any) -> Any:
        """What `Model` computes with; where there is a head, `heads.of` finds it."""
        own = {name: tree for name, tree in trained.items() if name != heads.NAME}
        params = own if self.method is None else Adapted(frozen["base"], own)
        return params if self.beside.head is None else heads.joined(params, trained[heads.NAME])

    def with_head(self, config: ConfigDict, own: Any) -> Any:
        """What is trained of the model itself, and a fresh head beside it where there is one."""
        if self.beside.head is None:
            return own
        return {**own, heads.NAME: self.beside.head.init(purpose_key(config.seed, "head", 0), own)}

    def init(self, config: ConfigDict) -> Callable[[], Any]:
        """Draws what is trained, with a base that is drawn too: for its shapes, or for a run without `init_from`."""

        def init():
            base = self.model.init(jax.random.key(config.seed))
            return self.with_head(config, base if self.method is None else self.method.init(key(config), base))

        return init

    def abstract(self, config: ConfigDict, mesh: Any) -> Any:
        """Shapes and places of what is trained."""
        with rules.under(mesh):
            shapes = jax.eval_shape(self.init(config))
        places = rules.shardings(self.axes(), mesh, shapes)
        return jax.tree.map(lambda s, place: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=place), shapes, places)

    def abstract_frozen(self, mesh: Any) -> dict[str, Any]:
        """Shapes and places of what is read and never trained."""
        if self.method is None and not self.beside.reference:
            return {}
        shapes, axes = self.model.abstract(), self.model.axes()
        if self.quantize != "none":
            shapes, axes = quantized.abstract(self.model, self.quantize), quantized.axes(self.model, self.quantize)
        shardings = rules.shardings(axes, mesh, shapes)
        name = "reference" if self.method is None else "base"
        return {name: jax.tree.map(lambda s, place: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=place), shapes, shardings)}

    def stored(self, base: Any) -> Any:
        """The base as it is kept in memory; what is given is used up."""
        return base if self.quantize == "none" else quantized.quantize_params(base, self.quantize, free=True)

    def soft(self) -> Soft | None:
        """The soft tokens that stand in front of examples, where the method has any."""
        if self.method is None or not self.method.num_soft:
            return None
        return Soft(self.method.num_soft, self.model.config.vocab_size, self.method.num_tasks)

    def relayout(self, tree: Any, scan_layers: bool) -> Any:
        """A tree of what is trained, with the layers in the wanted layout."""
        return self.model.relayout(tree, scan_layers) if self.method is None else self.method.relayout(tree, scan_layers)


def key(config: ConfigDict) -> jax.Array:
    """Of the first draw of what is trained beside the base."""
    return purpose_key(config.seed, "peft", 0)


def make(config: ConfigDict, model: Model, tokenizer: Tokenizer | None = None, beside: Beside = NOTHING) -> Tuned:
    """What a config trains.

    Args:
      config: resolved.
      model: the whole model.
      tokenizer: for options that are texts; None: where only shapes matter.
      beside: what the stage needs beside the model.

    Raises:
      ValueError: an unknown method, or options that it does not take.
    """
    section = config.peft
    if section.init_from:
        if section.name:
            raise ValueError(f"peft.init_from={section.init_from!r} brings its own method. Leave out peft.name={section.name!r}.")
        return Tuned(model, of_folder(section.init_from, model).method, section.quantize, beside)
    given = {name: section[name] for name in OPTIONS if section[name] not in (None, [], ())} | section.options.to_dict()
    if not section.name:
        if given or section.quantize != "none":
            key, value = next(iter(given.items()), ("quantize", section.quantize))
            raise ValueError(f"peft.{key}={value!r} without peft.name tunes nothing. Choose peft.name from: {', '.join(peft.METHODS)}.")
        return Tuned(model, beside=beside)
    for name in TEXTS:
        if name in given:
            given[name] = _ids(given[name], tokenizer)
    return Tuned(model, peft.make(model, section.name, **given), section.quantize, beside)


def of_folder(folder: str, model: Model, base: str | None = None, fingerprint: str | None = None) -> peft_folders.Found:
    """The adapters of a folder as Hugging Face's PEFT writes them; `base` and `fingerprint` are of the weights they shall stand beside.

    Raises:
      ValueError: see `peft_folders.open_adapters` and `peft_folders.read`.
    """
    return peft_folders.read(peft_folders.open_adapters(folder, base, fingerprint), settings.family_of(model.config), model)


def _ids(said: Any, tokenizer: Tokenizer | None) -> Any:
    """A text as its ids, a list of texts as theirs; ids as they are."""
    if isinstance(said, str):
        return (0,) if tokenizer is None else tuple(tokenizer.encode(said).tolist())
    return tuple(_ids(one, tokenizer) for one in said) if isinstance(said, list | tuple) else said


def lines(tuned: Tuned, state: Any, still: Any) -> list[str]:
    """How much of the model is trained, and what the rest of it takes."""
    shard = lambda leaf: math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize  # noqa: E731
    if tuned.method is None:
        size = sum(map(shard, jax.tree.leaves(still.get("reference", {}))))
        return [f"frozen reference per device: {size / 2**20:,.1f} MiB"] if size else []
    count = lambda tree: sum(leaf.size for leaf in jax.tree.leaves(tree))  # noqa: E731
    trained, whole = count(state.params), tuned.model.num_params()
    size = sum(map(shard, jax.tree.leaves(still["base"])))
    return [
        f"trained: {trained:,} beside {whole:,} frozen parameters ({trained / whole:.2%}); frozen base per device: {size / 2**20:,.1f} MiB"
    ]
