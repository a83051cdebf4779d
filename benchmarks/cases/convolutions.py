"""The 3×3 convolution, the precision operator around it, and the steps of the pyramid exchange."""

import torch
import torch.nn.functional as F
from torch import Tensor

from aef import kernels
from aef.kernels.channel_norm.reference import EPS, channel_norm_reference
from aef.kernels.exchange.reference import (
    exchange_down_reference,
    exchange_up_add_reference,
    exchange_up_norm_reference,
)
from aef.kernels.implicit_gemm import convolution_sizes
from aef.kernels.precision_conv.reference import conv3x3_reference
from benchmarks import roofline

from .case import Arguments, Case, Contender, Decision, eager_norm, random_leaf
from .pointwise import with_channel_norm, with_norm

BOTH = ("triton", "torch")


def _convolved(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """PyTorch's convolution over channels-last views: no copies."""
    return F.conv2d(x.permute(0, 3, 1, 2), weight.permute(0, 3, 1, 2), bias, padding=1).permute(0, 2, 3, 1)


def _conv_decision(frames: int, side: int, channels: int) -> Decision:
    return Decision("conv3x3", convolution_sizes((frames, side, side), channels, channels, 3), BOTH)


def conv3x3(frames: int, side: int, channels: int, value: int) -> Case:
    """One convolution with its bias and nothing behind it."""

    def make(device: torch.device, dtype: torch.dtype) -> Arguments:
        x = random_leaf(frames, side, side, channels, device=device, dtype=dtype)
        weight = random_leaf(channels, 3, 3, channels, device=device, dtype=dtype, scale=(9 * channels) ** -0.5)
        return x, weight, random_leaf(channels, device=device, dtype=dtype)

    contenders: dict[str, Contender] = {"ours": kernels.conv3x3, "eager": _convolved, "reference": conv3x3_reference}
    work, shape = roofline.conv3x3(frames, side, channels), f"{frames}x{side}x{side}x{channels}"
    return Case("conv3x3", shape, make, contenders, work, _conv_decision(frames, side, channels), value)


def precision_operator(frames: int, side: int, channels: int, value: int) -> Case:
    """The whole precision operator: x + conv(GELU(conv(LN(x)))), by its two ways: convolutions of Triton with all
    passes in their epilogues, or PyTorch's between our passes."""

    def make(device: torch.device, dtype: torch.dtype) -> Arguments:
        def vector() -> Tensor:
            return random_leaf(channels, device=device, dtype=dtype)

        def kernel() -> Tensor:
            return random_leaf(channels, 3, 3, channels, device=device, dtype=dtype, scale=(9 * channels) ** -0.5)

        x = random_leaf(frames, side, side, channels, device=device, dtype=dtype)
        return x, vector(), vector(), kernel(), vector(), kernel(), vector()

    def reference(x, scale, shift, first, first_bias, last, last_bias):
        inner = conv3x3_reference(channel_norm_reference(x, scale, shift), first, first_bias, True)
        return conv3x3_reference(inner, last, last_bias, False, x)

    def eager(x, scale, shift, first, first_bias, last, last_bias):
        inner = F.gelu(_convolved(eager_norm(x, scale, shift, EPS), first, first_bias))
        return x + _convolved(inner, last, last_bias)

    def ours(x, scale, shift, first, first_bias, last, last_bias):
        inner = kernels.conv3x3_gelu(kernels.channel_norm(x, scale, shift), first, first_bias)
        return kernels.conv3x3(inner, last, last_bias, residual=x)

    contenders: dict[str, Contender] = {"ours": ours, "eager": eager, "reference": reference}
    work, shape = roofline.precision_operator(frames, side, channels), f"{frames}x{side}x{side}x{channels}"
    return Case("precision_operator", shape, make, contenders, work, _conv_decision(frames, side, channels), value)


# PyTorch's own convolution on channels-last views is the reference as well as the best stock rung.
CONTENDERS: dict[str, dict[str, Contender]] = {
    "exchange_down": {
        "ours": kernels.exchange_down,
        "eager": exchange_down_reference,
        "reference": exchange_down_reference,
    },
    "exchange_up": {
        "ours": kernels.exchange_up_add,
        "eager": exchange_up_add_reference,
        "reference": exchange_up_add_reference,
    },
    "exchange_up_norm": {
        "ours": kernels.exchange_up_norm,
        "two operators": lambda *a: with_channel_norm(kernels.exchange_up_add(*a[:4]), *a[4:]),
        "eager": lambda *a: with_norm(exchange_up_add_reference(*a[:4]), *a[4:]),
        "reference": exchange_up_norm_reference,
    },
}


def exchange(operator: str, frames: int, side: int, fine: int, coarse: int, kernel: int, value: int) -> Case:
    """One step between a level of `side`² pixels and the next coarser; upwards it is merged into the finer state, of
    which `exchange_up_norm` gives the LayerNorm too."""
    upwards, normed = operator != "exchange_down", operator == "exchange_up_norm"
    inputs, outputs = (coarse, fine) if upwards else (fine, coarse)

    def make(device: torch.device, dtype: torch.dtype) -> Arguments:
        states = random_leaf(frames, side, side, fine, device=device, dtype=dtype)
        scale = (kernel**2 * inputs) ** -0.5
        weight = random_leaf(coarse, kernel, kernel, fine, device=device, dtype=dtype, scale=scale)
        bias = random_leaf(outputs, device=device, dtype=dtype)
        if not upwards:
            return states, weight, bias
        norm = [random_leaf(fine, device=device, dtype=dtype) for _ in range(2)] if normed else []
        below = random_leaf(frames, side // 2, side // 2, coarse, device=device, dtype=dtype)
        return below, weight, bias, states, *norm

    shape = f"{frames}x{side}x{side}, {fine}-{coarse}, {kernel}x{kernel}"
    work = (roofline.exchange_up_norm if normed else roofline.exchange)(frames, side, fine, coarse, kernel)
    decision = Decision(operator, convolution_sizes((frames, side, side), inputs, outputs, kernel), BOTH)
    return Case(operator, shape, make, CONTENDERS[operator], work, decision, value)
