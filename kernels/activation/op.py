"""The public functions of the point-wise epilogues."""

import torch.nn.functional as F
from torch import Tensor

from ..arguments import check_float, match_shape


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
    return F.gelu(x + bias.to(x.dtype))


def bias_residual(x: Tensor, bias: Tensor, residual: Tensor) -> Tensor:
    """`x + bias + residual`: the epilogue of a projection that ends a residual branch.

    `x` and `residual` (..., C) of one dtype, `bias` (C,) of any floating dtype → like `x`.

    Raises:
        ValueError: wrong rank, shape, dtype or device.
    """
    check_arguments(x, bias, residual)
    return (x + residual) + bias.to(x.dtype)
