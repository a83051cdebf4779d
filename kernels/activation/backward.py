"""Point-wise epilogues, backward: two reads and one write; one partial sum of the bias gradient per program.

    dx = dy (Φ(z) + z φ(z)),  z = x + bias;   dbias = Σ dx

With KEEP it also writes z Φ(z), which forward had thrown away: all it takes is there.

`bias_residual` needs no kernel here: both its gradients are dy itself, and the bias's is its sum.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..runtime import fold_rows, kernel, processors, row_spread, tl
from .forward import gaussian, plan, tile_places

PROGRAMS_PER_PROCESSOR = 4


@kernel
def bias_gelu_backward(
    gradient, x, bias, d_x, d_bias, value, rows, width,
    BLOCK: tl.constexpr, ROWS: tl.constexpr, KEEP: tl.constexpr, ACC: tl.constexpr, SPREAD: tl.constexpr,
):  # fmt: skip
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    shift = tl.load(bias + column, mask=column < width, other=0.0).to(ACC)
    total = tl.zeros([SPREAD, BLOCK], ACC)
    for tile in range(tl.program_id(0), tl.cdiv(rows, ROWS), tl.num_programs(0)):
        place, inside, _ = tile_places(tile, rows, width, BLOCK, ROWS)
        before = tl.load(x + place, mask=inside, other=0.0)
        d_y = tl.load(gradient + place, mask=inside, other=0.0)  # now, so that both loads are under way together
        z = before.to(ACC) + shift[None, :]
        below, bell = gaussian(z)
        if KEEP:
            tl.store(value + place, (z * below).to(value.dtype.element_ty), mask=inside)
        result = d_y.to(ACC) * (below + z * (bell * 0.3989422804014327))
        total += fold_rows(result, SPREAD)
        tl.store(d_x + place, result.to(d_x.dtype.element_ty), mask=inside)
    tl.store(d_bias + tl.program_id(0) * width + column, tl.sum(total, 0), mask=column < width)


def activate_backward(
    gradient: Tensor, x: Tensor, bias: Tensor, config: Mapping[str, Any], *, keep: bool = False
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Launch `bias_gelu_backward`: `gradient` (..., C) → gradients of x and bias, in their dtypes, and GELU(x + bias)
    if `keep`."""
    gradient, x = gradient.contiguous(), x.contiguous()
    (tiles, columns), sizes, settings = plan(x, config)
    settings["SPREAD"] = row_spread(settings["ROWS"], settings["BLOCK"], settings["num_warps"], x.element_size())
    programs = min(tiles, -(-PROGRAMS_PER_PROCESSOR * processors(x) // max(columns, 1)))
    d_x, wide = torch.empty_like(x), torch.promote_types(x.dtype, torch.float32)
    value = torch.empty_like(x) if keep else None
    d_bias = torch.empty(programs, x.shape[-1], dtype=wide, device=x.device)
    pointers = (gradient, x, bias.contiguous(), d_x, d_bias, value)
    bias_gelu_backward.launch(x.device, (programs, columns), *pointers, *sizes, KEEP=keep, **settings)
    return d_x, d_bias.sum(dim=0).to(bias.dtype), value
