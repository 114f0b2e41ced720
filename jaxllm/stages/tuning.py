"""What of a model a run trains: all of its parameters, or a small tree beside a frozen base (`peft.name`)."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict

from jaxllm.models import peft
from jaxllm.models.adapted import Adapted
from jaxllm.models.model import Model
from jaxllm.ops import quantize
from jaxllm.parallel import rules
from jaxllm.training.step import purpose_key

OPTIONS = ("rank", "alpha", "targets", "dropout", "length", "layers")  # keys of `peft` that a method takes by these names


class Tuned(NamedTuple):
    """A model, and what of it is trained.

    Attributes:
      model: the whole model.
      method: the way of tuning; None: the parameters themselves.
      quantize: how the frozen base is stored: "none", "int8", "nf4".
    """

    model: Model
    method: Any = None
    quantize: str = "none"

    def axes(self) -> Any:
        """Logical axes of what is trained."""
        return self.model.axes() if self.method is None else self.method.axes()

    def whole(self, trained: Any, frozen: Any) -> Any:
        """What `Model` computes with."""
        return trained if self.method is None else Adapted(frozen["base"], trained)

    def init(self, config: ConfigDict) -> Callable[[], Any]:
        """Draws what is trained, with a base that is drawn too: for its shapes, or for a run without `init_from`."""
        if self.method is None:
            return lambda: self.model.init(jax.random.key(config.seed))
        return lambda: self.method.init(key(config), self.model.init(jax.random.key(config.seed)))

    def abstract(self, config: ConfigDict, mesh: Any) -> Any:
        """Shapes and places of what is trained."""
        with rules.under(mesh):
            shapes = jax.eval_shape(self.init(config))
        places = rules.shardings(self.axes(), mesh, shapes)
        return jax.tree.map(lambda s, place: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=place), shapes, places)

    def abstract_frozen(self, mesh: Any) -> dict[str, Any]:
        """Shapes and places of what is read and never trained."""
        if self.method is None:
            return {}
        shapes = jax.eval_shape(self.stored, self.model.abstract())
        shardings = base_shardings(self.model, mesh, shapes)
        return {"base": jax.tree.map(lambda s, place: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=place), shapes, shardings)}

    def stored(self, base: Any) -> Any:
        """The base as it is kept in memory."""
        return base if self.quantize == "none" else quantize.quantize_params(base, self.quantize)

    def relayout(self, tree: Any, scan_layers: bool) -> Any:
        """A tree of what is trained, with the layers in the wanted layout."""
        return self.model.relayout(tree, scan_layers) if self.method is None else self.method.relayout(tree, scan_layers)


def base_shardings(model: Model, mesh: Any, shapes: Any) -> Any:
    """Where the leaves of a stored base lie."""
    return rules.shardings(model.axes(), mesh, shapes)


def key(config: ConfigDict) -> jax.Array:
    """Of the first draw of what is trained beside the base."""
    return purpose_key(config.seed, "peft", 0)


def make(config: ConfigDict, model: Model) -> Tuned:
    """What a config trains.

    Raises:
      ValueError: an unknown method, or options that it does not take.
    """
    section = config.peft
    if not section.name:
        given = [name for name in OPTIONS if section[name] not in (None, [], ())]
        if given or section.quantize != "none" or section.options:
            name = given[0] if given else "quantize" if section.quantize != "none" else "options"
            raise ValueError(
                f"peft.{name}={section[name]!r} without peft.name tunes nothing. Choose peft.name from: {', '.join(peft.METHODS)}."
            )
        return Tuned(model)
    options = {name: section[name] for name in OPTIONS if section[name] not in (None, [], ())} | section.options.to_dict()
    return Tuned(model, peft.make(model, section.name, **options), section.quantize)


def lines(tuned: Tuned, state: Any, still: Any) -> list[str]:
    """How much of the model is trained, and what the rest of it takes."""
    if tuned.method is None:
        return []
    count = lambda tree: sum(leaf.size for leaf in jax.tree.leaves(tree))  # noqa: E731
    trained, whole = count(state.params), tuned.model.num_params()
    size = sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in jax.tree.leaves(still["base"]))
    return [
        f"trained: {trained:,} beside {whole:,} frozen parameters ({trained / whole:.2%}); frozen base per device: {size / 2**20:,.1f} MiB"
    ]
