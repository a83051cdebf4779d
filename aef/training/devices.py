"""What a device can do by its datasheet, and what it has been used for."""

from __future__ import annotations

import resource
import sys

import torch

DENSE_BF16_FLOPS = {
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
    "A10": 125e12,
    "RTX 4090": 165e12,
}
"""Datasheet peaks of dense bf16 matrix products; the first name that occurs in the device's counts."""


def peak_flops(device: torch.device, precision: str) -> float | None:
    """Datasheet peak of dense bf16 products of a GPU; None on a CPU, for an unknown GPU and in fp32."""
    if device.type != "cuda" or precision != "bfloat16":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for known, peak in DENSE_BF16_FLOPS.items() if known in name), None)


def peak_memory_gb(device: torch.device) -> float:
    """Peak memory in GB (1e9 bytes): allocated on a GPU, resident on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9
