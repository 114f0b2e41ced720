"""Writes tests/interop/golden/peft.*: the adapter folders that PEFT writes of tiny models, and their logits; so `make test` needs no torch.

    python -m tests.oracle.make_golden_peft        (where torch, transformers and peft are installed)

A folder is kept as its adapter_config.json and the shapes of its tensors; of the logits every 16th column is kept.
"""

import json
import tempfile
from pathlib import Path

import numpy as np

from tests.oracle import peft_cases
from tests.oracle.make_golden import COLUMNS, HERE

LOGITS, FOLDERS = HERE / "peft_logits.npz", HERE / "peft.json"


def main() -> None:
    """Runs every stored case once."""
    logits, folders = {}, {}
    for case in peft_cases.STORED:
        with tempfile.TemporaryDirectory() as folder:
            tensors = peft_cases.write(case, Path(folder))
            logits[case] = peft_cases.reference_logits(peft_cases.CASES[case][0], Path(folder))[..., COLUMNS]
            config = json.loads((Path(folder) / "adapter_config.json").read_text())
        config["target_modules"] = sorted(config["target_modules"])  # a set to peft
        folders[case] = {"config": config, "tensors": {name: list(tensor.shape) for name, tensor in sorted(tensors.items())}}
    np.savez_compressed(LOGITS, **logits)
    FOLDERS.write_text(json.dumps(folders, separators=(",", ":")) + "\n")
    print(f"{LOGITS}: {LOGITS.stat().st_size:,} bytes; {FOLDERS}: {FOLDERS.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
