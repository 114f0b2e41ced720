"""The key-value cache: plain arrays, passed in and returned. A row's tokens lie in slots of its own, in a ring, or in pages of one pool."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxllm.models.config import ModelConfig
from jaxllm.parallel import rules

EMPTY = -1  # the position of a slot that holds nothing that may be seen


class LayerCache(NamedTuple):
    """Keys (rotated) and values of one layer; of all layers of a scan with a leading dim of them.

    The token at position p lies in slot p mod S. Where S is the longest row, nothing is ever overwritten; a layer that sees only a window
    needs no more than the window, and its slots are a ring.
    """

    keys: jax.Array  # [B, K, S, H]
    values: jax.Array  # [B, K, S, H]


class Pages(NamedTuple):
    """The same in pages that any row may own: the token at position p of row b lies in page `Cache.pages[b, p // size]`."""

    keys: jax.Array  # [pages, K, size, H]
    values: jax.Array  # [pages, K, size, H]


class Entry(NamedTuple):
    """One block's part of the cache."""

    layer: LayerCache | Pages
    at: tuple[jax.Array, ...] = ()  # its index, where the layers of a scan lie in one stack


class Place(NamedTuple):
    """Where the T tokens of a call go, and what is there before them; a pytree, the same for all layers."""

    lengths: jax.Array  # int32 [B], tokens in the cache before
    counts: jax.Array  # int32 [B], how many of the T tokens are real
    prefix: jax.Array  # int32 [B], the first positions of a row that all its tokens see, with kind "prefix"
    pages: jax.Array | None  # int32 [B, M]; a page number that does not exist: none


class Cache(NamedTuple):
    """Everything that decoding remembers."""

    layers: Any  # the tree of `layers` in the parameters, with a LayerCache or Pages for each block
    lengths: jax.Array  # int32 [B], tokens in each row, and so the position of its next one
    prefix: jax.Array  # int32 [B], see `Place`
    pages: jax.Array | None = None  # int32 [B, M], see `Place`
    adapter: jax.Array | None = None  # int32 [B], which of several stacked adapters each row goes through; None: the first


def empty_cache(
    config: ModelConfig, scan_layers: bool, batch: int, length: int, dtype: str, *, chunk: int = 1, page: int = 0, num_pages: int = 0
) -> Cache:
    """A cache with nothing in it.

    Args:
      config: of the model.
      scan_layers: the layout of its layers.
      batch: B, rows.
      length: the most tokens in a row.
      dtype: of keys and values.
      chunk: the most tokens of a row that one call brings after the row's first call; a ring has to hold them beside the window.
      page: tokens in a page; 0: every row has slots of its own. Layers with a window keep their rings.
      num_pages: pages in the pool.
    """
    shape = (config.num_groups, config.head_size)

    def zeros(kind, *leading):
        stack = ("layers",) * len(leading)
        if page and kind == "global":
            pool = (*leading, num_pages, shape[0], page, shape[1])
            return Pages(*(rules.constrain(jnp.zeros(pool, dtype), *stack, None, "kv_heads", None, "head_dim") for _ in range(2)))
        slots = min(length, (config.window or length) + chunk - 1) if kind == "local" else length
        ring = (*leading, batch, shape[0], slots, shape[1])
        return LayerCache(*(rules.constrain(jnp.zeros(ring, dtype), *stack, "batch", "kv_heads", None, "head_dim") for _ in range(2)))

    pattern = enumerate(config.layer_pattern)
    scanned = {str(place): zeros(kind, config.num_repeats) for place, kind in pattern} if scan_layers and config.num_repeats else {}
    alone = config.remainder if scan_layers else range(config.num_layers)
    layers = {str(layer): zeros(config.layer_kind(layer)) for layer in alone} | ({"scanned": scanned} if scanned else {})
    integers = jnp.zeros(batch, jnp.int32)
    pages = jnp.full((batch, -(-length // page)), num_pages, jnp.int32) if page else None
    return Cache(layers, integers, integers, pages, integers)


def capacity(config: ModelConfig, cache: Cache, new: int) -> int | None:
    """The most tokens that a row can hold where `new` come at a time; None: any number, as every layer is a ring that is large enough."""
    layers = [(config.layer_kind(int(name)), layer) for name, layer in cache.layers.items() if name != "scanned"]
    layers += [(config.layer_pattern[int(place)], layer) for place, layer in cache.layers.get("scanned", {}).items()]
    most = []
    for kind, layer in layers:
        slots = layer.keys.shape[-2]
        if isinstance(layer, Pages):
            assert cache.pages is not None
            most.append(cache.pages.shape[1] * slots)
        elif kind == "global" or slots < (config.window or slots) + new - 1:
            most.append(slots)
    return min(most, default=None)


def write(entry: Entry, keys: jax.Array, values: jax.Array, place: Place) -> Entry:
    """The entry with keys (rotated) and values [B, T, K, H] of T tokens.

    Those beyond `place.counts` are left out, and so are those that later ones of the same call overwrite.
    """
    layer, T = entry.layer, keys.shape[1]
    index = jnp.arange(T, dtype=jnp.int32)
    positions = place.lengths[:, None] + index
    slots = layer.keys.shape[-2]
    if isinstance(layer, Pages):
        assert place.pages is not None
        rows = jnp.take_along_axis(place.pages, jnp.minimum(positions // slots, place.pages.shape[1] - 1), axis=1)
        real = (index < place.counts[:, None]) & (positions // slots < place.pages.shape[1])
    else:
        rows = jnp.broadcast_to(jnp.arange(keys.shape[0], dtype=jnp.int32)[:, None], positions.shape)
        real = (index < place.counts[:, None]) & (index >= place.counts[:, None] - slots)
    rows = jnp.where(real, rows, layer.keys.shape[-4])  # outside: dropped

    def put(old, new):
        return old.at[(*entry.at, rows, slice(None), positions % slots)].set(new.astype(old.dtype), mode="drop")

    return entry._replace(layer=type(layer)(put(layer.keys, keys), put(layer.values, values)))


def read(entry: Entry, place: Place) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Keys and values [B, K, S, H] of one layer after `write`, and the positions int32 [B, S] of its slots, `EMPTY` where there is none."""
    keys, values = (jax.lax.dynamic_index_in_dim(x, entry.at[0], keepdims=False) if entry.at else x for x in entry.layer)
    if isinstance(entry.layer, Pages):
        assert place.pages is not None
        keys, values = (_joined(x, place.pages) for x in (keys, values))
    return keys, values, in_slots(place.lengths + place.counts - 1, keys.shape[2])


def _joined(pool: jax.Array, pages: jax.Array) -> jax.Array:
    """[pages, K, size, H] -> [B, K, M * size, H]."""
    found = jnp.take(pool, pages, axis=0, mode="clip").swapaxes(1, 2)  # what a page that is none shows is not visible
    return found.reshape(*found.shape[:2], -1, found.shape[-1])


def in_slots(newest: jax.Array, slots: int) -> jax.Array:
    """The position that each slot holds, int32 [B, S]: the last one up to `newest` [B] that goes there; `EMPTY`: none yet."""
    newest = newest[:, None]
    held = newest - (newest - jnp.arange(slots, dtype=jnp.int32)) % slots
    return jnp.maximum(held, EMPTY)


def taken(config: ModelConfig, cache: Cache, row: jax.Array) -> Cache:
    """One row of a cache as a cache of its own, whose layers without a window have slots for a whole row."""
    lengths = cache.lengths[row][None]
    pages = None if cache.pages is None else cache.pages[row][None]

    def one(layer, stacked):
        if isinstance(layer, Pages):
            assert pages is not None
            join = functools.partial(_joined, pages=pages)
            return LayerCache(*(jax.vmap(join)(pool) if stacked else join(pool) for pool in layer))
        return LayerCache(*(jax.lax.dynamic_slice_in_dim(x, row, 1, axis=x.ndim - 4) for x in layer))

    adapter = None if cache.adapter is None else cache.adapter[row][None]
    return Cache(_each(one, cache.layers), lengths, cache.prefix[row][None], adapter=adapter)


def moved(cache: Cache, source: Cache, origin: jax.Array, rows: jax.Array, pages: jax.Array | None) -> Cache:
    """The cache with rows of another one, which may have other sizes, in place of its own.

    Args:
      cache: to write to.
      source: to read from; without pages.
      origin: int32 [Q], rows of the source.
      rows: int32 [Q], where they go; a row that does not exist: nowhere.
      pages: int32 [Q, M], the pages they get, where the cache has pages.
    """
    lengths = source.lengths[origin]

    def one(layer, given):
        stacked = layer.keys.ndim == 5

        def put(old, new):
            old, new = (old, new) if stacked else (old[None], new[None])
            size = old.shape[-2]
            if isinstance(layer, Pages):
                assert pages is not None
                most = pages.shape[1] * size
                positions = jnp.where(jnp.arange(most) < lengths[:, None], jnp.arange(most), EMPTY)
            else:
                positions = in_slots(lengths - 1, size)
            found = jnp.take_along_axis(new[:, origin], (positions % new.shape[-2])[None, :, None, :, None], axis=3)
            if isinstance(layer, Pages):
                assert pages is not None
                found = found.reshape(*found.shape[:3], -1, size, found.shape[-1]).swapaxes(2, 3)  # [L, Q, M, K, size, H]
                needed = (jnp.arange(pages.shape[1]) * size < lengths[:, None]) & (rows < cache.lengths.shape[0])[:, None]
                old = old.at[:, jnp.where(needed, pages, old.shape[1])].set(found.astype(old.dtype), mode="drop")
            else:
                old = old.at[:, rows].set(found.astype(old.dtype), mode="drop")
            return old if stacked else old[0]

        return type(layer)(put(layer.keys, given.keys), put(layer.values, given.values))

    is_layer = lambda x: isinstance(x, LayerCache | Pages)  # noqa: E731
    layers = jax.tree.map(one, cache.layers, source.layers, is_leaf=is_layer)
    set_rows = lambda old, new: old.at[rows].set(new[origin], mode="drop")  # noqa: E731
    table = cache.pages
    if table is not None and pages is not None:
        table = table.at[rows].set(pages, mode="drop")
    adapter = None if cache.adapter is None or source.adapter is None else set_rows(cache.adapter, source.adapter)
    return Cache(layers, set_rows(cache.lengths, source.lengths), set_rows(cache.prefix, source.prefix), table, adapter)


def reordered(cache: Cache, rows: jax.Array) -> Cache:
    """The cache whose row i is row `rows[i]` of this one, int32 [B']; not for pages, which only have to be named anew."""
    assert cache.pages is None, "rows of a paged cache are reordered by their page numbers"
    layers = jax.tree.map(lambda x: jnp.take(x, rows, axis=x.ndim - 4), cache.layers)
    return Cache(layers, cache.lengths[rows], cache.prefix[rows], adapter=None if cache.adapter is None else cache.adapter[rows])


def _each(one, layers):
    scanned = {place: one(layer, True) for place, layer in layers.get("scanned", {}).items()}
    alone = {name: one(layer, False) for name, layer in layers.items() if name != "scanned"}
    return alone | ({"scanned": scanned} if scanned else {})
