"""Rates that plans rest on, of stock libraries: cuDNN's bare convolution, matrix products, copies, reads from L2."""

from collections.abc import Callable, Iterator
from functools import partial

import torch
import torch.nn.functional as F

from benchmarks import roofline
from benchmarks.timing import sets_beyond_cache

Question = tuple[str, str, list[Callable[[], object]], roofline.Work]
PEAK_SIDE = 8192


def questions(device: torch.device) -> Iterator[Question]:
    """(operator, shape, calls, work), inputs beyond the cache but where the cache is the question."""
    for frames in (32, 64, 128, 256):
        work = roofline.conv3x3(frames, 64, 128)["forward"]
        yield "cudnn conv3x3", f"{frames}x64x64x128", _convolutions(device, frames), work
    for rows, width in ((2048, 1024), (4096, 1024), (8192, 512), (16384, 512)):
        work = roofline.Work(6.0 * rows * width**2, 2.0 * (4 * rows * width + 3 * width**2))
        yield "gemm", f"{rows}x{width}x{3 * width}", _products(device, rows, width, 3 * width), work
    large = [torch.empty(1 << 29, device=device, dtype=torch.bfloat16).normal_() for _ in range(3)]
    copies = [partial(large[0].copy_, large[1]), partial(large[1].copy_, large[2])]
    yield "copy", "1 GiB", copies, roofline.Work(0, 2.0**31)
    resident = _random(device, 8 << 20)
    yield "read from L2", "16 MiB", [resident.sum], roofline.Work(0, 2.0**24)


def matrix_peak(device: torch.device) -> Question:
    """A large product: the rate of which others are a share."""
    n = PEAK_SIDE
    return "gemm", f"{n}x{n}x{n}", _products(device, n, n, n), roofline.Work(2.0 * n**3, 6.0 * n**2)


def _random(device: torch.device, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, device=device, dtype=torch.bfloat16)


def _convolutions(device: torch.device, frames: int) -> list[Callable[[], object]]:
    def make() -> tuple[torch.Tensor]:
        return (_random(device, frames, 128, 64, 64).to(memory_format=torch.channels_last),)

    weight = _random(device, 128, 128, 3, 3).to(memory_format=torch.channels_last)
    return [partial(F.conv2d, x, weight, padding=1) for (x,) in sets_beyond_cache(make, device)]


def _products(device: torch.device, rows: int, inner: int, columns: int) -> list[Callable[[], object]]:
    right = _random(device, inner, columns)
    sets = sets_beyond_cache(lambda: (_random(device, rows, inner),), device)
    return [partial(torch.matmul, x, right) for (x,) in sets]
