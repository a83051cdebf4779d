"""Temporal pooling, backward: weights recomputed, partial sums instead of atomics, so it repeats bit by bit.

    dw_f = ⟨dO, x_f⟩,  δ = Σ_f w_f dw_f,  dℓ = w (dw − δ),  dx_f = Σ_k (w_f dO + dℓ_f q),  dq = Σ dℓ_f x_f,  dbias = Σ dℓ

The query side keeps dq (and dbias) of a tile of queries while it walks over its pixels, and leaves one partial sum per
pixel chunk; the state side keeps dx of one pixel while it walks over the queries. Where a segment exceeds one tile of
frames, the query side first leaves each query's log-sum-exp and δ for both.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..runtime import kernel, tl
from .forward import load_bias, load_queries, load_states, make_plan, pooling_scores, query_rows, segment_frames


@kernel
def temporal_pooling_backward_query(
    gradient, states, table, query, bias, order, first, first_pair, cu_frames, d_query, d_bias, log_sum, delta,
    frames, max_frames, pixels, heads: tl.constexpr, chunk, queries, pairs,
    WIDTH: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_T: tl.constexpr, SINGLE: tl.constexpr,
    BIAS: tl.constexpr, DOT: tl.constexpr, ACC: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    segment = tl.program_id(1)
    start, whole = segment_frames(cu_frames, segment, frames)
    length = tl.minimum(whole, max_frames)
    begin = tl.load(first + segment)
    count = (tl.load(first + segment + 1) - begin) * heads
    states += start.to(tl.int64) * pixels * WIDTH
    table += start.to(tl.int64) * WIDTH
    d_query += tl.program_id(0).to(tl.int64) * queries * WIDTH
    d_bias += tl.program_id(0).to(tl.int64) * pairs * heads
    first_pixel = tl.program_id(0) * chunk
    last_pixel = tl.minimum(first_pixel + chunk, pixels)
    column = tl.arange(0, BLOCK_C)
    for block in range(0, tl.cdiv(count, BLOCK_Q)):
        period, head, pair, valid = query_rows(order, first_pair, begin, block, count, heads, BLOCK_Q)
        absorbed = load_queries(query, period * heads + head, valid, WIDTH, BLOCK_C, DOT)
        d_absorbed = tl.zeros([BLOCK_Q, BLOCK_C], ACC)
        extra = tl.zeros([BLOCK_Q, BLOCK_T], ACC)
        if not SINGLE:
            for pixel in range(first_pixel, last_pixel):
                row = (period * pixels + pixel) * heads + head
                d_out = load_queries(gradient, row, valid, WIDTH, BLOCK_C, DOT)
                highest = tl.full([BLOCK_Q], float("-inf"), ACC)
                total, weighted = tl.zeros([BLOCK_Q], ACC), tl.zeros([BLOCK_Q], ACC)
                for at in range(0, tl.maximum(length, 1), BLOCK_T):
                    step = at + tl.arange(0, BLOCK_T)
                    x = load_states(states, table, step, length, pixel, pixels, WIDTH, BLOCK_C, DOT)
                    if BIAS:
                        extra = load_bias(bias, pair, head, step, valid, length, pairs, ACC)
                    scores = pooling_scores(absorbed, x, extra, step, length, ACC, PRECISION)
                    d_weights = tl.dot(d_out, tl.trans(x), input_precision=PRECISION, out_dtype=ACC)
                    higher = tl.maximum(highest, tl.max(scores, 1))
                    weights = tl.exp2(scores - higher[:, None])
                    shrink = tl.exp2(highest - higher)
                    total = total * shrink + tl.sum(weights, 1)
                    weighted = weighted * shrink + tl.sum(weights * d_weights, 1)
                    highest = higher
                tl.store(log_sum + row, highest + tl.log2(total), mask=valid)
                tl.store(delta + row, weighted / total, mask=valid)
            # Other threads of this program read what was just stored.
            tl.debug_barrier()
        if SINGLE:
            end = 1
        else:
            end = tl.maximum(length, 1)
        for at in range(0, end, BLOCK_T):
            step = at + tl.arange(0, BLOCK_T)
            if BIAS:
                extra = load_bias(bias, pair, head, step, valid, length, pairs, ACC)
            d_extra = tl.zeros([BLOCK_Q, BLOCK_T], ACC)
            for pixel in range(first_pixel, last_pixel):
                row = (period * pixels + pixel) * heads + head
                d_out = load_queries(gradient, row, valid, WIDTH, BLOCK_C, DOT)
                x = load_states(states, table, step, length, pixel, pixels, WIDTH, BLOCK_C, DOT)
                scores = pooling_scores(absorbed, x, extra, step, length, ACC, PRECISION)
                d_weights = tl.dot(d_out, tl.trans(x), input_precision=PRECISION, out_dtype=ACC)
                if SINGLE:
                    weights = tl.exp2(scores - tl.max(scores, 1)[:, None])
                    weights = weights * (1 / tl.sum(weights, 1))[:, None]
                    row_delta = tl.sum(weights * d_weights, 1)
                else:
                    weights = tl.exp2(scores - tl.load(log_sum + row, mask=valid, other=0.0)[:, None])
                    row_delta = tl.load(delta + row, mask=valid, other=0.0)
                d_scores = weights * (d_weights - row_delta[:, None])
                d_absorbed += tl.dot(d_scores.to(DOT), x, input_precision=PRECISION, out_dtype=ACC)
                if BIAS:
                    d_extra += d_scores
            if BIAS:
                inside = valid[:, None] & (step < length)[None, :]
                place = (head * pairs + pair)[:, None] + step[None, :]
                tl.store(d_bias + place, d_extra, mask=inside)
        d_absorbed = tl.where(whole > length, float("nan"), d_absorbed)
        place = (period * heads + head)[:, None] * WIDTH + column[None, :]
        tl.store(d_query + place, d_absorbed, mask=valid[:, None] & (column < WIDTH)[None, :])


@kernel
def temporal_pooling_backward_state(
    gradient, states, table, query, bias, order, first, first_pair, cu_frames, d_states, log_sum, delta,
    frames, max_frames, pixels, heads: tl.constexpr, chunk, pairs,
    WIDTH: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_T: tl.constexpr, SINGLE: tl.constexpr,
    BIAS: tl.constexpr, DOT: tl.constexpr, ACC: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    segment = tl.program_id(1)
    start, whole = segment_frames(cu_frames, segment, frames)
    length = tl.minimum(whole, max_frames)
    begin = tl.load(first + segment)
    count = (tl.load(first + segment + 1) - begin) * heads
    states += start.to(tl.int64) * pixels * WIDTH
    d_states += start.to(tl.int64) * pixels * WIDTH
    table += start.to(tl.int64) * WIDTH
    first_pixel = tl.program_id(0) * chunk
    column = tl.arange(0, BLOCK_C)
    step = tl.program_id(2) * BLOCK_T + tl.arange(0, BLOCK_T)
    extra = tl.zeros([BLOCK_Q, BLOCK_T], ACC)
    if tl.program_id(2) * BLOCK_T < length:
        for pixel in range(first_pixel, tl.minimum(first_pixel + chunk, pixels)):
            x = load_states(states, table, step, length, pixel, pixels, WIDTH, BLOCK_C, DOT)
            d_x = tl.zeros([BLOCK_T, BLOCK_C], ACC)
            for block in range(0, tl.cdiv(count, BLOCK_Q)):
                period, head, pair, valid = query_rows(order, first_pair, begin, block, count, heads, BLOCK_Q)
                row = (period * pixels + pixel) * heads + head
                absorbed = load_queries(query, period * heads + head, valid, WIDTH, BLOCK_C, DOT)
                d_out = load_queries(gradient, row, valid, WIDTH, BLOCK_C, DOT)
                if BIAS:
                    extra = load_bias(bias, pair, head, step, valid, length, pairs, ACC)
                scores = pooling_scores(absorbed, x, extra, step, length, ACC, PRECISION)
                d_weights = tl.dot(d_out, tl.trans(x), input_precision=PRECISION, out_dtype=ACC)
                if SINGLE:
                    weights = tl.exp2(scores - tl.max(scores, 1)[:, None])
                    weights = weights * (1 / tl.sum(weights, 1))[:, None]
                    row_delta = tl.sum(weights * d_weights, 1)
                else:
                    weights = tl.exp2(scores - tl.load(log_sum + row, mask=valid, other=0.0)[:, None])
                    row_delta = tl.load(delta + row, mask=valid, other=0.0)
                d_scores = weights * (d_weights - row_delta[:, None])
                # Rows without a query have a zero gradient and a zero query: they add nothing.
                d_x += tl.dot(tl.trans(weights.to(DOT)), d_out, input_precision=PRECISION, out_dtype=ACC)
                d_x += tl.dot(tl.trans(d_scores.to(DOT)), absorbed, input_precision=PRECISION, out_dtype=ACC)
            place = (step * pixels + pixel)[:, None] * WIDTH + column[None, :]
            inside = (step < length)[:, None] & (column < WIDTH)[None, :]
            tl.store(d_states + place, d_x.to(d_states.dtype.element_ty), mask=inside)


def pool_backward(
    gradient: Tensor,
    states: Tensor,
    table: Tensor,
    query: Tensor,
    bias: Tensor | None,
    period_segment: Tensor,
    cu_frames: Tensor,
    max_frames: int,
    config: Mapping[str, Any],
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Launch the backward kernels: gradients of states, table, query and bias, in their dtypes."""
    gradient, states, query = gradient.contiguous(), states.contiguous(), query.contiguous()
    dtype, bias, pairs = (None, None, 0) if bias is None else (bias.dtype, bias.t().contiguous(), bias.shape[0])
    (frames, pixels, channels), (periods, heads, _) = states.shape, query.shape
    wide = torch.promote_types(states.dtype, torch.float32)
    d_states = torch.empty_like(states)
    # An empty segment's periods are written by nobody: partial sums begin as zeros.
    d_query, d_bias = query.new_zeros(query.shape, dtype=wide), states.new_zeros(heads, pairs, dtype=wide)
    if gradient.numel() and states.numel():
        plan = make_plan(states, query, bias, period_segment, cu_frames, max_frames, config)
        # Every period belongs to a segment, and each of its programs writes its queries, whatever its length.
        d_query = states.new_empty(plan.chunks, periods, heads, channels, dtype=wide)
        d_bias = states.new_zeros(plan.chunks if pairs else 1, heads, pairs, dtype=wide)
        log_sum, delta = states.new_empty(2, periods if not plan.settings["SINGLE"] else 0, pixels, heads, dtype=wide)
        tensors = (gradient, states, table.to(states.dtype).contiguous(), query, bias)
        inputs = (*tensors, plan.order, plan.first, plan.first_pair, cu_frames)
        sizes = (frames, max_frames, pixels, heads, plan.chunk)
        temporal_pooling_backward_query.launch(
            states.device,
            (plan.chunks, plan.segments),
            *(*inputs, d_query, d_bias, log_sum, delta, *sizes, periods * heads, pairs),
            **plan.settings,
        )
        temporal_pooling_backward_state.launch(
            states.device,
            (plan.chunks, plan.segments, -(-max_frames // plan.settings["BLOCK_T"])),
            *(*inputs, d_states, log_sum, delta, *sizes, pairs),
            **plan.settings,
        )
        d_query, d_bias = d_query.sum(dim=0), d_bias.sum(dim=0)
    else:
        d_states.zero_()
    d_table = d_states.sum(dim=1, dtype=wide).to(table.dtype)
    return d_states, d_table, d_query.to(query.dtype), None if bias is None else d_bias.t().to(dtype)
