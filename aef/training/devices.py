"""What a device can do by its datasheet, what it has been used for, and how a CPU keeps its memory."""

from __future__ import annotations

import ctypes
import re
import resource
import sys

import torch

DENSE_BF16_FLOPS = {
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
    "A10": 125e12,
    "RTX 4090": 165e12,
}
"""Datasheet peaks of dense bf16 matrix products; the first name that ends a word of the device's counts: an L40 is no L4,
an A10G no A10."""


def peak_flops(device: torch.device, precision: str) -> float | None:
    """Datasheet peak of dense bf16 products of a GPU; None on a CPU, for an unknown GPU and in fp32."""
    if device.type != "cuda" or precision != "bfloat16":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for known, peak in DENSE_BF16_FLOPS.items() if re.search(rf"{known}\b", name)), None)


OLDEST_WITH_BF16 = (8, 0)


def gpu_without_bf16() -> str | None:
    """The name of this process's GPU if it computes bf16 by emulation at best; None where it has bf16, or no GPU is."""
    if not torch.cuda.is_available() or torch.version.hip or torch.cuda.get_device_capability() >= OLDEST_WITH_BF16:
        return None
    return torch.cuda.get_device_name()


def attend_without_plans() -> None:
    """Let SDPA choose among PyTorch's own kernels: cuDNN's, which it may prefer on Hopper, build a plan, for tens of
    milliseconds on the host, for every number of frames that is new, and nearly every step has another."""
    torch.backends.cuda.enable_cudnn_sdp(False)


M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4


def keep_freed_memory() -> bool:
    """Let this process keep what it frees, for the next step that asks for the same: False where that is not glibc's to say.

    A step on a CPU frees its activations in backward. By default glibc hands large blocks back to the system, which
    clears and maps every page again at the next step: about 70,000 of them in a step that maps none with this setting
    (docs/results/training.md). It asks that no block be mapped on its own and that the heap not be trimmed.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another system, or another C library
        return False
    return bool(mallopt(M_MMAP_MAX, 0)) and bool(mallopt(M_TRIM_THRESHOLD, 2**31 - 1))


def peak_memory_gb(device: torch.device) -> float:
    """Peak memory in GB (1e9 bytes): allocated on a GPU, resident on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9
