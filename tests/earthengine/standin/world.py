"""Images anywhere on Earth: which scenes lie over a chip, and their pixels, both from names and seeds alone.

A scene's index ends in the chip that it was made for (``_X461420Y5217040P128Z32632``), so that its pixels can be made
again from its id. Scenes have the awkward sides of the real ones: granules that overlap and end inside a chip,
reprocessed duplicates, rows and slices, absent polarisations, night, clouds without a score, masked pixels.
"""

from __future__ import annotations

import functools
import math
import re
import zlib
from dataclasses import dataclass, field
from datetime import UTC, datetime

import numpy as np

from .rasters import Grid, Raster, transformer

DAY_MS = 86_400_000
_PLACE = re.compile(r"_X(-?\d+)Y(-?\d+)P(\d+)Z(\d+)$")
S2, S1, L8, L9 = "COPERNICUS/S2_HARMONIZED", "COPERNICUS/S1_GRD", "LANDSAT/LC08/C02/T1_TOA", "LANDSAT/LC09/C02/T1_TOA"
CS = "GOOGLE/CLOUD_SCORE_PLUS/V1/S2_HARMONIZED"
PALSAR, DEM, GEDI = "JAXA/ALOS/PALSAR-2/Level2_2/ScanSAR", "COPERNICUS/DEM/GLO30", "LARSE/GEDI/GEDI02_A_002_MONTHLY"
ERA5, GRACE = "ECMWF/ERA5_LAND/MONTHLY_AGGR", "NASA/GRACE/MASS_GRIDS_V03/MASCON_CRI"
NLCD19, NLCD21, CDL = "USGS/NLCD_RELEASES/2019_REL/NLCD", "USGS/NLCD_RELEASES/2021_REL/NLCD", "USDA/NASS/CDL"
NLCD_CODES = np.array([11, 21, 22, 31, 41, 42, 43, 52, 71, 81, 82, 90, 95])


def ms(*date: int) -> int:
    return int(datetime(*date, tzinfo=UTC).timestamp() * 1000)


@dataclass(frozen=True)
class Rectangle:
    """The chip's outline as it arrives in a listing."""

    crs: str
    left: float
    bottom: float
    right: float
    top: float

    @property
    def suffix(self) -> str:
        px = round((self.right - self.left) / 10)
        return f"_X{self.left:.0f}Y{self.top:.0f}P{px}Z{self.crs.split(':')[1]}"

    @property
    def lon_lat(self) -> tuple[float, float]:
        return transformer(self.crs, "EPSG:4326").transform((self.left + self.right) / 2, (self.bottom + self.top) / 2)

    @classmethod
    def of_index(cls, index: str) -> Rectangle:
        left, top, px, zone = map(int, _PLACE.search(index).groups())
        return cls(f"EPSG:{zone}", left, top - px * 10, left + px * 10, top)

    def __hash__(self) -> int:
        return zlib.crc32(self.suffix.encode())


@dataclass
class SceneInfo:
    collection: str
    index: str
    time_ms: int | None
    end_ms: int | None = None
    properties: dict = field(default_factory=dict)

    @property
    def all_properties(self) -> dict:
        times = {"system:time_start": self.time_ms, "system:time_end": self.end_ms}
        return {**self.properties, "system:index": self.index, **{k: v for k, v in times.items() if v is not None}}


class World:
    """What the service knows. ``gap_days`` spaces the optical scenes: smaller means more of them; ``kept`` bands stay in memory."""

    def __init__(self, seed: int = 0, gap_days: int = 61, missing: tuple[str, ...] = (), kept: int = 4096) -> None:
        self.seed, self.gap_days, self.missing = seed, gap_days, missing
        self.band = functools.lru_cache(kept)(self._band)

    # --- which scenes ------------------------------------------------------------------------------------------------

    def scenes(self, collection: str, chip: Rectangle) -> list[SceneInfo]:
        if collection in self.missing:
            raise KeyError(collection)
        make = {
            S2: self._sentinel2,
            S1: self._sentinel1,
            L8: lambda c: self._landsat(c, L8),
            L9: lambda c: self._landsat(c, L9),
            PALSAR: self._palsar,
            DEM: self._dem,
            GEDI: lambda c: self._monthly(c, GEDI, 2019, 2022, every=5),
            ERA5: lambda c: self._monthly(c, ERA5, 2016, 2024),
            GRACE: lambda c: self._monthly(c, GRACE, 2016, 2024, drop=(2018, 3)),
            GRACE.replace("V03", "V04"): lambda c: self._monthly(c, GRACE.replace("V03", "V04"), 2016, 2024),
            NLCD19: lambda c: self._yearly(c, NLCD19, (2001, 2004, 2006, 2008, 2011, 2013, 2016, 2019)),
            NLCD21: lambda c: self._yearly(c, NLCD21, (2021,)),
            CDL: lambda c: self._yearly(c, CDL, range(2008, 2024)),
        }
        if collection not in make:
            raise KeyError(collection)
        return make[collection](chip)

    def _dates(self, chip: Rectangle, gap: int, offset: int) -> list[int]:
        first = ms(2017, 1, 1) + ((hash(chip) + offset) % gap) * DAY_MS
        return list(range(first, ms(2023, 1, 1), gap * DAY_MS))

    def _sentinel2(self, chip: Rectangle) -> list[SceneInfo]:
        scenes = []
        zone = f"{int(chip.crs[-2:]):02d}"
        for number, day in enumerate(self._dates(chip, self.gap_days, 1)):
            start = day + 10 * 3_600_000 + 24 * 60_000 + 21_000
            stamp = datetime.fromtimestamp(start / 1000, UTC).strftime("%Y%m%dT%H%M%S")
            take = f"GS2A_{stamp}_{13000 + number:06d}_N02.06"
            for tile, later in (("TMT", 0), ("TMS", 8_000)):
                indices = [f"{stamp}_{stamp}_T{zone}{tile}"] + (
                    [f"{stamp}_A{stamp}_T{zone}{tile}"] if number % 3 == 1 else []
                )
                for version, index in enumerate(indices):
                    properties = {
                        "DATATAKE_IDENTIFIER": take.replace("N02.06", f"N05.0{version}") if version else take,
                        "MGRS_TILE": f"{zone}{tile}",
                        "GENERATION_TIME": start + 10_000_000 * (version + 1),
                    }
                    scenes.append(SceneInfo(S2, index + chip.suffix, start + later, None, properties))
        return scenes

    def _sentinel1(self, chip: Rectangle) -> list[SceneInfo]:
        scenes = []
        for number, day in enumerate(self._dates(chip, self.gap_days + 12, 2)):
            start = day + 5 * 3_600_000 + 1234
            held = (["VV", "VH"], ["VV", "VH"], ["HH", "HV"], ["VV"])[number % 4]
            for slice_number, later in ((1, 0), (2, 25_000)):
                properties = {
                    "transmitterReceiverPolarisation": held,
                    "platform_number": "A",
                    "orbitProperties_pass": ("ASCENDING", "DESCENDING")[number % 2],
                    "platformHeading": 347.5 if number % 2 else 192.25,
                    "instrumentMode": "EW" if number % 7 == 6 else "IW",
                }
                index = f"S1A_IW_GRDH_{number:03d}_{slice_number}{chip.suffix}"
                scenes.append(SceneInfo(S1, index, start + later, None, properties))
        return scenes

    def _landsat(self, chip: Rectangle, collection: str) -> list[SceneInfo]:
        scenes, zone = [], int(chip.crs[-2:])
        first = ms(2021, 11, 1) if collection == L9 else 0
        for number, day in enumerate(self._dates(chip, self.gap_days + 5, 3 if collection == L8 else 40)):
            if day < first:
                continue
            for row, later in ((27, 0), (28, 24_000)):
                properties = {
                    # The first row lies in the neighbouring zone every other time.
                    "UTM_ZONE": zone + 1 if row == 27 and number % 2 else zone,
                    "SUN_ELEVATION": -12.0 if number % 5 == 4 else 40.0,
                }
                index = f"{collection.split('/')[1]}_1950{row}_{number:03d}{chip.suffix}"
                scenes.append(SceneInfo(collection, index, day + 36_000_000 + later, None, properties))
        return scenes

    def _palsar(self, chip: Rectangle) -> list[SceneInfo]:
        scenes = []
        for number, day in enumerate(self._dates(chip, 140, 5)):
            properties = {
                "Polarizations": (["HH", "HV"], ["HH", "HV"], ["HH"], ["VV", "VH"])[number % 4],
                "PassDirection": ("Ascending", "Descending")[number % 2],
                "AntennaPointing": "Right",
            }
            scenes.append(SceneInfo(PALSAR, f"ALOS2{number:03d}{chip.suffix}", day + 7_000_000, None, properties))
        return scenes

    def _dem(self, chip: Rectangle) -> list[SceneInfo]:
        return [SceneInfo(DEM, f"Copernicus_DSM_{part}{chip.suffix}", ms(2010, 12, 1)) for part in ("W", "E")]

    def _monthly(self, chip, collection, first, last, *, every=1, drop=None) -> list[SceneInfo]:
        scenes = []
        for month in range(0, (last - first + 1) * 12, every):
            year, number = first + month // 12, month % 12 + 1
            if (year, number) == drop:
                continue
            end = ms(year + number // 12, number % 12 + 1, 1)
            scenes.append(SceneInfo(collection, f"{year}{number:02d}{chip.suffix}", ms(year, number, 1), end))
        return scenes

    def _yearly(self, chip: Rectangle, collection: str, years) -> list[SceneInfo]:
        lon, lat = chip.lon_lat
        if not (-124 < lon < -67 and 25 < lat < 49):
            return []
        return [SceneInfo(collection, f"{year}{chip.suffix}", ms(year, 1, 1), ms(year + 1, 1, 1)) for year in years]

    # --- their pixels ------------------------------------------------------------------------------------------------

    def bands(self, collection: str) -> tuple[str, ...]:
        return tuple(_BANDS[_KIN.get(collection, collection)])

    def _band(self, collection: str, index: str, band: str) -> Raster:
        """One band of an image: smooth fields in the chip's own metres, so that resampling is well defined."""
        chip = Rectangle.of_index(index)
        grid = self._grid(collection, index, band, chip)
        u, v = _metres(chip, grid)
        shared = "rh" if collection == GEDI and band.startswith("rh") else band  # a footprint's heights go together
        generator = np.random.default_rng((self.seed, zlib.crc32(f"{collection}/{index}/{shared}".encode())))
        low, high, dtype = _BANDS[_KIN.get(collection, collection)][band]
        field_ = _smooth(u, v, generator)
        values = low + (high - low) * field_
        if np.dtype(dtype).kind in "ui":
            values = np.round(values)
        values = _special(collection, band, values, field_, generator)
        speckled = collection in (S2, S1, L8, L9)
        mask = generator.random(values.shape) > 0.01 if speckled else np.ones(values.shape, bool)
        return Raster(grid, values.astype(dtype), mask & self._footprint(collection, index, u, v, generator))

    def _grid(self, collection: str, index: str, band: str, chip: Rectangle) -> Grid:
        if collection == ERA5:
            return _geographic(chip, 0.1, -180.05, 90.05, 4)
        if collection.startswith("NASA/GRACE"):
            return _geographic(chip, 0.5, -180.0, 90.0, 8)
        if collection == DEM:
            return _geographic(chip, 1 / 3600, -180.0, 90.0, 12 + round((chip.right - chip.left) / 60))
        if collection in (NLCD19, NLCD21, CDL):
            return _projected(chip, 30.0, 17.0, 150.0)
        step = {L8: 15.0 if band == "B8" else 30.0, L9: 15.0 if band == "B8" else 30.0, PALSAR: 25.0, GEDI: 25.0}.get(
            collection
        )
        step = step or (20.0 if band == "B11" else 10.0)
        return _projected(chip, step, 15.0 if step == 30.0 else 0.0, 4 * step)

    def _footprint(self, collection, index, u, v, generator) -> np.ndarray:
        if collection == S2:  # the two granules overlap in the middle of the chip
            return v > -150 if "TMT" in index else v < 150
        if collection in (L8, L9):  # the northern row ends in the south, and the southern one in the north
            return v > -100 if "_195027_" in index else v < 100
        if collection == S1:
            return v > 0 if "_1_X" in index else v <= 0
        if collection == GEDI:
            return generator.random(u.shape) < 0.15
        if collection == ERA5:
            return u > -30_000  # the sea in the west
        if collection == DEM:
            return u <= 40 if "_W_" in index else u > -40
        return np.ones(u.shape, bool)


@functools.lru_cache(1024)
def _metres(chip: Rectangle, grid: Grid) -> tuple[np.ndarray, np.ndarray]:
    """A grid's pixel centres, in metres from the chip's centre."""
    x, y = grid.centres()
    if grid.crs != chip.crs:
        x, y = transformer(grid.crs, chip.crs).transform(x, y)
    return x - (chip.left + chip.right) / 2, y - (chip.bottom + chip.top) / 2


def _smooth(u: np.ndarray, v: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """A field in [0, 1] that varies over a few hundred metres."""
    total = np.zeros(u.shape)
    for _ in range(3):
        length, direction, phase = (
            generator.uniform(180, 900),
            generator.uniform(0, math.pi),
            generator.uniform(0, 2 * math.pi),
        )
        total += np.sin((u * math.cos(direction) + v * math.sin(direction)) * 2 * math.pi / length + phase)
    return np.clip(total / 6 + 0.5, 0, 1)


def _special(collection, band, values, field_, generator) -> np.ndarray:
    if collection in (NLCD19, NLCD21):
        return NLCD_CODES[np.clip((field_ * len(NLCD_CODES)).astype(int), 0, len(NLCD_CODES) - 1)]
    if collection == CDL:
        return np.array([1, 5, 24, 36, 111, 176])[np.clip((field_ * 6).astype(int), 0, 5)]
    if band == "QA_PIXEL":
        return np.select([field_ > 0.75, field_ < 0.2], [1 << 1 | 1 << 6, 1 << 4], 1 << 6)
    if band == "MSK":
        return np.select([field_ > 0.85, field_ < 0.15], [2, 4], 1)
    if band in ("quality_flag", "degrade_flag"):
        return (generator.random(values.shape) < (0.8 if band == "quality_flag" else 0.1)).astype(float)
    return values


def _projected(chip: Rectangle, step: float, shift: float, margin: float) -> Grid:
    left = math.floor((chip.left - margin) / step) * step + shift - step
    top = math.ceil((chip.top + margin) / step) * step + shift
    width = math.ceil((chip.right + margin - left) / step) + 1
    height = math.ceil((top - chip.bottom + margin) / step) + 1
    return Grid(chip.crs, (step, 0, left, 0, -step, top), height, width)


def _geographic(chip: Rectangle, step: float, west: float, north: float, margin: int) -> Grid:
    lon, lat = chip.lon_lat
    col, row = math.floor((lon - west) / step) - margin, math.floor((north - lat) / step) - margin
    side = 2 * margin + 1
    wide = math.ceil(side / max(math.cos(math.radians(lat)), 0.1))
    col -= (wide - side) // 2
    return Grid("EPSG:4326", (step, 0, west + col * step, 0, -step, north - row * step), side, wide)


_KIN = {GRACE.replace("V03", "V04"): GRACE, NLCD21: NLCD19, L9: L8}
_BANDS: dict[str, dict[str, tuple[float, float, str]]] = {
    S2: {
        "B2": (700, 2600, "u2"),
        "B3": (600, 2500, "u2"),
        "B4": (350, 2400, "u2"),
        "B8": (300, 5000, "u2"),
        "B11": (90, 3500, "u2"),
        "QA60": (0, 0, "u2"),
    },
    CS: {"cs": (0, 1, "f4"), "cs_cdf": (0, 1, "f4")},
    S1: {
        name: (low, high, "f4")
        for name, low, high in (("VV", -18, -2), ("VH", -32, -8), ("HH", -18, -2), ("HV", -26, -8), ("angle", 30, 46))
    },
    L8: {
        # Air scatters short waves: the darkest blue is brighter than the darkest red.
        **{
            name: (low, low + 0.4, "f4")
            for name, low in (("B2", 0.1), ("B3", 0.08), ("B4", 0.05), ("B5", 0.03), ("B6", 0.01), ("B8", 0.07))
        },
        "B10": (270, 310, "f4"),
        "QA_PIXEL": (0, 65535, "u2"),
    },
    PALSAR: {"HH": (800, 9000, "u2"), "HV": (400, 5000, "u2"), "LIN": (2000, 5000, "u2"), "MSK": (1, 1, "u1")},
    DEM: {"DEM": (250, 330, "f4"), "WBM": (0, 0, "u1")},
    GEDI: {
        **{f"rh{i}": (-3 + 0.3 * i, 1 + 0.3 * i, "f4") for i in range(101)},
        "quality_flag": (0, 1, "u1"),
        "degrade_flag": (0, 1, "u1"),
        "lon_highestreturn": (0, 0, "f8"),
        "lat_highestreturn": (0, 0, "f8"),
    },
    ERA5: {
        "total_precipitation_sum": (0, 0.2, "f8"),
        "total_precipitation_min": (0, 0.001, "f8"),
        "total_precipitation_max": (0.001, 0.02, "f8"),
        # Means lie above minima, below maxima, as they must.
        **{
            f"{name}{suffix}": (low + shift, low + 8 + shift, "f8")
            for name, low in (("temperature_2m", 282), ("dewpoint_temperature_2m", 272), ("surface_pressure", 95_000))
            for suffix, shift in (("", 0), ("_min", -9), ("_max", 9))
        },
    },
    GRACE: {"lwe_thickness": (-40, 40, "f8"), "uncertainty": (0, 5, "f8")},
    NLCD19: {"landcover": (0, 0, "u1"), "impervious": (0, 100, "u1")},
    CDL: {"cropland": (0, 0, "u1")},
}
