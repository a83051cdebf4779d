"""What a download will cost, before anything is spent: requests, bytes, hours, and the share of the compute allowance.

Counts come from each mission's revisit and each source's request plan, not from the service; the compute figure rests
on an assumption that is printed with it, because no published measurement exists.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from aef.clock import DAY_MS, SUPPORT_MS
from aef.earthengine.decode import bytes_per_pixel
from aef.earthengine.expressions import wire_names
from aef.earthengine.fetch import LISTED_MS, SLAB_BANDS, SLAB_BYTES
from aef.earthengine.manifest import PlannedChip
from aef.earthengine.recipes import Frame, recipe_of
from aef.sources import Source

ALLOWANCES_H = {"Community": 150, "Contributor": 1_000, "Partner": 100_000}
"""EECU-hours a month for non-commercial use, by tier (April 2026)."""

SECONDS_PER_REQUEST = 3.0
EECU_S_PER_REQUEST = 1.0
"""Assumptions, not measurements: your project's monitoring shows its own (workload tag ``aef-download``)."""

FRAMES_PER_YEAR = {"sentinel2": 73.0, "sentinel1": 31.0, "landsat": 34.0, "palsar2": 4.0, "nlcd": 1.0, "cdl": 1.0}
"""Frames of a place at the equator: two Sentinel-2 (5 days), one to two Sentinel-1 (12 days), Landsat 8 and 9 (16 days,
cloudless or not). Swaths of polar orbits overlap towards the poles: optical and radar grow with 1 / cos(latitude)."""

_GROWS_WITH_LATITUDE = ("sentinel2", "sentinel1", "landsat")
_BANDS_HELD = {"sentinel1": 3}  # two polarisations and the angle


@dataclass
class SourceEstimate:
    """Totals of one source over all chips."""

    source: str
    frames: float = 0.0
    requests: float = 0.0
    bytes: float = 0.0


@dataclass
class Estimate:
    """Totals, per source and in all. Hours follow from the number of requests in flight."""

    chips: int
    sources: list[SourceEstimate]
    in_flight: int

    @property
    def requests(self) -> float:
        """Of all sources."""
        return sum(s.requests for s in self.sources)

    @property
    def bytes(self) -> float:
        """On the wire, uncompressed, of all sources."""
        return sum(s.bytes for s in self.sources)

    @property
    def hours(self) -> float:
        """Of waiting, with ``in_flight`` requests at once."""
        return self.requests * SECONDS_PER_REQUEST / self.in_flight / 3600

    @property
    def eecu_hours(self) -> float:
        """Earth Engine's compute units, which a project has so many of in a month."""
        return self.requests * EECU_S_PER_REQUEST / 3600

    def lines(self) -> list[str]:
        """A table for people."""
        rows = [f"{'source':<12}{'frames':>12}{'requests':>12}{'bytes':>12}"]
        rows += [f"{s.source:<12}{s.frames:>12.4g}{s.requests:>12.4g}{_size(s.bytes):>12}" for s in self.sources]
        total = sum(s.frames for s in self.sources)
        rows += [f"{'all':<12}{total:>12.4g}{self.requests:>12.4g}{_size(self.bytes):>12}", ""]
        rows.append(f"chips       {self.chips:,}")
        rows.append(
            f"time        {self.hours:.3g} h with {self.in_flight} requests in flight at {SECONDS_PER_REQUEST:g} s each"
        )
        shares = ", ".join(f"{self.eecu_hours / h:.1%} of {name} ({h:,} h)" for name, h in ALLOWANCES_H.items())
        rows.append(
            f"compute     {self.eecu_hours:.3g} EECU-hours at an assumed {EECU_S_PER_REQUEST:g} EECU-s per request: "
            f"a month's allowance, {shares}"
        )
        rows.append("frame counts are typical revisits; a service that lists fewer images costs less")
        return rows


def estimate(chips: Iterable[PlannedChip], sources: Sequence[Source], *, in_flight: int) -> Estimate:
    """Estimate a download. Chips stream through: the number of sites does not matter for memory.

    Raises ValueError where a source cannot be fetched (`recipe_of`).
    """
    totals = {source.name: SourceEstimate(source.name) for source in sources}
    count = 0
    for chip in chips:
        count += 1
        for source in sources:
            _add(totals[source.name], source, chip)
    return Estimate(count, list(totals.values()), in_flight)


def _add(total: SourceEstimate, source: Source, chip: PlannedChip) -> None:
    recipe, years = recipe_of(source), chip.period.length_ms / SUPPORT_MS
    listings = 1 if recipe.listed is None else math.ceil((chip.period.length_ms + recipe.listed * DAY_MS) / LISTED_MS)
    if source.name in ("nlcd", "cdl") and not (-130 < chip.lon < -63 and 21 < chip.lat < 51):
        total.requests += listings
        return
    frames = _frames(source, chip, years)
    if source.grid == "points":
        total.frames += frames
        total.requests += listings + 1
        total.bytes += 50 * years * 4 * source.channels  # a few dozen footprints a year
        return
    bands = source.band_names[: _BANDS_HELD.get(source.name)]
    frame = Frame((), 0, None, bands)
    pixels = 9 if source.grid == "native" else (chip.grid.px + 2 * recipe.margin_px) ** 2
    size = bytes_per_pixel(recipe, frame) * pixels
    per_slab = max(1, min(SLAB_BYTES // size, SLAB_BANDS // len(wire_names(recipe, [frame]))))
    total.frames += frames
    total.requests += listings + math.ceil(frames / per_slab)
    total.bytes += frames * size


def _frames(source: Source, chip: PlannedChip, years: float) -> float:
    if source.time == "static":
        return 1.0
    if source.name in FRAMES_PER_YEAR:
        widened = 1 / max(math.cos(math.radians(chip.lat)), 0.3) if source.name in _GROWS_WITH_LATITUDE else 1.0
        return FRAMES_PER_YEAR[source.name] * years * widened
    return (12.0 if source.time == "interval" else 24.0) * years


def _size(count: float) -> str:
    for unit in ("B", "KB", "MB", "GB", "TB"):
        if count < 1000 or unit == "TB":
            return f"{count:.3g} {unit}"
        count /= 1000
    raise AssertionError
