"""The public functions of the precision path's 3×3 convolution."""

from typing import NamedTuple

import torch
from torch import Tensor

from .. import dispatch
from ..arguments import check_float, match_shape
from ..implicit_gemm import convolution_refusal, convolution_sizes, convolution_weight_gradient, convolve
from .library import conv3x3_by_library, convolution_gradients


class Activated(NamedTuple):
    """A GELU's output and, where the kernels kept it for backward, its input."""

    value: Tensor
    before: Tensor | None


def check_arguments(
    x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None, before: Tensor | None = None
) -> None:
    """Refuse what no backend can compute, with one line that says what to change."""
    sizes: dict[str, int] = {}
    match_shape(sizes, "x", x, "F H W I")
    match_shape(sizes, "weight", weight, "O 3 3 I")
    match_shape(sizes, "bias", bias, "O")
    check_float("x", x)
    check_float("weight", weight, x.device)
    check_float("bias", bias, x.device)
    if residual is not None:
        match_shape(sizes, "residual", residual, "F H W O")
        check_float("residual", residual, x.device)
        if residual.dtype != x.dtype:
            raise ValueError(f"residual: expected {x.dtype} like x, found {residual.dtype}")
    if before is not None and (before.shape != x.shape or before.dtype != x.dtype or before.device != x.device):
        raise ValueError(
            f"before: expected {x.dtype} of shape {tuple(x.shape)} on {x.device} like x, "
            f"found {before.dtype} of shape {tuple(before.shape)} on {before.device}"
        )


def conv3x3(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    gelu: bool = False,
    residual: Tensor | None = None,
    before: Tensor | None = None,
) -> Tensor:
    """3×3 convolution of the precision operator with its point-wise epilogue, NHWC throughout.

        y = conv(x, weight) + bias;   y = GELU(y) if gelu;   y = y + residual if a residual is given

    Stride 1 and zero padding 1: the side lengths stay, and taps beyond the border contribute 0.

    Args:
        x: (F, H, W, I), fp64, fp32, bf16 or fp16.
        weight: (O, 3, 3, I), stored contiguous in this order (OHWI), so that optimisers may flatten it; its permuted
            view is exactly the channels-last weight of `F.conv2d`. Any floating dtype, cast to `x`'s.
        bias: (O,), cast to `x`'s dtype.
        gelu: apply the exact GELU after the bias.
        residual: (F, H, W, O) in `x`'s dtype, added last.
        before: like `x`, where `x` is `conv3x3_gelu`'s `value` this is its `before`. Backward then multiplies by the
            GELU's slope as it writes, and gives the gradient to `before` instead of `x`.

    Returns:
        (F, H, W, O) in `x`'s dtype.

    Raises:
        ValueError: wrong rank, shape, dtype or device.
    """
    check_arguments(x, weight, bias, residual, before)
    if dispatch.backend("conv3x3", x, **_sizes(x, weight)) == "triton":
        return conv3x3_operator(x, weight, bias, residual, before, gelu, gelu and torch.is_grad_enabled())[0]
    return conv3x3_by_library(x, weight, bias, gelu, residual)


def conv3x3_gelu(x: Tensor, weight: Tensor, bias: Tensor, before: Tensor | None = None) -> Activated:
    """`conv3x3(x, weight, bias, gelu=True)` for a following `conv3x3`, which takes both parts of the result.

    The following convolution's backward then leaves the gradient of the GELU's input where it is needed, and no pass
    over the image is spent on the GELU's slope. `value` may be used as any tensor.
    """
    check_arguments(x, weight, bias, None, before)
    keep = torch.is_grad_enabled()
    if dispatch.backend("conv3x3", x, **_sizes(x, weight)) == "triton":
        value, kept = conv3x3_operator(x, weight, bias, None, before, True, keep)
        return Activated(value, kept if keep else None)
    return Activated(conv3x3_by_library(x, weight, bias, True, None), None)


def _sizes(x: Tensor, weight: Tensor) -> dict[str, int]:
    return convolution_sizes(x.shape, weight.shape[3], weight.shape[0], 3)


dispatch.register("conv3x3", triton=convolution_refusal)


@torch.library.custom_op("aef::conv3x3", mutates_args=())
def conv3x3_operator(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    residual: Tensor | None,
    before: Tensor | None,
    gelu: bool,
    keep: bool,
) -> tuple[Tensor, Tensor]:
    """`conv3x3` as one opaque operator → (y, the GELU's input if `keep`, else empty). Backward of a GELU wants it kept."""
    chosen = dispatch.choose("conv3x3", x, **_sizes(x, weight))
    if chosen.backend == "triton":
        config, merge = chosen.config.get("forward", {}), "" if residual is None else "add"
        return convolve(x, weight, config, bias=bias, gelu=gelu, keep=keep, merge=merge, other=residual)
    z = conv3x3_by_library(x, weight, bias, False, None)
    y = torch.nn.functional.gelu(z) if gelu else z
    return y if residual is None else y + residual, z if keep else z.new_empty(0)


@conv3x3_operator.register_fake
def _(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    residual: Tensor | None,
    before: Tensor | None,
    gelu: bool,
    keep: bool,
) -> tuple[Tensor, Tensor]:
    check_arguments(x, weight, bias, residual, before)
    shape = (*x.shape[:3], weight.shape[0])
    return x.new_empty(shape), x.new_empty(shape if keep else 0)


@torch.library.custom_op("aef::conv3x3_backward", mutates_args=())
def conv3x3_backward(
    gradient: Tensor, x: Tensor, weight: Tensor, before: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of `x` (of `before`, if given), `weight` and `bias` (fp32 at least) of the bare convolution."""
    chosen = dispatch.choose("conv3x3", x, **_sizes(x, weight))
    gradient = gradient.to(x.dtype)
    if chosen.backend == "triton":
        merge = "" if before is None else "slope"
        data, weighing = chosen.config.get("data", {}), chosen.config.get("weight", {})
        d_x, _ = convolve(gradient, weight, data, transposed=True, merge=merge, other=before)
        d_weight, d_bias = convolution_weight_gradient(gradient, x, 3, 1, weighing, bias=True)
        return d_x, d_weight.to(weight.dtype), d_bias
    d_x, d_weight, d_bias = convolution_gradients(gradient, x, weight, padding=(1, 0))
    d_x = d_x if before is None else torch.ops.aten.gelu_backward(d_x, before)
    return d_x, d_weight, d_bias.to(torch.promote_types(x.dtype, torch.float32))


@conv3x3_backward.register_fake
def _(gradient: Tensor, x: Tensor, weight: Tensor, before: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    wide = torch.promote_types(x.dtype, torch.float32)
    return x.new_empty(x.shape), weight.new_empty(weight.shape), weight.new_empty(weight.shape[0], dtype=wide)


def _save(ctx, inputs, output) -> None:
    x, weight, bias, residual, before, ctx.gelu, ctx.keep = inputs
    ctx.set_materialize_grads(False)
    ctx.bias_dtype, ctx.merged = bias.dtype, residual is not None
    ctx.save_for_backward(x, weight, before, output[1] if ctx.gelu else None)


def _backward(ctx, gradient: Tensor | None, d_kept: Tensor | None):
    x, weight, before, kept = ctx.saved_tensors
    d_z = gradient
    if ctx.gelu and gradient is not None:
        d_z = torch.ops.aten.gelu_backward(gradient, kept)
    if ctx.keep and d_kept is not None:
        d_z = d_kept if d_z is None else d_z + d_kept
    if d_z is None:
        return (None,) * 7
    d_x, d_weight, d_bias = conv3x3_backward(d_z, x, weight, before)
    d_residual = gradient if ctx.merged else None
    towards = (d_x, None) if before is None else (None, d_x)
    return towards[0], d_weight, d_bias.to(ctx.bias_dtype), d_residual, towards[1], None, None


conv3x3_operator.register_autograd(_backward, setup_context=_save)
