"""Tuned PyTorch path of time attention on a CPU: short segments share one batched matmul, probabilities are kept.

For short sequences plain batched matmuls beat `scaled_dot_product_attention`, above all its bf16 backward. One pass
adds the table and lays queries, keys and values out head-major, one pass lays the gradient out frame-major again.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..row_softmax import row_softmax, row_softmax_backward
from ..segments import SegmentGroup, group_segments

MERGE_SCORES = 1 << 14
"""Scores that padding may waste per merged segment: about what the calls of one more group cost."""


@dataclass
class Attended:
    """One group's forward: `packed` (3, n, P, H, T, D) is q, k, v with the table added; `weights` (n·P·H, T, T)."""

    group: SegmentGroup
    packed: Tensor
    weights: Tensor


class EagerTimeAttention(torch.autograd.Function):
    """Differentiable `attention_forward`: `apply(qkv, table, lengths)` → out (F, P, H, D)."""

    @staticmethod
    def forward(ctx, qkv: Tensor, table: Tensor, lengths: list[int]) -> Tensor:
        ctx.table_dtype = table.dtype
        out, attended = attention_forward(qkv, table, lengths)
        ctx.groups = [one.group for one in attended]
        ctx.save_for_backward(*(tensor for one in attended for tensor in (one.packed, one.weights)))
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient: Tensor):
        saved = ctx.saved_tensors  # once: checkpointing hands a tensor out a single time
        attended = map(Attended, ctx.groups, saved[0::2], saved[1::2])
        d_qkv, d_table = attention_backward(gradient, attended)
        return d_qkv, d_table.to(ctx.table_dtype), None


def attention_forward(qkv: Tensor, table: Tensor, lengths: list[int]) -> tuple[Tensor, list[Attended]]:
    """`qkv` (F, P, 3, H, D), `table` (F, 3, H, D), segment `lengths` → out (F, P, H, D) and what backward needs."""
    frames, pixels, _, heads, channels = qkv.shape
    table = table.to(qkv.dtype)
    out = qkv.new_empty(frames, pixels, heads, channels)
    attended = []
    for group in group_segments(lengths, MERGE_SCORES // max(1, pixels * heads)):
        packed = _pack(qkv, table, group)
        query, key, value = packed.flatten(1, 3)
        weights = row_softmax(_scores(query, key, group))
        group.scatter(out, _frame_major(torch.bmm(weights, value), packed))
        attended.append(Attended(group, packed, weights))
    return out, attended


def attention_backward(gradient: Tensor, attended: Iterable[Attended]) -> tuple[Tensor, Tensor]:
    """`gradient` (F, P, H, D) of out → gradients of qkv (F, P, 3, H, D) and of table (F, 3, H, D), in its dtype.

    With P the weights and δ_i = Σ_j P_ij dP_ij:  dV = Pᵀ dO,  dP = dO Vᵀ,  dS = P (dP − δ),  dQ = dS K / √D,
    dK = dSᵀ Q / √D; the table's gradient sums qkv's over the pixels.
    """
    frames, pixels, heads, channels = gradient.shape
    d_qkv = gradient.new_empty(frames, pixels, 3, heads, channels)
    d_table = gradient.new_empty(frames, 3, heads, channels)
    for one in attended:
        query, key, value = one.packed.flatten(1, 3)
        d_out = one.group.gather(gradient).permute(0, 2, 3, 1, 4).reshape(query.shape)
        d_weights = torch.bmm(d_out, value.mT)
        d_scores = row_softmax_backward(d_weights, one.weights)
        d_packed = torch.empty_like(one.packed)
        d_query, d_key, d_value = d_packed.flatten(1, 3)
        _scaled_bmm(d_scores, key, channels**-0.5, out=d_query)
        _scaled_bmm(d_scores.mT, query, channels**-0.5, out=d_key)
        torch.bmm(one.weights.mT, d_out, out=d_value)
        one.group.scatter(d_qkv, d_packed.permute(1, 4, 2, 0, 3, 5))
        one.group.scatter(d_table, d_packed.sum(dim=2).permute(1, 3, 0, 2, 4))
    return d_qkv, d_table


def _pack(qkv: Tensor, table: Tensor, group: SegmentGroup) -> Tensor:
    rows, extra = group.gather(qkv), group.gather(table)  # (n, T, P, 3, H, D), (n, T, 3, H, D)
    count, length, pixels, _, heads, channels = rows.shape
    if qkv.dtype == torch.bfloat16:  # adding and turning in one pass is done value by value: four times slower than two
        return (rows + extra[:, :, None]).permute(3, 0, 2, 4, 1, 5).contiguous()
    packed = qkv.new_empty(3, count, pixels, heads, length, channels)
    return torch.add(rows.permute(3, 0, 2, 4, 1, 5), extra.permute(2, 0, 3, 1, 4)[:, :, None], out=packed)


def _scores(query: Tensor, key: Tensor, group: SegmentGroup) -> Tensor:
    scores = _scaled_bmm(query, key.mT, query.shape[-1] ** -0.5)
    return group.mask_keys(scores.unflatten(0, (len(group.starts), -1))).flatten(0, 1)


def _scaled_bmm(a: Tensor, b: Tensor, scale: float, out: Tensor | None = None) -> Tensor:
    # A GEMM multiplies by its alpha for nothing; with beta = 0 the addend is not read.
    return torch.baddbmm(a.new_empty(1, 1, 1), a, b, beta=0, alpha=scale, out=out)


def _frame_major(attended: Tensor, packed: Tensor) -> Tensor:
    return attended.view(packed.shape[1:]).permute(0, 3, 1, 2, 4)  # (n, T, P, H, D)
