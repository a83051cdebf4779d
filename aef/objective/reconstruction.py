"""Reconstruction error f_i of one source (paper section 4.2 and Table S2): one value per target frame.

L1 for continuous and cross-entropy for categorical sources; weighted by validity and clear weight; minimal over planar
shifts, or after averaging to coarser cells, where the source's registry entry says so.
"""

from __future__ import annotations

import itertools
from functools import lru_cache

import torch
from torch import Tensor

from aef.data.chips import PIXEL_M
from aef.objective.grid import cells_of, window
from aef.sources import Source, SourceError

SIDES_PER_SHIFT = 8

FAR = -1e30
"""Stands for the logarithm of a weight of 0: finite, so that no gradient is NaN."""


def radius_px(source: Source, side_px: int) -> int:
    """Largest shift of the shift-invariant loss on a crop of this side.

    Never more than an eighth of the side: a shift that leaves little of a small crop finds the part that fits rather
    than the registration (docs/results/learning.md). From 16 px on, 20 m are searched in full.

    Raises SourceError if the source's distance is not a multiple of the pixel.
    """
    return min(_whole_pixels(source, "shift_m", source.shift_m), side_px // SIDES_PER_SHIFT)


def cell_px(source: Source) -> int:
    """Side of a re-gridding cell, 0: none. Raises SourceError if it is not a multiple of the pixel."""
    return _whole_pixels(source, "regrid_m", source.regrid_m)


def _whole_pixels(source: Source, name: str, distance_m: float | None) -> int:
    if distance_m is None:
        return 0
    pixels = distance_m / PIXEL_M
    if distance_m <= 0 or pixels != round(pixels):
        raise SourceError(f"source {source.name!r}: {name} must be a positive multiple of 10 m, found {distance_m:g}")
    return round(pixels)


def reconstruction_error(
    source: Source, prediction: Tensor, target: Tensor, weight: Tensor, offset_px: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Error of each target frame by the source's own rule.

    Args:
        source: its loss, shift distance and re-gridding spacing are used; its weight w_i is not.
        prediction: (N, H, H, decoded_channels), standardised units or logits.
        target: like prediction, standardised units, or one-hot classes.
        weight: (N, H, H, 1 or decoded_channels), 0 where nothing was observed (categorical: 1 channel).
        offset_px: (N, 2) int64 offset of the re-gridding cells (v2.1); None: cells start at the crop's corner.

    Returns:
        (N,) weighted mean errors, 0 for a frame without any weight, and (N,) bool: the frame has weight.
    """
    if source.loss == "cross_entropy":
        return cross_entropy(prediction, target, weight, cell_px(source) or 1, offset_px)
    if source.shift_m is not None:
        return shift_invariant_l1(prediction, target, weight, radius_px(source, target.shape[1]))
    if source.regrid_m is not None:
        return regridded_l1(prediction, target, weight, cell_px(source), offset_px, whole_cells=source.grid == "points")
    return masked_mean((prediction - target).abs(), weight)


def masked_mean(error: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Σ w e / Σ w over all but the first dimension → (N,) and whether Σ w > 0; exactly 0 where it is not."""
    weight = weight.expand_as(error)
    total = weight.flatten(1).sum(1)
    present = total > 0
    return (error * weight).flatten(1).sum(1) / torch.where(present, total, 1), present


def shift_invariant_l1(prediction: Tensor, target: Tensor, weight: Tensor, radius: int) -> tuple[Tensor, Tensor]:
    """min over |dy|, |dx| ≤ radius of mean |y'(p + d) − y(p)|, one shift per frame.

    Each shift averages over its own overlap, so that no rim is lost. The search runs without gradient; the gradient
    is that of the winning shift, which is the gradient of the minimum. Among equals the smallest shift wins.
    """
    with torch.no_grad():
        scores = torch.stack([_shifted_score(prediction, target, weight, dy, dx) for dy, dx in _shifts(radius)])
        best = _shift_table(radius, prediction.device)[scores.argmin(0)]  # (N, 2)
    side = prediction.shape[1]
    inside = window(torch.ones_like(prediction[..., :1]), best[:, 0], best[:, 1], side)
    shifted = window(prediction, best[:, 0], best[:, 1], side)
    return masked_mean((shifted - target).abs(), weight * inside)


@lru_cache
def _shifts(radius: int) -> tuple[tuple[int, int], ...]:
    """Planar shifts of Chebyshev length ≤ radius, smallest first."""
    steps = range(-radius, radius + 1)
    return tuple(sorted(itertools.product(steps, steps), key=lambda shift: (max(map(abs, shift)), shift)))


# A table built on the device at every step would stall it, and so would one that a compiled graph builds.
@lru_cache
@torch.compiler.assume_constant_result
def _shift_table(radius: int, device: torch.device) -> Tensor:
    return torch.tensor(_shifts(radius), device=device)


def _shifted_score(prediction: Tensor, target: Tensor, weight: Tensor, dy: int, dx: int) -> Tensor:
    side = prediction.shape[1]
    here = [slice(max(0, -d), side - max(0, d)) for d in (dy, dx)]
    there = [slice(max(0, d), side - max(0, -d)) for d in (dy, dx)]
    error = (prediction[:, there[0], there[1]] - target[:, here[0], here[1]]).abs()
    score, present = masked_mean(error, weight[:, here[0], here[1]])
    return torch.where(present, score, torch.inf)


def regridded_l1(
    prediction: Tensor,
    target: Tensor,
    weight: Tensor,
    cell: int,
    offset_px: Tensor | None = None,
    *,
    whole_cells: bool = False,
) -> tuple[Tensor, Tensor]:
    """L1 between the means of prediction and target over cells; a cell counts by the weight that it holds.

    Both are means by weight: of a cell half under cloud only the clear half is compared. With ``whole_cells`` the
    prediction's is over all pixels of the cell inside the crop, for a target that speaks of more than the pixels that
    hold it, as a footprint does.
    """
    weight = weight.expand_as(prediction)
    sums = cells_of(weight, cell, offset_px).sum(3)  # (N, G, G, C)
    safe = torch.where(sums > 0, sums, 1)
    if whole_cells:
        inside = cells_of(torch.ones_like(prediction[..., :1]), cell, offset_px).sum(3).clamp(min=1)
        found = cells_of(prediction, cell, offset_px).sum(3) / inside
        return masked_mean((found - cells_of(target * weight, cell, offset_px).sum(3) / safe).abs(), sums)
    difference = cells_of((prediction - target) * weight, cell, offset_px).sum(3)
    return masked_mean((difference / safe).abs(), sums)


def cross_entropy(
    logits: Tensor, target: Tensor, weight: Tensor, cell: int, offset_px: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Cross-entropy of the cells' weighted mean probabilities against their mean class shares.

    With cells of one pixel this is the ordinary cross-entropy. Means of probabilities are taken as logarithms, so that
    a probability that underflows keeps its gradient.
    """
    log_weight = torch.where(weight > 0, weight, 1).log().masked_fill(weight <= 0, FAR)
    joint = cells_of(logits.log_softmax(-1) + log_weight, cell, offset_px)
    inside = cells_of(weight, cell, offset_px)  # (N, G, G, cell², 1)
    sums = inside.sum(3)
    safe = torch.where(sums > 0, sums, 1)
    # A cell's part outside the crop was filled with 0, which as a logarithm would be a probability of 1.
    log_probability = joint.masked_fill(inside <= 0, FAR).logsumexp(3) - safe.log()
    share = cells_of(target * weight, cell, offset_px).sum(3) / safe
    return masked_mean(-(share * log_probability).sum(-1, keepdim=True), sums)
