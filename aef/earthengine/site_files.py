"""Sites from files: tables, GeoJSON, GeoParquet, and what GDAL's vector drivers read."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from aef.clock import Period, parse_period, parse_time
from aef.earthengine.site import Site, SiteError, at

LON = ("lon", "longitude", "lng", "x", "long")
LAT = ("lat", "latitude", "y")
_ID = ("id", "site", "site_id", "name", "index")
_START = ("start", "start_ms", "support_start", "support_start_ms", "period_start", "period_start_ms", "start_date")
_END = ("end", "end_ms", "support_end", "support_end_ms", "period_end", "period_end_ms", "end_date")

VECTOR_SUFFIXES = (".gpkg", ".shp", ".fgb", ".zip")
"""GeoPackage, shapefile, FlatGeobuf, a zipped shapefile: read by pyogrio."""

_BATCH = 10_000

Row = tuple[dict[str, Any], Callable[[], tuple[float, float]] | None]
"""The columns of a row, and how its geometry gives longitude and latitude; None where columns state them."""


def read_sites(path: str | Path) -> Iterator[Site]:
    """Sites of a table, GeoJSON, Parquet or vector file, one after the other (a table of millions is never held whole).

    A table needs columns for longitude and latitude (``lon``/``lat``, ``longitude``/``latitude`` or ``x``/``y`` in
    degrees); ``id``, a period (``start``/``end``, ISO dates or epoch milliseconds) and the date ranges of the site's texts
    (``texts``, ``START/END;START/END``) are optional. Rows that share an id, or coordinates where there is no id, are one
    site with several periods: the downloader merges them, and refuses rows of one id that lie apart. Geometries may be
    points or areas (their centroid counts); those of vector files may be in any coordinate reference system.

    Raises:
        SiteError: the file is of an unknown kind, a column is missing or a row cannot be read.
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
    for number, (row, place) in enumerate(readers[path.suffix.lower()](path), start=1):
        try:
            if place is not None:
                lon, lat = place()
                row = {**row, "lon": lon, "lat": lat}
            yield _site(row)
        except (ValueError, TypeError) as error:
            raise SiteError(f"{path}: row {number}: {error}") from None
        empty = False
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
    return Site(_safe_name(str(site)) if site is not None else unnamed.id, unnamed.lon, unnamed.lat, periods, texts)


def _degrees(name: str, value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        raise SiteError(f"{name}: expected decimal degrees, found {value!r}") from None


def _safe_name(text: str) -> str:
    return "".join(c if c.isalnum() or c in "+-._" else "_" for c in text.strip())


def _time(value: Any) -> int:
    if isinstance(value, int | float | np.number):
        return int(value)
    if isinstance(value, np.datetime64):
        value = value.astype("datetime64[ms]").item()
    if hasattr(value, "isoformat"):
        return parse_time(value.isoformat())
    text = str(value).strip()
    return int(float(text)) if text.replace(".", "", 1).lstrip("-").isdigit() and len(text) > 8 else parse_time(text)


def _rows_of_csv(path: Path) -> Iterator[Row]:
    with open(path, newline="", encoding="utf-8-sig") as stream:
        for row in csv.DictReader(stream):
            yield {str(name).strip().lower(): value for name, value in row.items()}, None


def _rows_of_geojson(path: Path) -> Iterator[Row]:
    for feature in geojson_features(path):
        properties = {str(name).lower(): value for name, value in (feature.get("properties") or {}).items()}
        name = {"id": feature["id"]} if feature.get("id") is not None else {}
        yield {**name, **properties}, partial(_centre, feature.get("geometry"), geojson_shape)


def geojson_features(path: Path) -> list[dict[str, Any]]:
    """Features of a GeoJSON file, or its one feature. Raises SiteError."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        features = document["features"] if document.get("type") == "FeatureCollection" else [document]
    except (json.JSONDecodeError, UnicodeDecodeError, AttributeError, KeyError) as error:
        raise SiteError(f"{path}: is no GeoJSON ({type(error).__name__}: {error})") from None
    wrong = next((at for at, feature in enumerate(features, start=1) if not isinstance(feature, dict)), None)
    if wrong is not None:
        raise SiteError(f"{path}: row {wrong}: is no feature")
    return features


def geojson_shape(geometry: Any) -> Any:
    """A geometry as a valid shapely one. Raises SiteError where there is none or it cannot be read."""
    import shapely
    from shapely.geometry import shape

    if not geometry:
        raise SiteError("has no geometry: give it a point or an area, or take the row out")
    try:
        return shapely.make_valid(shape(geometry))
    except (shapely.errors.ShapelyError, AttributeError, KeyError, ValueError, TypeError) as error:
        raise SiteError(f"its geometry cannot be read ({error})") from None


def _centre(geometry: Any, read: Callable[[Any], Any], to_degrees: Any = None) -> tuple[float, float]:
    """Longitude and latitude of a geometry's centroid."""
    shape = read(geometry)
    if shape is None or shape.is_empty:
        raise SiteError("has no geometry: give it a point or an area, or take the row out")
    x, y = shape.centroid.x, shape.centroid.y
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


def vector_features(path: Path) -> Iterator[tuple[dict[str, Any], Any, Any]]:
    """Columns of each feature of a vector file, its geometry as WKB, and the pyproj transformer to degrees. Raises SiteError."""
    try:
        import pyogrio
    except ModuleNotFoundError:
        raise SiteError(
            f"{path}: {path.suffix} files are read by pyogrio: pip install 'aef-engine[vector]', or convert it: "
            f"ogr2ogr -t_srs EPSG:4326 features.geojson {path.name}"
        ) from None
    from pyproj import CRS, Transformer

    try:
        layers = [str(name) for name, kind in pyogrio.list_layers(path) if kind]
        if len(layers) != 1:
            raise SiteError(
                f"{path}: expected one layer with geometries, found {', '.join(layers) or 'none'}: write one into a file of its "
                f"own: ogr2ogr -t_srs EPSG:4326 features.geojson {path.name} LAYER"
            )
        about = pyogrio.read_info(path, layer=layers[0], force_feature_count=True)
        if not about["crs"]:
            raise SiteError(f"{path}: states no coordinate reference system (that of a shapefile stands in its .prj)")
        to_degrees = Transformer.from_crs(CRS.from_user_input(about["crs"]), "EPSG:4326", always_xy=True)
        for first in range(0, about["features"], _BATCH):
            _, _, shapes, columns = pyogrio.raw.read(path, layer=layers[0], skip_features=first, max_features=_BATCH)
            names = [str(name).lower() for name in about["fields"]]
            for number, wkb in enumerate(shapes):
                row = {name: _plain(column[number]) for name, column in zip(names, columns)}
                yield row, wkb, to_degrees
    except pyogrio.errors.DataSourceError as error:
        raise SiteError(f"{path}: cannot be read ({' '.join(str(error).split())})") from None


def _plain(value: Any) -> Any:
    """A value of a vector file's column; None where it is missing."""
    if isinstance(value, float | np.floating) and np.isnan(value):
        return None
    if isinstance(value, np.datetime64):
        return None if np.isnat(value) else value
    return value.item() if isinstance(value, np.generic) else value
