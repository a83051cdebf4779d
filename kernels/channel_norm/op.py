"""The public function of the channel LayerNorm."""

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import dispatch
from ..arguments import check_float, match_shape
from .backward import norm_backward
from .forward import norm
from .reference import EPS

WIDEST_ROW = 8192


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


def _triton_refusal(case: dispatch.Case) -> str | None:
    if case.sizes["channels"] > WIDEST_ROW:
        return f"rows of {case.sizes['channels']} channels exceed the kernel's tile of {WIDEST_ROW}"
    return dispatch.triton_refusal(case)


dispatch.register("channel_norm", triton=_triton_refusal)


def _layer_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    if x.device.type == "cpu":
        # PyTorch's CPU backward sums a bf16 input's parameter gradients in bf16: a tenth off at 20,000 rows.
        wide = torch.promote_types(x.dtype, torch.float32)
        return F.layer_norm(x.to(wide), x.shape[-1:], weight.to(wide), bias.to(wide), EPS).to(x.dtype)
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
    wide, shape = torch.promote_types(x.dtype, torch.float32), x.shape[-1:]
    x_wide, scale, shift = x.to(wide), weight.to(wide), bias.to(wide)
    _, mean, inverse = torch.ops.aten.native_layer_norm(x_wide, shape, scale, shift, EPS)
    found = torch.ops.aten.native_layer_norm_backward(
        gradient.to(wide), x_wide, shape, mean, inverse, scale, shift, [True, True, True]
    )
    return found[0].to(x.dtype).contiguous(), found[1].to(weight.dtype), found[2].to(bias.dtype)


@channel_norm_backward.register_fake
def _(gradient: Tensor, x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return x.new_empty(x.shape), weight.new_empty(weight.shape), bias.new_empty(bias.shape)


def _save(ctx, inputs, output) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx, gradient: Tensor):
    return channel_norm_backward(gradient, *ctx.saved_tensors)


channel_norm_operator.register_autograd(_backward, setup_context=_save)
