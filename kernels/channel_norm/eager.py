"""The CPU path of the channel LayerNorm for states of half precision: what PyTorch does well of it, and no more.

PyTorch's forward reads bf16 and keeps fp32 statistics, in one pass. Its backward sums the parameters' gradients in
bf16, a tenth off at 20,000 rows, so that one runs on fp32 copies, which live no longer than it does.
"""

import torch
from torch import Tensor

from .reference import EPS


class HalfChannelNorm(torch.autograd.Function):
    """Differentiable LayerNorm: `apply(x, weight, bias)`; x (..., C) of half precision, weight and bias (C,)."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.bias_dtype = bias.dtype
        out, mean, inverse = torch.native_layer_norm(x, x.shape[-1:], weight.float(), bias.float(), EPS)
        ctx.save_for_backward(x, weight, mean, inverse)
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient: Tensor):
        x, weight, mean, inverse = ctx.saved_tensors
        d_x, d_weight, d_bias = layer_norm_backward(gradient, x, weight, mean, inverse)
        return d_x.to(x.dtype), d_weight.to(weight.dtype), d_bias.to(ctx.bias_dtype)


def layer_norm_backward(
    gradient: Tensor, x: Tensor, weight: Tensor, mean: Tensor, inverse: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, weight and bias in fp32 at least, from the statistics; the bias itself does not enter."""
    wide = torch.promote_types(x.dtype, torch.float32)
    weight = weight.to(wide)
    return torch.ops.aten.native_layer_norm_backward(
        gradient.to(wide), x.to(wide), x.shape[-1:], mean, inverse, weight, torch.zeros_like(weight), [True, True, True]
    )
