"""Channel LayerNorm, backward: two reads and one write of x; statistics again from registers.

    dx = (g − mean(g) − x̂ mean(g x̂)) / √(var + ε),  g = dy · weight;   dweight = Σ dy x̂,  dbias = Σ dy

Behind a residual branch x is a state that is read elsewhere too: what comes back from there is added in the same pass,
dx += dstate, and Σ dx is the gradient of the branch's bias.

Each program walks over its rows and leaves one partial sum of the parameters' gradients: no atomics, so it repeats.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..runtime import fold_rows, kernel, processors, row_spread, tl
from .forward import normalize, plan

PROGRAMS_PER_PROCESSOR = 4


@kernel
def channel_norm_backward(
    gradient, d_state, x, weight, d_x, d_weight, d_bias, d_added, rows,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr, EPSILON: tl.constexpr, RESIDUAL: tl.constexpr,
    ACC: tl.constexpr, SPREAD: tl.constexpr,
):  # fmt: skip
    program, programs = tl.program_id(0), tl.num_programs(0)
    column = tl.arange(0, BLOCK)
    scale = tl.load(weight + column, mask=column < WIDTH, other=0.0).to(ACC)
    sum_weight, sum_bias = tl.zeros([SPREAD, BLOCK], ACC), tl.zeros([SPREAD, BLOCK], ACC)
    sum_added = tl.zeros([SPREAD, BLOCK], ACC)
    for tile in range(program, tl.cdiv(rows, ROWS), programs):
        row = tile * ROWS + tl.arange(0, ROWS).to(tl.int64)
        # All loads first, so that they are under way together.
        inside = (row < rows)[:, None] & (column < WIDTH)[None, :]
        place = row[:, None] * WIDTH + column[None, :]
        y = tl.load(x + place, mask=inside, other=0.0)
        d_y = tl.load(gradient + place, mask=inside, other=0.0)
        if RESIDUAL:
            d_y_state = tl.load(d_state + place, mask=inside, other=0.0)
        normal, inverse = normalize(y.to(ACC), WIDTH, BLOCK, EPSILON)
        d_y = d_y.to(ACC)
        sum_weight += fold_rows(d_y * normal, SPREAD)
        sum_bias += fold_rows(d_y, SPREAD)
        scaled = d_y * scale[None, :]
        along = tl.sum(scaled * normal, 1) / WIDTH
        result = (scaled - (tl.sum(scaled, 1) / WIDTH)[:, None] - normal * along[:, None]) * inverse[:, None]
        if RESIDUAL:
            result += d_y_state.to(ACC)
            sum_added += fold_rows(result, SPREAD)
        tl.store(d_x + place, result.to(d_x.dtype.element_ty), mask=inside)
    tl.store(d_weight + program * WIDTH + column, tl.sum(sum_weight, 0), mask=column < WIDTH)
    tl.store(d_bias + program * WIDTH + column, tl.sum(sum_bias, 0), mask=column < WIDTH)
    if RESIDUAL:
        tl.store(d_added + program * WIDTH + column, tl.sum(sum_added, 0), mask=column < WIDTH)


def norm_backward(
    gradient: Tensor, x: Tensor, weight: Tensor, bias: Tensor, config: Mapping[str, Any]
) -> tuple[Tensor, Tensor, Tensor]:
    """Launch the backward kernel: `gradient` (..., C) → gradients of x, weight and bias, in their dtypes."""
    d_x, sums = _launch(gradient, None, x, weight, config)
    return d_x, sums[0].to(weight.dtype), sums[1].to(bias.dtype)


def merge_and_norm_backward(
    d_state: Tensor, d_normal: Tensor, state: Tensor, scale: Tensor, config: Mapping[str, Any]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Launch the backward kernel behind a residual branch: gradients of both outputs → that of the branch and of the
    residual, which are the same, and of the branch's bias, scale and shift (fp32 at least)."""
    d_x, (d_scale, d_shift, d_bias) = _launch(d_normal, d_state.contiguous(), state, scale, config)
    return d_x, d_bias, d_scale, d_shift


def _launch(
    gradient: Tensor, d_state: Tensor | None, x: Tensor, weight: Tensor, config: Mapping[str, Any]
) -> tuple[Tensor, list[Tensor]]:
    """The gradient of x, and the sums over rows: of weight, bias and, with `d_state`, of dx."""
    gradient, x, weight = gradient.contiguous(), x.contiguous(), weight.contiguous()
    rows, settings = plan(x, config)
    settings["SPREAD"] = row_spread(settings["ROWS"], settings["BLOCK"], settings["num_warps"], x.element_size())
    programs, residual = min(PROGRAMS_PER_PROCESSOR * processors(x), -(-rows // settings["ROWS"])), d_state is not None
    d_x, wide = torch.empty_like(x), torch.promote_types(x.dtype, torch.float32)
    partial = torch.empty(3 if residual else 2, programs, x.shape[-1], dtype=wide, device=x.device)
    arguments = (gradient, d_state, x, weight, d_x, partial[0], partial[1], partial[2] if residual else None, rows)
    channel_norm_backward.launch(x.device, (programs,), *arguments, RESIDUAL=residual, **settings)
    return d_x, [one.sum(dim=0) for one in partial]
