"""Model: the whole of a language model behind one hashable record of pure functions."""

import dataclasses
import difflib
import functools
import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from jaxllm.models import adapted, counts, layout
from jaxllm.models import cache as caches
from jaxllm.models.adapted import Adapted, Params
from jaxllm.models.config import ModelConfig
from jaxllm.models.layers import AXES, Compute, logical_axes, weight
from jaxllm.models.remat import POLICIES
from jaxllm.models.tokens import Tokens
from jaxllm.models.transformer import Block, Stem, transformer
from jaxllm.ops import logprobs
from jaxllm.ops.attention import KERNELS, Asked, choose
from jaxllm.ops.blockwise import Rule
from jaxllm.ops.quantize import is_quantized
from jaxllm.ops.vocabulary import LogProbs
from jaxllm.parallel import rules

CHOICES = {
    "dtype": ("float32", "bfloat16", "float16"),
    "param_dtype": ("float32", "bfloat16"),
    "logits_dtype": ("float32", "bfloat16"),
    "remat": tuple(POLICIES),
    "attention": ("auto", *KERNELS),
    "context": ("gather", "ring"),
}


@dataclass(frozen=True)
class Model:
    """A config and how it is to be computed. Parameters are plain nested dicts of arrays, given to every function;
    or `Adapted`, a base and its adapters.

    Attributes:
      config: what the model is.
      dtype: of activations, and of weights at their use.
      param_dtype: of the parameters in memory.
      logits_dtype: what logits are rounded to as they leave the product with the vocabulary; softmax and loss are float32 all the same.
      remat: a policy's name, see `remat.POLICIES`.
      scan_layers: layers are stacked and scanned over the repeating pattern, or each stands alone; `relayout` goes between the two.
      attention: the kernel, see `ops.attention.attention`.
      context: how keys and values travel where the mesh cuts the sequence, "gather" or "ring".
      logprobs_chunk: how many tokens meet the vocabulary at once; None means `token_log_probs`'s own choice.
    """

    config: ModelConfig
    dtype: str = "float32"
    param_dtype: str = "float32"
    logits_dtype: str = "float32"
    remat: str = "none"
    scan_layers: bool = True
    attention: str = "auto"
    context: str = "gather"
    logprobs_chunk: int | None = None

    def __post_init__(self):
        for name, choices in CHOICES.items():
            value = getattr(self, name)
            if value not in choices:
                near = difflib.get_close_matches(str(value), choices, n=1)
                hint = f" Did you mean {near[0]!r}?" if near else ""
                raise ValueError(f"Unknown {name}={value!r}. Choose one of: {', '.join(choices)}.{hint}")

    def init(self, rng: jax.Array) -> Params:
        """Fresh parameters; the same draws in either layout of the layers and on any mesh (equal to the last bit or so)."""
        config, compute = self.config, Compute(self.dtype, self.param_dtype, attention="reference")  # the quickest to trace
        # A batch and a length that every mesh can cut; only shapes depend on it, and the forward itself is never run.
        B, T = rules.ways("batch"), rules.ways("sequence")
        tokens = jnp.zeros((B, T), jnp.int32)
        context = Tokens(positions=tokens, segments=None)
        hidden = jnp.zeros((B, T, config.width), self.dtype)
        stem_key, layers_key = jax.random.split(rng)

        @jax.jit  # so that it is traced once for all layers
        def layer(index):
            block = Block(config, compute, config.layer_kind(0))  # parameters do not depend on the kind
            return block.init(jax.random.fold_in(layers_key, index), hidden, 0, None, context)["params"]

        layers = {str(i): layer(jnp.int32(i)) for i in config.remainder}
        if config.num_repeats:
            places, whole = len(config.layer_pattern), len(config.layer_pattern) * config.num_repeats
            layers["scanned"] = {str(p): jax.vmap(layer)(jnp.arange(p, whole, places, dtype=jnp.int32)) for p in range(places)}
        params = Stem(config, compute).init(stem_key, tokens, context)["params"]
        return self.relayout({**params, "layers": layers}, self.scan_layers)

    def abstract(self) -> Params:
        """The parameters as ShapeDtypeStructs."""
        return jax.tree.map(lambda leaf: leaf, _abstract(self))

    def axes(self) -> Params:
        """The parameters' tree with a tuple of logical axis names for each."""

        def one(path, leaf):
            return logical_axes(tuple(rules.path_name(path).split("/")), len(leaf.shape))

        return jax.tree_util.tree_map_with_path(one, self.abstract())

    def relayout(self, tree: Any, scan_layers: bool) -> Any:
        """The same tree (parameters, or anything that holds trees like them) with the layers in the wanted layout, bit for bit."""
        return layout.relayout(self.config, tree, scan_layers)

    def apply(
        self,
        params: Params | Adapted,
        tokens: jax.Array,
        *,
        segments: jax.Array | None = None,
        positions: jax.Array | None = None,
        kind: str = "causal",
        prefix: jax.Array | None = None,
        rng: jax.Array | None = None,
        rows: jax.Array | None = None,
        adapter: jax.Array | None = None,
    ) -> jax.Array:
        """The forward pass.

        Args:
          params: as from `init`, or such a base with adapters.
          tokens: int32 [B, T]; with soft prompts V + k is soft token k.
          segments: int32 [B, T], documents within a row, 0 for padding; None: each row is one document.
          positions: int32 [B, T], counted within the document; None: 0..T-1.
          kind: "causal", "bidirectional" or "prefix".
          prefix: bool [B, T], tokens that their whole document sees; with kind "prefix" only.
          rng: a key for dropout; None means no dropout.
          rows: int32 [B], the rows' indices in the global batch; None: 0..B-1. Dropout depends on them, on segments and on positions, and
            not on the place in `tokens`.
          adapter: int32 [B], which of several stacked adapters each row goes through, see `stacks.stack`; None: the first.

        Returns:
          [B, T, D] after the final norm, in `dtype`.

        Raises:
          ValueError: T is more than the learned positions, whatever `positions` are.
        """
        B, T = tokens.shape
        self._check_length(T)
        if positions is None:
            positions = jnp.broadcast_to(jnp.arange(T, dtype=jnp.int32), (B, T))
        if rng is not None and rows is None:
            rows = jnp.arange(B, dtype=jnp.int32)
        context = Tokens(positions=positions, segments=segments, prefix=prefix, rows=rows, rng=rng)
        context = adapted.told(params, context, tokens, adapter, self.config.vocab_size)
        return self._module(kind, adapted.repeats(params)).apply(adapted.variables(params), tokens, context)[0]

    def init_cache(self, batch: int, length: int, *, chunk: int = 1, page: int = 0, num_pages: int = 0) -> caches.Cache:
        """An empty cache for `batch` rows of at most `length` tokens; see `cache.empty_cache` for the rest."""
        self._check_length(length)
        sizes = {"chunk": chunk, "page": page, "num_pages": num_pages}
        return caches.empty_cache(self.config, self.scan_layers, batch, length, self.dtype, **sizes)

    def decode(
        self,
        params: Params | Adapted,
        tokens: jax.Array,
        cache: caches.Cache,
        *,
        counts: jax.Array | None = None,
        fresh: bool = False,
        kind: str = "causal",
    ) -> tuple[jax.Array, caches.Cache]:
        """The forward pass of every row's next tokens, a whole prompt, a part of one, or a single token, after those in the cache.

        Args:
          params: as for `apply`.
          tokens: int32 [B, T]; rows that bring fewer than T are padded on the right.
          cache: from `init_cache` or the last call; donate it under `jax.jit`.
          counts: int32 [B], how many of a row's T tokens are real, from 0 on; None: all.
          fresh: the rows of the cache are all empty: attention is that of training, among these tokens alone.
          kind: "causal" or "prefix", where the first `cache.prefix` positions of a row are seen by all its tokens of this and later calls.

        Returns:
          [B, T, D] after the final norm, and the cache. A row that runs past its last slot returns NaN (only known while running).

        Raises:
          ValueError: more tokens than the cache has slots, or kind "bidirectional".
        """
        B, T = tokens.shape
        length = caches.capacity(self.config, cache, 1 if fresh else T)
        if length is not None and length < T:
            raise ValueError(
                f"{T} tokens do not fit into a cache of length {length}. Give `init_cache` at least prompt + new tokens, and as `chunk` how"
                " many of a row come at a time; or say fresh=True of an empty cache."
            )
        if kind == "bidirectional":
            raise ValueError(
                "kind='bidirectional' cannot be decoded: earlier tokens would have to see later ones. Choose causal or prefix."
            )
        index = jnp.arange(T, dtype=jnp.int32)
        counts = jnp.full(B, T, jnp.int32) if counts is None else counts
        positions = cache.lengths[:, None] + index
        prefix = positions < cache.prefix[:, None] if kind == "prefix" and fresh else None
        context = Tokens(
            positions=positions,
            segments=(index < counts[:, None]).astype(jnp.int32),
            prefix=prefix,
            place=caches.Place(cache.lengths, counts, cache.prefix, cache.pages),
        )
        context = adapted.told(params, context, tokens, cache.adapter, self.config.vocab_size)
        compute = dataclasses.replace(self._compute(kind), fresh=fresh)
        module = transformer(self.config, compute, "none", self.scan_layers, adapted.repeats(params))
        hidden, layers = module.apply(adapted.variables(params), tokens, context, cache.layers)
        after = cache._replace(layers=layers, lengths=cache.lengths + counts)
        if length is not None:
            hidden = jnp.where((after.lengths > length)[:, None, None], jnp.nan, hidden)
        return hidden, after

    def logits(self, params: Params | Adapted, hidden: jax.Array) -> jax.Array:
        """Float32 [..., V] of hidden states [..., D]; for whole batches use `log_probs`, which never holds this."""
        kernel, axes, equation = self._vocabulary(params)
        kernel = weight(kernel, axes, self.dtype)
        logits = jnp.einsum(equation, hidden.astype(self.dtype), kernel, preferred_element_type=jnp.dtype(self.logits_dtype)).astype(
            jnp.float32
        )
        cap = self.config.logit_softcap
        return logits if cap is None else cap * jnp.tanh(logits / cap)

    def log_probs(self, params: Params | Adapted, hidden: jax.Array, targets: jax.Array, weights: jax.Array | None = None) -> LogProbs:
        """Log-probabilities of targets int32 [B, T] after hidden [B, T, D], 0 where weights are; see `ops.logprobs.token_log_probs`."""
        return logprobs.token_log_probs(hidden, self._vocabulary(params)[0], targets, weights=weights, **self._head())

    def fused_cross_entropy(
        self,
        params: Params | Adapted,
        hidden: jax.Array,
        targets: jax.Array,
        weights: jax.Array,
        *,
        z_loss: float = 0.0,
        sparse: bool = False,
    ) -> tuple[jax.Array, LogProbs]:
        """sum(weights * (z_loss * log_z^2 - log_prob)), and `LogProbs` without gradients; see `ops.logprobs.fused_cross_entropy`."""
        how = {"z_loss": z_loss, "sparse": sparse, **self._head()}
        return logprobs.fused_cross_entropy(hidden, self._vocabulary(params)[0], targets, weights, **how)

    def _head(self) -> dict[str, Any]:
        config = self.config
        shape = {"softcap": config.logit_softcap, "transposed": config.tied_embeddings}
        return {**shape, "chunk": self.logprobs_chunk, "logits_dtype": self.logits_dtype}

    def num_params(self, params: Params | Adapted | None = None) -> int:
        """How many numbers the parameters are; from the config alone when none are given."""
        if params is None:
            return counts.parameters(self.config)
        leaves = jax.tree.leaves(params, is_leaf=is_quantized)
        return sum(math.prod(leaf.shape) for leaf in leaves)

    def flops_per_token(self, sequence_length: int) -> float:
        """Model FLOPs of a forward and backward pass, per token of a sequence this long; see `counts.training_flops`."""
        return counts.training_flops(self.config, sequence_length)

    def attention_kernel(self) -> str:
        """The kernel, a row of `ops.attention.KERNELS`, that packed rows of training get on this backend and the ambient mesh."""
        config = self.config
        rule = Rule(softcap=config.attention_softcap, dropout=config.attention_dropout)
        ordered = rules.axis_size("context") == 1
        return choose(self.attention, Asked(rule, config.head_size, self.dtype, same_tokens=True, ordered=ordered, whole_rows=False))

    def _compute(self, kind: str) -> Compute:
        return Compute(self.dtype, self.param_dtype, self.attention, self.context, kind, regather=self.remat == "none")

    def _module(self, kind: str, repeats: int | None) -> Stem:
        return transformer(self.config, self._compute(kind), self.remat, self.scan_layers, repeats)

    def _vocabulary(self, params: Params | Adapted) -> tuple[jax.Array, rules.LogicalAxes, str]:
        base = adapted.stem(params)
        if self.config.tied_embeddings:
            return base["embedding"]["tokens"], AXES["embedding/tokens"], "...d,vd->...v"
        return base["head"]["kernel"], AXES["head/kernel"], "...d,dv->...v"

    def _check_length(self, length: int) -> None:
        if self.config.positions == "learned" and length > self.config.max_positions:
            raise ValueError(
                f"{length} tokens are more than the {self.config.max_positions} learned positions of this model. "
                f"Set sequence_length to at most {self.config.max_positions}, or model.max_positions to at least {length}."
            )


@functools.lru_cache(maxsize=16)
def _abstract(model: Model) -> Params:
    return jax.eval_shape(model.init, jax.random.key(0))
