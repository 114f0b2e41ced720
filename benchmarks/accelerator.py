"""One accelerator: jaxllm's train step of a 1B Llama-shaped model beside PyTorch's, same shapes, in turn, and the matmul ceiling.

    python -m benchmarks.accelerator                  # on the machine with the chip, in an environment that has torch as well
    python -m benchmarks.accelerator --small          # the same code in seconds on a CPU

Each process sees one device and prints one JSON line; the last lines are medians over rounds: model FLOPs/s and their share of the ceiling,
which is what plain bfloat16 products of 8192 x 8192 matrices, twenty in a row, reached in the same run. Model FLOPs are those of
`jaxllm.models.counts.training_flops`, attention counted as causal, for both. Not run on an accelerator yet.
"""

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import time
from typing import Any

SIZES = {
    False: {"preset": "llama3.2-1b", "batch": 8, "sequence": 4096, "square": 8192},
    True: {"preset": "tiny_llama3", "batch": 2, "sequence": 64, "square": 256},
}
LEARNING_RATE, DECAY, BETAS, CLIP = 3e-4, 0.1, (0.9, 0.95), 1.0
WARMUP = 3


def shape(small: bool) -> Any:
    """The ModelConfig of both halves."""
    from jaxllm.models.presets import preset

    return preset(SIZES[small]["preset"]).replace(tied_embeddings=True)


def batches(small: bool, count: int) -> Any:
    """[count, B, T + 1] random ids: what they are does not matter to the time."""
    import numpy as np

    size = SIZES[small]
    return np.random.default_rng(0).integers(0, shape(small).vocab_size, (count, size["batch"], size["sequence"] + 1), np.int32)


def report(name: str, small: bool, times: list[float], peak_bytes: int, device: str) -> None:
    """The line of one process."""
    from jaxllm.models.counts import training_flops

    size = SIZES[small]
    seconds = statistics.median(times[WARMUP:])
    rate = size["batch"] * size["sequence"] / seconds
    flops = rate * training_flops(shape(small), size["sequence"])
    line = {
        "name": name,
        "device": device,
        "step_seconds": seconds,
        "tokens_per_s": rate,
        "flops_per_s": flops,
        "peak_gb": peak_bytes / 1e9,
    }
    print(json.dumps(line | {"first_step_seconds": times[0]}), flush=True)


def jaxllm_step(options: argparse.Namespace) -> None:
    """Our half: float32 weights and state, bfloat16 compute, fused cross-entropy, the best attention kernel there is."""
    import jax
    import jax.numpy as jnp

    from benchmarks.step import train_step
    from jaxllm.models.model import Model
    from jaxllm.parallel import flags
    from jaxllm.parallel.mesh import make_mesh
    from jaxllm.training import state as states
    from jaxllm.training.step import jit_step

    model, mesh = Model(shape(options.small), dtype="bfloat16", remat=options.remat), make_mesh(devices=jax.devices()[:1])
    optimizer, step = train_step(model, learning_rate=LEARNING_RATE, b1=BETAS[0], b2=BETAS[1], weight_decay=DECAY, clip_norm=CLIP)
    times = []
    with jax.set_mesh(mesh):
        state = states.create(lambda: model.init(jax.random.key(0)), optimizer, mesh, model.axes())
        step = jit_step(step, state, flags.compiler_options(jax.devices()[0].device_kind))
        for rows in batches(options.small, WARMUP + options.steps):
            begin = time.perf_counter()
            tokens = jnp.asarray(rows)
            batch = {"tokens": tokens[:, :-1], "targets": tokens[:, 1:], "weights": jnp.ones(rows[:, 1:].shape)}
            packed = {"segments": jnp.ones(rows[:, 1:].shape, jnp.int32)} if options.packed else {}
            state, out = step(state, {}, batch | packed)
            float(out["loss"])
            times.append(time.perf_counter() - begin)
    device = jax.devices()[0]
    report("jaxllm", options.small, times, (device.memory_stats() or {}).get("peak_bytes_in_use", 0), device.device_kind)


def torch_step(options: argparse.Namespace) -> None:
    """PyTorch's half: the same decoder, torch.compile, SDPA (flash), autocast to bfloat16, fused AdamW."""
    import torch
    import torch.nn.functional as F
    from torch import nn

    config, small = shape(options.small), options.small
    device = "cuda" if torch.cuda.is_available() else "cpu"
    N, K, H, D = config.num_heads, config.num_kv_heads, config.head_dim, config.width

    def rotate(x: Any, cos: Any, sin: Any) -> Any:
        a, b = x.chunk(2, -1)
        return torch.cat((a * cos - b * sin, b * cos + a * sin), -1).to(x.dtype)

    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention_norm, self.mlp_norm = nn.RMSNorm(D, config.norm_epsilon), nn.RMSNorm(D, config.norm_epsilon)
            self.query, self.output = nn.Linear(D, N * H, bias=False), nn.Linear(N * H, D, bias=False)
            self.key, self.value = nn.Linear(D, K * H, bias=False), nn.Linear(D, K * H, bias=False)
            self.gate, self.up = (nn.Linear(D, config.mlp_width, bias=False) for _ in range(2))
            self.down = nn.Linear(config.mlp_width, D, bias=False)

        def forward(self, x: Any, cos: Any, sin: Any) -> Any:
            y, (B, T, _) = self.attention_norm(x), x.shape
            q, k, v = (f(y).view(B, T, -1, H).transpose(1, 2) for f in (self.query, self.key, self.value))
            y = F.scaled_dot_product_attention(rotate(q, cos, sin), rotate(k, cos, sin), v, is_causal=True, enable_gqa=True)
            x = x + self.output(y.transpose(1, 2).reshape(B, T, N * H))
            y = self.mlp_norm(x)
            return x + self.down(F.silu(self.gate(y)) * self.up(y))

    class Decoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding, self.norm = nn.Embedding(config.vocab_size, D), nn.RMSNorm(D, config.norm_epsilon)
            self.layers = nn.ModuleList(Layer() for _ in range(config.num_layers))
            nn.init.normal_(self.embedding.weight, std=0.02)

        def forward(self, tokens: Any, targets: Any) -> Any:
            T = tokens.shape[1]
            frequencies = config.rope_theta ** (-torch.arange(0, H, 2, device=tokens.device) / H)
            angles = torch.arange(T, device=tokens.device)[:, None] * frequencies
            cos, sin = angles.cos(), angles.sin()
            x = self.embedding(tokens).to(torch.bfloat16)
            for layer in self.layers:
                x = layer(x, cos, sin)
            return F.cross_entropy(F.linear(self.norm(x), self.embedding.weight).flatten(0, 1), targets.flatten())

    torch.manual_seed(0)
    model = Decoder().to(device)
    matrices = [p for p in model.parameters() if p.ndim > 1]
    groups = [{"params": matrices, "weight_decay": DECAY}, {"params": [p for p in model.parameters() if p.ndim < 2], "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=LEARNING_RATE, betas=BETAS, fused=True)
    compiled, times = (model if options.eager else torch.compile(model)), []
    for rows in batches(small, WARMUP + options.steps):
        begin = time.perf_counter()
        tokens = torch.from_numpy(rows).long().to(device)
        with torch.autocast(device, torch.bfloat16):
            loss = compiled(tokens[:, :-1], tokens[:, 1:])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        loss.item()
        times.append(time.perf_counter() - begin)
    name = torch.cuda.get_device_name() if device == "cuda" else "cpu"
    report("torch-compile", small, times, torch.cuda.max_memory_allocated() if device == "cuda" else 0, name)


def ceiling(options: argparse.Namespace) -> None:
    """What a plain bfloat16 product of square matrices reaches."""
    import jax
    import jax.numpy as jnp

    side = SIZES[options.small]["square"]
    x, y = (jax.random.normal(jax.random.key(i), (side, side), jnp.bfloat16) for i in range(2))
    product, times, repeats = jax.jit(lambda x, y: (x @ y) * side**-0.5), [], 20
    for _ in range(WARMUP + 5):
        begin = time.perf_counter()
        for _ in range(repeats):
            x = product(x, y)
        x.block_until_ready()
        times.append((time.perf_counter() - begin) / repeats)
    rate = 2 * side**3 / statistics.median(times[WARMUP:])
    print(json.dumps({"name": "ceiling", "device": jax.devices()[0].device_kind, "flops_per_s": rate}), flush=True)


PARTS = {"ceiling": ceiling, "jaxllm": jaxllm_step, "torch": torch_step}


def main() -> int:
    """Runs the parts in turn, a process each; returns 1 if one of them failed."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.accelerator", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--part", choices=PARTS, help="one part, in this process")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=10, help=f"timed, after {WARMUP}")
    parser.add_argument("--remat", default="none", help="jaxllm's")
    parser.add_argument("--packed", action="store_true", help="jaxllm with segment ids, as its stages train")
    parser.add_argument("--eager", action="store_true", help="PyTorch without torch.compile")
    parser.add_argument("--small", action="store_true", help="tiny shapes")
    options = parser.parse_args()
    if min(options.rounds, options.steps) < 1:
        parser.error("--rounds and --steps are 1 or more")
    if options.part:
        PARTS[options.part](options)
        return 0
    if "torch" in options.parts and importlib.util.find_spec("torch") is None:
        print("There is no torch here: its half is left out.", file=sys.stderr)
        options.parts.remove("torch")
    own = [f"--{flag}" for flag in ("packed", "eager", "small") if getattr(options, flag)]
    own += ["--steps", str(options.steps), "--remat", options.remat]
    lines: dict[str, list[dict[str, Any]]] = {}
    environment = {"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.92", "CUDA_VISIBLE_DEVICES": "0"} | os.environ
    for _ in range(options.rounds):
        for part in options.parts:
            command = [sys.executable, "-m", "benchmarks.accelerator", "--part", part, *own]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=environment)
            if done.returncode:
                print(f"{part}: exit code {done.returncode}", file=sys.stderr)
                return 1
            lines.setdefault(part, []).append(json.loads(done.stdout.splitlines()[-1]))
            print(done.stdout.splitlines()[-1], flush=True)
    rates = {part: statistics.median(line["flops_per_s"] for line in found) for part, found in lines.items()}
    best = max((line["flops_per_s"] for line in lines.get("ceiling", [])), default=None)
    for part, rate in rates.items():
        share = "" if best is None else f", {rate / best:.3f} of the ceiling"
        print(f"{part}: {rate / 1e12:.3g} TFLOP/s{share}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
