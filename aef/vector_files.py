"""Points and areas from files of other programs: GeoJSON, and what GDAL's vector drivers read (extra ``[vector]``)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

LON = ("lon", "longitude", "lng", "x", "long")
LAT = ("lat", "latitude", "y")
"""Names under which tables state degrees, best first."""

VECTOR_SUFFIXES = (".gpkg", ".shp", ".fgb", ".zip")
"""GeoPackage, shapefile, FlatGeobuf, a zipped shapefile: read by pyogrio."""

_BATCH = 10_000
"""Features that are read at once."""


class VectorFileError(ValueError):
    """A file of points or areas cannot be read; one line naming the file and what to do."""


def geojson_features(path: Path) -> list[dict[str, Any]]:
    """Features of a GeoJSON file, or its one feature. Raises VectorFileError."""
    try:
        document = json.loads(path.read_text(encoding="utf-8-sig"))
        features = document["features"] if document.get("type") == "FeatureCollection" else [document]
    except (json.JSONDecodeError, UnicodeDecodeError, AttributeError, KeyError) as error:
        raise VectorFileError(f"{path}: is no GeoJSON ({type(error).__name__}: {error})") from None
    wrong = next((at for at, feature in enumerate(features, start=1) if not isinstance(feature, dict)), None)
    if wrong is not None:
        raise VectorFileError(f"{path}: row {wrong}: is no feature")
    return features


def geojson_shape(geometry: Any) -> Any:
    """A geometry as a valid shapely one. Raises VectorFileError where there is none or it cannot be read."""
    import shapely
    from shapely.geometry import shape

    if not geometry:
        raise VectorFileError("has no geometry: give it a point or an area, or take the row out")
    try:
        return shapely.make_valid(shape(geometry))
    except (shapely.errors.ShapelyError, AttributeError, KeyError, ValueError, TypeError) as error:
        raise VectorFileError(f"its geometry cannot be read ({error})") from None


def vector_features(path: Path) -> Iterator[tuple[dict[str, Any], Any, Any]]:
    """Columns of each feature of a vector file, its geometry as WKB, and the pyproj transformer to degrees.

    Raises VectorFileError.
    """
    try:
        import pyogrio
    except ModuleNotFoundError:
        raise VectorFileError(
            f"{path}: {path.suffix} files are read by pyogrio: pip install 'aef-engine[vector]', or convert it: "
            f"ogr2ogr -t_srs EPSG:4326 features.geojson {path.name}"
        ) from None
    from pyproj import CRS, Transformer

    try:
        layers = [str(name) for name, kind in pyogrio.list_layers(path) if kind]
        if len(layers) != 1:
            raise VectorFileError(
                f"{path}: expected one layer with geometries, found {', '.join(layers) or 'none'}: write one into a file of its "
                f"own: ogr2ogr -t_srs EPSG:4326 features.geojson {path.name} LAYER"
            )
        about = pyogrio.read_info(path, layer=layers[0], force_feature_count=True)
        if not about["crs"]:
            raise VectorFileError(
                f"{path}: states no coordinate reference system (that of a shapefile stands in its .prj)"
            )
        to_degrees = Transformer.from_crs(CRS.from_user_input(about["crs"]), "EPSG:4326", always_xy=True)
        for first in range(0, about["features"], _BATCH):
            _, _, shapes, columns = pyogrio.raw.read(path, layer=layers[0], skip_features=first, max_features=_BATCH)
            names = [str(name).lower() for name in about["fields"]]
            for number, wkb in enumerate(shapes):
                row = {name: _plain(column[number]) for name, column in zip(names, columns)}
                yield row, wkb, to_degrees
    except pyogrio.errors.DataSourceError as error:
        raise VectorFileError(f"{path}: cannot be read ({' '.join(str(error).split())})") from None


def _plain(value: Any) -> Any:
    """A value of a vector file's column; None where it is missing."""
    if isinstance(value, float | np.floating) and np.isnan(value):
        return None
    if isinstance(value, np.datetime64):
        return None if np.isnat(value) else value
    return value.item() if isinstance(value, np.generic) else value
