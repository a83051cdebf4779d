"""Tuned PyTorch path of temporal pooling on a CPU: one matrix product serves all periods and heads of a segment."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Pooled:
    """One segment's forward: x (T, P, C) with the table added, weights (T, P, K) for its K = periods · heads queries,
    the `rows` of its periods and the `pairs` of their biases (periods, T)."""

    start: int
    rows: Tensor
    pairs: Tensor
    x: Tensor
    weights: Tensor


class EagerTemporalPooling(torch.autograd.Function):
    """Differentiable `pooling_forward`: `apply(states, table, query, bias, chosen, lengths)` → out (Q, P, H, C)."""

    @staticmethod
    def forward(ctx, states: Tensor, table: Tensor, query: Tensor, bias: Tensor | None, chosen, lengths) -> Tensor:
        out, pooled = pooling_forward(states, table, query, bias, chosen, lengths)
        ctx.places = [(one.start, one.rows, one.pairs) for one in pooled]
        kept = (tensor for one in pooled for tensor in (one.x, one.weights))
        ctx.save_for_backward(states, table, query, bias, *kept)
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient: Tensor):
        states, table, query, bias, *kept = ctx.saved_tensors
        saved = zip(ctx.places, kept[0::2], kept[1::2])
        pooled = [Pooled(start, rows, pairs, x, weights) for (start, rows, pairs), x, weights in saved]
        gradients = pooling_backward(gradient, states, query, bias, pooled)
        inputs = (states, table, query, bias)
        cast = [None if g is None else g.to(one.dtype) for g, one in zip(gradients, inputs)]
        return *cast, None, None


def pooling_forward(
    states: Tensor, table: Tensor, query: Tensor, bias: Tensor | None, chosen: list[int], lengths: list[int]
) -> tuple[Tensor, list[Pooled]]:
    """`states` (F, P, C), `table` (F, C), `query` (Q, H, C), `bias` (pairs, H) or None → out (Q, P, H, C) and what
    backward needs. `chosen` holds each period's segment, `lengths` each segment's frames. Logits and their softmax are
    fp32: of operands in bf16 too, as the products are faster that way on a CPU."""
    (periods, heads, channels), pixels = query.shape, states.shape[1]
    full = torch.promote_types(states.dtype, torch.float32)
    query = query.to(states.dtype).to(full)  # rounded, as backward reads it
    out = states.new_zeros(periods, pixels, heads, channels)
    pooled = []
    for start, length, rows, pairs in _segments(chosen, lengths):
        x = states[start : start + length] + table[start : start + length, None].to(states.dtype)
        logits = x.flatten(0, 1).to(full) @ query[rows].flatten(0, 1).T  # (T·P, K)
        logits = logits.view(length, pixels, len(rows), heads)
        if bias is not None:
            logits += bias[pairs].permute(1, 0, 2)[:, None].to(full)  # (T, 1, periods, H)
        weights = logits.flatten(2).softmax(dim=0).to(states.dtype)
        one = torch.bmm(weights.permute(1, 2, 0), x.transpose(0, 1))  # (P, K, C)
        out[rows] = one.view(pixels, len(rows), heads, channels).transpose(0, 1)
        pooled.append(Pooled(start, rows, pairs, x, weights))
    return out, pooled


def pooling_backward(
    gradient: Tensor, states: Tensor, query: Tensor, bias: Tensor | None, pooled: list[Pooled]
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """`gradient` (Q, P, H, C) of out → gradients of states, table, query and bias.

    With w the weights and δ = Σ_f w_f dw_f:  dw_f = ⟨dO, x_f⟩,  dℓ = w (dw − δ),  dx_f = Σ_k w_f dO + dℓ_f q,
    dq = Σ_{f,p} dℓ_f x_f,  dbias = Σ_p dℓ; the table's gradient sums the states' over the pixels.
    """
    *_, heads, channels = gradient.shape
    d_states, d_table = torch.zeros_like(states), states.new_zeros(states.shape[0], channels)
    d_query = states.new_zeros(query.shape)
    d_bias = None if bias is None else states.new_zeros(bias.shape)
    for one in pooled:
        length, rows = one.x.shape[0], one.rows
        absorbed = query[rows].to(states.dtype).flatten(0, 1)  # (K, C)
        d_out = gradient[rows].transpose(0, 1).flatten(1, 2)  # (P, K, C)
        d_weights = torch.bmm(one.x.transpose(0, 1), d_out.mT).transpose(0, 1)  # (T, P, K)
        d_logits = torch._softmax_backward_data(d_weights.contiguous(), one.weights, 0, states.dtype)
        flat = d_logits.flatten(0, 1)
        d_x = (flat @ absorbed).view_as(one.x)
        d_x += torch.bmm(one.weights.transpose(0, 1), d_out).transpose(0, 1)
        d_states[one.start : one.start + length] = d_x
        d_table[one.start : one.start + length] = d_x.sum(dim=1)
        d_query[rows] = (flat.T @ one.x.flatten(0, 1)).view(len(rows), heads, channels)
        if d_bias is not None:
            d_bias[one.pairs] = d_logits.sum(dim=1).view(length, len(rows), heads).transpose(0, 1)
    return d_states, d_table, d_query, d_bias


def _segments(chosen: list[int], lengths: list[int]) -> list[tuple[int, int, Tensor, Tensor]]:
    """(first frame, frames, rows of the periods, their pairs (periods, frames)) of each pooled, non-empty segment."""
    starts = [0]
    for length in lengths:
        starts.append(starts[-1] + length)
    rows: dict[int, list[int]] = {}
    first_pair, pair = [], 0
    for row, segment in enumerate(chosen):
        rows.setdefault(segment, []).append(row)
        first_pair.append(pair)
        pair += lengths[segment]
    return [
        (
            starts[segment],
            lengths[segment],
            torch.tensor(members),
            torch.tensor([first_pair[row] for row in members])[:, None] + torch.arange(lengths[segment]),
        )
        for segment, members in sorted(rows.items())
        if lengths[segment]
    ]
