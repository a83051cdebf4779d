"""Where and when: sites from files, boxes, places, random land or strata, each with its support periods.

Sampled sites lie on a lattice of 1.28 km cells in their UTM zone, so that no two chips overlap and their centres are at
least 1.28 km apart (paper S1.1); sites of a file keep the coordinates that they are given, snapped to 10 m.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from aef.clock import DAY_MS, Period, parse_period
from aef.data.contract import METRES_PER_DEGREE
from aef.earthengine.grid import to_degrees, to_utm, utm_crs
from aef.earthengine.land import is_land
from aef.earthengine.site import Site, SiteError, at
from aef.earthengine.site_files import read_sites
from aef.hashing import stable_hash
from aef.vector_files import VectorFileError, geojson_features, geojson_shape

__all__ = [
    "Lattice",
    "Site",
    "SiteError",
    "at",
    "choose_periods",
    "draw_periods",
    "in_box",
    "in_strata",
    "on_random_land",
    "parse_periods",
    "read_sites",
]

SPACING_M = 1280.0
NORTHERNMOST, SOUTHERNMOST = 83.0, -60.0
"""Latitudes between which random land is drawn: Sentinel-2 acquires up to about 83 degrees north; Antarctica is left
out, as in version 2.0 of the paper."""

# --- the lattice -----------------------------------------------------------------------------------------------------


class Lattice:
    """1.28 km cells of each UTM zone, one bit each: which are taken. Cells that cross a zone border or the equator are
    never offered, so that chips of neighbouring zones cannot overlap. Half a megabyte per zone in use."""

    _ROWS, _COLS, _WEST_M = 8000, 800, 0.0

    def __init__(self, px: int = 128) -> None:
        self.step_m = max(SPACING_M, px * 10.0)
        self._taken: dict[str, bytearray] = {}

    def claim(self, lon: float, lat: float) -> Site | None:
        """The site at the centre of the cell around a point, or None where the cell is taken or crosses a border."""
        crs = utm_crs(lon, lat)
        x, y = to_utm(crs).transform(lon, lat)
        row, col = math.floor(y / self.step_m), math.floor(x / self.step_m)
        index = row * self._COLS + col
        bits = self._taken.setdefault(crs, bytearray(self._ROWS * self._COLS // 8))
        if not (0 <= row < self._ROWS and 0 <= col < self._COLS) or bits[index >> 3] >> (index & 7) & 1:
            return None
        if not self._inside(crs, row, col):
            return None
        bits[index >> 3] |= 1 << (index & 7)
        centre_lon, centre_lat = to_degrees(crs).transform((col + 0.5) * self.step_m, (row + 0.5) * self.step_m)
        zone = f"{int(crs[-2:]):02d}{'N' if crs[5:8] == '326' else 'S'}"
        return Site(f"{zone}_{row:04d}_{col:03d}", float(centre_lon), float(centre_lat))

    def _inside(self, crs: str, row: int, col: int) -> bool:
        xs = np.array((col, col + 1, col, col + 1)) * self.step_m
        ys = np.array((row, row, row + 1, row + 1)) * self.step_m
        lons, lats = to_degrees(crs).transform(xs, ys)
        if lats.max() > 84 or lats.min() < -80.5 or abs(lons.max() - lons.min()) > 1:
            return False
        return all(utm_crs(lon, lat) == crs for lon, lat in zip(lons, lats))


def in_box(west: float, south: float, east: float, north: float, lattice: Lattice) -> Iterator[Site]:
    """Every lattice cell whose centre lies in a box of degrees. Raises SiteError for an impossible box."""
    if not (-180 <= west < east <= 180 and -80.5 <= south < north <= 84):
        across = ": across 180 degrees it takes two, one on each side" if west > east else ""
        raise SiteError(
            f"the box {west:g},{south:g},{east:g},{north:g} must be WEST,SOUTH,EAST,NORTH in degrees{across}"
        )
    step_lat = lattice.step_m / METRES_PER_DEGREE / 2
    for lat in np.arange(south + step_lat / 2, north, step_lat):
        step_lon = step_lat / max(math.cos(math.radians(lat)), 0.05)
        for lon in np.arange(west + step_lon / 2, east, step_lon):
            site = lattice.claim(float(lon), float(lat))
            if site and west <= site.lon < east and south <= site.lat < north:
                yield site


def on_random_land(
    count: int, lattice: Lattice, *, seed: int, south: float = SOUTHERNMOST, north: float = NORTHERNMOST
) -> Iterator[Site]:
    """``count`` sites on land, uniform by area, at least 1.28 km apart. The same seed gives the same sites.

    Raises:
        SiteError: there is no room for so many.
    """
    generator = np.random.default_rng(seed)
    found, draws = 0, 0
    while found < count:
        lon, lat = _uniform_on_sphere(generator, 4096, (-180.0, south, 180.0, north))
        draws += lon.size
        for index in np.flatnonzero(is_land(lon, lat)):
            site = lattice.claim(float(lon[index]), float(lat[index]))
            if site and is_land(site.lon, site.lat):
                yield site
                found += 1
                if found == count:
                    return
        if draws > 1000 * max(count, 1000):
            raise SiteError(f"found only {found} of {count} sites on land: ask for fewer")


def in_strata(
    path: str | Path, per_stratum: int, lattice: Lattice, *, seed: int, field: str | None = None, offshore: bool = False
) -> Iterator[Site]:
    """Sites drawn uniformly by area from polygons, a quota for each stratum (paper S1.1: ecoregions and their kin).

    Args:
        path: GeoJSON of polygons in degrees. A feature's ``quota`` property overrides ``per_stratum``.
        field: property that names the stratum; features that share it are one stratum. None: each feature is its own.
        offshore: keep sites without land (reefs, tidal flats).

    A stratum too small for its quota gives what 1.28 km spacing allows. Raises SiteError for an unusable file.
    """
    import shapely

    try:
        features = geojson_features(Path(path))
    except VectorFileError as error:
        raise SiteError(str(error)) from None
    strata: dict[str, tuple[list[Any], int]] = {}
    for number, feature in enumerate(features):
        properties = feature.get("properties") or {}
        if field is not None and field not in properties:
            raise SiteError(f"{path}: feature {number} has no property {field!r}: found {', '.join(properties)}")
        name = str(properties[field]) if field else f"{number}"
        try:
            shapes, _ = strata.setdefault(name, ([], _quota(properties.get("quota"), per_stratum)))
            shapes.append(geojson_shape(feature.get("geometry")))
        except (VectorFileError, SiteError) as error:
            raise SiteError(f"{path}: feature {number}: {error}") from None
    for name, (shapes, quota) in strata.items():
        area = shapely.union_all(shapes)
        if area.is_empty or area.area == 0:
            raise SiteError(f"{path}: stratum {name} covers no area: expected polygons")
        west, south, east, north = area.bounds
        if not (west >= -180 and east <= 180 and south >= -90 and north <= 90):
            raise SiteError(
                f"{path}: stratum {name}: expected degrees, found {west:g},{south:g},{east:g},{north:g}: bring it there by "
                "ogr2ogr -t_srs EPSG:4326"
            )
        yield from _in_area(area, quota, lattice, np.random.default_rng((seed, stable_hash(name))), offshore)


def _quota(stated: Any, otherwise: int) -> int:
    """Of a stratum: what its feature states, if anything."""
    try:
        quota = otherwise if stated is None else int(stated)
    except (TypeError, ValueError):
        quota = -1
    if quota < 0:
        raise SiteError(f"quota: expected a number of sites, found {stated!r}")
    return quota


def _in_area(area, quota: int, lattice: Lattice, generator: np.random.Generator, offshore: bool) -> Iterator[Site]:
    import shapely

    shapely.prepare(area)
    # Drawn in the boxes of its polygons: in that of a stratum scattered over the Earth no point would ever hit.
    parts = shapely.get_parts(area)
    shapely.prepare(parts)
    boxes = shapely.bounds(parts)
    heights = np.diff(np.sin(np.radians(boxes[:, 1::2].clip(-90, 90))), axis=1)[:, 0]
    shares = (boxes[:, 2] - boxes[:, 0]) * heights
    shares /= shares.sum()
    found, misses = 0, 0
    while found < quota and misses < 20:  # 20 batches without one new cell: the stratum is full
        part = generator.choice(len(parts), 2048, p=shares) if len(parts) > 1 else np.zeros(2048, np.int64)
        lon, lat = _uniform_on_sphere(generator, 2048, boxes[part].T)
        keep = shapely.contains_xy(parts[part], lon, lat)
        if not offshore:
            keep &= is_land(lon, lat)
        before = found
        for index in np.flatnonzero(keep):
            site = lattice.claim(float(lon[index]), float(lat[index]))
            if site and shapely.contains_xy(area, site.lon, site.lat):
                yield site
                found += 1
                if found == quota:
                    return
        misses = misses + 1 if found == before else 0


def _uniform_on_sphere(generator: np.random.Generator, count: int, bounds: Any) -> tuple[np.ndarray, np.ndarray]:
    """Points in a box of degrees, or one in each of ``count`` boxes (4, count)."""
    west, south, east, north = bounds
    low, high = (np.sin(np.radians(np.clip(edge, -80.4, 83.9))) for edge in (south, north))
    return generator.uniform(west, east, count), np.degrees(np.arcsin(generator.uniform(low, high, count)))


# --- periods ---------------------------------------------------------------------------------------------------------


def parse_periods(text: str) -> tuple[Period, ...]:
    """``START/END[,START/END]`` → periods in order. Raises ValueError if they overlap."""
    periods = tuple(sorted(parse_period(part) for part in text.split(",") if part.strip()))
    for before, after in itertools.pairwise(periods):
        if after.start_ms < before.end_ms:
            raise ValueError(f"the periods {before} and {after} overlap: one place's periods must not share frames")
    if not periods:
        raise ValueError(f"expected START/END, like 2018-01-01/2019-01-01, found {text!r}")
    return periods


def draw_periods(site: str, within: Period, count: int, *, seed: int, length_days: int = 365) -> tuple[Period, ...]:
    """``count`` non-overlapping support periods of a site at random within a range (paper S1.1: two of about a year).

    Uniform over all such placements; keyed by seed and site, so that a restart draws the same ones.

    Raises:
        ValueError: the range is too short for them.
    """
    length = length_days * DAY_MS
    room = (within.length_ms - count * length) // DAY_MS
    if room < 0:
        raise ValueError(f"{within} is too short for {count} periods of {length_days} days: widen --periods")
    generator = np.random.default_rng((seed, stable_hash(site)))
    offsets = np.sort(generator.integers(0, room + 1, count))
    starts = [within.start_ms + int(offset) * DAY_MS + index * length for index, offset in enumerate(offsets)]
    return tuple(Period(start, start + length) for start in starts)


def choose_periods(
    site: str, within: Period, texts: Iterable[Period], *, seed: int, length_days: int = 365, tries: int = 64
) -> tuple[Period, ...]:
    """Two periods chosen so that as many text date ranges as possible fall into exactly one of them (paper S1.1).

    Drawn placements are compared; the first of the best is taken, so equal inputs give equal periods.
    """
    ranges = list(texts)
    drawn = [draw_periods(site, within, 2, seed=seed + k, length_days=length_days) for k in range(tries)]

    def covered(pair: tuple[Period, ...]) -> int:
        inside = [sum(p.start_ms <= t.start_ms and t.end_ms <= p.end_ms for p in pair) for t in ranges]
        return inside.count(1)

    return max(drawn, key=covered) if ranges else drawn[0]
