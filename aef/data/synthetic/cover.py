"""What grows where: the land covers of the synthetic Earth, their seasons, and how they reflect and scatter.

Six crops differ in two independent ways, the start of their season (15 days apart) and its length, arranged on an
ellipse so that every class can be told from the rest by a plane in the latent space. Colours of the crops differ less
between classes than between fields of one class: the season is what tells them apart.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

CROP_SPACING_DAYS = 15.0
START_JITTER_DAYS = 3.0
LENGTH_JITTER_DAYS = 3.0
UNKNOWN = 0


@dataclass(frozen=True, kw_only=True)
class Cover:
    """One land cover.

    Attributes:
        name, crop: for the legends; a crop also has a class of its own.
        share: how often a field is of it, on average over places.
        nlcd: codes of the American map, one of which a field gets.
        start_day: season start, in days after the spring of the place (`aef.data.synthetic.weather`).
        length_days: from start to end of season.
        winter, peak: green cover before the season and at its height.
        dry: how much of the canopy stands dry after the season.
        cuts: times a year at which it is mown.
        bare, green: reflectance of the ground (or the leafless state) and of the full canopy, in `SPECTRUM`'s order.
        vv_db, vh_db: backscatter when bare, at 38 degrees; ``vv_canopy_db``, ``vh_canopy_db`` what a full canopy adds.
        height_m: of the vegetation or buildings; ``thermal_k`` how much warmer than the air its surface is in full sun.
    """

    name: str
    share: float
    nlcd: tuple[int, ...]
    start_day: float
    length_days: float
    winter: float
    peak: float
    dry: float
    bare: tuple[float, ...]
    green: tuple[float, ...]
    vv_db: float
    vh_db: float
    vv_canopy_db: float
    vh_canopy_db: float
    height_m: float = 0.0
    thermal_k: float = 6.0
    cuts: int = 0
    crop: bool = False


SPECTRUM = ("blue", "green", "red", "nir", "swir")
"""The five wavelengths that Sentinel-2 (B2, B3, B4, B8, B11) and Landsat (B2, B3, B4, B5, B6) share."""

SOIL = (0.100, 0.112, 0.135, 0.215, 0.265)
LEAF = (0.068, 0.088, 0.062, 0.345, 0.180)
STRAW = (0.095, 0.125, 0.150, 0.285, 0.290)


def _crop(name: str, *, order: int, length_days: float, winter: float, height_m: float, vh_canopy_db: float) -> Cover:
    return Cover(
        name=name,
        share=0.085,
        nlcd=(82,),
        start_day=(order - 2.5) * CROP_SPACING_DAYS,
        length_days=length_days,
        winter=winter,
        peak=0.88,
        dry=0.75,
        bare=SOIL,
        green=LEAF,
        vv_db=-10.5,
        vh_db=-18.5,
        vv_canopy_db=-3.0,
        vh_canopy_db=vh_canopy_db,
        height_m=height_m,
        crop=True,
    )


COVERS: tuple[Cover, ...] = (
    _crop("winter barley", order=0, length_days=98, winter=0.16, height_m=0.9, vh_canopy_db=4.1),
    _crop("winter rapeseed", order=1, length_days=118, winter=0.16, height_m=1.3, vh_canopy_db=4.9),
    _crop("spring barley", order=2, length_days=73, winter=0.10, height_m=0.8, vh_canopy_db=4.1),
    _crop("sugar beet", order=3, length_days=123, winter=0.10, height_m=0.5, vh_canopy_db=4.7),
    _crop("sunflower", order=4, length_days=77, winter=0.10, height_m=1.5, vh_canopy_db=4.9),
    _crop("maize", order=5, length_days=98, winter=0.10, height_m=2.4, vh_canopy_db=5.1),
    Cover(
        name="grassland",
        share=0.085,
        nlcd=(71, 81),
        start_day=-32,
        length_days=215,
        winter=0.45,
        peak=0.86,
        dry=0.1,
        bare=SOIL,
        green=(0.072, 0.096, 0.070, 0.355, 0.205),
        vv_db=-11.0,
        vh_db=-18.0,
        vv_canopy_db=0.3,
        vh_canopy_db=1.6,
        height_m=0.3,
        thermal_k=4.0,
        cuts=3,
    ),
    Cover(
        name="broadleaf forest",
        share=0.082,
        nlcd=(41, 43),
        start_day=2,
        length_days=170,
        winter=0.25,
        peak=0.95,
        dry=0.2,
        bare=(0.075, 0.083, 0.092, 0.215, 0.190),
        green=(0.062, 0.080, 0.055, 0.340, 0.160),
        vv_db=-8.6,
        vh_db=-14.6,
        vv_canopy_db=0.3,
        vh_canopy_db=0.5,
        height_m=21,
        thermal_k=1.0,
    ),
    Cover(
        name="conifer forest",
        share=0.082,
        nlcd=(42,),
        start_day=0,
        length_days=200,
        winter=0.82,
        peak=0.92,
        dry=0.0,
        bare=(0.070, 0.078, 0.080, 0.200, 0.150),
        green=(0.060, 0.070, 0.052, 0.235, 0.110),
        vv_db=-8.4,
        vh_db=-14.2,
        vv_canopy_db=0.0,
        vh_canopy_db=0.2,
        height_m=24,
        thermal_k=0.5,
    ),
    Cover(
        name="shrubland",
        share=0.082,
        nlcd=(52,),
        start_day=-10,
        length_days=150,
        winter=0.35,
        peak=0.68,
        dry=0.5,
        bare=(0.085, 0.100, 0.118, 0.205, 0.235),
        green=(0.070, 0.088, 0.070, 0.285, 0.190),
        vv_db=-10.0,
        vh_db=-16.5,
        vv_canopy_db=0.2,
        vh_canopy_db=1.0,
        height_m=2.2,
        thermal_k=5.0,
    ),
    Cover(
        name="built-up",
        share=0.08,
        nlcd=(22, 23, 24),
        start_day=-10,
        length_days=180,
        winter=0.10,
        peak=0.25,
        dry=0.0,
        bare=(0.130, 0.140, 0.152, 0.205, 0.215),
        green=LEAF,
        vv_db=-5.5,
        vh_db=-13.0,
        vv_canopy_db=0.0,
        vh_canopy_db=0.3,
        height_m=7,
        thermal_k=9.0,
    ),
    Cover(
        name="water",
        share=0.079,
        nlcd=(11,),
        start_day=0,
        length_days=180,
        winter=0.0,
        peak=0.04,
        dry=0.0,
        bare=(0.088, 0.072, 0.050, 0.034, 0.016),
        green=(0.080, 0.078, 0.055, 0.070, 0.024),
        vv_db=-18.0,
        vh_db=-25.5,
        vv_canopy_db=0.0,
        vh_canopy_db=0.0,
        thermal_k=-4.0,
    ),
)
"""Code k + 1 of the map is ``COVERS[k]``; 0 is unknown."""

CROPS = tuple(code for code, cover in enumerate(COVERS, 1) if cover.crop)
CROPLAND = CROPS[0]
"""Code of cropland in the land-cover map, whatever grows on it."""

WATER = 1 + next(k for k, cover in enumerate(COVERS) if cover.name == "water")
BUILT_UP = 1 + next(k for k, cover in enumerate(COVERS) if cover.name == "built-up")
HEDGE = 1 + next(k for k, cover in enumerate(COVERS) if cover.name == "shrubland")

CROP_LEGEND = {UNKNOWN: "unknown", **{code: COVERS[code - 1].name for code in CROPS}}
COVER_LEGEND = {
    UNKNOWN: "unknown",
    CROPLAND: "cropland",
    **{code: cover.name for code, cover in enumerate(COVERS, 1) if not cover.crop},
}


def table(attribute: str) -> np.ndarray:
    """An attribute of every cover, by index: (covers, ...) float32."""
    return np.array([getattr(cover, attribute) for cover in COVERS], np.float32)
