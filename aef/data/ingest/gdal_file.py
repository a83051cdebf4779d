"""GeoTIFF and whatever else GDAL opens, as a `Raster`."""

from __future__ import annotations

import re
from functools import lru_cache
from pathlib import Path

import numpy as np
import rasterio
from rasterio.enums import MaskFlags
from rasterio.transform import Affine

from aef.data.ingest.grids import Grid, parse_crs
from aef.data.ingest.raster import DAMAGE, Raster, view_as, viewed
from aef.data.ingest.schema import Input, LabelRule, Layout
from aef.one_line import one_line


@lru_cache(maxsize=8)
def _gdal_dataset(path: Path, changed_ns: int) -> rasterio.DatasetReader:
    """An opened file, kept for its next reader: GDAL decodes all bands of an interleaved block at once."""
    with rasterio.Env():  # GDAL's remarks go to the log, not to the terminal
        return rasterio.open(path)


class GdalFile(Raster):
    """A GeoTIFF or anything else that GDAL opens, its bands named by the recipe, by the file, or by number."""

    def __init__(self, path: Path, rule: Input | LabelRule | None) -> None:
        super().__init__(path)
        self._data = _gdal_dataset(path, path.stat().st_mtime_ns)
        self.tags = dict(self._data.tags())
        self._view = getattr(rule, "dtype_view", "")
        if getattr(rule, "decode", "raw") == "cf":
            raise self.refuse(
                "decode: cf is for NetCDF and Zarr: transform: {tags: true} applies its scale and offset, nodata: {file: true} "
                "its no-data tag and mask"
            )
        stated = getattr(rule, "crs", "")
        crs = parse_crs(stated) if stated else self._data.crs
        # Without a transform of its own a file lies nowhere, whatever projection the recipe names.
        if crs is not None and self._data.transform != Affine.identity():
            self.grid = Grid(crs, self._data.transform, self._data.height, self._data.width)
        described = tuple(d or "" for d in self._data.descriptions)
        if rule is not None and rule.layout:
            self._index = self._lay_out(rule.layout, described)
            self.steps = max(len(bands) for bands in self._index.values())
        else:
            self._index = {name: [k + 1] for k, name in enumerate(self._names(rule, described))}
        self.variables = tuple(self._index)

    def _names(self, rule: Input | LabelRule | None, described: tuple[str, ...]) -> tuple[str, ...]:
        count = self._data.count
        if rule is not None and rule.bands:
            if len(rule.bands) != count:
                raise self.refuse(f"has {count} bands, the recipe names {len(rule.bands)}")
            self._refuse_other_order(rule.bands, described)
            return rule.bands
        named = all(described) and len(set(described)) == count and count > 1
        return described if named else tuple(str(k + 1) for k in range(count))

    def _refuse_other_order(self, names: tuple[str, ...], described: tuple[str, ...]) -> None:
        """Names of the recipe that the file gives to other bands; names that only one of the two knows are no order."""
        own, stated = [_band_name(name) for name in names], [_band_name(name) for name in described]
        for at, (mine, theirs) in enumerate(zip(own, stated)):
            if theirs and theirs != mine and (theirs in own or mine in stated):
                raise self.refuse(
                    f"band {at + 1} is called {described[at]} in the file, {names[at]} in the recipe's bands ({', '.join(names)}); "
                    f"the file's are {', '.join(name or '-' for name in described)}: write them in its order"
                )

    def _lay_out(self, layout: Layout, described: tuple[str, ...]) -> dict[str, list[int]]:
        width, tail, count = len(layout.per_step), len(layout.static_tail), self._data.count
        steps, rest = divmod(count - tail, width)
        if rest or steps < 1 or (layout.n_time != "infer" and steps != layout.n_time):
            wanted = "any number" if layout.n_time == "infer" else layout.n_time
            raise self.refuse(f"has {count} bands: expected {wanted} of steps of {width} bands and a tail of {tail}")
        index = {
            name: [(k * width + at if layout.order == "time_major" else at * steps + k) + 1 for k in range(steps)]
            for at, name in enumerate(layout.per_step)
        }
        index.update({name: [steps * width + at + 1] for at, name in enumerate(layout.static_tail)})
        for name, bands in index.items():
            found = re.sub(r"_\d+$", "", described[bands[-1] - 1]) if described[bands[-1] - 1] != name else name
            if found and found != name:
                raise self.refuse(f"band {bands[-1]} is called {found}, the recipe's layout says {name}")
        return index

    def _plane(self, variable: str, step: int) -> np.ndarray:
        with rasterio.Env():
            plane = self._data.read(self._band(variable, step))
        return view_as(plane, self._view, self, variable)

    def _band(self, variable: str, step: int) -> int:
        bands = self._index[variable]
        return bands[step if len(bands) > 1 else 0]

    def _stored(self, variable: str, step: int) -> np.dtype:
        name = self._data.dtypes[self._band(variable, step) - 1]
        return np.dtype("complex64" if name == "complex_int16" else name)

    def scaling(self, variable: str, step: int) -> tuple[float, float]:
        at = self._band(variable, step) - 1
        return self._data.scales[at], self._data.offsets[at]

    def nodata(self, variable: str, step: int) -> tuple[float, ...]:
        at = self._band(variable, step) - 1
        stated = self._data.nodatavals[at]
        return () if stated is None else viewed([stated], np.dtype(self._data.dtypes[at]), self._view)

    def mask(self, variable: str, step: int) -> np.ndarray | None:
        band = self._band(variable, step)
        if {MaskFlags.all_valid, MaskFlags.nodata} & set(self._data.mask_flag_enums[band - 1]):
            return None
        try:
            with rasterio.Env():
                return self._data.read_masks(band) > 0
        except DAMAGE as error:
            raise self.refuse(
                f"{variable}, step {step}: its mask cannot be read: {one_line(error.__cause__ or error)}"
            ) from error


def _band_name(name: str) -> str:
    """B02 and b2 are one name."""
    return re.sub(r"(?<=[a-z])0+(?=\d)", "", name.strip().casefold())
