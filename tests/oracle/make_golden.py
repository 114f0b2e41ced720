"""Writes tests/interop/golden: the folders that transformers writes of every tiny family, and its logits; so `make test` needs no torch.

    python -m tests.oracle.make_golden        (where torch and transformers are installed)

A folder is kept as its config.json and the shapes of its tensors; their numbers are drawn again by the test from the same frozen stream.
Of the logits every 16th column is kept.
"""

import json
import tempfile
from pathlib import Path

import numpy as np
from safetensors import safe_open

from jaxllm.models.presets import preset
from tests.oracle import families

HERE = Path(__file__).resolve().parents[1] / "interop" / "golden"
LOGITS, FOLDERS = HERE / "logits.npz", HERE / "folders.json"
COLUMNS = slice(None, None, 16)
SEED = 3


def main() -> None:
    """Runs every family once."""
    logits, folders = {}, {}
    for name in families.FAMILIES:
        model = families.reference_model(name)
        with tempfile.TemporaryDirectory() as folder:
            model.save_pretrained(folder)
            with safe_open(Path(folder) / "model.safetensors", "np") as file:
                shapes = {key: file.get_slice(key).get_shape() for key in sorted(file.keys())}
                tensors = families.random_weights(shapes, preset(name), SEED)
            folders[name] = {"config": json.loads((Path(folder) / "config.json").read_text()), "tensors": shapes}
            logits[name] = golden_logits(folder, tensors, families.random_tokens(preset(name)))[..., COLUMNS]
    HERE.mkdir(exist_ok=True)
    np.savez_compressed(LOGITS, **logits)
    FOLDERS.write_text(json.dumps(folders, indent=1) + "\n")
    print(f"{LOGITS}: {LOGITS.stat().st_size:,} bytes; {FOLDERS}: {FOLDERS.stat().st_size:,} bytes")


def golden_logits(folder: str, tensors: families.Arrays, tokens: np.ndarray) -> np.ndarray:
    """What transformers makes of this folder with other tensors in it."""
    import transformers
    from safetensors.numpy import save_file

    save_file(tensors, Path(folder) / "model.safetensors", {"format": "pt"})
    return families.reference_logits(transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager"), tokens)


if __name__ == "__main__":
    main()
