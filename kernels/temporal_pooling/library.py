"""Temporal pooling as a chain of PyTorch's matrix products, on any device, without reading the offsets on the host."""

import torch
from torch import Tensor

from ..arguments import nan_where_cut


def pool_padded(
    states: Tensor,
    table: Tensor,
    query: Tensor,
    bias: Tensor | None,
    period_segment: Tensor,
    cu_frames: Tensor,
    max_frames: int,
) -> Tensor:
    """`temporal_pooling` period by period over segments padded to `max_frames`; differentiable, no synchronisation."""
    frames, segment = states.shape[0], period_segment.long().clamp(0, cu_frames.shape[0] - 2)
    if not frames:
        return query[:, None].to(states.dtype).expand(-1, states.shape[1], -1, -1) * 0
    table = table.to(states.dtype) + nan_where_cut(cu_frames, max_frames).to(states.dtype)
    x = states + table[:, None]
    starts, lengths = cu_frames[:-1].long()[segment], cu_frames.diff().long()[segment]  # (Q,)
    step = torch.arange(max_frames, device=states.device)
    seen = step < lengths[:, None]  # (Q, T)
    own = x[(starts[:, None] + step).clamp(max=frames - 1)]  # (Q, T, P, C)
    own = own * seen[:, :, None, None]  # an empty segment pools to zeros
    logits = torch.einsum("qtpc,qhc->qpht", own, query.to(own.dtype))
    if bias is not None:
        first = lengths.cumsum(0) - lengths
        pair = (first[:, None] + step).clamp(max=max(bias.shape[0] - 1, 0))
        extra = bias[pair] if bias.shape[0] else bias.new_zeros(*pair.shape, query.shape[1])
        logits = logits + extra.permute(0, 2, 1)[:, None].to(logits.dtype)
    # The first frame is always seen: a row without any would be NaN, and so would its gradients.
    visible = seen | (step == 0)
    weights = logits.masked_fill(~visible[:, None, None], -torch.inf).softmax(dim=-1)
    return torch.einsum("qpht,qtpc->qphc", weights, own)
