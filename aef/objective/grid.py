"""Grids of the reconstruction loss: coarse cells expanded to pixels, shifted windows, and averaging to coarser cells."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def expand_cells(cells: Tensor, side_px: int) -> Tensor:
    """Values on g x g cells that cover the crop → (N, side, side, C): each pixel takes the cell that holds it."""
    count = cells.shape[1]
    if count == side_px:
        return cells
    if count == 1:
        return cells.expand(-1, side_px, side_px, -1)
    cell_of = torch.arange(side_px, device=cells.device) * count // side_px
    return cells[:, cell_of][:, :, cell_of]


def window(values: Tensor, row: Tensor, col: Tensor, side_px: int) -> Tensor:
    """``out[n, y, x] = values[n, y + row[n], x + col[n]]`` for 0 ≤ y, x < side_px, 0 outside; differentiable.

    Args:
        values: (N, H, W, C).
        row, col: (N,) int64, may be negative.
    """
    count, height, width, channels = values.shape
    steps = torch.arange(side_px, device=values.device)
    rows, cols = steps + row[:, None], steps + col[:, None]  # (N, side)
    inside = ((rows >= 0) & (rows < height))[:, :, None] & ((cols >= 0) & (cols < width))[:, None, :]
    place = rows.clamp(0, height - 1)[:, :, None] * width + cols.clamp(0, width - 1)[:, None, :]
    index = place.reshape(count, -1, 1).expand(-1, -1, channels)
    found = values.reshape(count, height * width, channels).gather(1, index)
    return torch.where(inside[..., None], found.view(count, side_px, side_px, channels), 0)


def cells_of(values: Tensor, cell_px: int, offset_px: Tensor | None = None) -> Tensor:
    """Pixels sorted into square cells: (N, H, H, C) → (N, G, G, cell_px², C), zeros where a cell leaves the crop.

    Args:
        cell_px: side of a cell; cells larger than the crop are the crop.
        offset_px: (N, 2) int64 in [0, cell_px): rows and columns of the first cell that lie outside the crop.
    """
    count, side, _, channels = values.shape
    if offset_px is None:
        cell_px = min(cell_px, side)
        margin = -side % cell_px
        padded = F.pad(values, (0, 0, 0, margin, 0, margin))
    else:
        reach = side + cell_px - 1
        padded = window(values, -offset_px[:, 0], -offset_px[:, 1], reach + -reach % cell_px)
    grid = padded.shape[1] // cell_px
    split = padded.view(count, grid, cell_px, grid, cell_px, channels)
    return split.transpose(2, 3).reshape(count, grid, grid, cell_px * cell_px, channels)
