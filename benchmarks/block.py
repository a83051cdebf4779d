"""The rungs of one STP block, forward + backward: rows of `python -m benchmarks.gpu --only block`.

All rungs are the model's own block. "tuned eager" is PyTorch's best path of every operator (`AEF_KERNELS=torch`), then
what torch.compile makes of it; "ours" is what dispatch chooses, plain and compiled as in training. CUDA graphs of each
are timed as of every other row.
"""

import contextlib
import os
from collections.abc import Callable, Iterator
from itertools import accumulate

import torch
from torch import Tensor

from aef.config import PRESETS, ModelConfig
from aef.model.pyramid import level_widths
from aef.model.stp import Block
from aef.timecode import TIMECODE_WIDTH
from benchmarks import roofline

RUNGS: dict[str, tuple[str, dict | None]] = {
    "tuned eager": ("torch", None),
    "compiled": ("torch", {}),
    "max-autotune": ("torch", {"mode": "max-autotune-no-cudagraphs"}),
    "ours": ("auto", None),
    "ours compiled": ("auto", {}),
}
"""Name → value of `AEF_KERNELS`, and settings of torch.compile or None."""
LENGTHS = (43, 21)
"""A teacher's and a student's frames of one sample."""
Rung = tuple[str, str, Callable[[], object], roofline.Work]


def block_rungs(
    device: torch.device,
    dtype: torch.dtype,
    *,
    config: ModelConfig = PRESETS["large"].model,
    side: int = 64,
    samples: tuple[int, ...] = (1, 4),
) -> Iterator[Rung]:
    """(shape, rung, call, work) of one block at `side` × `side` precision pixels, for each number of samples."""
    widths = level_widths(config.precision_width, config.time_width, config.space_width)
    for count in samples:
        lengths = [*LENGTHS] * count
        work = roofline.block(lengths, side, widths, config.head_width, config.mlp_ratio, config.pyramid_kernel)["both"]
        arguments = _arguments(lengths, side, widths, device, dtype)
        for name, (backend, settings) in RUNGS.items():
            torch.compiler.reset()
            module = Block(config).to(device)
            runs = module if settings is None else torch.compile(module, dynamic=False, **settings)
            yield f"{sum(lengths)} frames", name, _call(runs, list(module.parameters()), arguments, backend), work


def _arguments(
    lengths: list[int], side: int, widths: tuple[int, int, int, int], device: torch.device, dtype: torch.dtype
) -> tuple:
    frames = sum(lengths)
    states = [
        torch.randn(frames, n, n, width, device=device, dtype=dtype, requires_grad=True)
        for n, width in ((side, widths[0]), (side // 4, widths[2]), (side // 8, widths[3]))
    ]
    timecode = torch.randn(frames, TIMECODE_WIDTH, device=device, dtype=dtype)
    cu_frames = torch.tensor([0, *accumulate(lengths)], dtype=torch.int32, device=device)
    return *states, timecode, cu_frames, max(lengths)


def _call(block: Callable, parameters: list[Tensor], arguments: tuple, backend: str) -> Callable[[], object]:
    states = list(arguments[:3])
    cotangents = [torch.randn_like(one) for one in states]

    def call() -> object:
        with kernels_from(backend):
            return torch.autograd.grad(block(*arguments), [*states, *parameters], cotangents)

    return call


@contextlib.contextmanager
def kernels_from(backend: str) -> Iterator[None]:
    """`AEF_KERNELS` set to `backend` for a while: backward asks for it as well."""
    before = os.environ.get("AEF_KERNELS")
    os.environ["AEF_KERNELS"] = backend
    try:
        yield
    finally:
        if before is None:
            del os.environ["AEF_KERNELS"]
        else:
            os.environ["AEF_KERNELS"] = before
