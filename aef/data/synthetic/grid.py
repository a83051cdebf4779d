"""Where a synthetic place lies, and how a sensor's pixel sees the ground: areas first, then the chip's 10 m grid.

The ground is drawn on 10 m cells with a margin around the chip. A sensor's value on the chip's grid is linear in the
ground along rows and along columns, so that averaging over the sensor's pixels, displacing the image and resampling it
bilinearly is one small matrix on either side: image = R ground R'.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

PIXEL_M = 10.0
MARGIN_PX = 5
"""Ground around the chip: two pixels of registration error and a 30 m pixel."""

AMERICAN_ZONES = tuple(range(12, 19))


@dataclass(frozen=True)
class Site:
    """A place on the central meridian of a UTM zone, where longitude and easting are exact without a library."""

    zone: int
    lat: float
    px: int

    @property
    def lon(self) -> float:
        return float(6 * self.zone - 183)

    @property
    def crs(self) -> str:
        return f"EPSG:{32600 + self.zone}"

    @property
    def american(self) -> bool:
        return self.zone in AMERICAN_ZONES

    @property
    def left_top(self) -> tuple[float, float]:
        """Upper left corner in metres, on the 10 m grid."""
        half = self.px * PIXEL_M / 2
        northing = 0.9996 * meridian_arc_m(self.lat)
        return (round((500_000 - half) / PIXEL_M) * PIXEL_M, round((northing + half) / PIXEL_M) * PIXEL_M)

    @property
    def transform(self) -> tuple[float, ...]:
        left, top = self.left_top
        return (PIXEL_M, 0.0, left, 0.0, -PIXEL_M, top)


def meridian_arc_m(lat: float) -> float:
    """Length of the WGS 84 meridian from the equator to a latitude, in metres (Helmert's series in n, to below 1 mm)."""
    a, f = 6_378_137.0, 1 / 298.257223563
    n = f / (2 - f)
    phi = math.radians(lat)
    series = (
        (1 + n**2 / 4 + n**4 / 64) * phi
        - 3 / 2 * (n - n**3 / 8) * math.sin(2 * phi)
        + 15 / 16 * (n**2 - n**4 / 4) * math.sin(4 * phi)
        - 35 / 48 * n**3 * math.sin(6 * phi)
        + 315 / 512 * n**4 * math.sin(8 * phi)
    )
    return a / (1 + n) * series


def ground_side(px: int) -> int:
    return px + 2 * MARGIN_PX


def inside(field: np.ndarray) -> np.ndarray:
    """The chip's part of a ground field (..., G, G) → (..., px, px)."""
    return field[..., MARGIN_PX:-MARGIN_PX, MARGIN_PX:-MARGIN_PX]


def sensing_matrix(px: int, cell_m: float, shift_m: float = 0.0) -> np.ndarray:
    """How one axis of an image on the chip's grid comes from the ground: (px, G) float32, rows sum to 1.

    Args:
        px: side of the chip.
        cell_m: the sensor's pixel; ground is averaged over it, then interpolated bilinearly to the chip's pixels.
            Where it is wider than the margin, the nearest length of which a whole number fits into the chip.
        shift_m: registration error; the image shows ground that lies this far along the axis.
    """
    side = ground_side(px)
    if cell_m == PIXEL_M:
        return _bilinear((np.arange(px) + MARGIN_PX + shift_m / PIXEL_M), side)
    size = cell_m / PIXEL_M
    if size > MARGIN_PX:
        # Such a pixel across the border would average ground that is no part of the chip, as far as any is drawn there:
        # pixels tile the chip instead (107 m for 100 m where it is 640 m wide), and area means agree.
        before, count = 0, max(2, round(px / size))
        size = px / count
    else:
        # Sensor pixels start at the chip's corner, as the products' grids do where they share an origin.
        before = math.ceil((MARGIN_PX - 2) / size)
        count = before + math.ceil((px + MARGIN_PX - 2) / size)
    edges = MARGIN_PX + size * (np.arange(count + 1) - before) + shift_m / PIXEL_M
    low, high = np.clip(edges[:-1, None], 0, side), np.clip(edges[1:, None], 0, side)
    ground = np.arange(side)[None]
    overlap = np.clip(np.minimum(high, ground + 1) - np.maximum(low, ground), 0, None)
    area = overlap / np.maximum(overlap.sum(1, keepdims=True), 1e-9)
    at = (np.arange(px) + 0.5) / size - 0.5 + before
    return (_bilinear(at, count).astype(np.float64) @ area).astype(np.float32)


def _bilinear(at: np.ndarray, count: int) -> np.ndarray:
    """Weights of the two samples around fractional positions: (len(at), count) float32."""
    at = np.clip(at, 0, count - 1)
    left = np.minimum(np.floor(at).astype(int), count - 2)
    share = at - left
    weights = np.zeros((len(at), count), np.float32)
    rows = np.arange(len(at))
    weights[rows, left] = 1 - share
    weights[rows, left + 1] = share
    return weights


def sense(ground: np.ndarray, px: int, cell_m: float, shifts_m: np.ndarray | None = None) -> np.ndarray:
    """Images of ground fields (T, G, G) on the chip's grid: (T, px, px) float32.

    Args:
        cell_m: the sensor's pixel.
        shifts_m: (T, 2) registration error down and across; None: none.
    """
    shifts = np.zeros((len(ground), 2)) if shifts_m is None else shifts_m
    out = np.empty((len(ground), px, px), np.float32)
    still = ~shifts.any(1)
    if cell_m == PIXEL_M:
        out[still] = inside(ground[still])
    elif still.any():
        plain = sensing_matrix(px, cell_m)
        out[still] = plain @ ground[still] @ plain.T
    for frame in np.flatnonzero(~still):
        down, across = (sensing_matrix(px, cell_m, float(shift)) for shift in shifts[frame])
        out[frame] = down @ ground[frame] @ across.T
    return out
