"""Layers of which every part of the model is built. States decide the type: parameters are cast to the operand's.

The fused operators take whole parameters; a module hands over only its own, inside its own forward, because ZeRO-3
gathers a module's parameters just for that call. Where one operator needs those of two modules, one calls the other: a
`ChannelNorm` the layer that makes the state it reads. No parameter is 0-dimensional and convolution weights are
contiguous OHWI, because DeepSpeed flattens parameters (a permuted view is channels-last for cuDNN all the same).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aef import kernels


def at_least_float(dtype: torch.dtype) -> torch.dtype:
    """fp32, or fp64 for fp64: the type of norms, softmax, sampling and everything that leaves the model."""
    return torch.promote_types(dtype, torch.float32)


def new_weight(*shape: int, fan_in: int) -> nn.Parameter:
    """A weight drawn from a normal of standard deviation 1 / √fan_in, cut at two of them. That leaves 0.88 of the
    deviation: the variance of a layer's outputs is 0.77 of its inputs'.

    Drawn here because PyTorch's own draw depends on its version: a seed is to give one model on all of them.
    """
    weight = torch.empty(*shape)
    std = 1 / math.sqrt(fan_in)
    weight.normal_(0, std)
    # Nothing is drawn on the meta device, where a model is built only to be counted.
    while not weight.is_meta and (outside := weight.abs() > 2 * std).any():
        weight = torch.where(outside, torch.empty_like(weight).normal_(0, std), weight)
    return nn.Parameter(weight)


def new_bias(width: int) -> nn.Parameter:
    return nn.Parameter(torch.zeros(width))


class Linear(nn.Module):
    """x W^T + b in x's type: (..., I) → (..., O)."""

    def __init__(self, inputs: int, outputs: int, *, bias: bool = True, gain: float = 1.0) -> None:
        super().__init__()
        self.weight = new_weight(outputs, inputs, fan_in=max(1, round(inputs / gain**2)))
        self.bias = new_bias(outputs) if bias else None

    def forward(self, x: Tensor | kernels.Normalized) -> Tensor:
        return multiply(x, self.weight, self.bias)


def multiply(x: Tensor | kernels.Normalized, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x W^T + b in x's type."""
    if isinstance(x, Tensor):
        return F.linear(x, weight.to(x.dtype), None if bias is None else bias.to(x.dtype))
    y = kernels.norm_linear(x, weight.to(x.value.dtype))
    return y if bias is None else y + bias.to(y.dtype)


class LinearGelu(nn.Module):
    """GELU(x W^T + b): (..., I) → (..., O). With `then`, the layer that multiplies it next: what that makes of x W^T
    and b, so that the GELU's output need not be kept."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = new_weight(outputs, inputs, fan_in=inputs)
        self.bias = new_bias(outputs)

    def forward(self, x: Tensor | kernels.Normalized, then: Callable[[Tensor, Tensor], Tensor] | None = None) -> Tensor:
        y = multiply(x, self.weight)
        return kernels.bias_gelu(y, self.bias) if then is None else then(y, self.bias)


Then = Callable[[Tensor, "Tensor | kernels.Normalized"], Any]
"""A layer that reads a norm: (state, LN(state)) → what it makes of them."""
Merge = Callable[[Tensor, tuple[Tensor, Tensor]], tuple[Tensor, Tensor]]
"""A layer that ends a branch: (residual, (scale, shift) of the norm that reads its state) → (state, LN(state))."""


class LinearResidual(nn.Module):
    """residual + x W^T + b: the projection that ends a residual branch; with `norm` a `Merge`, and with `before_bias`
    of GELU(x + before_bias) instead of x."""

    def __init__(self, inputs: int, outputs: int, *, gain: float = 1.0) -> None:
        super().__init__()
        self.weight = new_weight(outputs, inputs, fan_in=max(1, round(inputs / gain**2)))
        self.bias = new_bias(outputs)
        self.remake = False

    def forward(
        self,
        x: Tensor,
        residual: Tensor,
        norm: tuple[Tensor, Tensor] | None = None,
        before_bias: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        weight = self.weight.to(x.dtype)
        if before_bias is None:
            y = F.linear(x, weight)
        else:
            y = kernels.gelu_linear(x, before_bias, weight, remake=self.remake)
        if norm is None:
            return kernels.bias_residual(y, self.bias, residual)
        return kernels.residual_norm(y, self.bias, residual, *norm)


class ChannelNorm(nn.Module):
    """LayerNorm over the channels of one pixel or token, statistics in fp32; with the layers before and after it, if given.

    ===============================  ====================================================
    call                             returns
    ===============================  ====================================================
    ``norm(x)``                      LN(x)
    ``norm(x, then=f)``              f(x, LN(x))
    ``norm(x, made_by=m)``           state, LN(state), which ``m`` makes of x in one pass
    ``norm(x, made_by=m, then=f)``   f(state, LN(state))
    ===============================  ====================================================

    Both are called inside, so that whoever gathers the parameters of layers (ZeRO-3) has gathered this one's for their
    backward too, which needs them where LN(x) is made again (`remake`) instead of kept.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = new_bias(width)
        self.remake = False

    def forward(self, x: Tensor, made_by: Merge | None = None, then: Then | None = None) -> Any:
        if made_by is None:
            state, normal = x, kernels.channel_norm(x, self.weight, self.bias)
        else:
            state, normal = made_by(x, (self.weight, self.bias))
        if then is None:
            return normal if made_by is None else (state, normal)
        if self.remake and torch.is_grad_enabled():
            return then(state, kernels.Normalized(normal, state, self.weight, self.bias))
        return then(state, normal)


class ResidualMlp(nn.Module):
    """x + W2 GELU(W1 LN(x)): the pre-norm MLP of a transformer layer; with `made_by` of the state that this makes of x."""

    def __init__(self, width: int, ratio: int, *, gain: float = 1.0) -> None:
        super().__init__()
        self.norm = ChannelNorm(width)
        self.expand = LinearGelu(width, ratio * width)
        self.contract = LinearResidual(ratio * width, width, gain=gain)

    def forward(self, x: Tensor, made_by: Merge | None = None) -> Tensor:
        return self.norm(x, made_by, self._of_norm)

    def _of_norm(self, x: Tensor, normal: Tensor | kernels.Normalized) -> Tensor:
        return self.expand(normal, lambda hidden, bias: self.contract(hidden, x, before_bias=bias))


class Conv3x3(nn.Module):
    """3×3 convolution and a residual if one is given, (F, H, W, I) → (F, H, W, O)."""

    def __init__(self, inputs: int, outputs: int, *, gain: float = 1.0) -> None:
        super().__init__()
        self.weight = new_weight(outputs, 3, 3, inputs, fan_in=max(1, round(9 * inputs / gain**2)))
        self.bias = new_bias(outputs)

    def forward(self, x: Tensor | kernels.Activated | kernels.Normalized, residual: Tensor | None = None) -> Tensor:
        return kernels.conv3x3(x, self.weight, self.bias, residual=residual)


class Conv3x3Gelu(nn.Module):
    """GELU of a 3×3 convolution for a following one: a chain of them spends no pass of its own on a GELU's slope."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.remake = False
        self.weight = new_weight(outputs, 3, 3, inputs, fan_in=9 * inputs)
        self.bias = new_bias(outputs)

    def forward(self, x: Tensor | kernels.Activated | kernels.Normalized) -> kernels.Activated:
        return kernels.conv3x3_gelu(x, self.weight, self.bias, remake=self.remake)


def remake_operands(module: nn.Module) -> None:
    """Selective recomputation: in `module`, outputs of LayerNorms and GELUs are made again in backward, not kept."""
    for layer in module.modules():
        if isinstance(layer, ChannelNorm | LinearResidual | Conv3x3Gelu):
            layer.remake = True


ONE_PIXEL = (1, 1)


def _tap(weight: Tensor) -> Tensor:
    """(rows, columns) of a (rows, k, k, columns) resampling: the tap between a level of one pixel and the next coarser one."""
    first = (weight.shape[1] - 1) // 2
    return weight[:, first, first]


class Down(nn.Module):
    """Learned halving of the sides, (F, H, W, I) → (F, ⌈H/2⌉, ⌈W/2⌉, O); weight (O, k, k, I).

    An odd side, as small crops have it at the coarse levels, is first extended by a row of zeros. A single pixel meets
    one tap of the kernel, so it is multiplied by that one only.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int, *, zero: bool = False) -> None:
        super().__init__()
        self.weight = new_weight(outputs, kernel, kernel, inputs, fan_in=kernel**2 * inputs)
        self.bias = new_bias(outputs)
        if zero:
            nn.init.zeros_(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[1:3] == ONE_PIXEL:
            return F.linear(x, _tap(self.weight).to(x.dtype), self.bias.to(x.dtype))
        odd_rows, odd_columns = x.shape[1] % 2, x.shape[2] % 2
        if odd_rows or odd_columns:
            x = F.pad(x, (0, 0, 0, odd_columns, 0, odd_rows))
        return kernels.exchange_down(x, self.weight, self.bias)


def without_grid(weight: Tensor) -> Tensor:
    """The nearest doubling kernel (I, k, k, O), k even, whose four phases answer alike to a constant map.

    Of an output, rows and columns that are even are made by the taps 1, 3, … and those that are odd by 0, 2, …: each phase
    has taps of its own, and training moves them apart a little at random. Where their sums differ, what all pixels have
    in common comes out as a grid of 2 x 2 px (docs/results/learning.md, "The grid of 2 px"). What differs from
    pixel to pixel inside a cell is left to the taps.
    """
    inputs, kernel, _, outputs = weight.shape
    per_phase = kernel // 2
    taps = weight.to(at_least_float(weight.dtype)).view(inputs, per_phase, 2, per_phase, 2, outputs)
    sums = taps.sum((1, 3), keepdim=True)
    excess = (sums - sums.mean((2, 4), keepdim=True)) / per_phase**2
    return (taps - excess).view_as(weight).to(weight.dtype)


class Up(nn.Module):
    """Learned doubling of the sides, merged: into + up(x); weight (I, k, k, O). With `norm` a `Merge`.

    Where `into` has an odd side, the last row of up(x) is left away.

    It starts as a projection of the channels followed by interpolation (nearest for 2×2, bilinear for 3×3 and 4×4).
    With taps drawn one by one, the four phases of an output would start as four different maps: a checkerboard that
    outweighs the content, and that the rest of the network has to unlearn first (docs/results/learning.md). With `flat`
    a constant map stays one, away from its border, however the taps are trained (`without_grid`).
    """

    TAPS: ClassVar = {2: (1.0, 1.0), 3: (0.5, 1.0, 0.5), 4: (0.25, 0.75, 0.75, 0.25)}

    def __init__(
        self, inputs: int, outputs: int, kernel: int, *, zero: bool = False, gain: float = 1.0, flat: bool = False
    ) -> None:
        super().__init__()
        self.flat = flat
        taps = torch.tensor(self.TAPS[kernel])
        mixing = new_weight(inputs, 1, 1, outputs, fan_in=max(1, round(inputs / gain**2)))
        self.weight = nn.Parameter((mixing * torch.outer(taps, taps)[None, :, :, None]).detach().contiguous())
        self.bias = new_bias(outputs)
        if zero:
            nn.init.zeros_(self.weight)

    def forward(
        self, x: Tensor, into: Tensor | None = None, norm: tuple[Tensor, Tensor] | None = None
    ) -> Tensor | tuple[Tensor, Tensor]:
        weight = without_grid(self.weight) if self.flat else self.weight
        if norm is not None:  # the finest merge, whose sides are even
            assert into is not None
            return kernels.exchange_up_norm(x, weight, self.bias, into, *norm)
        if into is not None and into.shape[1:3] == ONE_PIXEL:
            return into + F.linear(x, _tap(weight).to(x.dtype).T, self.bias.to(x.dtype))
        if into is None or into.shape[1:3] == (2 * x.shape[1], 2 * x.shape[2]):
            return kernels.exchange_up_add(x, weight, self.bias, into)
        rows, columns = into.shape[1:3]
        return into + kernels.exchange_up_add(x, weight, self.bias, None)[:, :rows, :columns]
