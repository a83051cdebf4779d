"""Search a STAC catalogue, read its images on a chip's grid, make the series of a source."""

from __future__ import annotations

import logging
import random
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import unquote

import numpy as np

from aef.data.chips import SourceSeries
from aef.earthengine.decode import mask_beside, mask_impossible
from aef.earthengine.download import Fetched
from aef.earthengine.errors import AccessError, RequestError, UnavailableError
from aef.earthengine.grid import ChipGrid
from aef.earthengine.manifest import PlannedChip
from aef.earthengine.patience import Patience
from aef.earthengine.recipes import PASS_MS
from aef.one_line import one_line
from aef.sources import Source
from aef.stac.outlines import located, outline_of, reaches, within_180
from aef.stac.products import PREFIX, PRODUCTS, Product, product_of

TRIES = 4
_GONE = re.compile(r"HTTP response code: (404|410)\b|No such file or directory")
"""What GDAL says of an asset that is not there: an answer, unlike 403 (a signature that ran out) or 5xx."""

# It logs every asset that it cannot read; the reason is in the item's outcome.
logging.getLogger("odc").addHandler(logging.NullHandler())

T = TypeVar("T")


class StacFetcher:
    """A catalogue as a source of items: a STAC API, or a static catalogue (file or URL) that is read once.

    Args:
        catalog: URL or path.
        sources: registry entries to fetch, by name.
        workers: items read at once.
        longest_s: longest wait between two tries, seconds.

    Raises:
        AccessError: the catalogue cannot be reached or is none.
        ValueError: a source does not come from STAC, or the catalogue has no collection for it.
    """

    def __init__(
        self, catalog: str, sources: Mapping[str, Source], *, workers: int = 8, longest_s: float = 60.0
    ) -> None:
        self.width, self._patience = workers, Patience(tries=TRIES, longest_s=longest_s)
        self._stopped = threading.Event()
        self._client = _open(catalog)
        self._searchable = _conforms(self._client)
        self._static: list[Any] | None = None
        self._reading = threading.Lock()
        offered = _collections(self._client, catalog)
        self.collections = {name: _collection_of(product_of(name), offered, catalog) for name in sources}

    def stop(self) -> None:
        """Wake whoever waits for another try."""
        self._stopped.set()

    @contextmanager
    def fetching(self, chip: PlannedChip, source: Source) -> Iterator[Fetched]:
        """One source of one chip. Raises what `fetch` raises."""
        yield self.fetch(chip, source)

    def fetch(self, chip: PlannedChip, source: Source) -> Fetched:
        """One source of one chip. Raises RequestError and ChipError for the item, AccessError to end the run."""
        product = product_of(source.name)
        overpasses = list(self._overpasses(chip, source.name, product))
        if not overpasses:
            return Fetched(None, requests=1, reason="no image")
        frames = [frame for frame in (self._frame(chip, source, product, items) for items in overpasses) if frame]
        made = _series(source, product, frames, f"{PREFIX}{self.collections[source.name]}") if frames else None
        if made is None:
            return Fetched(None, requests=1 + len(overpasses), reason="nothing observed")
        series, kept = made
        products = [[item.id for item in frame.items] for frame in kept]
        return Fetched(series, products, 1 + len(overpasses), series.values.nbytes)

    # --- items -------------------------------------------------------------------------------------------------------

    def _overpasses(self, chip: PlannedChip, name: str, product: Product) -> Iterable[list[Any]]:
        """Items grouped to frames, in order of time: neighbouring tiles of one pass; of a tile's reprocessings the latest."""
        items = [item for item in self._items(chip, name, product) if product.takes(item)]
        if product.static:
            return [items] if items else []
        groups: list[list[Any]] = []
        for item in sorted(items, key=lambda i: (_platform(i), acquired_ms(i), i.id)):
            last = groups[-1] if groups else None
            if last and _platform(last[0]) == _platform(item) and acquired_ms(item) - acquired_ms(last[0]) <= PASS_MS:
                last.append(item)
            else:
                groups.append([item])
        latest = sorted((_latest(group, product.version) for group in groups), key=lambda g: acquired_ms(g[0]))
        # Images in the chip's own projection lie on top: their pixels are copied, not resampled. Others stay in order.
        return [sorted(group, key=lambda item: _zone(item) != chip.grid.crs[-2:]) for group in latest]

    def _items(self, chip: PlannedChip, name: str, product: Product) -> list[Any]:
        box, collection = outline_of(chip.grid), self.collections[name]
        period = None if product.static else chip.period
        found: dict[str, Any] = {}
        if self._searchable:
            # The API's end is inclusive, a period's is not.
            span = None if period is None else f"{_iso(period.start_ms)}/{_iso(period.end_ms - 1)}"
            for part in within_180(box):
                search = self._client.search(collections=[collection], bbox=part, datetime=span)
                found |= {i.id: i for i in self._patiently(partial(_all_of, search))}
        else:
            for i in self._all_items():
                inside = i.collection_id == collection and reaches(i, box)
                if inside and (period is None or period.contains(acquired_ms(i))):
                    found[i.id] = i
        return [located(item, box) for item in found.values()]

    def _all_items(self) -> list[Any]:
        with self._reading:
            if self._static is None:
                self._static = self._patiently(lambda: _read_whole(self._client))
            return self._static

    # --- pixels ------------------------------------------------------------------------------------------------------

    def _frame(self, chip: PlannedChip, source: Source, product: Product, items: list[Any]) -> _Frame | None:
        grid = chip.grid.grown(product.margin_px)
        bands = [self._band(items, product, keys, grid) for keys in product.assets.values()]
        values = np.stack([np.where(seen, v, 0) for v, seen in bands]).astype(product.stored)
        valid = np.stack([seen for _, seen in bands])
        if product.finish:
            values, valid = (array[0] for array in product.finish(values[None], valid[None], (0, 0)))
        if product.margin_px:
            inner = slice(product.margin_px, -product.margin_px)
            values, valid = values[:, inner, inner], valid[:, inner, inner]
        if not valid.any():
            return None
        weight = None
        if product.quality:
            keys, counts, nothing = product.quality
            codes, seen = self._read(items, keys, grid, "nearest", "uint16", nothing) or (None, None)
            weight = (
                np.full(valid.shape[1:], 255, np.uint8) if codes is None else np.where(seen & counts(codes), 255, 0)
            )
        return _Frame(items, min(map(acquired_ms, items)), values, valid, weight, _metadata(source, items[0]))

    def _band(
        self, items: list[Any], product: Product, keys: Sequence[str], grid: ChipGrid
    ) -> tuple[np.ndarray, np.ndarray]:
        """One band of an overpass in the registry's unit, and where it was observed. Items are scaled one by one."""
        shape = (grid.px, grid.px)
        values, seen = np.zeros(shape), np.zeros(shape, bool)
        for item in items:
            found = self._read([item], keys, grid, "bilinear", product.dtype, product.nodata)
            if found is None:
                continue
            raw, visible = found
            scaling = product.scaling(item, _key(item, keys))
            scaled = product.convert(raw.astype(np.float64) * scaling.scale + scaling.offset)
            take = visible & ~seen & np.isfinite(scaled)
            values[take], seen = scaled[take], seen | take
        return (np.round(values) if product.stored.startswith("uint") else values), seen

    def _read(
        self, items: list[Any], keys: Sequence[str], grid: ChipGrid, resampling: str, dtype: str, nodata: float
    ) -> tuple[np.ndarray, np.ndarray] | None:
        """An asset of some items on a grid, and where it is not no-data; None where no item has it."""
        import odc.stac
        from affine import Affine
        from odc.geo.geobox import GeoBox

        held = [item for item in items if _key(item, keys)]
        if not held:
            return None
        box = GeoBox((grid.px, grid.px), Affine(*grid.affine), grid.crs)
        key = _key(held[0], keys)
        for item in held:
            _require_local(item, key)
        rule = {held[0].collection_id: {"assets": {"*": {"nodata": nodata, "data_type": dtype}}}}
        loaded = self._patiently(
            lambda: odc.stac.load(
                held,
                bands=[key],
                geobox=box,
                resampling=resampling,
                groupby=lambda *_: 0,
                preserve_original_order=True,
                stac_cfg=rule,
            )
        )
        values = loaded[key].values[0]
        seen = ~np.isnan(values) if np.isnan(nodata) else values != nodata
        return values, seen

    def _patiently(self, ask: Callable[[], T]) -> T:
        import pystac_client.exceptions
        import rasterio.errors
        import requests

        for attempt in range(self._patience.tries):
            if attempt and self._stopped.wait(self._patience.wait_s(attempt - 1, None, random.random())):
                break
            try:
                return ask()
            except (
                requests.exceptions.RequestException,
                pystac_client.exceptions.APIError,
                rasterio.errors.RasterioError,
                OSError,
            ) as error:
                failure: Exception = error
            if isinstance(failure, rasterio.errors.RasterioError) and _GONE.search(str(failure)):
                raise RequestError(f"an asset is not there ({one_line(failure)})")
            status = getattr(failure, "status_code", None)
            if status is not None and 400 <= status < 500 and status != 429:
                raise RequestError(f"the catalogue refused ({one_line(failure)})")
        raise UnavailableError(f"no answer after {self._patience.tries} tries ({one_line(failure)})")


@dataclass(frozen=True)
class _Frame:
    """An overpass on the chip's grid: ``values`` and ``valid`` (C, H, W), ``weight`` (H, W) where there is a quality
    band, ``metadata`` (M,)."""

    items: list[Any]
    time_ms: int
    values: np.ndarray
    valid: np.ndarray
    weight: np.ndarray | None
    metadata: np.ndarray


def _series(
    source: Source, product: Product, frames: Sequence[_Frame], collection: str
) -> tuple[SourceSeries, list[_Frame]] | None:
    """The series of a source and the frames that it holds: those with an observation. None where there is none."""
    merged: dict[int, _Frame] = {frame.time_ms: frame for frame in frames}
    if len(merged) != len(frames):
        raise RequestError("two overpasses carry the same millisecond: the catalogue's times are wrong")
    values, valid = np.stack([f.values for f in frames]), np.stack([f.valid for f in frames])
    mask_impossible(source, values, valid, expected=product.outside_is_masked)
    mask_beside(source, values, valid, product.beside)
    kept = np.flatnonzero(valid.any(axis=(1, 2, 3)))
    if not kept.size:
        return None
    values, valid, frames = values[kept], valid[kept], [frames[index] for index in kept.tolist()]
    weights = [f.weight for f in frames if f.weight is not None]
    series = SourceSeries(
        values=values,
        valid=valid[:, :1] if (valid == valid[:, :1]).all() else valid,
        weight=np.stack(weights)[:, None].astype(np.uint8) if weights else None,
        time_ms=None if product.static else np.array([f.time_ms for f in frames], np.int64),
        metadata=np.stack([f.metadata for f in frames]) if source.metadata and not product.static else None,
        bands=source.band_names,
        units=source.units,
        collection=collection,
        native_resolution_m=source.native_resolution_m,
        licence=source.licence,
        note=source.attribution
        if product.quality or product.static
        else f"{source.attribution}; no cloud mask in this catalogue",
    )
    return series, frames


# --- items -----------------------------------------------------------------------------------------------------------


def acquired_ms(item: Any) -> int:
    """Acquisition time of an item, epoch milliseconds. Raises RequestError where it states none."""
    moment = item.datetime or item.common_metadata.start_datetime
    if moment is None:
        raise RequestError(f"{item.id}: states no time")
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return round(moment.timestamp() * 1000)


def _platform(item: Any) -> str:
    return str(item.properties.get("platform", "")).lower()


def _zone(item: Any) -> str:
    """Number of an item's UTM zone as two digits; empty where it states none."""
    code = str(item.properties.get("proj:code") or f"EPSG:{item.properties.get('proj:epsg')}")
    return code[-2:] if re.fullmatch(r"EPSG:32[67]\d\d", code) else ""


def _latest(items: list[Any], version: str) -> list[Any]:
    """Of items of one tile, those of the latest processing: several where the overpass was received in parts."""
    if not version:
        return items

    def tile(item: Any) -> str:
        return str(item.properties.get("grid:code") or item.properties.get("s2:mgrs_tile") or item.bbox)

    def made(item: Any) -> str:
        return str(item.properties.get(version, ""))

    latest: dict[str, str] = {}
    for item in items:
        latest[tile(item)] = max(made(item), latest.get(tile(item), ""))
    kept = (item for item in items if made(item) == latest[tile(item)])
    return sorted(kept, key=lambda i: (acquired_ms(i), i.id))


def _key(item: Any, keys: Sequence[str]) -> str:
    return next((key for key in keys if key in item.assets), "")


def _require_local(item: Any, key: str) -> None:
    """Raises RequestError where an asset on this machine does not exist: waiting would not bring it."""
    href = item.assets[key].get_absolute_href() or item.assets[key].href
    scheme, _, rest = href.rpartition("://")
    if scheme in ("", "file") and not Path(unquote(rest) if scheme else rest).exists():
        raise RequestError(f"{item.id}: asset {key}: there is no file {rest}")


def _metadata(source: Source, item: Any) -> np.ndarray:
    """Sensor geometry where a catalogue states it under its registry name or the satellite extension's, else NaN."""
    names = {"heading": "sat:platform_heading", "inclination": "sat:platform_inclination"}
    found = [
        item.properties.get(field.name, item.properties.get(names.get(field.name, ""))) for field in source.metadata
    ]
    return np.array([np.nan if value is None else float(value) for value in found], np.float32)


# --- catalogues ------------------------------------------------------------------------------------------------------


def _open(catalog: str) -> Any:
    import pystac_client

    options: dict[str, Any] = {}
    if "planetarycomputer" in catalog:
        try:
            import planetary_computer

            options["modifier"] = planetary_computer.sign_inplace
        except ModuleNotFoundError:
            raise AccessError(
                "this catalogue signs its links: pip install planetary-computer, then run the same command again"
            ) from None
    if "://" not in catalog and not Path(catalog).exists():
        raise AccessError(f"{catalog}: no such catalogue (expected a URL or the path of a catalog.json)")
    return _asking(lambda: pystac_client.Client.open(catalog, timeout=60, **options), catalog)


def _all_of(search: Any) -> list[Any]:
    return list(search.items())


def _read_whole(client: Any) -> list[Any]:
    import pystac_client.warnings

    with pystac_client.warnings.ignore():
        return list(client.get_items(recursive=True))


def _conforms(client: Any) -> bool:
    from pystac_client import ConformanceClasses

    return bool(client.conforms_to(ConformanceClasses.ITEM_SEARCH))


def _asking(ask: Callable[[], T], catalog: str) -> T:
    """An answer of a catalogue; AccessError where it cannot be reached or is none."""
    import pystac
    import pystac_client.errors
    import pystac_client.exceptions
    import pystac_client.warnings
    import requests

    try:
        with pystac_client.warnings.ignore():  # of static catalogues, which cannot be searched: they are read instead
            return ask()
    except (requests.exceptions.RequestException, pystac_client.exceptions.APIError, OSError) as error:
        raise AccessError(
            f"{catalog}: the catalogue cannot be reached ({one_line(error)}): check address and network"
        ) from None
    except (pystac.STACError, pystac_client.errors.ClientTypeError, ValueError, KeyError, TypeError) as error:
        raise AccessError(f"{catalog}: is no STAC catalogue ({one_line(error)})") from None


def _collections(client: Any, catalog: str) -> set[str]:
    """Ids of the collections that a catalogue offers. Raises AccessError."""
    return {collection.id for collection in _asking(lambda: list(client.get_collections()), catalog)}


def _collection_of(product: Product, offered: set[str], catalog: str) -> str:
    for collection in product.collections:
        if collection in offered:
            return collection
    raise ValueError(
        f"{catalog} has no collection for source {product.source} ({' or '.join(product.collections)}): "
        f"it offers {', '.join(sorted(offered))[:200]}"
    )


def available(catalog: str) -> list[str]:
    """Names of the sources that a catalogue can give. Raises AccessError."""
    offered = _collections(_open(catalog), catalog)
    return [product.source for product in PRODUCTS if offered & set(product.collections)]


def _iso(time_ms: int) -> str:
    return datetime.fromtimestamp(time_ms / 1000, UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"
