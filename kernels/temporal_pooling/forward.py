"""Temporal pooling, forward: one read of a segment's states serves all its periods and heads.

A segment's K = periods · heads queries are the rows of a tile, its frames the columns; per pixel that is attention with
keys and values alike, the states plus the timecode. `program (pixel chunk, segment)` keeps a tile of queries and walks
over its pixels. Frames beyond one tile run through an online softmax.

The host reads no offsets: a small kernel sorts the periods by segment and counts their bias pairs on the device.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..runtime import compute_type, dot_precision, dot_type, jit, kernel, power_of_two, processors, tl

DEFAULTS = {"queries": 64, "frames": 64, "num_warps": 8, "num_stages": 2}
PROGRAMS_PER_PROCESSOR = 4
PLAN_ROWS = 64


@jit
def segment_of(period_segment, row, inside, segments):
    """Segments of periods, clamped so that wrong ones cannot lead out of the arrays."""
    found = tl.load(period_segment + row, mask=inside, other=0)
    return tl.minimum(tl.maximum(found, 0), segments - 1)


@jit
def segment_frames(cu_frames, segment, frames):
    """First frame and length of segments, clamped likewise."""
    start = tl.minimum(tl.maximum(tl.load(cu_frames + segment), 0), frames)
    end = tl.minimum(tl.maximum(tl.load(cu_frames + segment + 1), start), frames)
    return start, end - start


@kernel
def temporal_pooling_plan(
    period_segment, cu_frames, order, first, first_pair, periods, segments, frames, BLOCK: tl.constexpr
):
    """`order` (Q,): periods sorted by segment; `first` (S + 1,): where each segment's begin in it; `first_pair` (Q,)."""
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = row < periods
    own = segment_of(period_segment, row, inside, segments)
    rank, pair, before = tl.zeros([BLOCK], tl.int32), tl.zeros([BLOCK], tl.int32), tl.zeros([BLOCK], tl.int32)
    for begin in range(0, periods, BLOCK):
        other = begin + tl.arange(0, BLOCK)
        real = other < periods
        segment = segment_of(period_segment, other, real, segments)
        _, length = segment_frames(cu_frames, segment, frames)
        earlier = real[None, :] & (other[None, :] < row[:, None])
        sooner = (segment[None, :] < own[:, None]) | ((segment[None, :] == own[:, None]) & earlier)
        rank += tl.sum((real[None, :] & sooner).to(tl.int32), 1)
        pair += tl.sum(tl.where(earlier, length[None, :], 0), 1)
        before += tl.sum((real[None, :] & (segment[None, :] < row[:, None])).to(tl.int32), 1)
    tl.store(order + rank, row, mask=inside)
    tl.store(first_pair + row, pair, mask=inside)
    tl.store(first + row, before, mask=row <= segments)


@jit
def query_rows(order, first_pair, begin, block, count, heads, BLOCK_Q: tl.constexpr):
    """Period, head, first bias pair and validity of a block of a segment's queries."""
    index = block * BLOCK_Q + tl.arange(0, BLOCK_Q)
    valid = index < count
    period = tl.load(order + begin + index // heads, mask=valid, other=0)
    return period, index % heads, tl.load(first_pair + period, mask=valid, other=0), valid


@jit
def load_queries(array, row, valid, WIDTH: tl.constexpr, BLOCK_C: tl.constexpr, DOT: tl.constexpr):
    """Rows (BLOCK_Q, C) of a (…, C) array, whatever its leading dimensions."""
    column = tl.arange(0, BLOCK_C)
    inside = valid[:, None] & (column < WIDTH)[None, :]
    return tl.load(array + row.to(tl.int64)[:, None] * WIDTH + column[None, :], mask=inside, other=0.0).to(DOT)


@jit
def load_states(states, table, step, length, pixel, pixels, WIDTH: tl.constexpr, BLOCK_C: tl.constexpr, DOT: tl.constexpr):  # fmt: skip
    """One pixel's states with the timecodes added: (BLOCK_T, C). Pointers stand at the segment's first frame."""
    column = tl.arange(0, BLOCK_C)
    inside = (step < length)[:, None] & (column < WIDTH)[None, :]
    state = tl.load(states + (step * pixels + pixel)[:, None] * WIDTH + column[None, :], mask=inside, other=0.0)
    extra = tl.load(table + step[:, None] * WIDTH + column[None, :], mask=inside, other=0.0)
    return (state + extra).to(DOT)


@jit
def load_bias(bias, pair, head, step, valid, length, pairs, ACC: tl.constexpr):
    """The biases of a block of queries and frames in base 2: (BLOCK_Q, BLOCK_T). `bias` is (H, pairs) here, so that
    the frames of a row lie side by side."""
    inside = valid[:, None] & (step < length)[None, :]
    place = (head * pairs + pair)[:, None] + step[None, :]
    return tl.load(bias + place, mask=inside, other=0.0).to(ACC) * 1.4426950408889634


@jit
def pooling_scores(query, x, extra, step, length, ACC: tl.constexpr, PRECISION: tl.constexpr):
    """Logits in base 2, −∞ beyond the segment. The first frame is always seen, so that nothing becomes NaN."""
    scores = tl.dot(query, tl.trans(x), input_precision=PRECISION, out_dtype=ACC) * 1.4426950408889634
    return tl.where((step < tl.maximum(length, 1))[None, :], scores + extra, float("-inf"))


@kernel
def temporal_pooling_forward(
    states, table, query, bias, order, first, first_pair, cu_frames, out, frames, max_frames, pixels, heads, chunk, pairs,
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
    first_pixel = tl.program_id(0) * chunk
    column = tl.arange(0, BLOCK_C)
    for block in range(0, tl.cdiv(count, BLOCK_Q)):
        period, head, pair, valid = query_rows(order, first_pair, begin, block, count, heads, BLOCK_Q)
        absorbed = load_queries(query, period * heads + head, valid, WIDTH, BLOCK_C, DOT)
        step = tl.arange(0, BLOCK_T)
        extra = tl.zeros([BLOCK_Q, BLOCK_T], ACC)
        if BIAS and SINGLE:
            extra = load_bias(bias, pair, head, step, valid, length, pairs, ACC)
        for pixel in range(first_pixel, tl.minimum(first_pixel + chunk, pixels)):
            if SINGLE:
                x = load_states(states, table, step, length, pixel, pixels, WIDTH, BLOCK_C, DOT)
                scores = pooling_scores(absorbed, x, extra, step, length, ACC, PRECISION)
                weights = tl.exp2(scores - tl.max(scores, 1)[:, None])
                total = tl.sum(weights, 1)
                pooled = tl.dot(weights.to(DOT), x, input_precision=PRECISION, out_dtype=ACC)
            else:
                highest = tl.full([BLOCK_Q], float("-inf"), ACC)
                total = tl.zeros([BLOCK_Q], ACC)
                pooled = tl.zeros([BLOCK_Q, BLOCK_C], ACC)
                for at in range(0, tl.maximum(length, 1), BLOCK_T):
                    step = at + tl.arange(0, BLOCK_T)
                    x = load_states(states, table, step, length, pixel, pixels, WIDTH, BLOCK_C, DOT)
                    if BIAS:
                        extra = load_bias(bias, pair, head, step, valid, length, pairs, ACC)
                    scores = pooling_scores(absorbed, x, extra, step, length, ACC, PRECISION)
                    higher = tl.maximum(highest, tl.max(scores, 1))
                    weights = tl.exp2(scores - higher[:, None])
                    shrink = tl.exp2(highest - higher)
                    total = total * shrink + tl.sum(weights, 1)
                    pooled = pooled * shrink[:, None]
                    pooled += tl.dot(weights.to(DOT), x, input_precision=PRECISION, out_dtype=ACC)
                    highest = higher
            # A segment longer than the caller's max_frames must not pass unseen.
            pooled = pooled * (1 / tl.where(whole > length, float("nan"), total))[:, None]
            row = (period * pixels + pixel) * heads + head
            inside = valid[:, None] & (column < WIDTH)[None, :]
            tl.store(
                out + row.to(tl.int64)[:, None] * WIDTH + column[None, :], pooled.to(out.dtype.element_ty), mask=inside
            )


@dataclass(frozen=True)
class Plan:
    """What forward and backward share: periods sorted by segment, the pixel chunks, and the kernels' settings."""

    order: Tensor
    first: Tensor
    first_pair: Tensor
    chunk: int
    chunks: int
    segments: int
    settings: dict[str, Any]


def pool(
    states: Tensor,
    table: Tensor,
    query: Tensor,
    bias: Tensor | None,
    period_segment: Tensor,
    cu_frames: Tensor,
    max_frames: int,
    config: Mapping[str, Any],
) -> Tensor:
    """Launch the forward kernel: `states` (F, P, C), `query` (Q, H, C), `bias` (pairs, H) → (Q, P, H, C)."""
    states, table, query = states.contiguous(), table.to(states.dtype).contiguous(), query.contiguous()
    bias, pairs = (None, 0) if bias is None else (bias.t().contiguous(), bias.shape[0])
    (frames, pixels, channels), (periods, heads, _) = states.shape, query.shape
    out = torch.empty(periods, pixels, heads, channels, dtype=states.dtype, device=states.device)
    if out.numel():
        plan = make_plan(states, query, bias, period_segment, cu_frames, max_frames, config)
        temporal_pooling_forward.launch(
            states.device,
            (plan.chunks, plan.segments),
            *(states, table, query, bias, plan.order, plan.first, plan.first_pair, cu_frames, out),
            *(frames, max_frames, pixels, heads, plan.chunk, pairs),
            **plan.settings,
        )
    return out


def make_plan(
    states: Tensor,
    query: Tensor,
    bias: Tensor | None,
    period_segment: Tensor,
    cu_frames: Tensor,
    max_frames: int,
    config: Mapping[str, Any],
) -> Plan:
    """Sort the periods on the device and size the grid."""
    config = DEFAULTS | dict(config)
    (frames, pixels, channels), periods, segments = states.shape, query.shape[0], cu_frames.shape[0] - 1
    order, first, first_pair = (
        torch.empty(size, dtype=torch.int32, device=states.device) for size in (periods, segments + 1, periods)
    )
    temporal_pooling_plan.launch(
        states.device,
        (math.ceil(max(periods, segments + 1) / PLAN_ROWS),),
        *(period_segment, cu_frames, order, first, first_pair, periods, segments, frames),
        BLOCK=PLAN_ROWS,
    )
    chunks = min(pixels, math.ceil(PROGRAMS_PER_PROCESSOR * processors(states) / segments))
    chunk = math.ceil(pixels / chunks)
    block = min(config["frames"], power_of_two(max_frames, 16))
    settings = {
        "WIDTH": channels,
        "BLOCK_C": power_of_two(channels, 16),
        "BLOCK_Q": config["queries"],
        "BLOCK_T": block,
        "SINGLE": max_frames <= block,
        "BIAS": bias is not None,
        "DOT": dot_type(states.dtype),
        "ACC": compute_type(states.dtype),
        "PRECISION": dot_precision(states.dtype),
        "num_warps": config["num_warps"],
        "num_stages": config["num_stages"],
    }
    return Plan(order, first, first_pair, chunk, math.ceil(pixels / chunk), segments, settings)
