"""Labels: class rasters with legend, ignore codes, valid period and field ids."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
from rasterio.features import rasterize, shapes

from aef.data.chips import Label
from aef.data.ingest.grids import resample
from aef.data.ingest.places import IngestError, PlaceFiles
from aef.data.ingest.planes import declared, read_real
from aef.data.ingest.readers import Raster
from aef.data.ingest.schema import FieldRule, LabelRule
from aef.timecode import parse_period


def read_label(rule: LabelRule, place: PlaceFiles, files: list[Path]) -> Label | None:
    """The label of a place; None where it has no file.

    Raises:
        IngestError: a code is neither in the legend nor ignored, or pixels outside the file have no ignore code.
    """
    if not files:
        return None
    period = rule.valid_period if isinstance(rule.valid_period, str) else rule.valid_period.get(place.name, "")
    valid = parse_period(period) if period else None
    codes = _constant(rule, place, files[0]) if rule.constant else _read(rule, place, files)
    known = {*rule.codes, *rule.ignore}
    foreign = [int(code) for code in np.unique(codes) if int(code) not in known]
    if foreign:
        raise IngestError(
            f"{files[0]}: label {rule.name}: the code {foreign[0]} is neither in codes nor in ignore: add its meaning"
        )
    return Label(
        values=codes,
        legend=dict(rule.codes),
        ignore=rule.ignore,
        valid_start_ms=valid.start_ms if valid else None,
        valid_end_ms=valid.end_ms if valid else None,
        fields=field_ids(codes, rule.fields, rule.ignore) if rule.fields else None,
        licence="; ".join(text for text in (rule.licence, rule.note) if text),
    )


def _constant(rule: LabelRule, place: PlaceFiles, path: Path) -> np.ndarray:
    """One code for the whole chip, by a pattern on the file's name."""
    for pattern, code in rule.constant.items():
        if re.search(pattern, place.relative(path)):
            return np.full((place.grid.height, place.grid.width), code, np.int32)
    raise IngestError(f"{path}: label {rule.name}: no pattern of constant matches its name")


def _read(rule: LabelRule, place: PlaceFiles, files: list[Path]) -> np.ndarray:
    codes = np.zeros((place.grid.height, place.grid.width), np.int32)
    seen = np.zeros(codes.shape, np.bool_)
    for path in files:
        with place.open(path, rule) as raster:
            found, observed = _resample_codes(rule, place, raster)
        fresh = observed & ~seen
        codes[fresh] = found[fresh]
        seen |= observed
    if not seen.all():
        if not rule.ignore:
            raise IngestError(
                f"{files[0]}: label {rule.name}: {int((~seen).sum())} pixels have no code: state an ignore code for them"
            )
        codes[~seen] = rule.ignore[0]
    return codes


def _resample_codes(rule: LabelRule, place: PlaceFiles, raster: Raster) -> tuple[np.ndarray, np.ndarray]:
    """Codes of the nearest pixel; with ``min_purity`` the most frequent code where its share of the area is enough."""
    plane = read_real(raster, rule.var, 0)
    observed = ~declared(plane, rule.nodata)
    if rule.nodata.all_zero:
        observed &= plane != 0
    if plane.dtype.kind == "f":
        observed &= np.isfinite(plane)
        if (plane[observed] != np.rint(plane[observed])).any():
            raise raster.refuse(f"{rule.var}: label {rule.name}: codes are whole numbers, found fractions")
    observed = _held_by_file(rule, raster, plane, observed)
    found, limits = plane[observed], np.iinfo(np.int32)
    if found.size and not limits.min <= found.min() <= found.max() <= limits.max:
        raise raster.refuse(
            f"{rule.var}: label {rule.name}: codes of up to {limits.max} fit into a chip, found {found.min()} to {found.max()}: "
            "write shorter ones into the raster"
        )
    plane = np.where(observed, plane, 0).astype(np.int32)
    assert raster.grid is not None
    if not rule.min_purity:
        moved, seen = resample(plane[None], observed[None], raster.grid, place.grid, "nearest")
        return moved[0], seen[0]
    codes = np.unique(plane[observed])
    if not len(codes):
        return np.zeros((place.grid.height, place.grid.width), np.int32), np.zeros(
            (place.grid.height, place.grid.width), np.bool_
        )
    shares = np.stack(
        [
            resample(
                (observed & (plane == code))[None].astype(np.float32),
                np.ones_like(observed)[None],
                raster.grid,
                place.grid,
                "area",
            )[0][0]
            for code in codes
        ]
    )
    return codes[shares.argmax(axis=0)].astype(np.int32), shares.max(axis=0) >= rule.min_purity


def _held_by_file(rule: LabelRule, raster: Raster, plane: np.ndarray, observed: np.ndarray) -> np.ndarray:
    """``observed`` without what the file itself says it does not hold, where the recipe follows it.

    Raises:
        RasterError: the recipe takes such pixels for a class, and does not say whether the file is right.
    """
    if rule.nodata.file is False:
        return observed
    mask = raster.mask(rule.var, 0)
    empty = np.isin(plane, raster.nodata(rule.var, 0)) | (False if mask is None else ~mask)
    if rule.nodata.file:
        return observed & ~empty
    contradicted = empty & observed & np.isin(plane, list(rule.codes))
    if contradicted.any():
        raise raster.refuse(
            f"{rule.var}: label {rule.name}: its own no-data tag or mask says that {int(contradicted.sum())} pixels hold no data, "
            f"which the recipe takes for a class (code {int(plane[contradicted][0])}): nodata: {{file: true}} follows the file, "
            "{file: false} does not"
        )
    return observed


def field_ids(codes: np.ndarray, rule: FieldRule, ignore: tuple[int, ...]) -> np.ndarray:
    """Connected regions of one code (4 neighbours) of at least ``min_px`` pixels, numbered from 1; 0 elsewhere."""
    wanted = np.isin(codes, rule.codes) if rule.codes else ~np.isin(codes, ignore)
    regions = [geometry for geometry, _ in shapes(codes.astype(np.int32), mask=wanted, connectivity=4)]
    if not regions:
        return np.zeros(codes.shape, np.int32)
    numbered = rasterize(
        [(geometry, number) for number, geometry in enumerate(regions, start=1)], out_shape=codes.shape, dtype="int32"
    )
    sizes = np.bincount(numbered.ravel(), minlength=len(regions) + 1)
    kept = np.flatnonzero(sizes >= rule.min_px)
    order = np.zeros(len(sizes), np.int32)
    kept = kept[kept > 0]
    order[kept] = np.arange(1, len(kept) + 1)
    return order[numbered]
