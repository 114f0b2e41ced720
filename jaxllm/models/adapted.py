"""The seam of parameter-efficient tuning: a base and a second tree beside it, and what an entry of that tree may do to the forward pass."""

from typing import Any, NamedTuple

import jax
from flax import linen as nn

from jaxllm.models.tokens import Tokens
from jaxllm.ops import quantize

COLLECTION = "adapters"  # Flax's name for the second tree
LAST = "last"  # where layers of the base are replaced, see `last_layers`
Params = dict[str, Any]


class Adapted(NamedTuple):
    """Stands wherever a `Model` takes parameters: the base alone, bit for bit, but for the places where `adapters` has an entry.

    Attributes:
      base: the model's parameters.
      adapters: a tree in the model's own layout, {"layers": {...: {module: {name: Adapter}}}, ...}; what has no entry costs nothing.
    """

    base: Params
    adapters: Params


class Adapter:
    """One entry: a registered dataclass of arrays and static settings. Every hook does nothing unless a kind of adapter says otherwise."""

    def into(self, x: jax.Array) -> jax.Array:
        """What a Dense is given instead of x."""
        return x

    def product(self, y: jax.Array, x: jax.Array, dense: Any, kernel: Any, tokens: Tokens | None) -> jax.Array:
        """What a Dense has instead of its product y of x and the stored `kernel`, before its bias; `dense` is the module."""
        return y

    def out(self, y: jax.Array) -> jax.Array:
        """What comes out of a Dense or a Norm instead of y; float32 in, float32 out."""
        return y

    def merged(self, params: Params) -> Params:
        """The module's own parameters with this entry in them, in their dtypes.

        Raises:
          ValueError: no parameters of the module do the same.
        """
        raise ValueError(f"An adapter of kind {type(self).__name__} is no change of weights: it cannot be merged. Keep it beside the base.")


def split(params: "Params | Adapted") -> tuple[Params, Params]:
    """Base and adapters; without any, the second is empty."""
    return (params.base, params.adapters) if isinstance(params, Adapted) else (params, {})


def variables(params: "Params | Adapted") -> dict[str, Params]:
    """What Flax's `apply` is given: without adapters, the parameters alone."""
    base, adapters = split(params)
    if LAST in adapters:
        base, adapters = adapters[LAST].opened(base), {name: tree for name, tree in adapters.items() if name != LAST}
    return {"params": base, COLLECTION: adapters} if adapters else {"params": base}


def stem(params: "Params | Adapted") -> Params:
    """The parameters as they are used outside of the layers."""
    base, adapters = split(params)
    return adapters[LAST].stem(base) if LAST in adapters else base


def repeats(params: "Params | Adapted") -> int | None:
    """How many repetitions of the layers' pattern are still a stack; None: as many as the model has."""
    base, adapters = split(params)
    return adapters[LAST].repeats(base["layers"]) if LAST in adapters else None


def told(params: "Params | Adapted", tokens: Tokens, ids: jax.Array, adapter: jax.Array | None, vocab_size: int) -> Tokens:
    """What the layers are told of the tokens int32 [B, T], with what only adapters ask for."""
    adapters = split(params)[1]
    if not adapters:
        return tokens
    inner = adapters["prefix"].inner() if "prefix" in adapters else None
    return tokens._replace(adapter=adapter, soft=ids - vocab_size, inner=inner)


def num_soft(params: "Params | Adapted") -> int:
    """How many ids there are beyond the vocabulary."""
    prompt = split(params)[1].get("embedding", {}).get("prompt")
    return 0 if prompt is None else prompt.count


def num_stacked(params: "Params | Adapted") -> int:
    """How many adapters a row may choose from; 0: there is no choice."""
    found = jax.tree.leaves(split(params)[1], is_leaf=lambda x: isinstance(x, Adapter))
    return max((getattr(one, "num_stacked", 0) for one in found), default=0)


def entries(module: nn.Module) -> tuple[Adapter, ...]:
    """The adapters that a module without children of its own has, by name."""
    found = module.variables.get(COLLECTION, {})
    return tuple(found[name] for name in sorted(found))


def entry(module: nn.Module, name: str) -> Any:
    """A module's adapter of this name, or None."""
    return module.get_variable(COLLECTION, name)


def merge(base: Params, adapters: Params) -> Params:
    """The base with every adapter in its weights; computed in float32, and in the base's dtypes; a quantised base becomes float32.

    Raises:
      ValueError: an adapter that no weights can do, see `Adapter.merged`.
    """
    return _merge(quantize.whole(base), adapters, stacked=False)


def _merge(base: Params, adapters: Params, stacked: bool) -> Params:
    merged = dict(base)
    for name, found in adapters.items():
        if isinstance(found, Adapter):
            merged = jax.vmap(lambda found, params: found.merged(params))(found, merged) if stacked else found.merged(merged)
        else:
            merged[name] = _merge(base.get(name, {}), found, stacked or name == "scanned")
    return merged
