"""The specification of the channel LayerNorm in plain PyTorch. Frozen: every fast path is judged against it."""

import torch
from torch import Tensor

EPS = 1e-6


def channel_norm_reference(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """`(x − mean) / √(var + 1e-6) · weight + bias` over the last dimension, statistics in fp32 (fp64 for fp64)."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    centred = wide - wide.mean(dim=-1, keepdim=True)
    variance = centred.square().mean(dim=-1, keepdim=True)
    normal = centred * torch.rsqrt(variance + EPS)
    return (normal * weight.to(wide.dtype) + bias.to(wide.dtype)).to(x.dtype)
