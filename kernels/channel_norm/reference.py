"""The specification of the channel LayerNorm in plain PyTorch. Frozen: every fast path is judged against it."""

import torch
from torch import Tensor

from ..activation.reference import bias_residual_reference

EPS = 1e-6


def channel_norm_reference(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """`(x − mean) / √(var + 1e-6) · weight + bias` over the last dimension, statistics in fp32 (fp64 for fp64)."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    centred = wide - wide.mean(dim=-1, keepdim=True)
    variance = centred.square().mean(dim=-1, keepdim=True)
    normal = centred * torch.rsqrt(variance + EPS)
    return (normal * weight.to(wide.dtype) + bias.to(wide.dtype)).to(x.dtype)


def residual_norm_reference(
    x: Tensor, bias: Tensor, residual: Tensor, scale: Tensor, shift: Tensor
) -> tuple[Tensor, Tensor]:
    """`state = x + bias + residual`, rounded to `x`'s dtype, and `channel_norm(state, scale, shift)`."""
    state = bias_residual_reference(x, bias, residual)
    return state, channel_norm_reference(state, scale, shift)
