"""The public function of space attention."""

import torch
from torch import Tensor

from .. import dispatch
from ..arguments import check_float, match_shape
from ..time_attention.library import SEQUENCES, varlen_refusal
from .library import attend_products, attend_sdpa, attend_varlen

MOST_PIXELS_BY_PRODUCTS = 64
"""Longest rows for which a CPU keeps the attention weights: the space path of a crop of 128 px."""


def check_arguments(qkv: Tensor) -> None:
    """Refuse what no backend can compute, with one line that says what to change."""
    match_shape({}, "qkv", qkv, "F N 3 H D")
    check_float("qkv", qkv)


def space_attention(qkv: Tensor) -> Tensor:
    """Attention over the pixels of each frame (Brown et al. 2025, the "space" operator of an STP block).

        out[f, n, h] = Σ_m softmax_m(⟨q[f,n,h], k[f,m,h]⟩ / √D) v[f,m,h]

    `qkv` (F, N, 3, H, D): F packed frames, N pixels, query/key/value, H heads of D channels; fp64, fp32, bf16 or fp16 →
    (F, N, H, D) in its dtype. Differentiable. There is no kernel of our own: rows of 64 pixels fill a library's tiles.

    Raises:
        ValueError: wrong rank, shape or dtype.
    """
    check_arguments(qkv)
    backend = dispatch.backend("space_attention", qkv, **_sizes(qkv))
    if qkv.shape[1] == 1:
        return qkv[:, :, 2]  # a pixel alone attends to itself, whatever the backend: coarse levels of small crops
    if backend == "flash":
        return attend_varlen(qkv)
    # A CPU's SDPA is slow in bf16, above all backward.
    short = qkv.shape[1] <= MOST_PIXELS_BY_PRODUCTS
    if qkv.device.type == "cpu" and qkv.dtype == torch.bfloat16 and short:
        return attend_products(qkv)
    return attend_sdpa(qkv)


def _sizes(qkv: Tensor) -> dict[str, int]:
    frames, pixels, _, _, channels = qkv.shape
    return {"max_frames": pixels, "channels": channels, "many": int(frames > SEQUENCES)}


dispatch.register("space_attention", flash=varlen_refusal)
