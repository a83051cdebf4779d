"""What STAC collections hold: which source each one is, which asset is which band, and what its numbers mean.

The catalogues' products are not Earth Engine's: surface reflectance instead of top-of-atmosphere, terrain-corrected
backscatter instead of ellipsoid-corrected, offsets that may or may not have been applied. Each product is therefore a
source of its own unless it truly is the same one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from aef.earthengine.decode import terrain
from aef.earthengine.errors import RequestError

PREFIX = "stac:"
SCL_NOT_CLEAR = (3, 8, 9, 10)
"""Scene classification of Sentinel-2 L2A: cloud shadow, medium and high cloud probability, thin cirrus."""

LANDSAT_NOT_CLEAR = 1 << 1 | 1 << 4
"""QA_PIXEL: dilated cloud, cloud shadow (the paper's two bits, as through Earth Engine)."""

LANDSAT_FILL = 1
"""QA_PIXEL outside an image."""


@dataclass(frozen=True)
class Scaling:
    """What an asset's numbers mean: value = scale x DN + offset. ``note`` says where that was read."""

    scale: float = 1.0
    offset: float = 0.0
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Product:
    """One STAC collection as one source.

    Attributes:
        collections: ids under which catalogues offer it, best first.
        source: registry name.
        assets: registry band (or fetched band) → asset keys, first found.
        dtype: type in which the assets are read; ``nodata`` is what masks a pixel in them.
        stored: type in which a chip holds them.
        scaling: item, asset key → what the asset's numbers mean.
        convert: from scaled values to what the registry's bands hold.
        quality: asset keys of a quality band, codes → True where the pixel counts in the loss, and the code that says
            nothing, so that an overlapping image's counts.
        version: item property that tells reprocessings apart; the largest is kept.
        margin_px: pixels read around the chip and cut off after ``finish``.
        finish: what is computed of neighbouring pixels once they are on the grid, as `aef.earthengine.decode.terrain`.
        static: without times; its items are one frame.
        outside_is_masked: values beyond the registry's range are part of the product's nature (noise around black).
        beside: bands that are observed only where another is (`aef.earthengine.decode.mask_beside`).
        only: item property → its values that count; an item that does not state it counts.
    """

    collections: tuple[str, ...]
    source: str
    assets: Mapping[str, tuple[str, ...]]
    dtype: str
    nodata: float
    stored: str
    scaling: Callable[[Any, str], Scaling]
    convert: Callable[[np.ndarray], np.ndarray] = lambda values: values
    quality: tuple[tuple[str, ...], Callable[[np.ndarray], np.ndarray], int] | None = None
    version: str = ""
    margin_px: int = 0
    finish: Callable[[np.ndarray, np.ndarray, tuple[int, int]], tuple[np.ndarray, np.ndarray]] | None = None
    static: bool = False
    outside_is_masked: bool = False
    beside: tuple[str, ...] = ()
    only: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def takes(self, item: Any) -> bool:
        """Whether an item is of the platforms, modes and categories that count."""
        stated = ((item.properties.get(name), values) for name, values in self.only.items())
        return all(value is None or str(value).lower() in values for value, values in stated)


def raster_band(item: Any, key: str) -> dict[str, Any]:
    """The first band's entry of the raster extension (or of STAC 1.1's ``bands``), empty where there is none."""
    fields = item.assets[key].extra_fields
    bands = fields.get("raster:bands") or fields.get("bands") or [{}]
    own = {k: fields[k] for k in ("raster:scale", "raster:offset", "unit") if k in fields}
    entry = {**bands[0], **own}
    return {name.removeprefix("raster:"): value for name, value in entry.items()}


def sentinel2_offset(item: Any, key: str) -> Scaling:
    """To reflectance x 10000 without the radiometric offset of processing baseline 04.00, whoever applied what before.

    In this order: a catalogue that says that it has removed the offset is believed; then an offset stated for the
    asset; then the baseline. An item that says nothing at all is refused: a silent guess would be wrong by 1000.

    Raises:
        RequestError: neither offset nor baseline is stated.
    """
    properties = item.properties
    if properties.get("earthsearch:boa_offset_applied") is True:
        return Scaling(note="offset removed by the catalogue")
    stated = raster_band(item, key)
    if "offset" in stated and stated.get("scale"):
        return Scaling(1.0, round(stated["offset"] / stated["scale"]), "offset stated for the asset")
    baseline = properties.get("s2:processing_baseline") or properties.get("processing:version")
    try:
        return Scaling(1.0, -1000.0 if float(str(baseline)) >= 4 else 0.0, f"processing baseline {baseline}")
    except ValueError:
        raise RequestError(
            f"{item.id}: states neither a radiometric offset nor a processing baseline: its reflectance could be off by 1000"
        ) from None


def stated_scaling(item: Any, key: str) -> Scaling:
    """Scale and offset of the raster extension. Raises RequestError where they are missing."""
    stated = raster_band(item, key)
    if not stated.get("scale"):
        raise RequestError(f"{item.id}: asset {key} states no scale (raster extension): its unit is unknown")
    return Scaling(stated["scale"], stated.get("offset", 0.0), "stated for the asset")


def as_is(item: Any, key: str) -> Scaling:
    """The asset holds the values themselves."""
    return Scaling()


def declared_db(item: Any, key: str) -> Scaling:
    """Backscatter that is declared as dB. Raises RequestError for uncalibrated amplitudes, which most hold."""
    if str(raster_band(item, key).get("unit", "")).lower() != "db":
        raise RequestError(
            f"{item.id}: asset {key} is not declared as dB: GRD amplitudes are not calibrated; use the source sentinel1_rtc "
            "(collection sentinel-1-rtc), or Earth Engine"
        )
    return Scaling()


def power_to_db(values: np.ndarray) -> np.ndarray:
    """10 log10 of linear power; what is not positive has no logarithm and becomes NaN (not observed)."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(values > 0, 10 * np.log10(np.where(values > 0, values, 1)), np.nan)


def not_negative(values: np.ndarray) -> np.ndarray:
    """Noise around black, once the offset is taken off: 0 at least, as in the harmonised collection."""
    return np.maximum(values, 0)


_OPTICAL = {
    "B2": ("blue", "B02"),
    "B3": ("green", "B03"),
    "B4": ("red", "B04"),
    "B8": ("nir", "B08"),
    "B11": ("swir16", "B11"),
}

PRODUCTS: tuple[Product, ...] = (
    Product(
        collections=("sentinel-2-l1c", "sentinel-2-c1-l1c"),
        source="sentinel2",
        assets=_OPTICAL,
        dtype="uint16",
        nodata=0,
        stored="uint16",
        scaling=sentinel2_offset,
        convert=not_negative,
        version="s2:processing_baseline",
    ),
    Product(
        collections=("sentinel-2-l2a", "sentinel-2-c1-l2a"),
        source="sentinel2_l2a",
        assets={
            "B02": ("blue", "B02"),
            "B03": ("green", "B03"),
            "B04": ("red", "B04"),
            "B05": ("rededge1", "B05"),
            "B06": ("rededge2", "B06"),
            "B07": ("rededge3", "B07"),
            "B08": ("nir", "B08"),
            "B8A": ("nir08", "B8A"),
            "B11": ("swir16", "B11"),
            "B12": ("swir22", "B12"),
        },
        dtype="uint16",
        nodata=0,
        stored="uint16",
        scaling=sentinel2_offset,
        convert=not_negative,
        quality=(("scl", "SCL"), lambda codes: ~np.isin(codes, SCL_NOT_CLEAR), 0),
        version="s2:processing_baseline",
    ),
    Product(
        collections=("sentinel-1-rtc",),
        source="sentinel1_rtc",
        assets={"VV": ("vv", "VV"), "VH": ("vh", "VH")},
        only={"sar:instrument_mode": ("iw",)},
        dtype="float32",
        nodata=float("nan"),
        stored="float32",
        scaling=as_is,
        convert=power_to_db,
        outside_is_masked=True,
    ),
    Product(
        collections=("sentinel-1-grd",),
        source="sentinel1",
        assets={"VV": ("vv", "VV"), "VH": ("vh", "VH"), "HH": ("hh", "HH"), "HV": ("hv", "HV"), "angle": ("angle",)},
        only={"sar:instrument_mode": ("iw",)},
        dtype="float32",
        nodata=float("nan"),
        stored="float32",
        scaling=declared_db,
        outside_is_masked=True,
        beside=("angle",),
    ),
    Product(
        collections=("landsat-c2-l2",),
        source="landsat_c2_l2",
        assets={
            "B2": ("blue",),
            "B3": ("green",),
            "B4": ("red",),
            "B5": ("nir08",),
            "B6": ("swir16",),
            "ST_B10": ("lwir11", "lwir"),
        },
        dtype="uint16",
        nodata=0,
        stored="float32",
        scaling=stated_scaling,
        quality=(("qa_pixel",), lambda codes: (codes & LANDSAT_NOT_CLEAR) == 0, LANDSAT_FILL),
        outside_is_masked=True,
        # Tier 2 is not registered well enough for a series.
        only={"platform": ("landsat-8", "landsat-9"), "landsat:collection_category": ("t1",)},
    ),
    Product(
        collections=("cop-dem-glo-30",),
        source="glo30",
        assets={"elevation": ("data", "elevation")},
        dtype="float32",
        nodata=float("nan"),
        stored="float32",
        scaling=as_is,
        margin_px=1,
        finish=terrain,
        static=True,
    ),
)


def product_of(source: str) -> Product:
    """The product that is a source. Raises ValueError naming what a catalogue can give."""
    for product in PRODUCTS:
        if product.source == source:
            return product
    known = ", ".join(p.source for p in PRODUCTS)
    raise ValueError(f"source {source!r} does not come from a STAC catalogue: known are {known}")
