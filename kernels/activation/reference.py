"""The specification of the point-wise epilogues in plain PyTorch. Frozen: every fast path is judged against it."""

import math

import torch
from torch import Tensor


def bias_gelu_reference(x: Tensor, bias: Tensor) -> Tensor:
    """`z Φ(z)` with `z = x + bias` and the exact Gaussian Φ, computed in fp32 at least."""
    z = _widen(x) + _widen(bias)
    return (0.5 * z * (1 + torch.erf(z / math.sqrt(2)))).to(x.dtype)


def gelu_linear_reference(x: Tensor, bias: Tensor, weight: Tensor) -> Tensor:
    """`bias_gelu W^T`, the GELU's output rounded to `x`'s type as any operand of a product is."""
    return bias_gelu_reference(x, bias) @ weight.T


def bias_residual_reference(x: Tensor, bias: Tensor, residual: Tensor) -> Tensor:
    """`x + bias + residual`, computed in fp32 at least."""
    return (_widen(x) + _widen(bias) + _widen(residual)).to(x.dtype)


def _widen(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
