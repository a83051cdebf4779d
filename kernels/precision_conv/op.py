"""The public functions of the precision path's 3×3 convolution."""

from typing import NamedTuple

import torch
from torch import Tensor

from .. import dispatch
from ..activation.op import activation_gradients, bias_gelu_operator
from ..arguments import check_float, match_shape
from ..channel_norm.op import Normalized, channel_norm_operator, check_normalized, register_product_of_norm
from ..implicit_gemm import convolution_refusal, convolution_sizes, convolution_weight_gradient, convolve
from .library import (
    bare_conv3x3,
    bare_input_gradient,
    bare_weight_gradient,
    conv3x3_by_library,
    convolution_gradients,
    end_by_passes,
)


class Activated(NamedTuple):
    """A GELU's output and, where the convolution that reads it is to give its gradient there, the GELU's input:
    `before`, plus `bias` where that was not yet added."""

    value: Tensor
    before: Tensor | None = None
    bias: Tensor | None = None


def check_arguments(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    residual: Tensor | None,
    before: Tensor | None = None,
    before_bias: Tensor | None = None,
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
    if before_bias is not None:
        match_shape(sizes, "before_bias", before_bias, "I")


def conv3x3(
    x: Tensor | Activated | Normalized,
    weight: Tensor,
    bias: Tensor,
    gelu: bool = False,
    residual: Tensor | None = None,
) -> Tensor:
    """3×3 convolution of the precision operator with its point-wise epilogue, NHWC throughout.

        y = conv(x, weight) + bias;   y = GELU(y) if gelu;   y = y + residual if a residual is given

    Stride 1 and zero padding 1: the side lengths stay, and taps beyond the border contribute 0.

    Args:
        x: (F, H, W, I), fp64, fp32, bf16 or fp16; or what `conv3x3_gelu` returned. Its `value` is not kept for backward
            where its `before` is: backward makes it again, multiplies by the GELU's slope in the same pass, and gives the
            gradient to `before` and its bias. A `Normalized` x is made again likewise.
        weight: (O, 3, 3, I), stored contiguous in this order (OHWI), so that optimisers may flatten it; its permuted
            view is exactly the channels-last weight of `F.conv2d`. Any floating dtype, cast to `x`'s.
        bias: (O,), cast to `x`'s dtype.
        gelu: apply the exact GELU after the bias.
        residual: (F, H, W, O) in `x`'s dtype, added last.

    Returns:
        (F, H, W, O) in `x`'s dtype.

    Raises:
        ValueError: wrong rank, shape, dtype or device.
    """
    if isinstance(x, Normalized):
        check_normalized(x)
        check_arguments(x.value, weight, bias, residual)
        return end_by_passes(conv3x3_of_norm_operator(*x, weight.to(x.value.dtype)), bias, gelu, residual)
    x = x if isinstance(x, Activated) else Activated(x)
    check_arguments(x.value, weight, bias, residual, x.before, x.bias)
    if dispatch.backend("conv3x3", x.value, **_sizes(x.value, weight)) == "triton":
        keep = gelu and torch.is_grad_enabled()
        return conv3x3_operator(x.value, weight, bias, residual, _complete(x), gelu, keep)[0]
    if x.before is None:
        return conv3x3_by_library(x.value, weight, bias, gelu, residual)
    return end_by_passes(_of_gelu(x, weight), bias, gelu, residual)


def conv3x3_gelu(
    x: Tensor | Activated | Normalized, weight: Tensor, bias: Tensor, *, remake: bool = False
) -> Activated:
    """`conv3x3(x, weight, bias, gelu=True)` for a following convolution, which takes all parts of the result.

    The following convolution's backward then leaves the gradient of the GELU's input where it is needed, and the GELU's
    output lives no longer than forward needs it; `value` may be used as any tensor. A `Normalized` x is not kept
    either. PyTorch's path, where making the output again takes a pass of its own, keeps it unless told to `remake` it.
    """
    if isinstance(x, Normalized):
        check_normalized(x)
        check_arguments(x.value, weight, bias, None)
        return _then_gelu(conv3x3_of_norm_operator(*x, weight.to(x.value.dtype)), bias)
    x = x if isinstance(x, Activated) else Activated(x)
    check_arguments(x.value, weight, bias, None, x.before, x.bias)
    if dispatch.backend("conv3x3", x.value, **_sizes(x.value, weight)) == "triton":
        keep = torch.is_grad_enabled()
        value, kept = conv3x3_operator(x.value, weight, bias, None, _complete(x), True, keep)
        return Activated(value, kept if keep else None)
    if x.before is not None:
        return _then_gelu(_of_gelu(x, weight), bias)
    if remake or dispatch.backend("bias_gelu", x.value, channels=weight.shape[0]) != "torch":
        return _then_gelu(bare_conv3x3(x.value, weight), bias)
    return Activated(conv3x3_by_library(x.value, weight, bias, True, None))


def _then_gelu(y: Tensor, bias: Tensor) -> Activated:
    """GELU of a bare convolution, for one that takes the gradient of `y`."""
    return Activated(bias_gelu_operator(y, bias), *((y, bias) if torch.is_grad_enabled() else ()))


def _complete(x: Activated) -> Tensor | None:
    """The GELU's input with its bias, which the kernels add before they keep it."""
    return x.before if x.before is None or x.bias is None else x.before + x.bias.to(x.before.dtype)


def _of_gelu(x: Activated, weight: Tensor) -> Tensor:
    assert x.before is not None
    bias = x.before.new_zeros(x.before.shape[-1]) if x.bias is None else x.bias
    return conv3x3_of_gelu_operator(x.value, weight.to(x.value.dtype), x.before, bias)


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
    ctx.save_for_backward(x if before is None else None, weight, before, output[1] if ctx.gelu else None)


def _backward(ctx, gradient: Tensor | None, d_kept: Tensor | None):
    x, weight, before, kept = ctx.saved_tensors
    x = torch.nn.functional.gelu(before) if x is None else x
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


# --- convolutions of what backward makes again -----------------------------------------------------------------------


def _bare(x: Tensor, weight: Tensor) -> Tensor:
    chosen = dispatch.choose("conv3x3", x, **_sizes(x, weight))
    if chosen.backend == "triton":
        return convolve(x, weight, chosen.config.get("forward", {}))[0]
    return bare_conv3x3(x, weight).contiguous()


def _bare_input_gradient(gradient: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    chosen = dispatch.choose("conv3x3", x, **_sizes(x, weight))
    if chosen.backend == "triton":
        return convolve(gradient, weight, chosen.config.get("data", {}), transposed=True)[0]
    return bare_input_gradient(gradient, x, weight)


def _bare_weight_gradient(gradient: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    chosen = dispatch.choose("conv3x3", x, **_sizes(x, weight))
    if chosen.backend == "triton":
        found, _ = convolution_weight_gradient(gradient, x, 3, 1, chosen.config.get("weight", {}), bias=False)
        return found.to(weight.dtype)
    return bare_weight_gradient(gradient, x, weight)


@torch.library.custom_op("aef::conv3x3_of_gelu", mutates_args=())
def conv3x3_of_gelu_operator(x: Tensor, weight: Tensor, before: Tensor, before_bias: Tensor) -> Tensor:
    """The bare convolution of `x` = GELU(before + before_bias), which is not kept for backward."""
    return _bare(x, weight)


@conv3x3_of_gelu_operator.register_fake
def _(x: Tensor, weight: Tensor, before: Tensor, before_bias: Tensor) -> Tensor:
    return x.new_empty(*x.shape[:3], weight.shape[0])


@torch.library.custom_op("aef::conv3x3_of_gelu_backward", mutates_args=())
def conv3x3_of_gelu_backward(
    gradient: Tensor, weight: Tensor, before: Tensor, before_bias: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of `weight`, `before` and `before_bias`; the GELU's output is made again beside its slope."""
    d_value = _bare_input_gradient(gradient, before, weight)
    d_before, d_bias, value = activation_gradients(d_value, before, before_bias)
    return _bare_weight_gradient(gradient, value, weight), d_before, d_bias


@conv3x3_of_gelu_backward.register_fake
def _(gradient: Tensor, weight: Tensor, before: Tensor, before_bias: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return weight.new_empty(weight.shape), before.new_empty(before.shape), before_bias.new_empty(before_bias.shape)


def _save_before(ctx, inputs, output) -> None:
    ctx.save_for_backward(*inputs[1:])


def _backward_of_gelu(ctx, gradient: Tensor):
    return None, *conv3x3_of_gelu_backward(gradient, *ctx.saved_tensors)


conv3x3_of_gelu_operator.register_autograd(_backward_of_gelu, setup_context=_save_before)


@torch.library.custom_op("aef::conv3x3_of_norm", mutates_args=())
def conv3x3_of_norm_operator(normal: Tensor, state: Tensor, scale: Tensor, shift: Tensor, weight: Tensor) -> Tensor:
    """The bare convolution of a `Normalized`, differentiable in `normal` and `weight`; `normal` is not kept."""
    return _bare(normal, weight)


@conv3x3_of_norm_operator.register_fake
def _(normal: Tensor, state: Tensor, scale: Tensor, shift: Tensor, weight: Tensor) -> Tensor:
    return normal.new_empty(*normal.shape[:3], weight.shape[0])


@torch.library.custom_op("aef::conv3x3_of_norm_backward", mutates_args=())
def conv3x3_of_norm_backward(
    gradient: Tensor, state: Tensor, scale: Tensor, shift: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradients of the norm and of `weight`."""
    d_normal = _bare_input_gradient(gradient, state, weight)
    return d_normal, _bare_weight_gradient(gradient, channel_norm_operator(state, scale, shift), weight)


@conv3x3_of_norm_backward.register_fake
def _(gradient: Tensor, state: Tensor, scale: Tensor, shift: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    return state.new_empty(state.shape), weight.new_empty(weight.shape)


register_product_of_norm(conv3x3_of_norm_operator, conv3x3_of_norm_backward)
