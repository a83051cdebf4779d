"""The specification of temporal pooling in plain PyTorch. Frozen: every fast path is judged against it."""

import torch
from torch import Tensor

from ..arguments import segment_lengths


def temporal_pooling_reference(
    states: Tensor,
    table: Tensor,
    query: Tensor,
    bias: Tensor | None,
    period_segment: Tensor,
    cu_frames: Tensor,
    max_frames: int,
) -> Tensor:
    """Pool each period's frames with a softmax over time, per pixel and head.

        x[f, p] = states[f, p] + table[f]
        w[q, h, p, f] = softmax_f(⟨query[q, h], x[f, p]⟩ + bias[pair(q, f), h]),   f over segment period_segment[q]
        out[q, p, h] = Σ_f w[q, h, p, f] x[f, p]

    `states` (F, P, C), `table` (F, C), `query` (Q, H, C), `bias` (pairs, H) or None → (Q, P, H, C).
    """
    lengths = segment_lengths(cu_frames, states.shape[0], max_frames)
    segments = (states + table[:, None].to(states.dtype)).split(lengths)
    chosen = period_segment_list(period_segment, len(lengths))
    biases = split_bias(bias, [lengths[segment] for segment in chosen])
    pooled = [
        _pool(segments[segment], one_query, one_bias) for segment, one_query, one_bias in zip(chosen, query, biases)
    ]
    if not pooled:
        return query[:, None].to(states.dtype).expand(-1, states.shape[1], -1, -1)
    return torch.stack(pooled)


def _pool(x: Tensor, query: Tensor, bias: Tensor | None) -> Tensor:
    logits = torch.einsum("fpc,hc->fph", x, query.to(x.dtype))
    if bias is not None:
        logits = logits + bias[:, None].to(x.dtype)
    return torch.einsum("fph,fpc->phc", logits.softmax(dim=0), x)


def period_segment_list(period_segment: Tensor, segments: int) -> list[int]:
    """`period_segment` as Python ints; raises `ValueError` for a segment that does not exist."""
    chosen = period_segment.tolist()
    for row, segment in enumerate(chosen):
        if not 0 <= segment < segments:
            raise ValueError(f"period_segment[{row}]: expected a segment in 0..{segments - 1}, found {segment}")
    return chosen


def split_bias(bias: Tensor | None, frames_per_period: list[int]) -> list[Tensor | None]:
    """The rows of `bias` that belong to each period: pairs enumerate each period's frames, period by period."""
    if bias is None:
        return [None] * len(frames_per_period)
    if bias.shape[0] != sum(frames_per_period):
        raise ValueError(
            f"bias: expected {sum(frames_per_period)} rows (each period's frames, period by period), "
            f"found {bias.shape[0]}"
        )
    return list(bias.split(frames_per_period))
