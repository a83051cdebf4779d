"""Tuned PyTorch path of the exchange with 2×2 kernels: windows do not overlap, so each step is one matrix product."""

import torch
from torch import Tensor


def down_by_product(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """`exchange_down` of a (O, 2, 2, I) kernel: gather each window's four pixels in a row, multiply."""
    frames, height, width, channels = x.shape
    windows = x.reshape(frames, height // 2, 2, width // 2, 2, channels).transpose(2, 3)  # (F, H/2, W/2, 2, 2, I)
    rows = windows.reshape(-1, 4 * channels)
    out = torch.addmm(bias.to(x.dtype), rows, weight.to(x.dtype).reshape(weight.shape[0], -1).T)
    return out.view(frames, height // 2, width // 2, -1)


def up_by_product(x: Tensor, weight: Tensor, bias: Tensor, into: Tensor | None) -> Tensor:
    """`exchange_up_add` of an (I, 2, 2, O) kernel: multiply, then spread each row over its window."""
    frames, height, width, channels = x.shape
    tiled = bias.to(x.dtype).repeat(4)
    rows = torch.addmm(tiled, x.reshape(-1, channels), weight.to(x.dtype).reshape(channels, -1))
    windows = rows.view(frames, height, width, 2, 2, -1).transpose(2, 3)  # (F, h, 2, w, 2, O)
    if into is None:
        return windows.reshape(frames, 2 * height, 2 * width, -1)
    merged = into.reshape(windows.shape) + windows
    return merged.view(frames, 2 * height, 2 * width, -1)
