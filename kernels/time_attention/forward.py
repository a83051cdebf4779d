"""Time attention, forward: several pixels' sequences in one tile under a block-diagonal mask.

A tile has ROWS rows. A segment of L ≤ ROWS frames puts G = ROWS // L pixels into it, row r being frame r mod L of pixel
r // L; scores between different pixels are masked. A longer segment has one pixel per tile and ceil(L / ROWS) blocks of
frames, over which the softmax runs online. So one launch serves all lengths, and nothing is permuted: a row of qkv is
contiguous wherever it lies.

`program (tile, segment, head group)`: loops over its tiles (the grid only guesses their number) and its heads.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..runtime import compute_type, dot_precision, dot_type, jit, kernel, power_of_two, processors, tl

DEFAULTS = {"rows": 64, "num_warps": 4, "num_stages": 2}
PROGRAMS_PER_PROCESSOR = 4
MOST_ROWS = 256
"""Up to here `tile_counts`' factor divides exactly."""


@jit
def segment_bounds(cu_frames, segment, frames, max_frames):
    """First frame, length, and whether it had to be cut to `max_frames`. Wrong offsets cannot lead out of the arrays."""
    start = tl.minimum(tl.maximum(tl.load(cu_frames + segment), 0), frames)
    end = tl.minimum(tl.maximum(tl.load(cu_frames + segment + 1), start), frames)
    return start.to(tl.int64), tl.minimum(end - start, max_frames), end - start > max_frames


@jit
def tile_counts(length, pixels, ROWS: tl.constexpr):
    """Pixels per tile, blocks of frames per pixel, tiles of a segment, and the factor by which rows find their pixel:
    row // length = row * factor >> 16, exact for the rows of one block; 0 where a tile has one pixel."""
    per_tile = tl.maximum(ROWS // tl.maximum(length, 1), 1)
    blocks = tl.cdiv(length, ROWS)
    factor = tl.where(blocks > 1, 0, tl.cdiv(65536, tl.maximum(length, 1)))
    return per_tile, blocks, tl.cdiv(pixels, per_tile) * blocks, factor


@jit
def tile_rows(block, first_pixel, length, per_tile, factor, pixels, ROWS: tl.constexpr):
    """Pixel within the tile, frame within the segment, and validity of each row of a block of frames."""
    span = block * ROWS + tl.arange(0, ROWS)
    pixel = span * factor >> 16  # not a division, which takes a dozen instructions for every row and layout
    return pixel, span - pixel * length, (span < per_tile * length) & (first_pixel + pixel < pixels)


@jit
def load_rows(qkv, table, row, step, valid, place, heads, HEAD: tl.constexpr, BLOCK_D: tl.constexpr, DOT: tl.constexpr):
    """Rows of q, k or v at column `place`, with their frame's table added: (ROWS, BLOCK_D)."""
    column = tl.arange(0, BLOCK_D)
    inside = valid[:, None] & (column < HEAD)[None, :]
    width = 3 * heads * HEAD
    value = tl.load(qkv + (row * width)[:, None] + (place + column)[None, :], mask=inside, other=0.0)
    extra = tl.load(table + (step * width)[:, None] + (place + column)[None, :], mask=inside, other=0.0)
    return (value + extra).to(DOT)


@jit
def masked_scores(query, key, row_pixel, key_pixel, row_valid, key_valid, SCALE: tl.constexpr, ACC: tl.constexpr, PRECISION: tl.constexpr):  # fmt: skip
    """Scores in base 2, −∞ between pixels and for rows that do not exist."""
    scores = tl.dot(query, tl.trans(key), input_precision=PRECISION, out_dtype=ACC) * SCALE
    together = (row_pixel[:, None] == key_pixel[None, :]) & row_valid[:, None] & key_valid[None, :]
    return tl.where(together, scores, float("-inf"))


@kernel
def time_attention_forward(
    qkv, table, cu_frames, out, frames, max_frames, pixels, heads, heads_per_program,
    HEAD: tl.constexpr, BLOCK_D: tl.constexpr, ROWS: tl.constexpr, SINGLE: tl.constexpr, SCALE: tl.constexpr,
    DOT: tl.constexpr, ACC: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    start, length, cut = segment_bounds(cu_frames, tl.program_id(1), frames, max_frames)
    per_tile, blocks, tiles, factor = tile_counts(length, pixels, ROWS)
    # Wide offsets are scalars: within a segment 32 bits suffice, and cost half the registers.
    qkv += start * pixels * 3 * heads * HEAD
    out += start * pixels * heads * HEAD
    table += start * 3 * heads * HEAD
    first_head = tl.program_id(2) * heads_per_program
    side = heads * HEAD
    column = tl.arange(0, BLOCK_D)
    for tile in range(tl.program_id(0), tiles, tl.num_programs(0)):
        first_pixel = tile // blocks * per_tile
        pixel, step, valid = tile_rows(tile % blocks, first_pixel, length, per_tile, factor, pixels, ROWS)
        row = step * pixels + first_pixel + pixel
        for head in range(first_head, tl.minimum(first_head + heads_per_program, heads)):
            place = head * HEAD
            query = load_rows(qkv, table, row, step, valid, place, heads, HEAD, BLOCK_D, DOT)
            if SINGLE:
                key = load_rows(qkv, table, row, step, valid, place + side, heads, HEAD, BLOCK_D, DOT)
                value = load_rows(qkv, table, row, step, valid, place + 2 * side, heads, HEAD, BLOCK_D, DOT)
                scores = masked_scores(query, key, pixel, pixel, valid, valid, SCALE, ACC, PRECISION)
                highest = tl.max(scores, 1)
                weights = tl.exp2(scores - tl.where(valid, highest, 0.0)[:, None])
                total = tl.sum(weights, 1)
                attended = tl.dot(weights.to(DOT), value, input_precision=PRECISION, out_dtype=ACC)
            else:
                highest = tl.full([ROWS], float("-inf"), ACC)
                total = tl.zeros([ROWS], ACC)
                attended = tl.zeros([ROWS, BLOCK_D], ACC)
                for block in range(0, blocks):
                    key_pixel, key_step, key_valid = tile_rows(
                        block, first_pixel, length, per_tile, factor, pixels, ROWS
                    )
                    key_row = key_step * pixels + first_pixel + key_pixel
                    key = load_rows(qkv, table, key_row, key_step, key_valid, place + side, heads, HEAD, BLOCK_D, DOT)
                    value = load_rows(
                        qkv, table, key_row, key_step, key_valid, place + 2 * side, heads, HEAD, BLOCK_D, DOT
                    )
                    scores = masked_scores(query, key, pixel, key_pixel, valid, key_valid, SCALE, ACC, PRECISION)
                    higher = tl.maximum(highest, tl.max(scores, 1))
                    safe = tl.where(valid, higher, 0.0)
                    weights = tl.exp2(scores - safe[:, None])
                    shrink = tl.exp2(highest - safe)
                    total = total * shrink + tl.sum(weights, 1)
                    attended = attended * shrink[:, None]
                    attended += tl.dot(weights.to(DOT), value, input_precision=PRECISION, out_dtype=ACC)
                    highest = higher
            # A segment longer than the caller's max_frames must not pass unseen.
            total = tl.where(cut, float("nan"), tl.where(valid, total, 1.0))
            attended = attended * (1 / total)[:, None]
            inside = valid[:, None] & (column < HEAD)[None, :]
            offset = (row * side)[:, None] + (place + column)[None, :]
            tl.store(out + offset, attended.to(out.dtype.element_ty), mask=inside)


def attend(qkv: Tensor, table: Tensor, cu_frames: Tensor, max_frames: int, config: Mapping[str, Any]) -> Tensor:
    """Launch the forward kernel: `qkv` (F, P, 3, H, D), `table` (F, 3, H, D) → (F, P, H, D)."""
    qkv, table = qkv.contiguous(), table.to(qkv.dtype).contiguous()
    frames, pixels, _, heads, channels = qkv.shape
    out = torch.empty(frames, pixels, heads, channels, dtype=qkv.dtype, device=qkv.device)
    if out.numel():
        grid, heads_per_program, settings = plan(qkv, cu_frames, max_frames, config)
        time_attention_forward.launch(
            qkv.device,
            grid,
            qkv,
            table,
            cu_frames,
            out,
            frames,
            max_frames,
            pixels,
            heads,
            heads_per_program,
            **settings,
        )
    return out


def plan(
    qkv: Tensor, cu_frames: Tensor, max_frames: int, config: Mapping[str, Any]
) -> tuple[tuple[int, int, int], int, dict[str, Any]]:
    """Grid, heads per program and settings shared by the forward and backward kernels."""
    config = DEFAULTS | dict(config)
    _, pixels, _, heads, channels = qkv.shape
    rows, segments = config["rows"], cu_frames.shape[0] - 1
    if rows > MOST_ROWS:
        raise ValueError(f"time attention: expected tiles of at most {MOST_ROWS} rows, found {rows} in the table")
    blocks = math.ceil(max_frames / rows)
    tiles = math.ceil(pixels / max(1, rows // max_frames)) * blocks
    heads_per_program = heads
    while heads_per_program > 1 and (
        tiles * segments * math.ceil(heads / heads_per_program) < PROGRAMS_PER_PROCESSOR * processors(qkv)
    ):
        heads_per_program = math.ceil(heads_per_program / 2)
    settings = {
        "HEAD": channels,
        "BLOCK_D": power_of_two(channels, 16),
        "ROWS": rows,
        "SINGLE": blocks == 1,
        "SCALE": channels**-0.5 * math.log2(math.e),
        "DOT": dot_type(qkv.dtype),
        "ACC": compute_type(qkv.dtype),
        "PRECISION": dot_precision(qkv.dtype),
        "num_warps": config["num_warps"],
        "num_stages": config["num_stages"],
    }
    return (tiles, segments, math.ceil(heads / heads_per_program)), heads_per_program, settings
