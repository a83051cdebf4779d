"""The 3×3 convolution through PyTorch's libraries: cuDNN with our point-wise passes on a GPU, oneDNN on a CPU."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..activation.op import bias_gelu, bias_residual
from .reference import conv3x3_reference


def conv3x3_by_library(x: Tensor, weight: Tensor, bias: Tensor, gelu: bool, residual: Tensor | None) -> Tensor:
    """`conv3x3` by `F.conv2d` on views that are channels-last without a copy; differentiable.

    cuDNN is slower with a bias than without one, and what follows the convolution is one fused pass. oneDNN adds the
    bias for nothing.
    """
    if x.device.type == "cpu":
        return conv3x3_reference(x, weight, bias, gelu, residual)
    return conv3x3_by_passes(x, weight, bias, gelu, residual)


def conv3x3_by_passes(x: Tensor, weight: Tensor, bias: Tensor, gelu: bool, residual: Tensor | None) -> Tensor:
    """The bare convolution, then one point-wise pass: bias + GELU, or bias + residual."""
    return end_by_passes(bare_conv3x3(x, weight), bias, gelu, residual)


def bare_conv3x3(x: Tensor, weight: Tensor) -> Tensor:
    """The convolution alone: (F, H, W, I) → (F, H, W, O)."""
    image, kernel = x.permute(0, 3, 1, 2), weight.to(x.dtype).permute(0, 3, 1, 2)
    return F.conv2d(image, kernel, padding=1).permute(0, 2, 3, 1)


def end_by_passes(y: Tensor, bias: Tensor, gelu: bool, residual: Tensor | None) -> Tensor:
    """What follows a bare convolution."""
    if gelu:
        y = bias_gelu(y, bias)
        return y if residual is None else y + residual
    return y + bias.to(y.dtype) if residual is None else bias_residual(y, bias, residual)


def bare_input_gradient(gradient: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """Gradient of `bare_conv3x3`'s x, like x, of which only the shape counts."""
    return _bare_gradient(gradient, x, weight, 0)


def bare_weight_gradient(gradient: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """Gradient of `bare_conv3x3`'s weight, in its own layout."""
    return _bare_gradient(gradient, x, weight, 1)


def _bare_gradient(gradient: Tensor, x: Tensor, weight: Tensor, which: int) -> Tensor:
    operands = (one.permute(0, 3, 1, 2) for one in (gradient, x, weight))
    settings = (None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1)
    wanted = [which == 0, which == 1, False]
    found = torch.ops.aten.convolution_backward(*operands, *settings, wanted)[which]
    return found.permute(0, 2, 3, 1).contiguous()


def convolution_gradients(
    gradient: Tensor, x: Tensor, weight: Tensor, *, stride: int = 1, transposed: bool = False, padding: tuple[int, int]
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of an NHWC convolution's x, weight (in its own layout) and bias; `padding` is (padding, output's)."""
    channels = gradient.shape[-1]
    d_x, d_weight, d_bias = torch.ops.aten.convolution_backward(
        *(gradient.permute(0, 3, 1, 2), x.permute(0, 3, 1, 2), weight.to(x.dtype).permute(0, 3, 1, 2), [channels]),
        *([stride] * 2, [padding[0]] * 2, [1, 1], transposed, [padding[1]] * 2, 1, [True, True, True]),
    )
    d_x, d_weight = d_x.permute(0, 2, 3, 1).contiguous(), d_weight.permute(0, 2, 3, 1).contiguous()
    return d_x, d_weight.to(weight.dtype), d_bias
