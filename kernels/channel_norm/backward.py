"""Channel LayerNorm, backward: two reads and one write of x; statistics again from registers.

    dx = (g − mean(g) − x̂ mean(g x̂)) / √(var + ε),  g = dy · weight;   dweight = Σ dy x̂,  dbias = Σ dy

Each program walks over its rows and leaves one partial sum of the parameters' gradients: no atomics, so it repeats.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..runtime import kernel, processors, tl
from .forward import load_rows, normalize, plan

PROGRAMS_PER_PROCESSOR = 4


@kernel
def channel_norm_backward(
    gradient, x, weight, d_x, d_weight, d_bias, rows,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr, EPSILON: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    program, programs = tl.program_id(0), tl.num_programs(0)
    column = tl.arange(0, BLOCK)
    scale = tl.load(weight + column, mask=column < WIDTH, other=0.0).to(ACC)
    sum_weight, sum_bias = tl.zeros([BLOCK], ACC), tl.zeros([BLOCK], ACC)
    for tile in range(program, tl.cdiv(rows, ROWS), programs):
        row = tile * ROWS + tl.arange(0, ROWS).to(tl.int64)
        normal, inverse = normalize(load_rows(x, row, rows, WIDTH, BLOCK, ACC), WIDTH, BLOCK, EPSILON)
        d_y = load_rows(gradient, row, rows, WIDTH, BLOCK, ACC)
        sum_weight += tl.sum(d_y * normal, 0)
        sum_bias += tl.sum(d_y, 0)
        scaled = d_y * scale[None, :]
        along = tl.sum(scaled * normal, 1) / WIDTH
        result = (scaled - (tl.sum(scaled, 1) / WIDTH)[:, None] - normal * along[:, None]) * inverse[:, None]
        inside = (row < rows)[:, None] & (column < WIDTH)[None, :]
        tl.store(d_x + row[:, None] * WIDTH + column[None, :], result.to(d_x.dtype.element_ty), mask=inside)
    tl.store(d_weight + program * WIDTH + column, sum_weight, mask=column < WIDTH)
    tl.store(d_bias + program * WIDTH + column, sum_bias, mask=column < WIDTH)


def norm_backward(
    gradient: Tensor, x: Tensor, weight: Tensor, bias: Tensor, config: Mapping[str, Any]
) -> tuple[Tensor, Tensor, Tensor]:
    """Launch the backward kernel: `gradient` (..., C) → gradients of x, weight and bias, in their dtypes."""
    gradient, x, weight = gradient.contiguous(), x.contiguous(), weight.contiguous()
    rows, settings = plan(x, config)
    programs = min(PROGRAMS_PER_PROCESSOR * processors(x), -(-rows // settings["ROWS"]))
    d_x, wide = torch.empty_like(x), torch.promote_types(x.dtype, torch.float32)
    d_weight, d_bias = torch.empty(2, programs, x.shape[-1], dtype=wide, device=x.device)
    channel_norm_backward.launch(x.device, (programs,), gradient, x, weight, d_x, d_weight, d_bias, rows, **settings)
    return d_x, d_weight.sum(dim=0).to(weight.dtype), d_bias.sum(dim=0).to(bias.dtype)
