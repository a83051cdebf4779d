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


def check_linear(x: Tensor, bias: Tensor, weight: Tensor) -> None:
    """As `check_arguments`, with the weight of the product that follows."""
    check_arguments(x, bias)
    match_shape({"C": x.shape[-1]}, "weight", weight, "O C")
    if weight.dtype != x.dtype or weight.device != x.device:
        raise ValueError(f"weight: expected {x.dtype} on {x.device} like x, found {weight.dtype} on {weight.device}")


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


def gelu_linear(x: Tensor, bias: Tensor, weight: Tensor, *, remake: bool = False) -> Tensor:
    """`bias_gelu(x, bias) W^T`: the second product of an MLP, which keeps `x` for backward and not the GELU's output.

    Backward makes that output again in the pass that computes the GELU's slope, for one write more. PyTorch's path,
    where that takes a pass of its own, keeps it unless told to `remake` it.

    `x` (..., C), `bias` (C,) of any floating dtype, `weight` (O, C) of `x`'s → (..., O) like `x`.

    Raises:
        ValueError: wrong rank, shape, dtype or device.
    """
    check_linear(x, bias, weight)
    if not remake and dispatch.backend("bias_gelu", x, channels=x.shape[-1]) == "torch":
        return F.linear(_gelu(x, bias), weight)
    return gelu_linear_operator(x, bias, weight)


def bias_residual(x: Tensor, bias: Tensor, residual: Tensor) -> Tensor:
    """`x + bias + residual`: the epilogue of a projection that ends a residual branch.

    `x` and `residual` (..., C) of one dtype, `bias` (C,) of any floating dtype → like `x`.

    Raises:
        ValueError: wrong rank, shape, dtype or device.
    """
    match_shape({}, "residual", residual, "... C")  # not None either
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
        d_x, d_bias, _ = activate_backward(gradient, x, bias, chosen.config)
        return d_x, d_bias
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


@torch.library.custom_op("aef::gelu_linear", mutates_args=())
def gelu_linear_operator(x: Tensor, bias: Tensor, weight: Tensor) -> Tensor:
    """`gelu_linear` as one opaque operator; only its arguments are kept for backward."""
    return F.linear(bias_gelu_operator(x, bias), weight)


@gelu_linear_operator.register_fake
def _(x: Tensor, bias: Tensor, weight: Tensor) -> Tensor:
    check_linear(x, bias, weight)
    return x.new_empty(*x.shape[:-1], weight.shape[0])


@torch.library.custom_op("aef::gelu_linear_backward", mutates_args=())
def gelu_linear_backward(gradient: Tensor, x: Tensor, bias: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of `x`, `bias` and `weight`; the GELU's output is made again beside its slope."""
    d_x, d_bias, value = activation_gradients(gradient @ weight, x, bias)
    return d_x, d_bias, weight_gradient(gradient, value)


@gelu_linear_backward.register_fake
def _(gradient: Tensor, x: Tensor, bias: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return x.new_empty(x.shape), bias.new_empty(bias.shape), weight.new_empty(weight.shape)


def weight_gradient(gradient: Tensor, x: Tensor) -> Tensor:
    """Gradient of W (O, C) in `x W^T`: `gradient` (..., O), `x` (..., C), of one row also without leading dimensions."""
    return torch.atleast_2d(gradient).flatten(0, -2).T @ torch.atleast_2d(x).flatten(0, -2)


def activation_gradients(gradient: Tensor, x: Tensor, bias: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of `x` and `bias`, and `bias_gelu(x, bias)` itself, for products that kept only what went into it."""
    chosen = dispatch.choose("bias_gelu", x, channels=x.shape[-1])
    if chosen.backend == "triton":
        d_x, d_bias, value = activate_backward(gradient, x, bias, chosen.config, keep=True)
        assert value is not None
        return d_x, d_bias, value
    z = x + bias.to(x.dtype)
    d_x = torch.ops.aten.gelu_backward(gradient, z).contiguous()
    return d_x, _sum_rows(d_x).to(bias.dtype), F.gelu(z)


def _save_arguments(ctx, inputs, output) -> None:
    ctx.save_for_backward(*inputs)


def _save_without_zeros(ctx, inputs, output) -> None:
    ctx.set_materialize_grads(False)  # where a product takes the gradient of what went in, none comes here
    ctx.save_for_backward(*inputs)


def _gelu_backward(ctx, gradient: Tensor | None):
    return (None, None) if gradient is None else bias_gelu_backward(gradient, *ctx.saved_tensors)


def _gelu_linear_backward(ctx, gradient: Tensor):
    return gelu_linear_backward(gradient, *ctx.saved_tensors)


def _save_bias_dtype(ctx, inputs, output) -> None:
    ctx.bias_dtype = inputs[1].dtype


def _residual_backward(ctx, gradient: Tensor):
    return gradient, _sum_rows(gradient).to(ctx.bias_dtype), gradient


def _sum_rows(gradient: Tensor) -> Tensor:
    wide = torch.promote_types(gradient.dtype, torch.float32)
    return gradient.reshape(-1, gradient.shape[-1]).sum(dim=0, dtype=wide)


bias_gelu_operator.register_autograd(_gelu_backward, setup_context=_save_without_zeros)
gelu_linear_operator.register_autograd(_gelu_linear_backward, setup_context=_save_arguments)
bias_residual_operator.register_autograd(_residual_backward, setup_context=_save_bias_dtype)
