"""Tuned PyTorch paths of the exchange.

With 2×2 kernels windows do not overlap, and each step is one matrix product. On a GPU a merge whose state is normalised
is the library's bare convolution and one pass.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..channel_norm.op import residual_norm
from .reference import UP_PADDING


def down_by_product(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """`exchange_down` of a (O, 2, 2, I) kernel: gather each window's four pixels in a row, multiply."""
    frames, height, width, channels = x.shape
    windows = x.reshape(frames, height // 2, 2, width // 2, 2, channels).transpose(2, 3)  # (F, H/2, W/2, 2, 2, I)
    rows = windows.flatten(3).flatten(0, 2)
    out = torch.addmm(bias.to(x.dtype), rows, weight.to(x.dtype).reshape(weight.shape[0], -1).T)
    return out.view(frames, height // 2, width // 2, weight.shape[0])


def up_by_product(x: Tensor, weight: Tensor, bias: Tensor, into: Tensor | None) -> Tensor:
    """`exchange_up_add` of an (I, 2, 2, O) kernel: multiply, then spread each row over its window."""
    frames, height, width, channels = x.shape
    tiled = bias.to(x.dtype).repeat(4)
    rows = torch.addmm(tiled, x.reshape(-1, channels), weight.to(x.dtype).reshape(channels, -1))
    windows = rows.view(frames, height, width, *weight.shape[1:]).transpose(2, 3)  # (F, h, 2, w, 2, O)
    if into is None:
        return windows.reshape(frames, 2 * height, 2 * width, weight.shape[3])
    merged = into.reshape(windows.shape) + windows
    return merged.view(into.shape)


def up_norm_by_passes(
    x: Tensor, weight: Tensor, bias: Tensor, into: Tensor, scale: Tensor, shift: Tensor
) -> tuple[Tensor, Tensor]:
    """`exchange_up_norm` by `F.conv_transpose2d` without a bias, then bias, merge and norm in one pass."""
    image, kernel = x.permute(0, 3, 1, 2), weight.to(x.dtype).permute(0, 3, 1, 2)
    padding, output_padding = UP_PADDING[weight.shape[1]]
    up = F.conv_transpose2d(image, kernel, stride=2, padding=padding, output_padding=output_padding)
    return residual_norm(up.permute(0, 2, 3, 1), bias, into, scale, shift)
