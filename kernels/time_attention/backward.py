"""Time attention, backward: weights recomputed from qkv, so that nothing else is saved; no atomics, so it repeats.

Where a pixel's whole sequence lies in one tile, δ_i = Σ_j P_ij dP_ij comes from the tile and one kernel does all:

    dV = Pᵀ dO,  dP = dO Vᵀ,  dS = P (dP − δ),  dQ = dS K / √D,  dK = dSᵀ Q / √D

Longer segments take two: the query side finds each row's log-sum-exp and δ on the way to dQ and leaves them for the key
side, which finds dK and dV. The table's gradient sums qkv's over the pixels.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..runtime import kernel, tl
from .forward import load_rows, masked_scores, plan, segment_bounds, tile_counts, tile_rows


@kernel
def time_attention_backward(
    gradient, qkv, table, cu_frames, d_qkv, frames, max_frames, pixels, heads: tl.constexpr, heads_per_program,
    HEAD: tl.constexpr, BLOCK_D: tl.constexpr, ROWS: tl.constexpr, SINGLE: tl.constexpr, SCALE: tl.constexpr,
    DOT: tl.constexpr, ACC: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    start, length, cut = segment_bounds(cu_frames, tl.program_id(1), frames, max_frames)
    per_tile, blocks, tiles, factor = tile_counts(length, pixels, ROWS)
    qkv += start * pixels * 3 * heads * HEAD
    d_qkv += start * pixels * 3 * heads * HEAD
    gradient += start * pixels * heads * HEAD
    table += start * 3 * heads * HEAD
    side = heads * HEAD
    first_head = tl.program_id(2) * heads_per_program
    column = tl.arange(0, BLOCK_D)
    for tile in range(tl.program_id(0), tiles, tl.num_programs(0)):
        first_pixel = tile // blocks * per_tile
        pixel, step, valid = tile_rows(tile % blocks, first_pixel, length, per_tile, factor, pixels, ROWS)
        row = step * pixels + first_pixel + pixel
        inside = valid[:, None] & (column < HEAD)[None, :]
        for head in range(first_head, tl.minimum(first_head + heads_per_program, heads)):
            place = head * HEAD
            query = load_rows(qkv, table, row, step, valid, place, heads, HEAD, BLOCK_D, DOT)
            key = load_rows(qkv, table, row, step, valid, place + side, heads, HEAD, BLOCK_D, DOT)
            value = load_rows(qkv, table, row, step, valid, place + 2 * side, heads, HEAD, BLOCK_D, DOT)
            d_out = tl.load(gradient + (row * side)[:, None] + (place + column)[None, :], mask=inside, other=0.0).to(
                DOT
            )
            scores = masked_scores(query, key, pixel, pixel, valid, valid, SCALE, ACC, PRECISION)
            highest = tl.max(scores, 1)
            weights = tl.exp2(scores - tl.where(valid, highest, 0.0)[:, None])
            total = tl.sum(weights, 1)
            # A segment longer than the caller's max_frames must not pass unseen.
            total = tl.where(cut, float("nan"), tl.where(valid, total, 1.0))
            weights = weights * (1 / total)[:, None]
            # Each gradient is stored as soon as it is known: registers are what limits this kernel.
            offset = (row * 3 * side)[:, None] + (place + column)[None, :]
            d_value = tl.dot(tl.trans(weights.to(DOT)), d_out, input_precision=PRECISION, out_dtype=ACC)
            tl.store(d_qkv + offset + 2 * side, d_value.to(d_qkv.dtype.element_ty), mask=inside)
            d_weights = tl.dot(d_out, tl.trans(value), input_precision=PRECISION, out_dtype=ACC)
            d_scores = weights * (d_weights - tl.sum(weights * d_weights, 1)[:, None])
            # SCALE is in base 2.
            d_scores = (d_scores * (SCALE * 0.6931471805599453)).to(DOT)
            d_query = tl.dot(d_scores, key, input_precision=PRECISION, out_dtype=ACC)
            tl.store(d_qkv + offset, d_query.to(d_qkv.dtype.element_ty), mask=inside)
            d_key = tl.dot(tl.trans(d_scores), query, input_precision=PRECISION, out_dtype=ACC)
            tl.store(d_qkv + offset + side, d_key.to(d_qkv.dtype.element_ty), mask=inside)


@kernel
def time_attention_backward_query(
    gradient, qkv, table, cu_frames, d_qkv, log_sum, delta, frames, max_frames, pixels, heads, heads_per_program,
    HEAD: tl.constexpr, BLOCK_D: tl.constexpr, ROWS: tl.constexpr, SINGLE: tl.constexpr, SCALE: tl.constexpr,
    DOT: tl.constexpr, ACC: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    start, length, cut = segment_bounds(cu_frames, tl.program_id(1), frames, max_frames)
    per_tile, blocks, tiles, factor = tile_counts(length, pixels, ROWS)
    qkv += start * pixels * 3 * heads * HEAD
    d_qkv += start * pixels * 3 * heads * HEAD
    gradient += start * pixels * heads * HEAD
    table += start * 3 * heads * HEAD
    log_sum += start * pixels * heads
    delta += start * pixels * heads
    side = heads * HEAD
    first_head = tl.program_id(2) * heads_per_program
    column = tl.arange(0, BLOCK_D)
    for tile in range(tl.program_id(0), tiles, tl.num_programs(0)):
        first_pixel = tile // blocks * per_tile
        pixel, step, valid = tile_rows(tile % blocks, first_pixel, length, per_tile, factor, pixels, ROWS)
        row = step * pixels + first_pixel + pixel
        inside = valid[:, None] & (column < HEAD)[None, :]
        for head in range(first_head, tl.minimum(first_head + heads_per_program, heads)):
            place = head * HEAD
            query = load_rows(qkv, table, row, step, valid, place, heads, HEAD, BLOCK_D, DOT)
            d_out = tl.load(gradient + (row * side)[:, None] + (place + column)[None, :], mask=inside, other=0.0).to(
                DOT
            )
            highest = tl.full([ROWS], float("-inf"), ACC)
            total = tl.zeros([ROWS], ACC)
            weighted = tl.zeros([ROWS], ACC)
            for block in range(0, blocks):
                key_pixel, key_step, key_valid = tile_rows(block, first_pixel, length, per_tile, factor, pixels, ROWS)
                key_row = key_step * pixels + first_pixel + key_pixel
                key = load_rows(qkv, table, key_row, key_step, key_valid, place + side, heads, HEAD, BLOCK_D, DOT)
                value = load_rows(qkv, table, key_row, key_step, key_valid, place + 2 * side, heads, HEAD, BLOCK_D, DOT)
                scores = masked_scores(query, key, pixel, key_pixel, valid, key_valid, SCALE, ACC, PRECISION)
                d_weights = tl.dot(d_out, tl.trans(value), input_precision=PRECISION, out_dtype=ACC)
                higher = tl.maximum(highest, tl.max(scores, 1))
                safe = tl.where(valid, higher, 0.0)
                weights = tl.exp2(scores - safe[:, None])
                shrink = tl.exp2(highest - safe)
                total = total * shrink + tl.sum(weights, 1)
                weighted = weighted * shrink + tl.sum(weights * d_weights, 1)
                highest = higher
            total = tl.where(cut, float("nan"), tl.where(valid, total, 1.0))
            row_delta = weighted / total
            row_log_sum = tl.where(valid, highest, 0.0) + tl.log2(total)
            tl.store(log_sum + row * heads + head, row_log_sum, mask=valid)
            tl.store(delta + row * heads + head, row_delta, mask=valid)
            d_query = tl.zeros([ROWS, BLOCK_D], ACC)
            for block in range(0, blocks):
                key_pixel, key_step, key_valid = tile_rows(block, first_pixel, length, per_tile, factor, pixels, ROWS)
                key_row = key_step * pixels + first_pixel + key_pixel
                key = load_rows(qkv, table, key_row, key_step, key_valid, place + side, heads, HEAD, BLOCK_D, DOT)
                value = load_rows(qkv, table, key_row, key_step, key_valid, place + 2 * side, heads, HEAD, BLOCK_D, DOT)
                scores = masked_scores(query, key, pixel, key_pixel, valid, key_valid, SCALE, ACC, PRECISION)
                weights = tl.exp2(scores - row_log_sum[:, None])
                d_weights = tl.dot(d_out, tl.trans(value), input_precision=PRECISION, out_dtype=ACC)
                d_scores = (weights * (d_weights - row_delta[:, None])).to(DOT)
                d_query += tl.dot(d_scores, key, input_precision=PRECISION, out_dtype=ACC)
            d_query = d_query * (SCALE * 0.6931471805599453)
            offset = (row * 3 * side)[:, None] + (place + column)[None, :]
            tl.store(d_qkv + offset, d_query.to(d_qkv.dtype.element_ty), mask=inside)


@kernel
def time_attention_backward_key(
    gradient, qkv, table, cu_frames, d_qkv, log_sum, delta, frames, max_frames, pixels, heads, heads_per_program,
    HEAD: tl.constexpr, BLOCK_D: tl.constexpr, ROWS: tl.constexpr, SINGLE: tl.constexpr, SCALE: tl.constexpr,
    DOT: tl.constexpr, ACC: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    start, length, _ = segment_bounds(cu_frames, tl.program_id(1), frames, max_frames)
    per_tile, blocks, tiles, factor = tile_counts(length, pixels, ROWS)
    qkv += start * pixels * 3 * heads * HEAD
    d_qkv += start * pixels * 3 * heads * HEAD
    gradient += start * pixels * heads * HEAD
    table += start * 3 * heads * HEAD
    log_sum += start * pixels * heads
    delta += start * pixels * heads
    side = heads * HEAD
    first_head = tl.program_id(2) * heads_per_program
    column = tl.arange(0, BLOCK_D)
    for tile in range(tl.program_id(0), tiles, tl.num_programs(0)):
        first_pixel = tile // blocks * per_tile
        key_pixel, key_step, key_valid = tile_rows(tile % blocks, first_pixel, length, per_tile, factor, pixels, ROWS)
        key_row = key_step * pixels + first_pixel + key_pixel
        for head in range(first_head, tl.minimum(first_head + heads_per_program, heads)):
            place = head * HEAD
            key = load_rows(qkv, table, key_row, key_step, key_valid, place + side, heads, HEAD, BLOCK_D, DOT)
            value = load_rows(qkv, table, key_row, key_step, key_valid, place + 2 * side, heads, HEAD, BLOCK_D, DOT)
            d_key = tl.zeros([ROWS, BLOCK_D], ACC)
            d_value = tl.zeros([ROWS, BLOCK_D], ACC)
            for block in range(0, blocks):
                pixel, step, valid = tile_rows(block, first_pixel, length, per_tile, factor, pixels, ROWS)
                row = step * pixels + first_pixel + pixel
                query = load_rows(qkv, table, row, step, valid, place, heads, HEAD, BLOCK_D, DOT)
                inside = valid[:, None] & (column < HEAD)[None, :]
                d_out = tl.load(
                    gradient + (row * side)[:, None] + (place + column)[None, :], mask=inside, other=0.0
                ).to(DOT)
                row_log_sum = tl.load(log_sum + row * heads + head, mask=valid, other=0.0)
                row_delta = tl.load(delta + row * heads + head, mask=valid, other=0.0)
                scores = masked_scores(query, key, pixel, key_pixel, valid, key_valid, SCALE, ACC, PRECISION)
                weights = tl.exp2(scores - row_log_sum[:, None])
                d_value += tl.dot(tl.trans(weights.to(DOT)), d_out, input_precision=PRECISION, out_dtype=ACC)
                d_weights = tl.dot(d_out, tl.trans(value), input_precision=PRECISION, out_dtype=ACC)
                d_scores = (weights * (d_weights - row_delta[:, None])).to(DOT)
                d_key += tl.dot(tl.trans(d_scores), query, input_precision=PRECISION, out_dtype=ACC)
            d_key = d_key * (SCALE * 0.6931471805599453)
            offset = (key_row * 3 * side)[:, None] + (place + column)[None, :]
            inside = key_valid[:, None] & (column < HEAD)[None, :]
            tl.store(d_qkv + offset + side, d_key.to(d_qkv.dtype.element_ty), mask=inside)
            tl.store(d_qkv + offset + 2 * side, d_value.to(d_qkv.dtype.element_ty), mask=inside)


def attend_backward(
    gradient: Tensor, qkv: Tensor, table: Tensor, cu_frames: Tensor, max_frames: int, config: Mapping[str, Any]
) -> tuple[Tensor, Tensor]:
    """Launch the backward kernels: `gradient` (F, P, H, D) of out → gradients of qkv and table, in their dtypes."""
    table_dtype = table.dtype
    gradient, qkv, table = gradient.contiguous(), qkv.contiguous(), table.to(qkv.dtype).contiguous()
    frames, pixels, _, heads, _ = qkv.shape
    d_qkv = torch.empty_like(qkv)
    wide = torch.promote_types(qkv.dtype, torch.float32)
    if d_qkv.numel():
        grid, heads_per_program, settings = plan(qkv, cu_frames, max_frames, config)
        arguments = (gradient, qkv, table, cu_frames, d_qkv)
        sizes = (frames, max_frames, pixels, heads, heads_per_program)
        if settings["SINGLE"]:
            time_attention_backward.launch(qkv.device, grid, *arguments, *sizes, **settings)
        else:
            log_sum, delta = torch.empty(2, frames, pixels, heads, dtype=wide, device=qkv.device)
            for one in (time_attention_backward_query, time_attention_backward_key):
                one.launch(qkv.device, grid, *arguments, log_sum, delta, *sizes, **settings)
    return d_qkv, d_qkv.sum(dim=1, dtype=wide).to(table_dtype)
