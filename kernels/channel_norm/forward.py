"""Channel LayerNorm, forward: one read and one write of x. `program (rows)`: a tile of whole rows.

Behind a residual branch x is that branch's end, and the same pass makes the state that is normalised: two reads (branch
and residual) and two writes (state and LN(state)).
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..runtime import compute_type, jit, kernel, power_of_two, tl
from .reference import EPS

DEFAULTS = {"elements": 4096, "num_warps": 4}


@jit
def load_rows(array, row, rows, WIDTH: tl.constexpr, BLOCK: tl.constexpr, ACC: tl.constexpr):
    """A tile of whole rows (R, BLOCK), widened; zero beyond the last row and channel."""
    column = tl.arange(0, BLOCK)
    inside = (row < rows)[:, None] & (column < WIDTH)[None, :]
    return tl.load(array + row[:, None] * WIDTH + column[None, :], mask=inside, other=0.0).to(ACC)


@jit
def normalize(x, WIDTH: tl.constexpr, BLOCK: tl.constexpr, EPSILON: tl.constexpr):
    """(x − mean) / √(var + ε) over the channels, and 1 / √(var + ε): from registers, so that nothing is saved."""
    centred = tl.where((tl.arange(0, BLOCK) < WIDTH)[None, :], x - (tl.sum(x, 1) / WIDTH)[:, None], 0.0)
    inverse = 1 / tl.sqrt(tl.sum(centred * centred, 1) / WIDTH + EPSILON)
    return centred * inverse[:, None], inverse


@kernel
def channel_norm_forward(
    x, added, residual, state, weight, bias, out, rows,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr, EPSILON: tl.constexpr, RESIDUAL: tl.constexpr,
    ACC: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, BLOCK)
    inside = (row < rows)[:, None] & (column < WIDTH)[None, :]
    place = row[:, None] * WIDTH + column[None, :]
    y = load_rows(x, row, rows, WIDTH, BLOCK, ACC)
    if RESIDUAL:
        y += tl.load(added + column, mask=column < WIDTH, other=0.0).to(ACC)[None, :]
        y += load_rows(residual, row, rows, WIDTH, BLOCK, ACC)
        rounded = y.to(state.dtype.element_ty)
        tl.store(state + place, rounded, mask=inside)
        y = rounded.to(ACC)  # backward takes its statistics from the state as it was stored
    normal, _ = normalize(y, WIDTH, BLOCK, EPSILON)
    scale = tl.load(weight + column, mask=column < WIDTH, other=0.0).to(ACC)
    shift = tl.load(bias + column, mask=column < WIDTH, other=0.0).to(ACC)
    y = normal * scale[None, :] + shift[None, :]
    tl.store(out + place, y.to(out.dtype.element_ty), mask=inside)


def norm(x: Tensor, weight: Tensor, bias: Tensor, config: Mapping[str, Any]) -> Tensor:
    """Launch the forward kernel: `x` (..., C) → like `x`, contiguous."""
    x = x.contiguous()
    out = torch.empty_like(x)
    rows, settings = plan(x, config)
    grid = (-(-rows // settings["ROWS"]),)
    arguments = (x, None, None, None, weight.contiguous(), bias.contiguous(), out, rows)
    channel_norm_forward.launch(x.device, grid, *arguments, RESIDUAL=False, **settings)
    return out


def merge_and_norm(
    x: Tensor, bias: Tensor, residual: Tensor, scale: Tensor, shift: Tensor, config: Mapping[str, Any]
) -> tuple[Tensor, Tensor]:
    """Launch the forward kernel behind a residual branch → (state, LN(state)), contiguous."""
    x, residual = x.contiguous(), residual.contiguous()
    state, out = torch.empty_like(x), torch.empty_like(x)
    rows, settings = plan(x, config)
    grid = (-(-rows // settings["ROWS"]),)
    arguments = (x, bias.contiguous(), residual, state, scale.contiguous(), shift.contiguous(), out, rows)
    channel_norm_forward.launch(x.device, grid, *arguments, RESIDUAL=True, **settings)
    return state, out


def plan(x: Tensor, config: Mapping[str, Any]) -> tuple[int, dict[str, Any]]:
    """Number of rows, and the settings that forward and backward share."""
    config = DEFAULTS | dict(config)
    width = x.shape[-1]
    block = power_of_two(width)
    return x.numel() // width, {
        "WIDTH": width,
        "BLOCK": block,
        "ROWS": max(1, config["elements"] // block),
        "EPSILON": EPS,
        "ACC": compute_type(x.dtype),
        "num_warps": config["num_warps"],
    }
