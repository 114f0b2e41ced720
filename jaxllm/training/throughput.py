"""How fast a run is against what its devices can do: published peaks by `device_kind`, and MFU."""

# Dense bf16 peak, in FLOP/s of ONE JAX device; the first prefix that a device_kind starts with counts, so the longer names come first.
PEAKS: dict[str, float] = {
    "TPU v2": 22.5e12,  # two cores a chip, a device each: 45 a chip (cloud.google.com/tpu/docs/system-architecture-tpu-vm)
    "TPU v3": 61.5e12,  # two cores a chip, a device each: 123 a chip (cloud.google.com/tpu/docs/v3)
    "TPU v4": 275e12,  # cloud.google.com/tpu/docs/v4
    "TPU v5 lite": 197e12,  # v5e: cloud.google.com/tpu/docs/v5e
    "TPU v5e": 197e12,
    "TPU v5p": 459e12,
    "TPU v5": 459e12,  # v5p: cloud.google.com/tpu/docs/v5p
    "TPU v6 lite": 918e12,  # v6e: cloud.google.com/tpu/docs/v6e
    "TPU v6e": 918e12,
    "TPU7x": 1153.5e12,  # two devices a chip: 2307 a chip (cloud.google.com/tpu/docs/tpu7x)
    "NVIDIA A100": 312e12,  # A100 datasheet, without sparsity, like all below
    "NVIDIA H100 PCIe": 756e12,  # H100 datasheet
    "NVIDIA H100 NVL": 835.5e12,
    "NVIDIA H100": 989.4e12,  # SXM: "NVIDIA H100 80GB HBM3"
    "NVIDIA H200 NVL": 835.5e12,
    "NVIDIA H200": 989.4e12,  # H200 datasheet
    "NVIDIA GH200": 989.4e12,
    "NVIDIA GB200": 2500e12,  # GB200 NVL72 datasheet, per GPU
    "NVIDIA B200": 2250e12,  # DGX B200 datasheet, an eighth
    "NVIDIA L40S": 362e12,  # L40S datasheet
    "NVIDIA L4": 121e12,  # L4 datasheet
}


def peak_flops(device_kind: str) -> float | None:
    """The dense bf16 peak of one device in FLOP/s; None for a device that is not in `PEAKS`: never a guess."""
    rows = [name for name in PEAKS if device_kind == name or device_kind.startswith((name + " ", name + "-"))]
    return PEAKS[max(rows, key=len)] if rows else None


def mfu(tokens_per_second: float, flops_per_token: float, device_kind: str, num_devices: int) -> dict[str, float]:
    """{"mfu": share of the peak that went into the model's own FLOPs} (PaLM, arXiv 2204.02311, appendix B), or {} on an unknown device.

    Args:
      tokens_per_second: of the whole mesh, without padding.
      flops_per_token: of the model's forward and backward, nothing recomputed.
      device_kind: `jax.Device.device_kind`.
      num_devices: devices in the mesh.
    """
    peak = peak_flops(device_kind)
    return {} if peak is None else {"mfu": tokens_per_second * flops_per_token / (peak * num_devices)}
