"""The rungs of one STP block and of its exchange alone, forward + backward: `python -m benchmarks.gpu --only block`.

All rungs are the model's own modules inside a chain of blocks: a block is given the norm of its precision state and
writes that of the next. "tuned eager" is PyTorch's best path of every operator (`AEF_KERNELS=torch`), with SDPA's own
choice or one of its back ends, then what torch.compile makes of it; "ours" is what dispatch chooses, or Triton wherever
it can, plain, compiled, and with the time and space operators on a stream of their own, beside the precision operator.
CUDA graphs of each are timed as of every other row; two streams are meant for them.
"""

import contextlib
import copy
import gc
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import sdpa_kernel

from aef.config import PRESETS, ModelConfig
from aef.data.batch import bucket_frames
from aef.model.layers import ChannelNorm
from aef.model.pyramid import Exchange, States, level_widths
from aef.model.stp import Block
from aef.timecode import TIMECODE_WIDTH
from benchmarks import roofline
from benchmarks.cases.case import SDPA
from benchmarks.timing import compare, exact_products


@dataclass(frozen=True)
class Way:
    """How a rung runs: the value of `AEF_KERNELS`, settings of torch.compile or None, two streams or one, and the back
    end to which SDPA is held."""

    kernels: str
    compiled: dict[str, Any] | None = None
    two_streams: bool = False
    sdpa: str = ""


RUNGS = {
    "ours": Way("auto"),
    "tuned eager": Way("torch"),
    "ours, triton": Way("triton"),
    "ours, two streams": Way("auto", two_streams=True),
    # Flash takes no mask, and PyTorch's path of a batch of mixed lengths has one.
    **{f"tuned eager, sdpa {name}": Way("torch", sdpa=name) for name in ("efficient", "cudnn", "math")},
    "max-autotune": Way("torch", {"mode": "max-autotune-no-cudagraphs"}),
    "compiled": Way("torch", {}),
    "ours compiled": Way("auto", {}),
}
EXCHANGE_RUNGS = ("ours", "tuned eager", "ours, triton", "max-autotune", "compiled")
CHECKED = {"block": ("ours", "ours, triton", "ours, two streams"), "exchange": ("ours", "ours, triton")}
"""Rungs that are compared with tuned eager before any is timed."""
LENGTHS = (43, 21)
"""A teacher's and a student's frames of one sample."""
Rung = tuple[str, str, Callable[[], Callable[[], object]], roofline.Work]


class BlockInChain(nn.Module):
    """A block between others, whose norm of the precision state is like its own."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.block = Block(config)

    def forward(self, *arguments) -> States:
        return self.block(*arguments, self.block.precision.norm)


class ExchangeInChain(nn.Module):
    """The exchange at a block's end, which writes the next block's norm."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        widths = level_widths(config.precision_width, config.time_width, config.space_width)
        self.exchange, self.reader = Exchange(widths, config.pyramid_kernel), ChannelNorm(config.precision_width)

    def forward(self, precision, time, space, normal, *packing) -> States:
        return self.exchange(States(precision, time, space), self.reader)


MODULES: dict[str, Callable[[ModelConfig], nn.Module]] = {"block": BlockInChain, "exchange": ExchangeInChain}


class TwoStreams:
    """A block whose time and space operators run beside the precision operator; backward follows the same streams."""

    def __init__(self, block: Block, device: torch.device) -> None:
        self.block, self.streams = block, torch.get_device_module(device)
        self.side = self.streams.Stream()

    def __call__(self, precision, time, space, normal, timecode, cu_frames, max_frames) -> States:
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
        return self.block.exchange(States(precision, time, space), self.block.precision.norm)


def rungs(
    part: str,
    device: torch.device,
    dtype: torch.dtype,
    *,
    config: ModelConfig = PRESETS["large"].model,
    side: int = 64,
    samples: tuple[int, ...] = (1, 4),
    names: Sequence[str] = tuple(RUNGS),
) -> Iterator[Rung]:
    """(shape, rung, what makes its call, work) of a block or an exchange at `side` × `side` precision pixels, for each
    number of samples."""
    for count in samples:
        lengths = [*LENGTHS] * count
        arguments = _arguments(config, lengths, side, device, dtype)
        work = _work(part, config, lengths, side)
        for name in names:
            yield f"{sum(lengths)} frames", name, partial(_make, part, RUNGS[name], config, arguments), work


def check(
    part: str, device: torch.device, *, config: ModelConfig = PRESETS["large"].model, side: int = 64
) -> Iterator[tuple[str, str | None, str]]:
    """(rung, what is wrong or None, a remark) of each of CHECKED: against fp32, no further than a multiple of tuned
    eager in bf16. Two streams compute what one does, to the bit where no library's products differ from run to run."""
    torch.manual_seed(0)
    module = without_zeros(MODULES[part](config))
    low = copy.deepcopy(module).to(torch.bfloat16).to(device)
    module = module.to(device)
    wide = _arguments(config, [*LENGTHS], side, device, torch.float32)
    narrow = tuple(_narrowed(one) for one in wide)
    cotangents = [torch.randn_like(one) for one in wide[: len(States._fields)]]
    with exact_products():
        wanted = _results(module, "torch", wide, cotangents)
    plain, found = _results(low, "torch", narrow, cotangents), {}
    for name in CHECKED[part]:
        way = RUNGS[name]
        runs = TwoStreams(low.block, device) if way.two_streams else low
        found[name] = _results(low, way.kernels, narrow, cotangents, runs)
        same = all(torch.equal(one, other) for one, other in zip(found[name], found["ours"]))
        wrong, remark = compare(wanted, plain, found[name], len(States._fields))
        if not same and way.two_streams:
            remark += "; not to the bit what one stream gives"
        yield name, wrong, remark


def without_zeros(module: nn.Module) -> nn.Module:
    """Small random values where parameters are zero, as the last layer before a merge is at first: products with zeros
    run faster than those of a training."""
    with torch.no_grad():
        for one in module.parameters():
            one.copy_(torch.where(one == 0, 0.02 * torch.randn_like(one), one))
    return module


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


def _work(part: str, config: ModelConfig, lengths: list[int], side: int) -> roofline.Work:
    widths = level_widths(config.precision_width, config.time_width, config.space_width)
    if part == "exchange":
        return roofline.whole_exchange(sum(lengths), side, widths, config.pyramid_kernel)["both"]
    return roofline.block(lengths, side, widths, config.head_width, config.mlp_ratio, config.pyramid_kernel)["both"]


def _make(part: str, way: Way, config: ModelConfig, arguments: tuple) -> Callable[[], object]:
    torch.compiler.reset()
    gc.collect()
    torch.cuda.empty_cache()
    device, dtype = arguments[0].device, arguments[0].dtype
    module = without_zeros(MODULES[part](config)).to(dtype).to(device)
    runs: Callable = module if way.compiled is None else torch.compile(module, dynamic=False, **way.compiled)
    if way.two_streams:
        runs = TwoStreams(module.block, device)
    cotangents = [torch.randn_like(one) for one in arguments[: len(States._fields)]]

    def call() -> object:
        held = sdpa_kernel([SDPA[way.sdpa]]) if way.sdpa else contextlib.nullcontext()
        with held:
            return _results(module, way.kernels, arguments, cotangents, runs)

    return call


def _results(
    module: nn.Module, backend: str, arguments: tuple, cotangents: list[Tensor], runs: Callable | None = None
) -> tuple[Tensor, ...]:
    """States, and the gradients of all states that were given and of all parameters."""
    leaves = [*(one for one in arguments if isinstance(one, Tensor) and one.requires_grad), *module.parameters()]
    with kernels_from(backend):
        states = list((module if runs is None else runs)(*arguments))  # a compiled module has no truth value
        given = [one.to(state.dtype) for one, state in zip(cotangents, states)]
        gradients = torch.autograd.grad(states, leaves, given, allow_unused=True)
    return (*(one.detach() for one in states), *(one for one in gradients if one is not None))


def _arguments(
    config: ModelConfig, lengths: list[int], side: int, device: torch.device, dtype: torch.dtype
) -> tuple[Any, ...]:
    half, _, eighth, sixteenth = level_widths(config.precision_width, config.time_width, config.space_width)
    frames = sum(lengths)
    states = [
        torch.randn(frames, n, n, width, device=device, dtype=dtype, requires_grad=True)
        for n, width in ((side, half), (side // 4, eighth), (side // 8, sixteenth), (side, half))
    ]
    timecode = torch.randn(frames, TIMECODE_WIDTH, device=device, dtype=dtype)
    cu_frames = torch.tensor([0, *accumulate(lengths)], dtype=torch.int32, device=device)
    return *states, timecode, cu_frames, bucket_frames(max(lengths))


def _narrowed(argument):
    if not isinstance(argument, Tensor) or not argument.is_floating_point():
        return argument
    return argument.detach().to(torch.bfloat16).requires_grad_(argument.requires_grad)
