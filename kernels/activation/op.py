"""The public functions of the point-wise epilogues."""

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import dispatch
from ..arguments import check_float, match_shape
from .backward import activate_backward
from .forward import activate, add_residual


def check_arguments(x: Tensor, bias: Tensor, residual: Tensor | None = None) -> None:
    """Refuse what no backend can compute, with one line that says what to change."""
    sizes: dict[str, int] = {}
    match_shape(sizes, "x", x, "... C")
    match_shape(sizes, "bias", bias, "C")
    check_float("x", x)
    check_float("bias", bias, x.device)
    if residual is not None:
        check_float("residual", residual, x.device)
        if residual.shape != x.shape or residual.dtype != x.dtype:
            raise ValueError(
                f"residual: expected {x.dtype} of shape {tuple(x.shape)} like x, "
                f"found {residual.dtype} of shape {tuple(residual.shape)}"
            )


def bias_gelu(x: Tensor, bias: Tensor) -> Tensor:
    """Exact (erf) GELU of `x + bias`: `z Φ(z)`, `z = x + bias`.

    `x` (..., C), `bias` (C,) of any floating dtype → like `x`.

    Raises:
        ValueError: wrong rank, shape, dtype or device.
    """
    check_arguments(x, bias)
    if dispatch.backend("bias_gelu", x, channels=x.shape[-1]) == "torch":
        return _gelu(x, bias)
    return bias_gelu_operator(x, bias)


def bias_residual(x: Tensor, bias: Tensor, residual: Tensor) -> Tensor:
    """`x + bias + residual`: the epilogue of a projection that ends a residual branch.

    `x` and `residual` (..., C) of one dtype, `bias` (C,) of any floating dtype → like `x`.

    Raises:
        ValueError: wrong rank, shape, dtype or device.
    """
    check_arguments(x, bias, residual)
    if dispatch.backend("bias_residual", x, channels=x.shape[-1]) == "torch":
        return _add(x, bias, residual)
    return bias_residual_operator(x, bias, residual)


def _gelu(x: Tensor, bias: Tensor) -> Tensor:
    return F.gelu(x + bias.to(x.dtype))


def _add(x: Tensor, bias: Tensor, residual: Tensor) -> Tensor:
    return (x + residual) + bias.to(x.dtype)


for _name in ("bias_gelu", "bias_residual"):
    dispatch.register(_name, triton=dispatch.triton_refusal)


@torch.library.custom_op("aef::bias_gelu", mutates_args=())
def bias_gelu_operator(x: Tensor, bias: Tensor) -> Tensor:
    """`bias_gelu` as one opaque operator; only its arguments are kept for backward."""
    chosen = dispatch.choose("bias_gelu", x, channels=x.shape[-1])
    return activate(x, bias, chosen.config) if chosen.backend == "triton" else _gelu(x, bias).contiguous()


@bias_gelu_operator.register_fake
def _(x: Tensor, bias: Tensor) -> Tensor:
    check_arguments(x, bias)
    return x.new_empty(x.shape)


@torch.library.custom_op("aef::bias_gelu_backward", mutates_args=())
def bias_gelu_backward(gradient: Tensor, x: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of `x` and `bias`."""
    chosen = dispatch.choose("bias_gelu", x, channels=x.shape[-1])
    if chosen.backend == "triton":
        return activate_backward(gradient, x, bias, chosen.config)
    d_x = torch.ops.aten.gelu_backward(gradient, x + bias.to(x.dtype))
    return d_x.contiguous(), _sum_rows(d_x).to(bias.dtype)


@bias_gelu_backward.register_fake
def _(gradient: Tensor, x: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), bias.new_empty(bias.shape)


@torch.library.custom_op("aef::bias_residual", mutates_args=())
def bias_residual_operator(x: Tensor, bias: Tensor, residual: Tensor) -> Tensor:
    """`bias_residual` as one opaque operator; backward needs none of its arguments."""
    chosen = dispatch.choose("bias_residual", x, channels=x.shape[-1])
    if chosen.backend == "triton":
        return add_residual(x, bias, residual, chosen.config)
    return _add(x, bias, residual).contiguous()


@bias_residual_operator.register_fake
def _(x: Tensor, bias: Tensor, residual: Tensor) -> Tensor:
    check_arguments(x, bias, residual)
    return x.new_empty(x.shape)


def _save_arguments(ctx, inputs, output) -> None:
    ctx.save_for_backward(*inputs)


def _gelu_backward(ctx, gradient: Tensor):
    return bias_gelu_backward(gradient, *ctx.saved_tensors)


def _save_bias_dtype(ctx, inputs, output) -> None:
    ctx.bias_dtype = inputs[1].dtype


def _residual_backward(ctx, gradient: Tensor):
    return gradient, _sum_rows(gradient).to(ctx.bias_dtype), gradient


def _sum_rows(gradient: Tensor) -> Tensor:
    wide = torch.promote_types(gradient.dtype, torch.float32)
    return gradient.reshape(-1, gradient.shape[-1]).sum(dim=0, dtype=wide)


bias_gelu_operator.register_autograd(_gelu_backward, setup_context=_save_arguments)
bias_residual_operator.register_autograd(_residual_backward, setup_context=_save_bias_dtype)
