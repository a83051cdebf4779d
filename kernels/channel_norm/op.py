"""The public functions of the channel LayerNorm: alone, and with the end of the residual branch that it reads."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import dispatch
from ..activation import op as activation
from ..arguments import check_float, match_shape
from .backward import merge_and_norm_backward, norm_backward
from .eager import HalfChannelNorm, layer_norm_backward
from .forward import merge_and_norm, norm
from .reference import EPS

WIDEST_ROW = 8192
HALF = (torch.bfloat16, torch.float16)


def check_arguments(x: Tensor, weight: Tensor, bias: Tensor) -> None:
    """Refuse what no backend can compute, with one line that says what to change."""
    sizes: dict[str, int] = {}
    match_shape(sizes, "x", x, "... C")
    match_shape(sizes, "weight", weight, "C")
    match_shape(sizes, "bias", bias, "C")
    check_float("x", x)
    check_float("weight", weight, x.device)
    check_float("bias", bias, x.device)
    if sizes["C"] == 0:
        raise ValueError(f"x: expected at least one channel, found shape {tuple(x.shape)}")


def channel_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """LayerNorm over the last dimension, eps 1e-6.

        y = (x − mean(x)) / √(var(x) + 1e-6) · weight + bias

    Statistics are kept in fp32 at least (fp64 for fp64 input); the output has `x`'s dtype. `x` (..., C); `weight` and
    `bias` (C,) of any floating dtype. It takes no timecode: that enters through the tables of `time_attention` and
    `temporal_pooling`.

    Raises:
        ValueError: wrong rank, shape, dtype or device.
    """
    check_arguments(x, weight, bias)
    if dispatch.backend("channel_norm", x, channels=x.shape[-1]) == "torch":
        return _layer_norm(x, weight, bias)
    return channel_norm_operator(x, weight, bias)


class Normalized(NamedTuple):
    """A LayerNorm's output, `channel_norm(state, scale, shift)`, for a product that makes it again in backward."""

    value: Tensor
    state: Tensor
    scale: Tensor
    shift: Tensor


def check_normalized(x: Normalized) -> None:
    """Refuse a norm that cannot be the state's: backward makes it again from there."""
    check_arguments(x.state, x.scale, x.shift)
    if not isinstance(x.value, Tensor) or x.value.shape != x.state.shape:
        found = tuple(x.value.shape) if isinstance(x.value, Tensor) else type(x.value).__name__
        raise ValueError(f"x.value: expected shape {tuple(x.state.shape)} like x.state, found {found}")


def norm_linear(x: Normalized, weight: Tensor) -> Tensor:
    """`x.value W^T`, a product that keeps the state for backward and not its norm: the state is kept anyway.

    Backward makes the norm again, one pass of a read and a write. `weight` (O, C) of the norm's dtype → (..., O).

    Raises:
        ValueError: wrong rank, shape, dtype or device.
    """
    if not isinstance(x, Normalized):
        raise ValueError(f"x: expected a Normalized, found {type(x).__name__}")
    check_normalized(x)
    match_shape({"C": x.value.shape[-1]}, "weight", weight, "O C")
    if weight.dtype != x.value.dtype or weight.device != x.value.device:
        raise ValueError(
            f"weight: expected {x.value.dtype} on {x.value.device} like the norm, found {weight.dtype} on {weight.device}"
        )
    return norm_linear_operator(*x, weight)


def residual_norm(x: Tensor, bias: Tensor, residual: Tensor, scale: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
    """The end of a residual branch and the LayerNorm that reads the state it leaves: `bias_residual`, `channel_norm`.

        state = x + bias + residual;   normal = channel_norm(state, scale, shift)

    Args:
        x, residual: (..., C) of one dtype; the state is rounded to it before it is normalised.
        bias, scale, shift: (C,), of any floating dtype.

    Returns:
        (state, normal), each like `x`.

    Raises:
        ValueError: wrong rank, shape, dtype or device.
    """
    match_shape({}, "residual", residual, "... C")  # not None either
    activation.check_arguments(x, bias, residual)
    check_arguments(x, scale, shift)
    if dispatch.backend("residual_norm", x, channels=x.shape[-1]) == "torch":
        return _by_two_operators(x, bias, residual, scale, shift)
    return residual_norm_operator(x, bias, residual, scale, shift)


def _by_two_operators(x: Tensor, bias: Tensor, residual: Tensor, scale: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
    state = activation.bias_residual(x, bias, residual)
    return state, channel_norm(state, scale, shift)


def _triton_refusal(case: dispatch.Case) -> str | None:
    if case.sizes["channels"] > WIDEST_ROW:
        return f"rows of {case.sizes['channels']} channels exceed the kernel's tile of {WIDEST_ROW}"
    return dispatch.triton_refusal(case)


for _name in ("channel_norm", "residual_norm"):
    dispatch.register(_name, triton=_triton_refusal)


def _layer_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    if x.device.type == "cpu" and x.dtype in HALF:
        return HalfChannelNorm.apply(x, weight, bias)
    return F.layer_norm(x, x.shape[-1:], weight.to(x.dtype), bias.to(x.dtype), EPS)


@torch.library.custom_op("aef::channel_norm", mutates_args=())
def channel_norm_operator(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """`channel_norm` as one opaque operator; only its arguments are kept for backward."""
    chosen = dispatch.choose("channel_norm", x, channels=x.shape[-1])
    if chosen.backend == "triton":
        return norm(x, weight, bias, chosen.config)
    return _layer_norm(x, weight, bias).contiguous()


@channel_norm_operator.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    check_arguments(x, weight, bias)
    return x.new_empty(x.shape)


@torch.library.custom_op("aef::channel_norm_backward", mutates_args=())
def channel_norm_backward(gradient: Tensor, x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of `x`, `weight` and `bias`; the statistics are taken again."""
    chosen = dispatch.choose("channel_norm", x, channels=x.shape[-1])
    if chosen.backend == "triton":
        return norm_backward(gradient, x, weight, bias, chosen.config)
    d_x, d_weight, d_bias = _layer_norm_backward(gradient, x, weight)
    return d_x.to(x.dtype).contiguous(), d_weight.to(weight.dtype), d_bias.to(bias.dtype)


def _layer_norm_backward(gradient: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """`layer_norm_backward` with the statistics taken again."""
    wide = torch.promote_types(x.dtype, torch.float32)
    x, weight = x.to(wide), weight.to(wide)
    _, mean, inverse = torch.ops.aten.native_layer_norm(x, x.shape[-1:], weight, None, EPS)
    return layer_norm_backward(gradient, x, weight, mean, inverse)


@channel_norm_backward.register_fake
def _(gradient: Tensor, x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return x.new_empty(x.shape), weight.new_empty(weight.shape), bias.new_empty(bias.shape)


def _save(ctx, inputs, output) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx, gradient: Tensor):
    return channel_norm_backward(gradient, *ctx.saved_tensors)


channel_norm_operator.register_autograd(_backward, setup_context=_save)


@torch.library.custom_op("aef::norm_linear", mutates_args=())
def norm_linear_operator(normal: Tensor, state: Tensor, scale: Tensor, shift: Tensor, weight: Tensor) -> Tensor:
    """`norm_linear` as one opaque operator, differentiable in `normal` and `weight`; `normal` is not kept."""
    return F.linear(normal, weight)


@norm_linear_operator.register_fake
def _(normal: Tensor, state: Tensor, scale: Tensor, shift: Tensor, weight: Tensor) -> Tensor:
    return normal.new_empty(*normal.shape[:-1], weight.shape[0])


@torch.library.custom_op("aef::norm_linear_backward", mutates_args=())
def norm_linear_backward(
    gradient: Tensor, state: Tensor, scale: Tensor, shift: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradients of the norm and of `weight`."""
    normal = channel_norm_operator(state, scale, shift)
    return gradient @ weight, activation.weight_gradient(gradient, normal)


@norm_linear_backward.register_fake
def _(gradient: Tensor, state: Tensor, scale: Tensor, shift: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    return state.new_empty(state.shape), weight.new_empty(weight.shape)


def register_product_of_norm(operator: Any, gradients: Callable[..., tuple[Tensor, Tensor]]) -> None:
    """Autograd of a product `operator(normal, state, scale, shift, weight)` that does not keep `normal`.

    `gradients(gradient, state, scale, shift, weight)` are those of `normal` and `weight`; the state, the scale and the
    shift get theirs through `normal`.
    """

    def save(ctx, inputs, output) -> None:
        ctx.save_for_backward(*inputs[1:])

    def backward(ctx, gradient: Tensor):
        d_normal, d_weight = gradients(gradient, *ctx.saved_tensors)
        return d_normal, None, None, None, d_weight

    operator.register_autograd(backward, setup_context=save)


register_product_of_norm(norm_linear_operator, norm_linear_backward)


@torch.library.custom_op("aef::residual_norm", mutates_args=())
def residual_norm_operator(
    x: Tensor, bias: Tensor, residual: Tensor, scale: Tensor, shift: Tensor
) -> tuple[Tensor, Tensor]:
    """`residual_norm` as one opaque operator; the state is what is kept for backward."""
    chosen = dispatch.choose("residual_norm", x, channels=x.shape[-1])
    if chosen.backend == "triton":
        return merge_and_norm(x, bias, residual, scale, shift, chosen.config)
    state, normal = _by_two_operators(x, bias, residual, scale, shift)
    return state.contiguous(), normal.contiguous()


@residual_norm_operator.register_fake
def _(x: Tensor, bias: Tensor, residual: Tensor, scale: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
    activation.check_arguments(x, bias, residual)
    check_arguments(x, scale, shift)
    return x.new_empty(x.shape), x.new_empty(x.shape)


@torch.library.custom_op("aef::residual_norm_backward", mutates_args=())
def residual_norm_backward(
    d_state: Tensor, d_normal: Tensor, state: Tensor, scale: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of branch and residual (one tensor for both), and of bias, scale and shift (fp32 at least)."""
    chosen = dispatch.choose("residual_norm", state, channels=state.shape[-1])
    if chosen.backend == "triton":
        return merge_and_norm_backward(d_state, d_normal, state, scale, chosen.config)
    d_x, d_scale, d_shift = _layer_norm_backward(d_normal, state, scale)
    d_x = d_x + d_state
    return d_x.to(state.dtype).contiguous(), torch.atleast_2d(d_x).flatten(0, -2).sum(dim=0), d_scale, d_shift


@residual_norm_backward.register_fake
def _(d_state: Tensor, d_normal: Tensor, state: Tensor, scale: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    wide = torch.promote_types(state.dtype, torch.float32)
    d_bias, d_scale, d_shift = (state.new_empty(state.shape[-1], dtype=wide) for _ in range(3))
    return state.new_empty(state.shape), d_bias, d_scale, d_shift


def _save_state(ctx, inputs, output) -> None:
    _, bias, _, scale, shift = inputs
    ctx.dtypes = [one.dtype for one in (bias, scale, shift)]
    ctx.save_for_backward(output[0], scale)


def _state_backward(ctx, d_state: Tensor, d_normal: Tensor):
    d_x, *sums = residual_norm_backward(d_state, d_normal, *ctx.saved_tensors)
    d_bias, d_scale, d_shift = (one.to(dtype) for one, dtype in zip(sums, ctx.dtypes))
    return d_x, d_bias, d_x, d_scale, d_shift


residual_norm_operator.register_autograd(_state_backward, setup_context=_save_state)
