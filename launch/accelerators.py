"""What accelerators are called where: TPU slices by one name, as Cloud TPU and as GKE have them; GPUs of GKE."""

import difflib
import math
import re
from typing import NamedTuple


class Generation(NamedTuple):
    """One generation of TPU (cloud.google.com/tpu/docs, cloud.google.com/kubernetes-engine/docs/concepts/plan-tpus).

    Attributes:
      dims: of a topology.
      devices: JAX devices of a chip.
      accelerator: of Cloud TPU, a prefix; None: not there as a VM.
      counted: what follows it, for each chip.
      runtime: image of the VMs.
      gke: the node label.
    """

    dims: int
    devices: int
    accelerator: str | None
    counted: int
    runtime: str
    gke: str


GENERATIONS = {
    "v4": Generation(3, 1, "v4-", 2, "tpu-ubuntu2204-base", "tpu-v4-podslice"),
    "v5e": Generation(2, 1, "v5litepod-", 1, "v2-alpha-tpuv5-lite", "tpu-v5-lite-podslice"),
    "v5p": Generation(3, 1, "v5p-", 2, "v2-alpha-tpuv5", "tpu-v5p-slice"),
    "v6e": Generation(2, 1, "v6e-", 1, "v2-alpha-tpuv6e", "tpu-v6e-slice"),
    "tpu7x": Generation(3, 2, None, 1, "", "tpu7x"),
}
CHIPS_PER_HOST = 4
GPUS = (
    "nvidia-tesla-t4",
    "nvidia-l4",
    "nvidia-tesla-a100",
    "nvidia-a100-80gb",
    "nvidia-h100-80gb",
    "nvidia-h100-mega-80gb",
    "nvidia-h200-141gb",
    "nvidia-b200",
    "nvidia-gb200",
)


class Slice(NamedTuple):
    """A TPU slice: "v5p:4x4x4"."""

    generation: str
    shape: str

    @property
    def facts(self) -> Generation:
        """Of its generation."""
        return GENERATIONS[self.generation]

    @property
    def chips(self) -> int:
        """How many."""
        return math.prod(map(int, self.shape.split("x")))

    @property
    def hosts(self) -> int:
        """How many machines."""
        return max(1, self.chips // CHIPS_PER_HOST)

    @property
    def accelerator_type(self) -> str:
        """As Cloud TPU calls it.

        Raises:
          ValueError: it does not have it.
        """
        if self.facts.accelerator is None:
            raise ValueError(f"{self.generation} is not to be had as Cloud TPU VMs. Use launch.gke.")
        return f"{self.facts.accelerator}{self.chips * self.facts.counted}"


def tpu(name: str) -> Slice:
    """A slice by the name that `jaxllm plan --topology` takes too.

    Raises:
      ValueError: an unknown generation, or a shape that it does not have.
    """
    generation, _, shape = name.partition(":")
    if generation not in GENERATIONS:
        near = difflib.get_close_matches(generation, GENERATIONS, 1, 0.3)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise ValueError(f"Unknown accelerator {name!r}.{hint} Choose one of: {', '.join(GENERATIONS)}, with a topology: v5e:4x4.")
    dims = GENERATIONS[generation].dims
    found = Slice(generation, shape)
    if (
        not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", shape)
        or shape.count("x") != dims - 1
        or (found.chips > 4 and found.chips % CHIPS_PER_HOST)
    ):
        example = "x".join(["4"] * dims)
        raise ValueError(
            f"{name!r} is no slice: {generation} has {dims} dims, filled by hosts of 4 chips. Write {generation}:{example}, say."
        )
    return found


def gpu(name: str) -> tuple[str, int]:
    """The label and the GPUs of a node, of "nvidia-h100-80gb:8".

    Raises:
      ValueError: an unknown GPU, or no number.
    """
    label, _, count = name.partition(":")
    if label not in GPUS:
        near = [known for known in GPUS if label and known.startswith(label)] or difflib.get_close_matches(label, GPUS, 1, 0.3)
        raise ValueError(f"Unknown GPU {label!r}. {f'Did you mean {near[0]}? ' * bool(near)}Choose one of: {', '.join(GPUS)}.")
    if not count.isdecimal() or not 1 <= int(count) <= 16:
        raise ValueError(f"--gpu {name}: say how many a node has: {label}:8.")
    return label, int(count)
