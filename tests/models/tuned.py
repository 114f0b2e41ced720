"""Methods of tuning made small, their bases and adapters drawn once, and one compiled forward for all tests that share it."""

import functools

import jax
import numpy as np

from jaxllm.models import peft
from jaxllm.models.model import Model
from jaxllm.models.presets import preset
from tests.models.drawn import random_params

QUICK = {"xla_backend_optimization_level": 0}  # compiles twice as fast
quick_jit = functools.partial(jax.jit, compiler_options=QUICK)
B, T, V = 4, 12, 64
SMALL = {"vocab_size": V, "width": 32, "num_heads": 2, "num_kv_heads": 2, "head_dim": 16, "mlp_width": 48}
LLAMA = preset("tiny_llama3").replace(**SMALL, num_layers=2)
GEMMA = preset("tiny_gemma2").replace(**SMALL, num_layers=3)  # two places in the pattern and one layer left over, norms after the parts
ONE = LLAMA.replace(num_layers=1)
GPT2 = preset("tiny_gpt2").replace(**{**SMALL, "num_layers": 1})  # a bias for everything
OPTIONS = {
    "lora": {"rank": 4},
    "rslora": {"rank": 4, "targets": ["query", "down"]},
    "dora": {"rank": 4},
    "houlsby": {"reduction": 4},
    "pfeiffer": {"reduction": 4},
    "prompt": {"length": 3, "num_tasks": 2},
    "prefix": {"length": 3, "num_tasks": 2, "inner": 8},
    "last_n": {"layers": 1},
}


def of(name, config=LLAMA, **how) -> peft.Peft:
    return peft.make(Model(config, **how), name, **OPTIONS.get(name, {}))


@functools.cache
def base_of(config=LLAMA):
    return random_params(Model(config), seed=0)


@functools.cache
def start_of(name, config=LLAMA):
    method = of(name, config)
    return jax.device_get(quick_jit(method.init)(jax.random.key(1), base_of(config)))


@functools.cache
def drawn_of(name, config=LLAMA):
    """Adapters that show: none of their numbers is at its start."""
    stream = np.random.RandomState(2)
    return jax.tree.map(lambda x: (x + 0.1 * stream.standard_normal(x.shape)).astype(np.float32), start_of(name, config))


def tokens_of(soft=0, length=T):
    """Rows of words, after soft tokens of the second task."""
    words = np.random.RandomState(3).randint(0, V, (B, length)).astype(np.int32)
    return np.concatenate([np.broadcast_to(V + soft + np.arange(soft, dtype=np.int32), (B, soft)), words], 1)


def tokens_for(name):
    return tokens_of(of(name).num_soft)


def logits(model, params, tokens):
    return model.logits(params, model.apply(params, tokens))


@functools.cache
def program(config=LLAMA, scan_layers=True):
    return quick_jit(functools.partial(logits, Model(config, scan_layers=scan_layers)))


def far(x, y):
    return float(np.abs(np.asarray(x) - np.asarray(y)).max())
