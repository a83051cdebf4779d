"""The chip in memory: one place on one 10 m UTM grid over any span of time, every source with its own times and masks.

Values are raw, masks are explicit, times are int64 milliseconds. `aef.data.chips` reads and writes it,
`aef.data.contract_check` says whether it keeps its contract (docs/data.md).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

PIXEL_M = 10.0
METRES_PER_DEGREE = 111_320.0
"""Of latitude, and of longitude at the equator."""

MOST_ID_BYTES = 200
"""Of a chip's id, in UTF-8: names of files are made of it, which hold 255 bytes."""

ARRAYS = ("values", "valid", "weight", "time_ms", "time_end_ms", "metadata", "row", "col")
"""Fields of a `SourceSeries` that are arrays."""


class ChipError(ValueError):
    """A chip breaks the contract; one line naming file, source, field and reason."""

    def __init__(
        self, reason: str, *, source: str | None = None, field: str | None = None, file: object = None
    ) -> None:
        self.reason, self.source, self.field, self.file = reason, source, field, file
        where = [str(file)] if file is not None else []
        where += [f"source {source}"] if source else []
        where += [f"field {field}"] if field else []
        super().__init__(" ".join(": ".join([*where, reason]).split("\n")))


@dataclass
class SourceSeries:
    """Everything a chip holds of one source. T frames, C bands, M metadata fields.

    ==============  ==========================  =====================================================================
    field           shape, type                 meaning
    ==============  ==========================  =====================================================================
    ``values``      (T, C, H, W), own type      raw physical or digital values; (N, C) for a ``points`` source
    ``valid``       (T, C or 1, H, W), bool     this value was observed; (N, C or 1) for points
    ``weight``      (T, 1, H, W), uint8         loss weight / 255; None means 255 everywhere
    ``time_ms``     (T,), int64                 acquisition or interval start, strictly increasing (points: not
                                                decreasing); None for a static source
    ``time_end_ms`` (T,), int64                 interval end; None for instants
    ``metadata``    (T, M), float32             sensor geometry in the registry's order, NaN where missing
    ``row, col``    (N,), int32                 chip pixel that holds a footprint's centre (points only)
    ``transform``   6 floats                    affine of a ``native`` grid, x = a col + b row + c, y = d col + e row + f
    ==============  ==========================  =====================================================================
    """

    values: np.ndarray
    valid: np.ndarray
    time_ms: np.ndarray | None = None
    weight: np.ndarray | None = None
    time_end_ms: np.ndarray | None = None
    metadata: np.ndarray | None = None
    row: np.ndarray | None = None
    col: np.ndarray | None = None
    transform: tuple[float, ...] | None = None
    crs: str | None = None
    bands: tuple[str, ...] = ()
    units: tuple[str, ...] = ()
    collection: str = ""
    native_resolution_m: float = 0.0
    applied_scale: float = 1.0
    applied_offset: float = 0.0
    licence: str = ""
    note: str = ""

    @property
    def frames(self) -> int:
        return self.values.shape[0]

    @property
    def moment_ms(self) -> np.ndarray | None:
        """The one time that stands for each frame, (T,) int64: acquisitions, and the middle of intervals."""
        if self.time_ms is None or self.time_end_ms is None:
            return self.time_ms
        return self.time_ms + (self.time_end_ms - self.time_ms) // 2

    def header(self) -> dict[str, Any]:
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name not in ARRAYS}


@dataclass
class Label:
    """A class raster that travels with a chip for evaluation. Training never reads it.

    ``values`` is (H, W) of integers, ``fields`` (H, W) int32 field ids (0: none) where known.
    """

    values: np.ndarray
    legend: dict[int, str] = field(default_factory=dict)
    ignore: tuple[int, ...] = ()
    valid_start_ms: int | None = None
    valid_end_ms: int | None = None
    fields: np.ndarray | None = None
    licence: str = ""


@dataclass(frozen=True)
class TextPoint:
    """A geolocated text: ``x``, ``y`` in metres of the chip's CRS, uncertainty in metres, validity in epoch ms."""

    x: float
    y: float
    uncertainty_m: float
    time_ms: int
    time_end_ms: int
    text: str
    source: str
    licence: str


@dataclass
class Chip:
    """One place. ``transform`` is the affine of its 10 m grid (rasterio's order: a, b, c, d, e, f).

    ``place`` names the location: chips of one place share it, whatever their time span; the uniformity loss pairs
    samples of different places and validation holds places out.
    """

    id: str
    crs: str
    transform: tuple[float, ...]
    height: int
    width: int
    lon: float
    lat: float
    sources: dict[str, SourceSeries]
    place: str = ""
    labels: dict[str, Label] = field(default_factory=dict)
    texts: list[TextPoint] = field(default_factory=list)
    synthetic: bool = False
    attributes: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.place = self.place or self.id

    @property
    def span_ms(self) -> tuple[int, int]:
        """First and last time of any source, (0, 0) if all are static."""
        times = [s.time_ms for s in self.sources.values() if s.time_ms is not None and len(s.time_ms)]
        return (int(min(t[0] for t in times)), int(max(t[-1] for t in times))) if times else (0, 0)


def grid_position(transform: Sequence[float], x: Any, y: Any) -> tuple[Any, Any]:
    """Fractional (row, col) of a position on a grid; the centre of pixel (0, 0) is (0.5, 0.5).

    Args:
        transform: affine of the grid, (a, b, c, d, e, f).
        x, y: numbers or arrays, in the units of the grid's CRS.

    Raises:
        ZeroDivisionError: the affine has no inverse.
    """
    a, b, c, d, e, f = transform
    determinant = a * e - b * d
    if determinant == 0:
        raise ZeroDivisionError("the affine of the grid has no inverse")
    dx, dy = x - c, y - f
    return (a * dy - d * dx) / determinant, (e * dx - b * dy) / determinant
