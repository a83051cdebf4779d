"""The source registry: every satellite, model or map product that a chip may hold, one entry each.

An entry states everything that is specific to its source: bands, units, transform, valid range, sensor metadata, loss
rule, augmentation, licence. No other module asks "is this Sentinel-1?"; it reads the entry instead. Adding a source is
adding one entry, here or in a YAML file (`aef.settings_file.read_sources`).

The nine gridded sources and their rules are those of Brown et al. 2025, Table S1, Table S2 and supplement S1-S2.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NoReturn, get_args

Role = Literal["input", "target"]
Grid = Literal["chip", "native", "points"]
TimeKind = Literal["instant", "interval", "static"]
TransformKind = Literal["linear", "log", "db"]
Loss = Literal["l1", "cross_entropy"]
Resampling = Literal["bilinear", "nearest", "area"]
MetadataKind = Literal["angle_deg", "flag", "value"]


class SourceError(ValueError):
    """A source entry is wrong or a source is unknown; the message names the source and the field."""


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


@dataclass(frozen=True)
class Transform:
    """From stored values x to the scale on which the model learns, before the z-score.

    ==========  ======================================  ==========================
    kind        forward                                 inverse
    ==========  ======================================  ==========================
    ``linear``  scale * x + offset                      (y - offset) / scale
    ``log``     ln(max(scale * x, 0) + 1) / 10          (exp(10 y) - 1) / scale
    ``db``      scale * log10(max(x, floor)) + offset   10 ** ((y - offset) / scale)
    ==========  ======================================  ==========================

    ``log`` is the paper's s(x) = log(x + 1) / 10 for optical bands (supplement S1; the factor 10 is restored from
    secondary sources). ``db`` with scale 20 and offset -83 is PALSAR-2's gamma-nought 10 log10(DN^2) - 83.
    """

    kind: TransformKind = "linear"
    scale: float = 1.0
    offset: float = 0.0

    def __post_init__(self) -> None:
        if self.kind not in ("linear", "log", "db"):
            raise SourceError(f"transform kind {self.kind!r} is unknown: expected linear, log or db")
        if not (_is_number(self.scale) and _is_number(self.offset)) or self.scale == 0:
            raise SourceError(
                f"transform scale must be finite and not 0, offset finite; found {self.scale}, {self.offset}"
            )
        if self.kind == "log" and self.offset != 0:
            raise SourceError("transform log takes a scale only; found an offset")


@dataclass(frozen=True)
class Band:
    """One band as it is stored in a chip. ``valid_min`` and ``valid_max`` bound what is physically possible."""

    name: str
    unit: str
    valid_min: float
    valid_max: float
    transform: Transform = Transform()

    def __post_init__(self) -> None:
        if not (isinstance(self.name, str) and self.name and isinstance(self.unit, str)):
            raise SourceError(f"band {self.name!r}: name and unit must be texts (quote them), found unit {self.unit!r}")
        if not (_is_number(self.valid_min) and _is_number(self.valid_max) and self.valid_min < self.valid_max):
            raise SourceError(
                f"band {self.name}: valid_min must be a number below valid_max, found {self.valid_min}, {self.valid_max}"
            )


@dataclass(frozen=True)
class MetadataField:
    """Sensor geometry that the decoder is told: an angle enters as sine and cosine, a flag or value as itself.

    A field that is missing in a frame is NaN in the chip; the decoder gets 0 and a "missing" indicator of 1.
    """

    name: str
    kind: MetadataKind

    def __post_init__(self) -> None:
        if self.kind not in ("angle_deg", "flag", "value"):
            raise SourceError(
                f"metadata {self.name!r}: kind {self.kind!r} is unknown: expected angle_deg, flag or value"
            )

    @property
    def encoded_width(self) -> int:
        return (2 if self.kind == "angle_deg" else 1) + 1


@dataclass(frozen=True)
class Source:
    """One entry of the registry.

    Attributes:
        name: identifier used in chips, settings and logs.
        title: human name.
        collections: product or Earth Engine collection ids, newest accepted last.
        bands: in the order of the chip's channel axis.
        role: ``input`` sources are encoded and decoded, ``target`` sources are only decoded (paper S2: M_E, M_D).
        native_resolution_m: ground sampling of the product.
        grid: ``chip`` lies on the chip's 10 m grid; ``native`` keeps its own grid and affine; ``points`` are footprints.
        time: ``instant`` (acquisitions), ``interval`` (months, years; carries an end) or ``static``.
        resampling: how the product is brought to the chip's grid.
        metadata: sensor geometry per frame, in order.
        classes: stored codes of a categorical source, in order of the logits; empty for continuous ones.
        loss: L1, or cross-entropy for categorical sources (paper Table S2).
        weight: w_i of Table S2.
        shift_m: largest planar shift of the shift-invariant loss (None: no shift search).
        regrid_m: spacing to which prediction and target are averaged before the error (None: no re-gridding).
        frame_budget: how many frames of it a training sample encodes (paper: 65, 17 and 21).
        source_drop: probability that the student loses the whole source (paper S2.3, stage 1).
        frame_drop: probability that the student loses a single frame (paper S2.3, stage 2a).
        line_gap: mask one line of random width through all input frames of a sample (paper S1, Sentinel-1).
        min_overlap: least share of an interval target that its summary period must cover.
        enabled: part of the default set (v2.1 additions are off).
        licence, attribution: what to cite.
        note: anything a user must know, such as a deprecated collection and its successor.
    """

    name: str
    title: str
    collections: tuple[str, ...]
    bands: tuple[Band, ...]
    role: Role
    native_resolution_m: float
    grid: Grid = "chip"
    time: TimeKind = "instant"
    resampling: Resampling = "bilinear"
    metadata: tuple[MetadataField, ...] = ()
    classes: tuple[int, ...] = ()
    loss: Loss = "l1"
    weight: float = 1.0
    shift_m: float | None = None
    regrid_m: float | None = None
    frame_budget: int = 0
    source_drop: float = 0.0
    frame_drop: float = 0.0
    line_gap: bool = False
    min_overlap: float = 0.5
    enabled: bool = True
    licence: str = ""
    attribution: str = ""
    note: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        self._check_names()
        self._check_numbers()
        self._check_rules()

    def _refuse(self, why: str) -> NoReturn:
        raise SourceError(f"source {self.name!r}: {why}")

    def _check_names(self) -> None:
        name = self.name
        if (
            not isinstance(name, str)
            or not name.replace("_", "").isalnum()
            or not name.isascii()
            or name != name.lower()
        ):
            self._refuse("name must be lower-case letters, digits and underscores")
        for key in ("title", "licence", "attribution", "note"):
            if not isinstance(getattr(self, key), str):
                self._refuse(f"{key} must be a text, found {getattr(self, key)!r}")
        if not self.bands:
            self._refuse("needs at least one band")
        if len(set(self.band_names)) != len(self.bands):
            self._refuse(f"band names repeat: {', '.join(self.band_names)}")
        choices = {"role": Role, "grid": Grid, "time": TimeKind, "loss": Loss, "resampling": Resampling}
        for key, choice in choices.items():
            if getattr(self, key) not in get_args(choice):
                self._refuse(f"{key} must be one of {', '.join(get_args(choice))}, found {getattr(self, key)!r}")

    def _check_numbers(self) -> None:
        for key in ("source_drop", "frame_drop", "min_overlap", "weight", "native_resolution_m", "frame_budget"):
            if not _is_number(getattr(self, key)):
                self._refuse(f"{key} must be a number, found {getattr(self, key)!r}")
        for key in ("source_drop", "frame_drop", "min_overlap"):
            if not 0 <= getattr(self, key) <= 1:
                self._refuse(f"{key} must lie in [0, 1], found {getattr(self, key)}")
        for key in ("shift_m", "regrid_m"):
            distance = getattr(self, key)
            if distance is not None and not (_is_number(distance) and distance > 0):
                self._refuse(f"{key} must be a positive number of metres, found {distance!r}")
        if self.weight < 0 or self.native_resolution_m <= 0:
            self._refuse("weight must not be negative and native_resolution_m must be positive")
        if not all(isinstance(code, int) for code in self.classes) or len(set(self.classes)) != len(self.classes):
            self._refuse(f"classes must be different integers, found {self.classes}")

    def _check_rules(self) -> None:
        if self.role == "input" and (self.grid != "chip" or self.time == "static" or self.frame_budget < 1):
            self._refuse("an input source lies on the chip grid, has times and a frame_budget of at least 1")
        if (self.loss == "cross_entropy") != bool(self.classes):
            self._refuse("classes go with loss cross_entropy, and only with it")
        if self.classes and len(self.bands) != 1:
            self._refuse("a categorical source has exactly one band of codes")
        if self.shift_m is not None and self.regrid_m is not None:
            self._refuse("takes shift_m or regrid_m, not both")

    @property
    def band_names(self) -> tuple[str, ...]:
        return tuple(band.name for band in self.bands)

    @property
    def units(self) -> tuple[str, ...]:
        return tuple(band.unit for band in self.bands)

    @property
    def channels(self) -> int:
        """Channels as stored and encoded."""
        return len(self.bands)

    @property
    def decoded_channels(self) -> int:
        """Channels that its decoder predicts: logits for a categorical source, bands otherwise."""
        return len(self.classes) or len(self.bands)

    @property
    def metadata_width(self) -> int:
        """Width of the encoded sensor metadata that the decoder is fed, "missing" indicators included."""
        return sum(item.encoded_width for item in self.metadata)

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, entry: Mapping[str, Any]) -> Source:
        """Inverse of :meth:`to_dict`; also reads YAML entries. Raises `SourceError` naming source and field."""
        if not isinstance(entry, Mapping):
            raise SourceError(f"a source entry must be a mapping, found {type(entry).__name__}")
        try:
            values = dict(entry)
            values["bands"] = tuple(_band(band) for band in _list(entry, "bands"))
            values["metadata"] = tuple(_build(MetadataField, item, "metadata") for item in _list(entry, "metadata"))
            for key in ("collections", "classes"):
                values[key] = tuple(_list(entry, key))
            return _build(cls, values, "entry")
        except SourceError as error:
            raise error if str(error).startswith("source ") else _named(entry, str(error)) from error
        except (TypeError, AttributeError, ValueError) as error:
            raise _named(entry, " ".join(str(error).split())) from error


def _named(entry: Mapping[str, Any], why: str) -> SourceError:
    return SourceError(f"source {entry.get('name', '?')!r}: {why}")


def _list(entry: Mapping[str, Any], key: str) -> list | tuple:
    found = entry.get(key) or ()
    if not isinstance(found, list | tuple):
        raise SourceError(f"{key} must be a list, found {found!r}")
    return found


def _band(entry: Any) -> Band:
    if not isinstance(entry, Mapping):
        raise SourceError(f"a band must be a mapping, found {entry!r}")
    return _build(Band, {**entry, "transform": _build(Transform, entry.get("transform") or {}, "transform")}, "band")


def _build(cls: type[Any], values: Any, what: str) -> Any:
    """A dataclass from a mapping; unknown and missing fields are named."""
    if not isinstance(values, Mapping):
        raise SourceError(f"{what} must be a mapping, found {values!r}")
    known = {item.name: item for item in dataclasses.fields(cls)}
    for key in values:
        if key not in known:
            raise SourceError(f"{what} has an unknown field {key!r}: known are {', '.join(known)}")
    for name, item in known.items():
        if name not in values and item.default is dataclasses.MISSING:
            raise SourceError(f"{what}: the field {name!r} is missing")
    return cls(**values)


class Registry(Mapping[str, Source]):
    """Sources by name, in a fixed order. Unknown names raise `SourceError` with the known ones."""

    def __init__(self, sources: Iterable[Source] = ()) -> None:
        self._sources: dict[str, Source] = {}
        for source in sources:
            if source.name in self._sources and self._sources[source.name] != source:
                raise SourceError(f"source {source.name!r} is defined twice, differently: rename one of the entries")
            self._sources[source.name] = source

    def __getitem__(self, name: str) -> Source:
        try:
            return self._sources[name]
        except KeyError:
            raise SourceError(
                f"unknown source {name!r}: known are {', '.join(self._sources)}; add an entry to a sources YAML file"
            ) from None

    def __contains__(self, name: object) -> bool:
        return name in self._sources

    def __iter__(self):
        return iter(self._sources)

    def __len__(self) -> int:
        return len(self._sources)

    def extended(self, sources: Iterable[Source]) -> Registry:
        """This registry plus more entries. Redefining a source differently raises `SourceError`."""
        return Registry([*self.values(), *sources])

    def select(self, names: Iterable[str]) -> Registry:
        return Registry(self[name] for name in names)


def _optical(names: Iterable[str], scale: float, unit: str, valid_max: float) -> tuple[Band, ...]:
    return tuple(Band(name, unit, 0, valid_max, Transform("log", scale)) for name in names)


def _monthly(name: str, unit: str, low: float, high: float) -> tuple[Band, ...]:
    return tuple(Band(f"{name}{suffix}", unit, low, high) for suffix in ("", "_min", "_max"))


NLCD_CLASSES = (11, 12, 21, 22, 23, 24, 31, 41, 42, 43, 52, 71, 81, 82, 90, 95)

SENTINEL2 = Source(
    name="sentinel2",
    title="Sentinel-2 L1C",
    collections=("COPERNICUS/S2_HARMONIZED",),
    bands=_optical(("B2", "B3", "B4", "B8", "B11"), 1.0, "reflectance x 10000", 28000),
    role="input",
    native_resolution_m=10,
    shift_m=20,
    frame_budget=65,
    frame_drop=0.5,
    licence="Copernicus Sentinel data terms",
    attribution="Contains modified Copernicus Sentinel data",
)

SENTINEL1 = Source(
    name="sentinel1",
    title="Sentinel-1 GRD, IW, ascending and descending",
    collections=("COPERNICUS/S1_GRD",),
    bands=(
        *(Band(name, "dB", -30, 10) for name in ("VV", "VH", "HH", "HV")),
        Band("angle", "degree", 0, 90, Transform("linear", math.pi / 180)),
    ),
    role="input",
    native_resolution_m=10,
    metadata=(MetadataField("heading", "angle_deg"), MetadataField("inclination", "angle_deg")),
    shift_m=20,
    frame_budget=17,
    source_drop=0.3,
    frame_drop=0.3,
    line_gap=True,
    licence="Copernicus Sentinel data terms",
    attribution="Contains modified Copernicus Sentinel data",
    note="each scene carries one or two of the four polarisations; the others are valid = False",
)

LANDSAT = Source(
    name="landsat",
    title="Landsat 8 and 9, Collection 2 Tier 1, top of atmosphere",
    collections=("LANDSAT/LC08/C02/T1_TOA", "LANDSAT/LC09/C02/T1_TOA"),
    bands=(
        # Reflectance is scaled by 1e4 before the logarithm, so that both optical sensors share a range (docs/fidelity.md).
        *_optical(("B2", "B3", "B4", "B5", "B6", "B8"), 1e4, "reflectance", 2.8),
        Band("B10", "K", 150, 373, Transform("log", 1.0)),
    ),
    role="input",
    native_resolution_m=30,
    regrid_m=30,
    frame_budget=21,
    source_drop=0.3,
    frame_drop=0.3,
    licence="public domain",
    attribution="Landsat data courtesy of the U.S. Geological Survey",
)

PALSAR2 = Source(
    name="palsar2",
    title="PALSAR-2 ScanSAR Level 2.2",
    collections=("JAXA/ALOS/PALSAR-2/Level2_2/ScanSAR",),
    bands=(
        *(Band(name, "DN", 1, 65535, Transform("db", 20.0, -83.0)) for name in ("HH", "HV")),
        Band("LIN", "0.01 degree", 0, 9000, Transform("linear", math.pi / 18000)),
    ),
    role="target",
    native_resolution_m=25,
    metadata=(MetadataField("pass_direction", "flag"), MetadataField("antenna_pointing", "flag")),
    regrid_m=30,
    licence="JAXA terms of use of ALOS-2 data",
    attribution="JAXA ALOS-2 PALSAR-2",
)

GLO30 = Source(
    name="glo30",
    title="Copernicus DEM GLO-30",
    collections=("COPERNICUS/DEM/GLO30",),
    bands=(
        Band("elevation", "m", -500, 9000),
        *(Band(name, "1", -1.0001, 1.0001) for name in ("sin_slope", "cos_slope", "sin_aspect", "cos_aspect")),
    ),
    role="target",
    native_resolution_m=30,
    time="static",
    regrid_m=30,
    licence="Copernicus DEM licence (GLO-30)",
    attribution="produced using Copernicus WorldDEM-30 (c) DLR e.V. 2010-2014 and (c) Airbus Defence and Space GmbH "
    "2014-2018 provided under COPERNICUS by the European Union and ESA; all rights reserved",
    note="COPERNICUS/DEM/GLO30 is deprecated in the catalog; its successor is COPERNICUS/DEM/GLO30_2024_1",
)

GEDI = Source(
    name="gedi",
    title="GEDI L2A raster, relative heights",
    collections=("LARSE/GEDI/GEDI02_A_002_MONTHLY",),
    bands=tuple(Band(f"rh{i}", "m", -213, 213) for i in range(101)),
    role="target",
    native_resolution_m=25,
    grid="points",
    time="interval",
    resampling="nearest",
    regrid_m=20,
    licence="NASA open data",
    attribution="GEDI L2A, NASA LP DAAC / University of Maryland",
)

ERA5_LAND = Source(
    name="era5_land",
    title="ERA5-Land monthly aggregates",
    collections=("ECMWF/ERA5_LAND/MONTHLY_AGGR",),
    bands=(
        # Sums of monthly precipitation flow can be slightly negative in the product.
        Band("total_precipitation_sum", "m", -0.01, 5),
        Band("total_precipitation_min", "m", -0.01, 1),
        Band("total_precipitation_max", "m", -0.01, 2),
        *_monthly("temperature_2m", "K", 180, 340),
        *_monthly("dewpoint_temperature_2m", "K", 180, 340),
        *_monthly("surface_pressure", "Pa", 40000, 110000),
    ),
    role="target",
    native_resolution_m=11132,
    grid="native",
    time="interval",
    licence="Copernicus Climate Change Service licence",
    attribution="Contains modified Copernicus Climate Change Service information",
)

GRACE = Source(
    name="grace",
    title="GRACE and GRACE-FO mascons, CRI filtered",
    collections=("NASA/GRACE/MASS_GRIDS_V03/MASCON_CRI", "NASA/GRACE/MASS_GRIDS_V04/MASCON_CRI"),
    bands=(Band("lwe_thickness", "cm", -1000, 1000),),
    role="target",
    native_resolution_m=55660,
    grid="native",
    time="interval",
    weight=0.5,
    regrid_m=1280,
    licence="NASA open data",
    attribution="JPL GRACE mascons, NASA MEaSUREs",
    note="V03 is deprecated in the catalog; its successor is NASA/GRACE/MASS_GRIDS_V04/MASCON_CRI",
)

NLCD = Source(
    name="nlcd",
    title="National Land Cover Database",
    collections=("USGS/NLCD_RELEASES/2019_REL/NLCD", "USGS/NLCD_RELEASES/2021_REL/NLCD"),
    bands=(Band("landcover", "class", 0, 255),),
    role="target",
    native_resolution_m=30,
    time="interval",
    resampling="nearest",
    classes=NLCD_CLASSES,
    loss="cross_entropy",
    weight=0.5,
    regrid_m=30,
    # The nearest mapped year may lie outside the support altogether; overlap is not asked for (paper S1).
    min_overlap=0.0,
    licence="CC0-1.0",
    attribution="U.S. Geological Survey, NLCD",
)

CDL_CLASSES = (
    1,
    2,
    3,
    4,
    5,
    6,
    10,
    11,
    12,
    13,
    14,
    21,
    22,
    23,
    24,
    25,
    26,
    27,
    28,
    29,
    30,
    31,
    32,
    33,
    34,
    35,
    36,
    37,
    38,
    39,
    41,
    42,
    43,
    44,
    45,
    46,
    47,
    48,
    49,
    50,
    51,
    52,
    53,
    54,
    55,
    56,
    57,
    58,
    59,
    60,
    61,
    63,
    64,
    65,
    66,
    67,
    68,
    69,
    70,
    71,
    72,
    74,
    75,
    76,
    77,
    82,
    83,
    87,
    92,
    111,
    112,
    121,
    122,
    123,
    124,
    131,
    141,
    142,
    143,
    152,
    176,
    190,
    195,
    204,
    205,
    206,
    207,
    208,
    209,
    210,
    211,
    212,
    213,
    214,
    215,
    216,
    217,
    218,
    219,
    220,
    221,
    222,
    223,
    224,
    225,
    226,
    227,
    228,
    229,
    230,
    231,
    232,
    233,
    234,
    235,
    236,
    237,
    238,
    239,
    240,
    241,
    242,
    243,
    244,
    245,
    246,
    247,
    248,
    249,
    250,
    254,
)
"""Codes of the Cropland Data Layer as the catalog lists them, without background, clouds and undefined."""

CDL = Source(
    name="cdl",
    title="USDA NASS Cropland Data Layer",
    collections=("USDA/NASS/CDL",),
    bands=(Band("cropland", "class", 0, 255),),
    role="target",
    native_resolution_m=30,
    time="interval",
    resampling="nearest",
    classes=CDL_CLASSES,
    loss="cross_entropy",
    weight=0.25,
    regrid_m=30,
    min_overlap=0.0,
    enabled=False,
    licence="USDA NASS: free of use restrictions",
    attribution="USDA National Agricultural Statistics Service, Cropland Data Layer",
    note="version 2.1 of the paper adds it as a target, with a weight of 0.25 for it and for NLCD",
)

BUILT_IN = Registry((SENTINEL2, SENTINEL1, LANDSAT, PALSAR2, GLO30, GEDI, ERA5_LAND, GRACE, NLCD))
"""The nine gridded sources of the paper (Table S1)."""

VERSION_2_1 = Registry((CDL,))
"""What version 2.1 adds to the nine. Off by default: name it to download it; its chips carry the entry with them."""

INPUTS = ("sentinel2", "sentinel1", "landsat")
