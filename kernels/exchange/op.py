"""The public functions of the pyramid exchange."""

import torch
from torch import Tensor

from .. import dispatch
from ..arguments import check_float, match_shape
from ..channel_norm.op import channel_norm, residual_norm_backward
from ..channel_norm.op import check_arguments as check_norm_arguments
from ..implicit_gemm import convolution_refusal, convolution_sizes, convolution_weight_gradient, convolve
from ..precision_conv.library import convolution_gradients
from .eager import down_by_product, up_by_product, up_norm_by_passes
from .reference import DOWN_PADDING, UP_PADDING, exchange_down_reference, exchange_up_add_reference

WIDEST_TILE = 128
"""Channels of a pixel that one tile of the product holds, so that their norm can be taken on the accumulator."""


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


def check_up_norm_arguments(
    x: Tensor, weight: Tensor, bias: Tensor, into: Tensor, scale: Tensor, shift: Tensor
) -> None:
    """Refuse what no backend can compute, with one line that says what to change."""
    if into is None:
        raise ValueError("into: expected a state to merge into, found None")
    check_up_arguments(x, weight, bias, into)
    check_norm_arguments(into, scale, shift)


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


def exchange_up_norm(
    x: Tensor, weight: Tensor, bias: Tensor, into: Tensor, scale: Tensor, shift: Tensor
) -> tuple[Tensor, Tensor]:
    """`exchange_up_add` with the LayerNorm that reads the merged state.

        state = into + transposed_conv(x);   normal = channel_norm(state, scale, shift)

    Args:
        x, weight, bias, into: as `exchange_up_add`.
        scale, shift: (O,), of any floating dtype.

    Returns:
        (state, normal), each (F, 2h, 2w, O) in `x`'s dtype.

    Raises:
        ValueError: as `exchange_up_add`; no state to merge into.
    """
    check_up_norm_arguments(x, weight, bias, into, scale, shift)
    if dispatch.backend("exchange_up_norm", x, **_up_sizes(x, weight)) == "triton":
        return exchange_up_norm_operator(x, weight, bias, into, scale, shift)
    return _up_norm_by_library(x, weight, bias, into, scale, shift)


def _down_by_library(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return (down_by_product if weight.shape[1] == 2 else exchange_down_reference)(x, weight, bias)


def _up_by_library(x: Tensor, weight: Tensor, bias: Tensor, into: Tensor | None) -> Tensor:
    return (up_by_product if weight.shape[1] == 2 else exchange_up_add_reference)(x, weight, bias, into)


def _up_norm_by_library(
    x: Tensor, weight: Tensor, bias: Tensor, into: Tensor, scale: Tensor, shift: Tensor
) -> tuple[Tensor, Tensor]:
    if x.device.type == "cpu" or weight.shape[1] == 2:
        # oneDNN adds the bias for nothing, and a 2×2 step by product merges as it spreads its rows.
        state = _up_by_library(x, weight, bias, into)
        return state, channel_norm(state, scale, shift)
    return up_norm_by_passes(x, weight, bias, into, scale, shift)


def _down_sizes(x: Tensor, weight: Tensor) -> dict[str, int]:
    return convolution_sizes(x.shape, weight.shape[3], weight.shape[0], weight.shape[1])


def _up_sizes(x: Tensor, weight: Tensor) -> dict[str, int]:
    frames, height, width, inputs = x.shape
    return convolution_sizes((frames, 2 * height, 2 * width), inputs, weight.shape[3], weight.shape[1])


def _norm_refusal(case: dispatch.Case) -> str | None:
    if case.sizes["outputs"] > WIDEST_TILE:
        return f"the {case.sizes['outputs']} channels of a pixel exceed a tile of {WIDEST_TILE}"
    return convolution_refusal(case)


dispatch.register("exchange_down", triton=convolution_refusal)
dispatch.register("exchange_up", triton=convolution_refusal)
dispatch.register("exchange_up_norm", triton=_norm_refusal)


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
    chosen, gradient = dispatch.choose("exchange_up", x, **_up_sizes(x, weight)), gradient.to(x.dtype)
    wide = torch.promote_types(x.dtype, torch.float32)
    return *_up_products(gradient, x, weight, chosen), gradient.sum(dim=(0, 1, 2), dtype=wide)


def _up_products(gradient: Tensor, x: Tensor, weight: Tensor, chosen: dispatch.Choice) -> tuple[Tensor, Tensor]:
    """Gradients of `x` and `weight`."""
    side = weight.shape[1]
    if chosen.backend == "triton":
        d_x, _ = convolve(gradient, weight, chosen.config.get("data", {}), stride=2)
        d_weight, _ = convolution_weight_gradient(x, gradient, side, 2, chosen.config.get("weight", {}), bias=False)
        return d_x, d_weight.to(weight.dtype)
    return convolution_gradients(gradient, x, weight, stride=2, transposed=True, padding=UP_PADDING[side])[:2]


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


@torch.library.custom_op("aef::exchange_up_norm", mutates_args=())
def exchange_up_norm_operator(
    x: Tensor, weight: Tensor, bias: Tensor, into: Tensor, scale: Tensor, shift: Tensor
) -> tuple[Tensor, Tensor]:
    """`exchange_up_norm` as one opaque operator; of what it writes, the state is kept for backward."""
    chosen = dispatch.choose("exchange_up_norm", x, **_up_sizes(x, weight))
    if chosen.backend == "triton":
        config, norm = chosen.config.get("forward", {}), (scale, shift)
        return convolve(x, weight, config, stride=2, transposed=True, bias=bias, merge="add", other=into, norm=norm)
    state, normal = _up_norm_by_library(x, weight, bias, into, scale, shift)
    return state.contiguous(), normal.contiguous()


@exchange_up_norm_operator.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor, into: Tensor, scale: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
    check_up_norm_arguments(x, weight, bias, into, scale, shift)
    return into.new_empty(into.shape), into.new_empty(into.shape)


@torch.library.custom_op("aef::exchange_up_norm_backward", mutates_args=())
def exchange_up_norm_backward(
    d_state: Tensor, d_normal: Tensor, x: Tensor, weight: Tensor, state: Tensor, scale: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of `into`, `x` and `weight`, and of bias, scale and shift (fp32 at least): one pass, then products."""
    chosen = dispatch.choose("exchange_up_norm", x, **_up_sizes(x, weight))
    d_into, d_bias, d_scale, d_shift = residual_norm_backward(d_state.to(x.dtype), d_normal.to(x.dtype), state, scale)
    d_x, d_weight = _up_products(d_into, x, weight, chosen)
    return d_into, d_x, d_weight, d_bias, d_scale, d_shift


@exchange_up_norm_backward.register_fake
def _(
    d_state: Tensor, d_normal: Tensor, x: Tensor, weight: Tensor, state: Tensor, scale: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    wide = torch.promote_types(x.dtype, torch.float32)
    d_bias, d_scale, d_shift = (state.new_empty(state.shape[-1], dtype=wide) for _ in range(3))
    d_into, d_x, d_weight = (one.new_empty(one.shape) for one in (state, x, weight))
    return d_into, d_x, d_weight, d_bias, d_scale, d_shift


def _save_state(ctx, inputs, output) -> None:
    x, weight, bias, _, scale, shift = inputs
    ctx.dtypes = [one.dtype for one in (bias, scale, shift)]
    ctx.save_for_backward(x, weight, output[0], scale)


def _up_norm_backward(ctx, d_state: Tensor, d_normal: Tensor):
    d_into, d_x, d_weight, *sums = exchange_up_norm_backward(d_state, d_normal, *ctx.saved_tensors)
    d_bias, d_scale, d_shift = (one.to(dtype) for one, dtype in zip(sums, ctx.dtypes))
    return d_x, d_weight, d_bias, d_into, d_scale, d_shift


exchange_up_norm_operator.register_autograd(_up_norm_backward, setup_context=_save_state)
