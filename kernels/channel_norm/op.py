"""The public function of the channel LayerNorm."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..arguments import check_float, match_shape
from .reference import EPS


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
    return _layer_norm(x, weight, bias)


def _layer_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    if x.device.type == "cpu":
        # PyTorch's CPU backward sums a bf16 input's parameter gradients in bf16: a tenth off at 20,000 rows.
        wide = torch.promote_types(x.dtype, torch.float32)
        return F.layer_norm(x.to(wide), x.shape[-1:], weight.to(wide), bias.to(wide), EPS).to(x.dtype)
    return F.layer_norm(x, x.shape[-1:], weight.to(x.dtype), bias.to(x.dtype), EPS)
