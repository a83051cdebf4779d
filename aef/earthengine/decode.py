"""From answers to a chip's arrays: values, valid masks, loss weights, times and metadata of one source.

Masks are explicit from here on: a pixel is valid where the service had a value and that value lies in the registry's
physical range. Where much of a band lies outside it, the unit, band order or no-data value is wrong, and the item is
refused rather than masked away.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from aef.data.chips import PIXEL_M, ChipError, SourceSeries
from aef.earthengine.grid import Affine, ChipGrid, to_utm
from aef.earthengine.recipes import FOOTPRINT_LAT, FOOTPRINT_LON, WEIGHT, Frame, Recipe
from aef.sources import Source

OUTSIDE_SHARE = 0.05
"""Share of a band's observed values beyond the registry's range from which on the item is refused."""


class Stack:
    """Arrays of one item while its requests come in: fetched bands of T frames on H x W pixels."""

    def __init__(self, source: Source, recipe: Recipe, frames: Sequence[Frame], height: int, width: int) -> None:
        self.recipe, self.frames = recipe, frames
        self.bands = recipe.fetched or source.band_names
        self.values = np.zeros((len(frames), len(self.bands), height, width), recipe.dtype)
        self.valid = np.zeros(self.values.shape, bool)
        self.weight = np.zeros((len(frames), 1, height, width), np.uint8) if recipe.weight else None

    def put(self, first: int, count: int, rows: slice, answer: np.ndarray) -> None:
        """Store the answer to the request for frames ``first`` … ``first + count``, rows ``rows``."""
        for number, frame in enumerate(self.frames[first : first + count]):
            if self.weight is not None:
                self.weight[first + number, 0, rows] = answer[f"f{number}_{WEIGHT}"] * 255
            for name in self.recipe.fetched or frame.bands:
                pixels, channel = answer[f"f{number}_{name}"], self.bands.index(name)
                observed = pixels != self.recipe.fill
                if pixels.dtype.kind == "f":
                    observed &= np.isfinite(pixels)
                self.valid[first + number, channel, rows] = observed
                self.values[first + number, channel, rows] = np.where(observed, pixels, 0)


def bytes_per_pixel(recipe: Recipe, frame: Frame) -> int:
    """Uncompressed size of a frame's pixel on the wire (the service counts this, whatever the transfer compresses)."""
    return np.dtype(recipe.dtype).itemsize * len(recipe.fetched or frame.bands) + bool(recipe.weight)


# --- series ----------------------------------------------------------------------------------------------------------


def series_of(
    source: Source,
    recipe: Recipe,
    stack: Stack,
    *,
    affine: Affine | None = None,
    crs: str | None = None,
    first_cell: tuple[int, int] = (0, 0),
) -> tuple[SourceSeries, list[Frame]] | None:
    """The series of a source on the chip's or its native grid, and its frames; None where nothing at all was observed.

    Frames without a single observed value are left out.

    Raises:
        ChipError: much of a band lies outside its physical range.
    """
    values, valid, weight = stack.values, stack.valid, stack.weight
    if recipe.finish:
        values, valid = FINISH[recipe.finish](values, valid, first_cell)
    if recipe.margin_px:
        inner = slice(recipe.margin_px, -recipe.margin_px)
        values, valid = values[..., inner, inner], valid[..., inner, inner]
        if affine is not None:
            a, b, c, d, e, f = affine
            affine = (a, b, c + recipe.margin_px * a, d, e, f + recipe.margin_px * e)
    mask_impossible(source, values, valid, expected=recipe.outside_is_masked)
    mask_beside(source, values, valid, recipe.beside)
    kept = np.flatnonzero(valid.any(axis=(1, 2, 3)))
    if not kept.size:
        return None
    if len(kept) < len(values):
        values, valid = values[kept], valid[kept]
        weight = None if weight is None else weight[kept]
    if not source.classes and (valid == valid[:, :1]).all():
        valid = valid[:, :1]
    frames = [stack.frames[int(index)] for index in kept]
    series = SourceSeries(
        values=np.ascontiguousarray(values),
        valid=np.ascontiguousarray(valid),
        weight=weight,
        transform=affine if source.grid == "native" else None,
        crs=crs if source.grid == "native" else None,
        **times_of(source, frames),
    )
    return _described(source, series, frames), frames


def mask_impossible(source: Source, values: np.ndarray, valid: np.ndarray, *, expected: bool) -> None:
    """Mark values (T, C, H, W) beyond the registry's range as not observed, in place.

    Raises:
        ChipError: more than a few of a band are, and that is not ``expected`` of the product.
    """
    for channel, band in enumerate(source.bands):
        observed = valid[:, channel]
        if source.classes:
            impossible = observed & ~np.isin(values[:, channel], source.classes)
        else:
            impossible = observed & ((values[:, channel] < band.valid_min) | (values[:, channel] > band.valid_max))
        count = int(np.count_nonzero(impossible))
        if not count:
            continue
        share = count / max(int(np.count_nonzero(observed)), 1)
        if share > OUTSIDE_SHARE and not expected and not source.classes:
            found = values[:, channel][observed]
            raise ChipError(
                f"band {band.name}: expected {band.valid_min:g} to {band.valid_max:g} {band.unit}, found {found.min():g} to "
                f"{found.max():g} ({share:.0%} outside): wrong unit, band order or no-data value?",
                source=source.name,
                field="values",
            )
        observed &= ~impossible
        values[:, channel][impossible] = 0


def mask_beside(source: Source, values: np.ndarray, valid: np.ndarray, beside: Sequence[str]) -> None:
    """Mark bands ``beside`` the others as not observed where none of the others is, in place: the angle of incidence is
    known over the swath's edge and black water too, where nothing was seen."""
    names = source.band_names
    extra = [names.index(name) for name in beside]
    if extra:
        unseen = ~np.delete(valid, extra, axis=1).any(axis=1)
        for channel in extra:
            valid[:, channel] &= ~unseen
            values[:, channel][unseen] = 0


def times_of(source: Source, frames: Sequence[Frame]) -> dict[str, Any]:
    """Times, interval ends and metadata of frames, as a chip holds them."""
    if source.time == "static":
        return {}
    times: dict[str, Any] = {"time_ms": np.array([f.time_ms for f in frames], np.int64)}
    if source.time == "interval":
        times["time_end_ms"] = np.array([f.end_ms for f in frames], np.int64)
    if source.metadata:
        missing = (math.nan,) * len(source.metadata)
        times["metadata"] = np.array([f.metadata or missing for f in frames], np.float32)
    return times


def _described(source: Source, series: SourceSeries, frames: Sequence[Frame]) -> SourceSeries:
    series.bands = source.band_names
    series.units = tuple(band.unit for band in source.bands)
    series.collection = ", ".join(sorted({scene.collection for frame in frames for scene in frame.scenes}))
    series.native_resolution_m = source.native_resolution_m
    series.licence = source.licence
    series.note = source.attribution
    return series


# --- footprints ------------------------------------------------------------------------------------------------------


def footprints_of(
    source: Source, frames: Sequence[Frame], features: Sequence[Mapping[str, Any]], grid: ChipGrid
) -> tuple[SourceSeries, list[Frame]] | None:
    """Sparse footprints as (row, col, values) of the chip pixels that hold their centres, and the frames that have any;
    None where there are none.

    Raises:
        ChipError: much of the values lies outside their physical range.
    """
    rows = [feature["properties"] for feature in features]
    if not rows:
        return None
    number = np.array([row["frame"] for row in rows], np.int64)
    x, y = to_utm(grid.crs).transform([row[FOOTPRINT_LON] for row in rows], [row[FOOTPRINT_LAT] for row in rows])
    col = np.floor((np.asarray(x) - grid.left) / PIXEL_M).astype(np.int32)
    row = np.floor((grid.top - np.asarray(y)) / PIXEL_M).astype(np.int32)
    values = np.array([[line[name] for name in source.band_names] for line in rows], np.float32)
    valid = np.isfinite(values)
    for channel, band in enumerate(source.bands):
        valid[:, channel] &= (values[:, channel] >= band.valid_min) & (values[:, channel] <= band.valid_max)
    inside = (row >= 0) & (row < grid.px) & (col >= 0) & (col < grid.px) & valid.any(axis=1)
    if (~valid).mean() > OUTSIDE_SHARE:
        raise ChipError(
            f"{(~valid).mean():.0%} of the values lie outside {source.bands[0].valid_min:g} to "
            f"{source.bands[0].valid_max:g} {source.bands[0].unit}: wrong unit?",
            source=source.name,
            field="values",
        )
    times = times_of(source, [frames[index] for index in number])
    order = np.lexsort((col, row, times["time_ms"]))
    order = order[inside[order]]
    if not order.size:
        return None
    used = [frames[index] for index in sorted(set(number[order].tolist()))]
    times = {name: array[order] for name, array in times.items()}
    values = np.where(valid, values, 0)[order]
    series = SourceSeries(values=values, valid=valid[order], row=row[order], col=col[order], **times)
    return _described(source, series, used), used


# --- finishing -------------------------------------------------------------------------------------------------------


def terrain(values: np.ndarray, valid: np.ndarray, first_cell: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Elevation on the UTM grid → elevation, sine and cosine of slope, sine and cosine of aspect.

    Central differences over ±10 m after the reprojection (paper S1): slope = atan |∇z|; aspect, clockwise from north,
    is the direction in which the ground falls: atan2(−∂z/∂x, −∂z/∂y) with y to the north. Flat ground has no aspect:
    sine and cosine are 0 there, and so is |∇z|. The border pixel has no neighbour; it is fetched as a margin and cut
    off.
    """
    z = values[:, 0].astype(np.float64)
    east, north = np.zeros_like(z), np.zeros_like(z)
    east[..., 1:-1] = (z[..., 2:] - z[..., :-2]) / (2 * PIXEL_M)
    north[..., 1:-1, :] = (z[..., :-2, :] - z[..., 2:, :]) / (2 * PIXEL_M)  # rows run southwards
    steepness = np.hypot(east, north)
    cos_slope = 1 / np.sqrt(1 + steepness**2)
    with np.errstate(invalid="ignore", divide="ignore"):
        sin_aspect = np.where(steepness > 0, -east / steepness, 0)
        cos_aspect = np.where(steepness > 0, -north / steepness, 0)
    derived = np.stack((z, steepness * cos_slope, cos_slope, sin_aspect, cos_aspect), axis=1).astype(np.float32)
    seen = valid[:, 0]
    whole = seen.copy()
    whole[..., 1:-1] &= seen[..., 2:] & seen[..., :-2]
    whole[..., 1:-1, :] &= seen[..., 2:, :] & seen[..., :-2, :]
    return derived, np.stack((seen, whole, whole, whole, whole), axis=1)


def smoothed(values: np.ndarray, valid: np.ndarray, first_cell: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Soften the borders of coarse cells: mean of 2 x 2 cells, then bilinear back to the same cells (paper S1, GRACE).

    Blocks are aligned to even cells of the product, not of the chip, so that neighbouring chips agree. Masked cells
    take no part; a cell stays valid where any block around it holds a value. ``first_cell`` is the block's place in the
    product.
    """
    top, left = first_cell[0] % 2, first_cell[1] % 2
    height, width = values.shape[-2:]
    padding = ((0, 0), (0, 0), (top, (height + top) % 2), (left, (width + left) % 2))
    shares = np.pad(valid, padding).astype(np.float64)
    sums = np.pad(np.where(valid, values, 0), padding).astype(np.float64)
    blocks = (*shares.shape[:2], shares.shape[2] // 2, 2, shares.shape[3] // 2, 2)
    count, total = shares.reshape(blocks).sum(axis=(3, 5)), sums.reshape(blocks).sum(axis=(3, 5))
    mean = total / np.maximum(count, 1)
    rows, cols = _bilinear(height, top, mean.shape[2]), _bilinear(width, left, mean.shape[3])
    spread = [np.einsum("ij,tcjk,lk->tcil", rows, array, cols) for array in (mean * (count > 0), (count > 0) * 1.0)]
    smooth = spread[0] / np.maximum(spread[1], 1e-9)
    return np.where(valid, smooth, 0).astype(values.dtype), valid


def _bilinear(cells: int, offset: int, blocks: int) -> np.ndarray:
    """(cells, blocks): weights with which block means are interpolated at cell centres, constant outside."""
    position = np.clip((np.arange(cells) + offset + 0.5) / 2 - 0.5, 0, blocks - 1)
    low = np.minimum(np.floor(position).astype(int), max(blocks - 2, 0))
    weights = np.zeros((cells, blocks))
    weights[np.arange(cells), low] = 1 - (position - low)
    weights[np.arange(cells), np.minimum(low + 1, blocks - 1)] += position - low
    return weights


FINISH = {"terrain": terrain, "smoothed": smoothed}
