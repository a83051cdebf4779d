"""The rungs of one STP block, forward + backward: rows of `python -m benchmarks.gpu --only block`.

All rungs are the model's own block inside a chain of blocks: it is given the norm of its precision state and writes that of
the next. "tuned eager" is PyTorch's best path of every operator (`AEF_KERNELS=torch`), then what torch.compile makes of it;
"ours" is what dispatch chooses, plain, compiled as in training, and with the time and space operators on a stream of their
own, beside the precision operator. CUDA graphs of each are timed as of every other row; two streams are meant for them.
"""

import contextlib
import gc
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from aef.config import PRESETS, ModelConfig
from aef.model.pyramid import States, level_widths
from aef.model.stp import Block
from aef.timecode import TIMECODE_WIDTH
from benchmarks import roofline


@dataclass(frozen=True)
class Way:
    """How a rung runs the block: the value of `AEF_KERNELS`, settings of torch.compile or None, two streams or one."""

    kernels: str
    compiled: dict[str, Any] | None = None
    two_streams: bool = False


RUNGS = {
    "tuned eager": Way("torch"),
    "compiled": Way("torch", {}),
    "max-autotune": Way("torch", {"mode": "max-autotune-no-cudagraphs"}),
    "ours": Way("auto"),
    "ours compiled": Way("auto", {}),
    "ours, two streams": Way("auto", two_streams=True),
}
LENGTHS = (43, 21)
"""A teacher's and a student's frames of one sample."""
Rung = tuple[str, str, Callable[[], Callable[[], object]], roofline.Work]


def block_rungs(
    device: torch.device,
    dtype: torch.dtype,
    *,
    config: ModelConfig = PRESETS["large"].model,
    side: int = 64,
    samples: tuple[int, ...] = (1, 4),
    names: Sequence[str] = tuple(RUNGS),
) -> Iterator[Rung]:
    """(shape, rung, what makes its call, work) of one block at `side` × `side` precision pixels, for each number of samples."""
    widths = level_widths(config.precision_width, config.time_width, config.space_width)
    for count in samples:
        lengths = [*LENGTHS] * count
        work = roofline.block(lengths, side, widths, config.head_width, config.mlp_ratio, config.pyramid_kernel)["both"]
        arguments = _arguments(lengths, side, widths, device, dtype)
        for name in names:
            yield f"{sum(lengths)} frames", name, partial(_make, RUNGS[name], config, arguments), work


def _make(way: Way, config: ModelConfig, arguments: tuple) -> Callable[[], object]:
    device = arguments[0].device
    torch.compiler.reset()
    gc.collect()
    torch.cuda.empty_cache()
    module = Block(config).to(device)
    runs: Callable = module if way.compiled is None else torch.compile(module, dynamic=False, **way.compiled)
    if way.two_streams:
        runs = TwoStreams(module, device)
    return _call(runs, list(module.parameters()), (*arguments, module.precision.norm), way.kernels)


class TwoStreams:
    """A block whose time and space operators run beside the precision operator; backward follows the same streams."""

    def __init__(self, block: Block, device: torch.device) -> None:
        self.block, self.streams = block, torch.get_device_module(device)
        self.side = self.streams.Stream()

    def __call__(self, precision, time, space, normal, timecode, cu_frames, max_frames, reader) -> States:
        main = self.streams.current_stream()
        self.side.wait_stream(main)
        with self.streams.stream(self.side):
            time = self.block.time(time, timecode, cu_frames, max_frames)
            space = self.block.space(space)
        precision = self.block.precision(precision, normal)
        main.wait_stream(self.side)
        for one in (time, space):
            if one.is_cuda:  # made on one stream, read on the other: the allocator must wait for both
                one.record_stream(main)
        return self.block.exchange(States(precision, time, space), reader)


def _arguments(
    lengths: list[int], side: int, widths: tuple[int, int, int, int], device: torch.device, dtype: torch.dtype
) -> tuple:
    frames = sum(lengths)
    states = [
        torch.randn(frames, n, n, width, device=device, dtype=dtype, requires_grad=True)
        for n, width in ((side, widths[0]), (side // 4, widths[2]), (side // 8, widths[3]), (side, widths[0]))
    ]
    timecode = torch.randn(frames, TIMECODE_WIDTH, device=device, dtype=dtype)
    cu_frames = torch.tensor([0, *accumulate(lengths)], dtype=torch.int32, device=device)
    return *states, timecode, cu_frames, max(lengths)


def _call(block: Callable, parameters: list[Tensor], arguments: tuple, backend: str) -> Callable[[], object]:
    states = list(arguments[: len(States._fields)])
    cotangents = [torch.randn_like(one) for one in states]

    def call() -> object:
        with kernels_from(backend):
            return torch.autograd.grad(list(block(*arguments)), [*states, *parameters], cotangents)

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
