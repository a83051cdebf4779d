"""The specification of time-axial attention in plain PyTorch. Frozen: every fast path is judged against it."""

import torch
from torch import Tensor

from ..arguments import segment_lengths


def time_attention_reference(qkv: Tensor, table: Tensor, cu_frames: Tensor, max_frames: int) -> Tensor:
    """Attend along time, for each segment, pixel and head apart.

        q, k, v = qkv[f, p] + table[f]
        out[f, p, h] = Σ_g softmax_g(⟨q[f,p,h], k[g,p,h]⟩ / √D) v[g,p,h],   g over the frames of f's segment

    `qkv` (F, P, 3, H, D), `table` (F, 3, H, D), `cu_frames` (S + 1,) → (F, P, H, D).
    """
    lengths = segment_lengths(cu_frames, qkv.shape[0], max_frames)
    summed = qkv + table[:, None].to(qkv.dtype)
    attended = [_attend(segment) for segment in summed.split(lengths)]
    return torch.cat(attended) if attended else qkv.sum(dim=2)


def _attend(segment: Tensor) -> Tensor:
    query, key, value = segment.permute(2, 1, 3, 0, 4)  # (P, H, T, D) each
    scores = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5
    return (scores.softmax(dim=-1) @ value).permute(2, 0, 1, 3)  # (T, P, H, D)
