"""Channel LayerNorm, forward: one read and one write of x. `program (rows)`: a tile of whole rows."""

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
    x, weight, bias, out, rows,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr, EPSILON: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, BLOCK)
    normal, _ = normalize(load_rows(x, row, rows, WIDTH, BLOCK, ACC), WIDTH, BLOCK, EPSILON)
    scale = tl.load(weight + column, mask=column < WIDTH, other=0.0).to(ACC)
    shift = tl.load(bias + column, mask=column < WIDTH, other=0.0).to(ACC)
    y = normal * scale[None, :] + shift[None, :]
    inside = (row < rows)[:, None] & (column < WIDTH)[None, :]
    tl.store(out + row[:, None] * WIDTH + column[None, :], y.to(out.dtype.element_ty), mask=inside)


def norm(x: Tensor, weight: Tensor, bias: Tensor, config: Mapping[str, Any]) -> Tensor:
    """Launch the forward kernel: `x` (..., C) → like `x`, contiguous."""
    x = x.contiguous()
    out = torch.empty_like(x)
    rows, settings = plan(x, config)
    grid = (-(-rows // settings["ROWS"]),)
    channel_norm_forward.launch(x.device, grid, x, weight.contiguous(), bias.contiguous(), out, rows, **settings)
    return out


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
