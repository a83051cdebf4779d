"""The public functions of the pyramid exchange."""

import torch
from torch import Tensor

from .. import dispatch
from ..arguments import check_float, match_shape
from ..implicit_gemm import convolution_refusal, convolution_sizes, convolution_weight_gradient, convolve
from ..precision_conv.library import convolution_gradients
from .eager import down_by_product, up_by_product
from .reference import DOWN_PADDING, UP_PADDING, exchange_down_reference, exchange_up_add_reference


def _check_tensors(x: Tensor, weight: Tensor, bias: Tensor) -> None:
    for name, tensor in (("x", x), ("weight", weight), ("bias", bias)):
        check_float(name, tensor, x.device)
    # A tuple, not the table: sizes that torch traces have no hash.
    if weight.shape[1] not in tuple(DOWN_PADDING) or weight.shape[1] != weight.shape[2]:
        raise ValueError(f"weight: expected a kernel of 2×2, 3×3 or 4×4, found shape {tuple(weight.shape)}")


def check_down_arguments(x: Tensor, weight: Tensor, bias: Tensor) -> None:
    """Refuse what no backend can compute, with one line that says what to change."""
    sizes: dict[str, int] = {}
    match_shape(sizes, "x", x, "F H W I")
    match_shape(sizes, "weight", weight, "O k k I")
    match_shape(sizes, "bias", bias, "O")
    _check_tensors(x, weight, bias)
    if sizes["H"] % 2 or sizes["W"] % 2:
        raise ValueError(f"x: expected even side lengths to halve, found shape {tuple(x.shape)}")


def check_up_arguments(x: Tensor, weight: Tensor, bias: Tensor, into: Tensor | None) -> None:
    """Refuse what no backend can compute, with one line that says what to change."""
    sizes: dict[str, int] = {}
    match_shape(sizes, "x", x, "F h w I")
    match_shape(sizes, "weight", weight, "I k k O")
    match_shape(sizes, "bias", bias, "O")
    _check_tensors(x, weight, bias)
    if into is None:
        return
    match_shape(sizes, "into", into, "F 2h 2w O")
    check_float("into", into, x.device)
    if sizes["2h"] != 2 * sizes["h"] or sizes["2w"] != 2 * sizes["w"]:
        raise ValueError(f"into: expected twice the sides of x {tuple(x.shape)}, found shape {tuple(into.shape)}")
    if into.dtype != x.dtype:
        raise ValueError(f"into: expected {x.dtype} like x, found {into.dtype}")


def exchange_down(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """One learned step down the pyramid: a stride-2 convolution with a 2×2 (padding 0), 3×3 or 4×4 (padding 1) kernel.

    `x` (F, H, W, I) with even H and W; `weight` (O, k, k, I), contiguous OHWI like `conv3x3`'s; `bias` (O,) →
    (F, H/2, W/2, O) in `x`'s dtype. Parameters of any floating dtype, cast to `x`'s.

    Raises:
        ValueError: wrong rank, shape, kernel size, dtype or device; an odd side.
    """
    check_down_arguments(x, weight, bias)
    if dispatch.backend("exchange_down", x, **_down_sizes(x, weight)) == "triton":
        return exchange_down_operator(x, weight, bias)
    return _down_by_library(x, weight, bias)


def exchange_up_add(x: Tensor, weight: Tensor, bias: Tensor, into: Tensor | None = None) -> Tensor:
    """One learned step up the pyramid, merged: `into + transposed_conv(x)`, stride 2.

    Kernels: 2×2, 3×3 (padding 1, output padding 1) or 4×4 (padding 1), each of which doubles the sides exactly.

    Args:
        x: (F, h, w, I), the coarse state.
        weight: (I, k, k, O), stored contiguous in this order (input channels, rows, columns, output channels); its
            permuted view (I, O, k, k) is exactly the channels-last weight of `F.conv_transpose2d`. Tap (i, j) of input
            pixel (y, x) lands on output pixel (2y + i − padding, 2x + j − padding).
        bias: (O,).
        into: (F, 2h, 2w, O), the fine state, in `x`'s dtype; not modified. None where a level holds no state of its
            own (the quarter resolution): the transposed convolution alone.

    Returns:
        (F, 2h, 2w, O) in `x`'s dtype.

    Raises:
        ValueError: wrong rank, shape, kernel size, dtype or device; sides of `into` that are not twice those of `x`.
    """
    check_up_arguments(x, weight, bias, into)
    if dispatch.backend("exchange_up", x, **_up_sizes(x, weight)) == "triton":
        return exchange_up_operator(x, weight, bias, into)
    return _up_by_library(x, weight, bias, into)


def _down_by_library(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return (down_by_product if weight.shape[1] == 2 else exchange_down_reference)(x, weight, bias)


def _up_by_library(x: Tensor, weight: Tensor, bias: Tensor, into: Tensor | None) -> Tensor:
    return (up_by_product if weight.shape[1] == 2 else exchange_up_add_reference)(x, weight, bias, into)


def _down_sizes(x: Tensor, weight: Tensor) -> dict[str, int]:
    return convolution_sizes(x.shape, weight.shape[3], weight.shape[0], weight.shape[1])


def _up_sizes(x: Tensor, weight: Tensor) -> dict[str, int]:
    frames, height, width, inputs = x.shape
    return convolution_sizes((frames, 2 * height, 2 * width), inputs, weight.shape[3], weight.shape[1])


dispatch.register("exchange_down", triton=convolution_refusal)
dispatch.register("exchange_up", triton=convolution_refusal)


@torch.library.custom_op("aef::exchange_down", mutates_args=())
def exchange_down_operator(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """`exchange_down` as one opaque operator."""
    chosen = dispatch.choose("exchange_down", x, **_down_sizes(x, weight))
    if chosen.backend == "triton":
        return convolve(x, weight, chosen.config.get("forward", {}), stride=2, bias=bias)[0]
    return _down_by_library(x, weight, bias).contiguous()


@exchange_down_operator.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    check_down_arguments(x, weight, bias)
    frames, height, width, _ = x.shape
    return x.new_empty(frames, height // 2, width // 2, weight.shape[0])


@torch.library.custom_op("aef::exchange_down_backward", mutates_args=())
def exchange_down_backward(gradient: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of `x` (a transposed convolution of the same weight), `weight`, and `bias` (fp32 at least)."""
    chosen = dispatch.choose("exchange_down", x, **_down_sizes(x, weight))
    gradient, side = gradient.to(x.dtype), weight.shape[1]
    if chosen.backend == "triton":
        d_x, _ = convolve(gradient, weight, chosen.config.get("data", {}), stride=2, transposed=True)
        weighing = chosen.config.get("weight", {})
        d_weight, d_bias = convolution_weight_gradient(gradient, x, side, 2, weighing, bias=True)
        return d_x, d_weight.to(weight.dtype), d_bias
    d_x, d_weight, d_bias = convolution_gradients(gradient, x, weight, stride=2, padding=(DOWN_PADDING[side], 0))
    return d_x, d_weight, d_bias.to(torch.promote_types(x.dtype, torch.float32))


@torch.library.custom_op("aef::exchange_up", mutates_args=())
def exchange_up_operator(x: Tensor, weight: Tensor, bias: Tensor, into: Tensor | None) -> Tensor:
    """`exchange_up_add` as one opaque operator."""
    chosen = dispatch.choose("exchange_up", x, **_up_sizes(x, weight))
    if chosen.backend == "triton":
        merge = "" if into is None else "add"
        config = chosen.config.get("forward", {})
        return convolve(x, weight, config, stride=2, transposed=True, bias=bias, merge=merge, other=into)[0]
    return _up_by_library(x, weight, bias, into).contiguous()


@exchange_up_operator.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor, into: Tensor | None) -> Tensor:
    check_up_arguments(x, weight, bias, into)
    frames, height, width, _ = x.shape
    return x.new_empty(frames, 2 * height, 2 * width, weight.shape[3])


@torch.library.custom_op("aef::exchange_up_backward", mutates_args=())
def exchange_up_backward(gradient: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of `x` (a plain convolution of the same weight), `weight`, and `bias` (fp32 at least)."""
    chosen = dispatch.choose("exchange_up", x, **_up_sizes(x, weight))
    gradient, side = gradient.to(x.dtype), weight.shape[1]
    wide = torch.promote_types(x.dtype, torch.float32)
    if chosen.backend == "triton":
        d_x, _ = convolve(gradient, weight, chosen.config.get("data", {}), stride=2)
        d_weight, _ = convolution_weight_gradient(x, gradient, side, 2, chosen.config.get("weight", {}), bias=False)
        return d_x, d_weight.to(weight.dtype), gradient.sum(dim=(0, 1, 2), dtype=wide)
    d_x, d_weight, d_bias = convolution_gradients(
        gradient, x, weight, stride=2, transposed=True, padding=UP_PADDING[side]
    )
    return d_x, d_weight, d_bias.to(wide)


@exchange_down_backward.register_fake
@exchange_up_backward.register_fake
def _(gradient: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    d_bias = gradient.new_empty(gradient.shape[3], dtype=torch.promote_types(x.dtype, torch.float32))
    return x.new_empty(x.shape), weight.new_empty(weight.shape), d_bias


def _save(ctx, inputs, output) -> None:
    x, weight, bias = inputs[:3]
    ctx.bias_dtype, ctx.merged = bias.dtype, len(inputs) == 4 and inputs[3] is not None
    ctx.save_for_backward(x, weight)


def _down_backward(ctx, gradient: Tensor):
    d_x, d_weight, d_bias = exchange_down_backward(gradient, *ctx.saved_tensors)
    return d_x, d_weight, d_bias.to(ctx.bias_dtype)


def _up_backward(ctx, gradient: Tensor):
    d_x, d_weight, d_bias = exchange_up_backward(gradient, *ctx.saved_tensors)
    return d_x, d_weight, d_bias.to(ctx.bias_dtype), gradient if ctx.merged else None


exchange_down_operator.register_autograd(_down_backward, setup_context=_save)
exchange_up_operator.register_autograd(_up_backward, setup_context=_save)
