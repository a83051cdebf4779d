"""What is particular to each source: which scenes count, which of them form one frame, what masks and weights them.

A recipe is data and one function, scenes → frames. Scenes are what the service lists (id, time, properties); choosing,
merging and de-duplicating them happens here, in plain Python, so that every rule can be tested without a service. A
source of the user's own that has no recipe gets the plain one: each image a frame, its mask the valid mask.

Property names, bit positions and grids are those of the public Earth Engine catalog; the rules are those of the paper's
supplement S1 (docs/download.md lists them side by side).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from aef.clock import SUPPORT_MS, Period
from aef.earthengine.grid import NativeGrid
from aef.sources import Source

SENTINEL1_INCLINATION_DEG = 98.18
"""Inclination of the Sentinel-1 orbit (mission constant; the catalog carries the heading only)."""

WEIGHT = "weight"
"""Name under which a request carries a frame's loss weight."""

FOOTPRINT_LON, FOOTPRINT_LAT = "lon_highestreturn", "lat_highestreturn"
"""Bands that say where in its 25 m cell a footprint lies."""

PASS_MS = 10 * 60_000
"""Images of one satellite over one place within ten minutes belong to one pass: it comes back after an orbit, 98 minutes, at
the earliest. Neither days nor numbers of orbits and paths say so: midnight UTC and the equator lie inside passes."""

CLOUD_SCORE = "GOOGLE/CLOUD_SCORE_PLUS/V1/S2_HARMONIZED"
CLEAR_SCORE = 0.5

SUCCESSORS = {
    "COPERNICUS/DEM/GLO30": "COPERNICUS/DEM/GLO30_2024_1",
    "NASA/GRACE/MASS_GRIDS_V03/MASCON_CRI": "NASA/GRACE/MASS_GRIDS_V04/MASCON_CRI",
    "NASA/GRACE/MASS_GRIDS/MASCON_CRI": "NASA/GRACE/MASS_GRIDS_V04/MASCON_CRI",
    "COPERNICUS/S2": "COPERNICUS/S2_HARMONIZED",
    "LANDSAT/LC08/C01/T1_TOA": "LANDSAT/LC08/C02/T1_TOA",
}
"""Collections that the public catalog marks as deprecated, and what replaced them (catalog of August 2026)."""


@dataclass(frozen=True)
class Scene:
    """One image as the service lists it: collection, ``system:index``, times and what its recipe asks for."""

    collection: str
    index: str
    time_ms: int
    end_ms: int | None = None
    properties: Mapping[str, Any] = field(default_factory=dict, compare=False)

    @property
    def id(self) -> str:
        """The asset id: collection and index."""
        return f"{self.collection}/{self.index}"


@dataclass(frozen=True)
class Frame:
    """What becomes one frame of a chip: scenes from the bottom of the mosaic to its top, and what is known of them."""

    scenes: tuple[Scene, ...]
    time_ms: int
    end_ms: int | None = None
    bands: tuple[str, ...] = ()
    metadata: tuple[float, ...] = ()


@dataclass(frozen=True)
class Surrounding:
    """What a recipe may know of the chip: its UTM zone, centre longitude and support period."""

    crs: str
    lon: float
    period: Period

    @property
    def zone(self) -> int:
        """Number of the UTM zone, 1 to 60."""
        return int(self.crs[-2:])


FrameRule = Callable[[Sequence[Scene], Surrounding, Source], list[Frame]]


@dataclass(frozen=True)
class Recipe:
    """How one source is fetched.

    Attributes:
        frames: scenes → frames, with merging and de-duplication.
        properties: image properties that ``frames`` and the metadata need.
        filters: (operator, property, value) of `ee.Filter`, applied where the scenes are listed.
        dtype: type in which values are stored; ``fill`` marks masked pixels on the wire and never reaches a chip.
        weight: name of the loss-weight rule in `expressions.WEIGHTS` (clouds weight the loss, they mask no input).
        mask: name of the mask rule in `expressions.MASKS`.
        listed: days before the support start from which scenes are listed (intervals that began earlier); None: all
            times.
        native: the product's own grid, for sources that keep it.
        margin_px: pixels (chip grid) or cells (native grid) fetched around the chip and cut off after ``finish``.
        finish: name of the step in `decode.FINISH` that turns fetched into stored bands.
        fetched: bands that are fetched where they differ from the stored ones.
        outside_is_masked: values beyond the registry's valid range are part of the product's nature (radar noise), not
            a sign of a wrong unit.
        beside: bands that say how the others were seen, like angles: where none of these is observed, nor are they.
    """

    frames: FrameRule
    properties: tuple[str, ...] = ()
    filters: tuple[tuple[str, str, Any], ...] = ()
    dtype: str = "float32"
    fill: float = -9999.0
    weight: str | None = None
    mask: str | None = None
    listed: float | None = 0.0
    native: NativeGrid | None = None
    margin_px: int = 0
    finish: str | None = None
    fetched: tuple[str, ...] = ()
    outside_is_masked: bool = False
    beside: tuple[str, ...] = ()


# --- rules -----------------------------------------------------------------------------------------------------------


def _grouped(scenes: Iterable[Scene], key: Callable[[Scene], Any]) -> list[list[Scene]]:
    groups: dict[Any, list[Scene]] = {}
    for scene in sorted(scenes, key=lambda s: (s.time_ms, s.index)):
        groups.setdefault(key(scene), []).append(scene)
    return list(groups.values())


def _passes(scenes: Iterable[Scene], key: Callable[[Scene], Any]) -> list[list[Scene]]:
    """Scenes of one key within `PASS_MS` of the first, in order of time."""
    passes: list[list[Scene]] = []
    for group in _grouped(scenes, key):
        passes.append([])
        for scene in group:
            if passes[-1] and scene.time_ms - passes[-1][0].time_ms > PASS_MS:
                passes.append([])
            passes[-1].append(scene)
    return passes


def _in_order(frames: Iterable[Frame]) -> list[Frame]:
    """Frames by time; those of one millisecond become one mosaic, as the chip contract asks."""
    merged: dict[int, Frame] = {}
    for frame in sorted(frames, key=lambda f: (f.time_ms, f.scenes[0].id)):
        same = merged.get(frame.time_ms)
        if same and same.bands == frame.bands:
            frame = dataclasses.replace(same, scenes=same.scenes + frame.scenes)
        merged[frame.time_ms] = frame
    return [merged[time] for time in sorted(merged)]


def every_image(scenes: Sequence[Scene], around: Surrounding, source: Source) -> list[Frame]:
    """Each image is a frame; an interval source's image lasts until its own end, or the end of its calendar month."""
    interval = source.time == "interval"
    frames = (
        Frame((s,), s.time_ms, (s.end_ms or month_end_ms(s.time_ms)) if interval else None, source.band_names)
        for s in scenes
    )
    return [f for f in _in_order(frames) if not interval or (f.end_ms or 0) > around.period.start_ms]


def sentinel2_datatakes(scenes: Sequence[Scene], around: Surrounding, source: Source) -> list[Frame]:
    """One frame per datatake: granules that overlap at tile edges are merged, a reprocessed granule replaces the older.

    Where a datatake was received in parts, a tile has a granule of each; of one baseline they are parts, the latest on top.
    Granules in the chip's own UTM zone lie on top, so that pixels are in the source projection wherever they can be.
    """

    def made(scene: Scene) -> tuple[float, str]:
        return (scene.properties.get("GENERATION_TIME") or 0, scene.index)

    newest: dict[tuple[str, str], list[Scene]] = {}
    for scene in sorted(scenes, key=made):
        take, baseline = _datatake(scene)
        parts = newest.setdefault((take, str(scene.properties.get("MGRS_TILE"))), [])
        parts[:] = [part for part in parts if _datatake(part)[1] == baseline] + [scene]

    def rank(scene: Scene) -> tuple[Any, ...]:
        own = str(scene.properties.get("MGRS_TILE", ""))[:2].lstrip("0") == str(around.zone)
        return (own, *made(scene))

    groups = _grouped((part for parts in newest.values() for part in parts), lambda scene: _datatake(scene)[0])
    return _in_order(Frame(tuple(sorted(g, key=rank)), g[0].time_ms, None, source.band_names) for g in groups)


def _datatake(scene: Scene) -> tuple[str, str]:
    """GS2A_20180105T102421_013256_N02.06 as the datatake and its processing baseline."""
    take, _, baseline = str(scene.properties.get("DATATAKE_IDENTIFIER") or scene.index).partition("_N")
    return take, baseline


def sentinel1_passes(scenes: Sequence[Scene], around: Surrounding, source: Source) -> list[Frame]:
    """One frame per pass: consecutive slices are merged, also where the orbit's number changes between them (it counts
    from the equator, northwards). Polarisations that it lacks are not fetched."""

    def key(scene: Scene) -> tuple[Any, ...]:
        p = scene.properties
        # Near the southern turn of its orbit a satellite sees a place going down and, minutes later, coming up.
        return (p.get("platform_number"), p.get("orbitProperties_pass"), tuple(sorted(_polarisations(scene))))

    def frame(group: list[Scene]) -> Frame:
        held = {*_polarisations(group[0]), "angle"}
        heading = group[0].properties.get("platformHeading")
        metadata = (math.nan if heading is None else float(heading), SENTINEL1_INCLINATION_DEG)
        return Frame(tuple(group), group[0].time_ms, None, tuple(b for b in source.band_names if b in held), metadata)

    return _in_order(frame(group) for group in _passes(scenes, key))


def _polarisations(scene: Scene) -> Sequence[str]:
    return scene.properties.get("transmitterReceiverPolarisation") or ()


def landsat_rows(scenes: Sequence[Scene], around: Surrounding, source: Source) -> list[Frame]:
    """One frame per pass: where rows overlap, the image whose UTM zone's central longitude is closest, then the latest,
    lies on top; where it ends, the other row goes on."""

    def rank(scene: Scene) -> tuple[float, int]:
        zone = scene.properties.get("UTM_ZONE")
        distance = abs((int(zone) * 6 - 183 - around.lon + 180) % 360 - 180) if zone else 360.0
        return (-distance, scene.time_ms)

    mosaics = (sorted(group, key=rank) for group in _passes(scenes, lambda scene: scene.collection))
    return _in_order(Frame(tuple(m), m[-1].time_ms, None, source.band_names) for m in mosaics)


def palsar2_paths(scenes: Sequence[Scene], around: Surrounding, source: Source) -> list[Frame]:
    """One frame per pass; the few images without HH are left out, HV is absent where it was not recorded."""

    def key(scene: Scene) -> tuple[Any, ...]:
        p = scene.properties
        return (p.get("PassDirection"), "HV" in p.get("Polarizations", ()))

    def flag(value: Any, one: str) -> float:
        return math.nan if value is None else float(str(value).lower().startswith(one))

    def frame(group: list[Scene]) -> Frame:
        p = group[0].properties
        held = {*p.get("Polarizations", ()), "LIN"}
        metadata = (flag(p.get("PassDirection"), "asc"), flag(p.get("AntennaPointing"), "right"))
        return Frame(tuple(group), group[0].time_ms, None, tuple(b for b in source.band_names if b in held), metadata)

    return _in_order(
        frame(g) for g in _passes((s for s in scenes if "HH" in s.properties.get("Polarizations", ())), key)
    )


def nearest_years(scenes: Sequence[Scene], around: Surrounding, source: Source) -> list[Frame]:
    """The mapped year nearest to the middle of each support year; where two are as near, the earlier one.

    A later collection of the registry entry replaces an earlier one only for years that the earlier one lacks (the
    paper takes 2021 from the 2021 release of NLCD and every other year from that of 2019).
    """
    order = {collection: number for number, collection in enumerate(source.collections)}
    by_year: dict[int, Scene] = {}
    for scene in sorted(scenes, key=lambda s: (order.get(s.collection, len(order)), s.index)):
        by_year.setdefault(_year(scene.time_ms), scene)
    chosen = {}
    for middle_ms in _middles(around.period):
        if by_year:
            year = min(by_year, key=lambda y: (abs((year_ms(y) + year_ms(y + 1)) / 2 - middle_ms), y))
            chosen[year] = by_year[year]
    return [Frame((s,), year_ms(y), year_ms(y + 1), source.band_names) for y, s in sorted(chosen.items())]


def one_mosaic(scenes: Sequence[Scene], around: Surrounding, source: Source) -> list[Frame]:
    """A static source: all its tiles, as one frame."""
    return [Frame(tuple(sorted(scenes, key=lambda s: s.index)), 0, None, source.band_names)] if scenes else []


def _middles(period: Period) -> list[int]:
    years = max(1, round(period.length_ms / SUPPORT_MS))
    return [period.start_ms + period.length_ms * (2 * k + 1) // (2 * years) for k in range(years)]


def _year(time_ms: int) -> int:
    return datetime.fromtimestamp(time_ms / 1000, UTC).year


def year_ms(year: int) -> int:
    """First millisecond of a calendar year, UTC."""
    return int(datetime(year, 1, 1, tzinfo=UTC).timestamp() * 1000)


def month_end_ms(time_ms: int) -> int:
    """First millisecond after the calendar month of a time, UTC."""
    start = datetime.fromtimestamp(time_ms / 1000, UTC)
    following = datetime(start.year + start.month // 12, start.month % 12 + 1, 1, tzinfo=UTC)
    return int(following.timestamp() * 1000)


# --- the nine sources, and what version 2.1 adds ---------------------------------------------------------------------

RECIPES: dict[str, Recipe] = {
    "sentinel2": Recipe(
        frames=sentinel2_datatakes,
        properties=("DATATAKE_IDENTIFIER", "MGRS_TILE", "GENERATION_TIME"),
        dtype="uint16",
        fill=65535,
        weight="cloud_score",
    ),
    "sentinel1": Recipe(
        frames=sentinel1_passes,
        properties=(
            "transmitterReceiverPolarisation",
            "platform_number",
            "orbitProperties_pass",
            "platformHeading",
        ),
        filters=(("eq", "instrumentMode", "IW"),),
        outside_is_masked=True,
        beside=("angle",),
    ),
    "landsat": Recipe(
        frames=landsat_rows,
        properties=("UTM_ZONE",),
        filters=(("gt", "SUN_ELEVATION", 0),),
        weight="qa_pixel",
    ),
    "palsar2": Recipe(
        frames=palsar2_paths,
        properties=("Polarizations", "PassDirection", "AntennaPointing"),
        filters=(("listContains", "Polarizations", "HH"),),
        dtype="uint16",
        fill=65535,
        mask="palsar_msk",
        outside_is_masked=True,
        beside=("LIN",),
    ),
    "glo30": Recipe(frames=one_mosaic, listed=None, margin_px=1, finish="terrain", fetched=("DEM",)),
    "gedi": Recipe(frames=every_image, listed=31.0, mask="gedi_quality"),
    "era5_land": Recipe(frames=every_image, listed=31.0, native=NativeGrid(0.1, -180.05, 90.05)),
    "grace": Recipe(
        frames=every_image, listed=31.0, native=NativeGrid(0.5, -180.0, 90.0), margin_px=4, finish="smoothed"
    ),
    "nlcd": Recipe(frames=nearest_years, listed=None, dtype="uint8", fill=255),
    "cdl": Recipe(frames=nearest_years, listed=None, dtype="uint8", fill=255),
}


def recipe_of(source: Source) -> Recipe:
    """The recipe of a source; the plain one for a user's own.

    Raises:
        ValueError: the source has no collection, keeps a native grid that only a recipe could state, or has codes that do
            not fit 16 bits.
    """
    if not source.collections:
        raise ValueError(f"source {source.name} names no Earth Engine collection: add `collections` to its entry")
    if source.name in RECIPES:
        return RECIPES[source.name]
    if source.grid != "chip":
        raise ValueError(
            f"source {source.name} keeps a {source.grid} grid: Earth Engine download needs a recipe for it "
            "(aef/earthengine/recipes.py); sources on the chip grid need none"
        )
    # Codes that are no class of the source must not become one of them in a type too narrow.
    dtype, fill = ("uint16", 65535.0) if source.classes else ("float32", -9999.0)
    if source.classes and not 0 <= min(source.classes) <= max(source.classes) < fill:
        raise ValueError(
            f"source {source.name}: expected codes of 0 to 65534, found {min(source.classes)} to {max(source.classes)}"
        )
    if source.time == "static":
        return Recipe(frames=one_mosaic, listed=None, dtype=dtype, fill=fill)
    # A year's image that began up to a year before the support lasts into it; `every_image` leaves out what ended.
    return Recipe(frames=every_image, listed=366.0 if source.time == "interval" else 0.0, dtype=dtype, fill=fill)


def deprecated(collections: Iterable[str]) -> list[str]:
    """One warning sentence per deprecated collection, naming its successor."""
    return [
        f"{collection} is marked as deprecated in the catalog; its successor is {SUCCESSORS[collection]} "
        "(--successors downloads that instead)"
        for collection in collections
        if collection in SUCCESSORS
    ]


def in_use(source: Source, *, successors: bool = False) -> Source:
    """The source with the collections that a download reads: of a deprecated one and its successor exactly one.

    The paper's own collections are the default, so that results are comparable; ``successors`` takes the living ones.
    """
    if successors:
        kept = (SUCCESSORS.get(collection, collection) for collection in source.collections)
    else:
        replaced = {SUCCESSORS[old] for old in source.collections if old in SUCCESSORS}
        kept = (collection for collection in source.collections if collection not in replaced)
    return dataclasses.replace(source, collections=tuple(dict.fromkeys(kept)))
