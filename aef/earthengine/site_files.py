"""Sites from files: tables, GeoJSON, GeoParquet, and what GDAL's vector drivers read."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from aef.clock import Period, format_time, parse_period, parse_time
from aef.data.contract import MOST_ID_BYTES
from aef.earthengine.site import Site, SiteError, at
from aef.vector_files import (
    LAT,
    LON,
    VECTOR_SUFFIXES,
    VectorFileError,
    geojson_features,
    geojson_shape,
    vector_features,
)

_ID = ("id", "site", "site_id", "name", "index")
_START = ("start", "start_ms", "support_start", "support_start_ms", "period_start", "period_start_ms", "start_date")
_END = ("end", "end_ms", "support_end", "support_end_ms", "period_end", "period_end_ms", "end_date")

LEAST_MS = 10**11
"""No site's period begins or ends this near to 1970: numbers below (until March 1973) are seconds."""

MOST_SITE_BYTES = MOST_ID_BYTES - len("_20180101")
"""Of a site's id: that of its chip is followed by the first day of a period."""

_BATCH = 10_000
"""Rows of a Parquet file that are read at once."""

Row = tuple[dict[str, Any], Callable[[], tuple[float, float]] | None]
"""The columns of a row, and how its geometry gives its centre in degrees; None where columns state that."""


def read_sites(path: str | Path) -> Iterator[Site]:
    """Sites of a table, GeoJSON, Parquet or vector file, one after the other (a table of millions is never held whole).

    A table needs columns for longitude and latitude (``lon``/``lat``, ``longitude``/``latitude`` or ``x``/``y`` in
    degrees); ``id``, a period (``start``/``end``, ISO dates or epoch milliseconds) and the date ranges of the site's
    texts (``texts``, ``START/END;START/END``) are optional. Rows that share an id, or coordinates where there is no id,
    are one site with several periods: the downloader merges them, and refuses rows of one id that lie apart. Geometries
    may be points or areas (their centroid counts); those of vector files may be in any coordinate reference system.

    Raises:
        SiteError: the file is of an unknown kind or cannot be read, a column is missing or a row cannot be read.
        FileNotFoundError: there is no such file.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such list of sites")
    readers = {
        ".csv": _rows_of_csv,
        ".geojson": _rows_of_geojson,
        ".json": _rows_of_geojson,
        ".parquet": _rows_of_parquet,
        ".geoparquet": _rows_of_parquet,
        **dict.fromkeys(VECTOR_SUFFIXES, _rows_of_vector),
    }
    if path.suffix.lower() not in readers:
        raise SiteError(
            f"{path}: expected a .csv, .geojson, .parquet, {', '.join(VECTOR_SUFFIXES[:-1])} or {VECTOR_SUFFIXES[-1]} file, found "
            f"{path.suffix or 'no ending'}"
        )
    empty = True
    try:
        for number, (row, centre) in enumerate(readers[path.suffix.lower()](path), start=1):
            try:
                if centre is not None:
                    lon, lat = centre()
                    row = {**row, "lon": lon, "lat": lat}
                yield _site(row)
            except (ValueError, TypeError) as error:
                raise SiteError(f"{path}: row {number}: {error}") from None
            empty = False
    except VectorFileError as error:
        raise SiteError(str(error)) from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise SiteError(f"{path}: is no table in UTF-8 ({error})") from None
    if empty:
        raise SiteError(f"{path}: holds no site")


def _site(row: dict[str, Any]) -> Site:
    def field(names: Sequence[str]) -> Any:
        return next((row[name] for name in names if row.get(name) not in (None, "")), None)

    lon, lat = field(LON), field(LAT)
    if lon is None or lat is None:
        raise SiteError(f"expected columns lon and lat (or longitude/latitude, x/y), found {', '.join(map(str, row))}")
    site, start, end = field(_ID), field(_START), field(_END)
    if (start is None) != (end is None):
        raise SiteError("a period needs both its start and its end")
    periods = () if start is None else (Period(_time(start), _time(end)),)
    if periods and periods[0].length_ms <= 0:
        raise SiteError(f"the period {periods[0]} must end after it starts")
    unnamed = at(_degrees("longitude", lon), _degrees("latitude", lat))
    texts = tuple(parse_period(part) for part in str(row.get("texts") or "").split(";") if part.strip())
    name = _safe_name(str(site)) if site is not None else ""
    if (size := len(name.encode())) > MOST_SITE_BYTES:
        raise SiteError(f"its id names files: expected at most {MOST_SITE_BYTES} bytes, found {size} ({name[:40]} …)")
    return Site(name or unnamed.id, unnamed.lon, unnamed.lat, periods, texts)


def _degrees(name: str, value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        raise SiteError(f"{name}: expected decimal degrees, found {value!r}") from None


def _safe_name(text: str) -> str:
    name = "".join(c if c.isalnum() or c in "+-._" else "_" for c in text.strip())
    return f"_{name[1:]}" if name.startswith(".") else name  # hidden files are no chips


def _time(value: Any) -> int:
    if isinstance(value, int | float | np.number):
        value = int(value)
    if isinstance(value, np.datetime64):
        value = value.astype("datetime64[ms]").item()
    if hasattr(value, "isoformat"):
        return parse_time(value.isoformat())
    text = str(value).strip()
    if not text.replace(".", "", 1).lstrip("-").isdigit() or len(text) <= 8:  # 20190301 is a date in every kind of file
        return parse_time(text)
    if abs(time_ms := int(float(text))) < LEAST_MS:
        raise SiteError(
            f"expected an ISO date or epoch milliseconds, found {text}, which is {format_time(time_ms)}: seconds?"
        )
    return time_ms


def _rows_of_csv(path: Path) -> Iterator[Row]:
    with open(path, newline="", encoding="utf-8-sig") as stream:
        for row in csv.DictReader(stream):
            yield {str(name).strip().lower(): value for name, value in row.items()}, None


def _rows_of_geojson(path: Path) -> Iterator[Row]:
    for feature in geojson_features(path):
        properties = {str(name).lower(): value for name, value in (feature.get("properties") or {}).items()}
        name = {"id": feature["id"]} if feature.get("id") is not None else {}
        yield {**name, **properties}, partial(_centre, feature.get("geometry"), geojson_shape)


def _centre(geometry: Any, read: Callable[[Any], Any], to_degrees: Any = None) -> tuple[float, float]:
    """Longitude and latitude of a geometry's centroid."""
    shape = read(geometry)
    if shape is None or shape.is_empty:
        raise SiteError("has no geometry: give it a point or an area, or take the row out")
    west, _, east, _ = shape.bounds
    over = east - west > 180 and (to_degrees is None or to_degrees.source_crs.is_geographic)
    if over:  # the antimeridian: the centroid of both sides would lie on the other side of the Earth
        import shapely

        shape = shapely.transform(shape, lambda xy: np.column_stack((xy[:, 0] % 360, xy[:, 1])))
    x, y = shape.centroid.x, shape.centroid.y
    if over:
        x = (x + 180) % 360 - 180
    return to_degrees.transform(x, y) if to_degrees else (x, y)


def _rows_of_parquet(path: Path) -> Iterator[Row]:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.ParquetFile(path)
    except pyarrow.ArrowInvalid as error:
        raise SiteError(f"{path}: is no Parquet file ({error})") from None
    names = {name.lower(): name for name in table.schema_arrow.names}
    stated = any(name in names for name in LON) and any(name in names for name in LAT)
    for batch in table.iter_batches(_BATCH):
        for row in batch.to_pylist():
            lowered = {name: row[original] for name, original in names.items()}
            geometry = lowered.pop("geometry", None)
            yield lowered, None if stated or "geometry" not in names else partial(_centre, geometry, _of_wkb)


def _of_wkb(wkb: Any) -> Any:
    import shapely

    try:
        return None if wkb is None else shapely.from_wkb(wkb)
    except (shapely.errors.ShapelyError, TypeError) as error:
        raise SiteError(f"its geometry cannot be read ({error})") from None


def _rows_of_vector(path: Path) -> Iterator[Row]:
    for row, wkb, to_degrees in vector_features(path):
        yield row, partial(_centre, wkb, _of_wkb, to_degrees)
