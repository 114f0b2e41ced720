"""Writes tests/models/golden/logits.npz: transformers' logits of every tiny family, so that `make test` checks parity without torch.

    python -m tests.oracle.make_golden        (where torch and transformers are installed)

Weights and tokens are drawn again by the test from the same frozen stream; of the logits every 16th column is kept.
"""

from pathlib import Path

import numpy as np

from jaxllm.models.model import Model
from jaxllm.models.presets import preset
from tests.oracle import families

PATH = Path(__file__).resolve().parents[1] / "models" / "golden" / "logits.npz"
COLUMNS = slice(None, None, 16)
SEED = 3


def main() -> None:
    """Runs every family once."""
    golden = {}
    for name in families.FAMILIES:
        config = preset(name)
        params = families.random_params(config, Model(config, scan_layers=False).abstract(), SEED)
        golden[name] = families.reference_logits(name, params, families.random_tokens(config))[..., COLUMNS]
    PATH.parent.mkdir(exist_ok=True)
    np.savez_compressed(PATH, **golden)
    print(f"{PATH}: {PATH.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
