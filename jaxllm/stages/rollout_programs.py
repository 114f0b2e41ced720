"""What policy optimisation compiles beside its update, for `--check` and `jaxllm plan`: prompts that go in, one more token for every slot,
and the training graph's look at what was sampled."""

from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from jaxllm.parallel import rules
from jaxllm.rollouts.rollout import decoder_of, engine_of
from jaxllm.rollouts.scoring import SCORED, looked
from jaxllm.sampling.decode import Rows, decode_step
from jaxllm.sampling.engine import bucket
from jaxllm.sampling.logits import Sampling
from jaxllm.stages import inputs, methods
from jaxllm.stages.recipe import Program
from jaxllm.stages.tuning import Tuned
from jaxllm.training.step import purpose_key


def programs(config: ConfigDict, tuned: Tuned, mesh: Any, held: tuple) -> dict[str, Program]:
    """name -> what runs beside the update; all of `held` (state, frozen) lies in memory meanwhile."""
    section = config.rollout
    sampling = Sampling(temperature=section.temperature, stop_ids=(0,))
    with rules.under(mesh):
        model, relaid = decoder_of(tuned.model)
        rows = section.prompts * section.samples_per_prompt
        length, most = config.sequence_length, section.max_new_tokens
        engine = engine_of(model, sampling, rows=rows, slots=section.slots, length=length, max_new_tokens=most)
        running, key = jax.eval_shape(engine._running).rows, jax.eval_shape(lambda: purpose_key(config.seed, "plan", 0))
        width = min(bucket(max(1, length - most)), engine.chunk)

    def placed(x, *axes):
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=rules.sharding("cache", x.shape, axes, mesh, rules.COMPUTE))

    def whole(x):
        return placed(x, *(None,) * x.ndim)

    layers = jax.tree.map(lambda x: placed(x, *("layers",) * (x.ndim - 4), "batch", "kv_heads", None, "head_dim"), running.cache.layers)
    waiting = jax.tree.map(whole, running._replace(cache=running.cache._replace(layers=None)))
    waiting = waiting._replace(cache=waiting.cache._replace(layers=layers))
    tokens = whole(jax.ShapeDtypeStruct((engine.rows, width), jnp.int32))
    counts = whole(jax.ShapeDtypeStruct((engine.rows,), jnp.int32))

    def prefill(state, frozen, tokens, counts):
        params = relaid(tuned.whole(state.params, frozen))
        return engine._prefill(params, engine._empty_small(width), tokens, counts, fresh=True)

    def decode(state, frozen, rows: Rows, key):
        return decode_step(model, relaid(tuned.whole(state.params, frozen)), sampling, key, rows)

    found = {
        "prefill": Program(prefill, (*held, tokens, counts), engine.rows * width),
        "decode": Program(decode, (*held, waiting, whole(key)), engine.slots),
    }
    if methods.rescores(config) or methods.compares(config):
        place, size = inputs.row_shardings(mesh), (config.batch_size // config.microbatches, length)
        kinds = dict.fromkeys(SCORED, jnp.int32) | {"weights": jnp.float32}
        batch = {name: jax.ShapeDtypeStruct(size, kind, sharding=place[2]) for name, kind in kinds.items()}
        critic = methods.values_of(config, tuned.model)

        def score(state, frozen, batch):
            return looked(tuned.model, section.temperature, tuned.whole(state.params, frozen), batch, critic)

        found["scoring"] = Program(score, (*held, batch), size[0] * length)
    return found
