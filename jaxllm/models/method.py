"""What every method of parameter-efficient tuning is: a maker of the second tree, layer by layer, in the model's own layout."""

import difflib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxllm.models import adapted
from jaxllm.models.adapted import Params
from jaxllm.models.layers import AXES, INPUTS
from jaxllm.models.model import Model
from jaxllm.parallel import rules


class Site(NamedTuple):
    """A Dense of a layer."""

    path: tuple[str, ...]  # within the layer: ("attention", "query")
    shape: tuple[int, ...]  # of its kernel
    axes: rules.LogicalAxes  # of its kernel
    num_inputs: int  # how many leading dims of the kernel are summed over


def sites(model: Model) -> dict[str, Site]:
    """Every Dense of a layer by name; all layers have the same."""
    layer = model.relayout(model.abstract(), False)["layers"]["0"]
    leaves = {tuple(rules.path_name(path).split("/")): leaf.shape for path, leaf in jax.tree_util.tree_leaves_with_path(layer)}
    kernels = {path[:-1]: shape for path, shape in leaves.items() if path[-1] == "kernel"}
    return {path[-1]: Site(path, shape, AXES[f"{path[-1]}/kernel"], INPUTS.get(path[-1], 1)) for path, shape in kernels.items()}


def chosen(model: Model, names: str | Iterable[str] | None) -> dict[str, Site]:
    """The Dense modules with these names; None: all.

    Raises:
      ValueError: no Dense has the name.
    """
    found = sites(model)
    names = found if names is None else (names,) if isinstance(names, str) else tuple(names)
    for name in names:
        if name not in found:
            raise ValueError(f"peft.targets: no linear layer is called {name!r}. Choose from: {', '.join(found)}.{nearest(name, found)}")
    if not names:
        raise ValueError(f"peft.targets is empty. Choose from: {', '.join(found)}; or leave it out for all.")
    return {name: found[name] for name in names}


def nearest(name: str, names: Iterable[str]) -> str:
    """' Did you mean ...?', or nothing."""
    near = difflib.get_close_matches(str(name), list(names), n=1, cutoff=0.4)
    return f" Did you mean {near[0]!r}?" if near else ""


def nested(flat: dict[tuple[str, ...], Any]) -> dict[str, Any]:
    """{("a", "b"): x} -> {"a": {"b": x}}."""
    tree: dict[str, Any] = {}
    for path, leaf in flat.items():
        at = tree
        for part in path[:-1]:
            at = at.setdefault(part, {})
        at[path[-1]] = leaf
    return tree


@dataclass(frozen=True)
class Peft:
    """One method with its options, for one model. A method says what one layer has, and what there is once."""

    model: Model

    def layer(self, rng: jax.Array, base: Params, index: jax.Array) -> Params:
        """The adapters of layer `index`, int32 scalar; `base` is the layer's own parameters."""
        return {}

    def layer_axes(self) -> Params:
        """Their logical axes."""
        return {}

    def stem(self, rng: jax.Array, base: Params) -> Params:
        """The adapters outside of the layers; `base` is all parameters."""
        return {}

    def stem_axes(self) -> Params:
        """Their logical axes."""
        return {}

    @property
    def num_soft(self) -> int:
        """How many soft tokens stand in front of each text: task k has the ids V + k * num_soft and on."""
        return 0

    def init(self, rng: jax.Array, base: Params) -> Params:
        """Fresh adapters, float32, in the model's layout of layers; the same draws in either. Best under `jax.jit`.

        Args:
          rng: a key.
          base: the model's parameters.
        """
        config, layers = self.model.config, base["layers"]
        stem_key, layers_key = jax.random.split(rng)

        @jax.jit  # so that it is traced once for all layers
        def layer(index, base):
            return self.layer(jax.random.fold_in(layers_key, index), base, index)

        found = {name: layer(jnp.int32(name), own) for name, own in layers.items() if name != "scanned"}
        places, whole = len(config.layer_pattern), len(config.layer_pattern) * config.num_repeats
        stacks = layers.get("scanned", {}).items()
        scanned = {p: jax.vmap(layer)(jnp.arange(int(p), whole, places, dtype=jnp.int32), own) for p, own in stacks}
        return self._tree({**found, **({"scanned": scanned} if scanned else {})}, self.stem(stem_key, base))

    def abstract(self) -> Params:
        """The adapters as ShapeDtypeStructs."""
        return jax.eval_shape(self.init, jax.random.key(0), self.model.abstract())

    def axes(self) -> Params:
        """The adapters' tree with a tuple of logical axis names for each array."""
        config, one = self.model.config, self.layer_axes()
        stacked = jax.tree.map(lambda axes: ("layers", *axes), one, is_leaf=lambda x: isinstance(x, tuple))
        if not self.model.scan_layers:
            return self._tree({str(i): one for i in range(config.num_layers)}, self.stem_axes())
        scanned = {"scanned": {str(p): stacked for p in range(len(config.layer_pattern))}} if config.num_repeats else {}
        return self._tree({**{str(i): one for i in config.remainder}, **scanned}, self.stem_axes())

    def _tree(self, layers: Params, stem: Params) -> Params:
        return {**stem, "layers": layers} if self.layer_axes() else stem

    def relayout(self, adapters: Any, scan_layers: bool) -> Any:
        """The adapters, or anything that holds trees like them, with the layers in the wanted layout, bit for bit."""
        return self.model.relayout(adapters, scan_layers)

    def merge(self, base: Params, adapters: Params) -> Params:
        """One tree of parameters that does the same, for the model alone; computed in float32.

        Raises:
          ValueError: no parameters of this model can do the same.
        """
        return adapted.merge(base, adapters)


Maker = Callable[..., Peft]
