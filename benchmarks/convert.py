"""How much memory and time a Hugging Face folder of a given size takes: read onto a device, converted into a work directory, and back.

python -m benchmarks.convert --gigabytes 1 --dtype float32
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from jaxllm.interop import names, safetensors, settings, spelled, views
from jaxllm.interop.huggingface import shards
from jaxllm.interop.places import shapes_of
from jaxllm.models import counts
from jaxllm.models.config import ModelConfig

READ = """
import sys, jax
jax.config.update("jax_platforms", "cpu")
from jaxllm.interop import folders, huggingface, places
from jaxllm.models.model import Model
from jaxllm.parallel.mesh import make_mesh
folder = folders.open_folder(sys.argv[1])
family, config = places.read_config(folder)
dtype = places.stored_dtype(folder, family, config)
params = huggingface.load(folder, family, Model(config, param_dtype=dtype), make_mesh(devices=jax.devices()[:1]))
"""


def model_of(gigabytes: float, dtype: str) -> ModelConfig:
    """A Llama of about this size: 16 layers, a vocabulary of 32,000."""
    width = 64
    while True:
        config = ModelConfig(
            vocab_size=32000, num_layers=16, width=width + 64, num_heads=(width + 64) // 64, mlp_width=8 * (width + 64) // 3 // 64 * 64
        )
        if counts.parameters(config) * np.dtype(dtype).itemsize > gigabytes * 1e9:
            return config
        width += 64


def write_folder(folder: Path, config: ModelConfig, dtype: str) -> int:
    """A random model in files of at most 200 MB; returns the bytes of its weights."""
    table, sizes = names.table("llama", shapes_of(config), config.num_layers), views.sizes(config)
    shapes = {name: views.shape(weight, sizes) for name, weight in table.items()}
    files, stream = shards(shapes, np.dtype(dtype).itemsize, 200_000_000), np.random.default_rng(0)
    for file, tensors in files.items():
        made = (stream.standard_normal(shapes[name], np.float32).astype(dtype) for name in tensors)
        safetensors.write(folder / file, {name: shapes[name] for name in tensors}, dtype, made)
    places = {name: file for file, tensors in files.items() for name in tensors}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    (folder / "config.json").write_text(json.dumps(settings.write("llama", config)))
    (folder / "tokenizer.json").write_text(spelled.all_bytes())
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def measured(*words: str) -> tuple[float, float]:
    """Seconds, and the peak of resident memory in bytes, of one command."""
    program = "import os, sys; pid, status, usage = os.wait4(os.posix_spawn(sys.argv[1], sys.argv[1:], os.environ), 0);"
    program += "print(usage.ru_maxrss); sys.exit(os.waitstatus_to_exitcode(status))"
    began = time.monotonic()
    out = subprocess.run([sys.executable, "-c", program, sys.executable, *words], check=True, stdout=subprocess.PIPE, text=True).stdout
    return time.monotonic() - began, int(out.split()[-1]) * (1 if sys.platform == "darwin" else 1024)


def main() -> None:
    """Prints one line for each direction, and what the program takes before it reads anything."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gigabytes", type=float, default=1.0)
    parser.add_argument("--dtype", default="float32", choices=list(safetensors.CODES))
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR")) as place:
        theirs, ours, again = (Path(place, name) for name in ("theirs", "ours", "again"))
        theirs.mkdir()
        size = write_folder(theirs, model_of(args.gigabytes, args.dtype), args.dtype)
        _, base = measured("-c", "import jax, jaxllm.stages.convert; jax.numpy.zeros(1).block_until_ready()")
        print(f"folder: {size / 1e9:.3f} GB of {args.dtype}; the program alone: {base / 1e9:.3f} GB")
        convert = ("-m", "jaxllm", "convert", "--from")
        commands = {
            "read": ("-c", READ, str(theirs)),
            "in": (*convert, str(theirs), "--to", str(ours)),
            "out": (*convert, str(ours), "--to", str(again)),
        }
        for what, words in commands.items():
            seconds, peak = measured(*words)
            share = f"{peak / size:.2f} x the folder, {(peak - base) / size:.2f} x without the program"
            print(f"{what}: {seconds:.1f} s, peak {peak / 1e9:.3f} GB = {share}")


if __name__ == "__main__":
    main()
