"""The source registry: every satellite, model or map product that a chip may hold, one entry each.

An entry states everything that is specific to its source: bands, units, transform, valid range, sensor metadata, loss
rule, augmentation, licence. Reader, sampler, model and loss never ask "is this Sentinel-1?": they read the entry. Only
what downloads, renders or surveys values knows sources by name. Adding a source is adding one entry, here or in a YAML
file (`aef.settings_file.read_sources`).

The nine gridded sources and their rules are those of Brown et al. 2025, Table S1, Table S2 and supplement S1-S2.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from aef.source_entry import (
    Band,
    Grid,
    Loss,
    MetadataField,
    Registry,
    Role,
    Source,
    SourceError,
    TimeKind,
    Transform,
)

__all__ = [
    "BUILT_IN",
    "INPUTS",
    "NLCD_CLASSES",
    "VERSION_2_1",
    "Band",
    "Grid",
    "Loss",
    "MetadataField",
    "Registry",
    "Role",
    "Source",
    "SourceError",
    "TimeKind",
    "Transform",
]


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
    *range(1, 7), *range(10, 15), *range(21, 40), *range(41, 62), *range(63, 73), *range(74, 78), 82, 83, 87, 92, 111, 112,
    *range(121, 125), 131, 141, 142, 143, 152, 176, 190, 195, *range(204, 251), 254,
)  # fmt: skip
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
