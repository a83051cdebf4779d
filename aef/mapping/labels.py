"""Labels of a user, points or areas with a class, and the vectors of embedding fields beneath them.

areas = read_labels("labels.csv", "crop")
samples = sample([field], areas)
samples.vectors, samples.codes  # (N, 64), (N,) numbers of samples.classes
"""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rasterio.features import bounds as bounds_of
from rasterio.features import is_valid_geom, rasterize
from rasterio.transform import Affine, array_bounds, rowcol
from rasterio.warp import transform_bounds, transform_geom

from aef.data.arrays import transform_of
from aef.mapping.field_windows import Window, parts, vectors_at
from aef.vector_files import LAT, LON, VECTOR_SUFFIXES, VectorFileError, geojson_features, vector_features

if TYPE_CHECKING:
    import xarray

MOST_CLASSES = 254
"""A class map has a byte a pixel, and 0 is no data."""

Bounds = tuple[float, float, float, float]
"""West, south, east, north."""


class LabelError(ValueError):
    """Labels that cannot be read or used; one line naming the file and the row."""


@dataclass(frozen=True)
class LabelledArea:
    """A point or area in degrees (a GeoJSON geometry) and the class that is there."""

    geometry: Mapping[str, Any]
    label: str

    @property
    def bounds(self) -> Bounds:
        """Of its geometry, in degrees."""
        west, south, east, north = bounds_of(self.geometry)[:4]
        return west, south, east, north


@dataclass(frozen=True)
class Samples:
    """Labelled pixels of embedding fields.

    Attributes:
        vectors: (N, D), the embeddings.
        codes: (N,), numbers into `classes`.
        areas: (N,), which label a pixel belongs to.
        blocks: (N,), which square of ground its label lies in: what is to be tested together.
        classes: names, sorted.
        missed: how many labels lie on no field, or where it holds no vector.
    """

    vectors: np.ndarray
    codes: np.ndarray
    areas: np.ndarray
    blocks: np.ndarray
    classes: tuple[str, ...]
    missed: int


# --- files -----------------------------------------------------------------------------------------------------------


def read_labels(path: str | os.PathLike, column: str) -> list[LabelledArea]:
    """Labels of a CSV (``lon`` and ``lat`` in degrees), or points and areas of a GeoJSON or vector file; class in one column.

    Vector files (GeoPackage, shapefile, FlatGeobuf) may be in any reference system. Rows without a class are left out.

    Raises:
        FileNotFoundError: there is no such file.
        LabelError: it is of another kind, lacks the column or coordinates, a row cannot be read, or fewer than two
            classes are in it.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file of labels")
    readers = {
        ".csv": _rows_of_csv,
        ".geojson": _rows_of_geojson,
        ".json": _rows_of_geojson,
        **dict.fromkeys(VECTOR_SUFFIXES, _rows_of_vector),
    }
    if path.suffix.lower() not in readers:
        raise LabelError(f"{path}: expected one of {', '.join(readers)}, found {path.suffix or 'no ending'}")
    areas = []
    for number, (properties, geometry) in enumerate(readers[path.suffix.lower()](path), 1):
        if column not in properties and column.lower() in properties:  # vector files: names in small letters
            properties = {**properties, column: properties[column.lower()]}
        if column not in properties:
            known = ", ".join(map(str, properties)) or "none"
            raise LabelError(f"{path}: row {number}: expected a column {column!r}, found {known}")
        label = "" if properties[column] is None else str(properties[column]).strip()
        if not label:
            continue
        if not is_valid_geom(geometry):
            raise LabelError(f"{path}: row {number}: its geometry is missing or broken")
        area = LabelledArea(geometry, label)
        west, south, east, north = area.bounds
        if not (-180 <= west <= east <= 180 and -90 <= south <= north <= 90):
            raise LabelError(f"{path}: row {number}: expected degrees, found {area.bounds}")
        areas.append(area)
    classes = {area.label for area in areas}
    if not 2 <= len(classes) <= MOST_CLASSES:
        raise LabelError(f"{path}: expected 2 to {MOST_CLASSES} classes in {column!r}, found {len(classes)}")
    return areas


Row = tuple[Mapping[str, Any], Mapping[str, Any]]


def _rows_of_csv(path: Path) -> Iterator[Row]:
    with open(path, newline="", encoding="utf-8-sig") as stream:
        rows = csv.DictReader(stream)
        names = {name.strip().lower(): name for name in rows.fieldnames or ()}
        lon, lat = (next((names[name] for name in known if name in names), None) for known in (LON, LAT))
        if lon is None or lat is None:
            raise LabelError(f"{path}: expected columns lon and lat, found {', '.join(names) or 'none'}")
        for number, row in enumerate(rows, 1):
            try:
                yield row, {"type": "Point", "coordinates": [float(row[lon]), float(row[lat])]}
            except (TypeError, ValueError):
                found = f"{row[lon]!r}, {row[lat]!r}"
                raise LabelError(f"{path}: row {number}: expected decimal degrees, found {found}") from None


def _rows_of_geojson(path: Path) -> Iterator[Row]:
    try:
        features = geojson_features(path)
    except VectorFileError as error:
        raise LabelError(str(error)) from None
    for feature in features:
        yield feature.get("properties") or {}, feature.get("geometry") or {}


def _rows_of_vector(path: Path) -> Iterator[Row]:
    import shapely

    try:
        for properties, wkb, to_degrees in vector_features(path):
            shape = shapely.from_wkb(wkb)
            if shape is None or shape.is_empty:
                yield properties, {}
                continue
            degrees = shapely.transform(shape, to_degrees.transform, interleaved=False)
            yield properties, shapely.geometry.mapping(degrees)
    except (VectorFileError, shapely.errors.ShapelyError) as error:
        raise LabelError(str(error)) from None


# --- the pixels beneath ----------------------------------------------------------------------------------------------


def sample(
    fields: Iterable[xarray.DataArray],
    areas: Sequence[LabelledArea],
    *,
    most: int = 50,
    block_m: float = 500.0,
    seed: int = 0,
) -> Samples:
    """The vectors beneath labels: the pixel that holds a point; of an area the pixels whose centre it holds.

    Args:
        fields: (band, y, x), read one at a time; of those of `open_field` only what lies beneath labels is.
        areas: the labels.
        most: pixels of one area and field, drawn at random where there are more.
        block_m: side of the squares in metres of the field's grid. Neighbours look alike; labels of one square are
            tested together.
        seed: of the draw.

    Raises:
        LabelError: fewer than two classes lie on the fields, or there are no labels.
    """
    if not areas:
        raise LabelError("expected labels of at least two classes, found an empty list")
    classes = tuple(sorted({area.label for area in areas}))
    code_of = {label: code for code, label in enumerate(classes)}
    boxes = np.array([area.bounds for area in areas])
    vectors: list[np.ndarray] = []
    owners: list[int] = []
    square_of: dict[int, tuple[str, int, int]] = {}
    for field in fields:
        transform, crs = transform_of(field), field.rio.crs
        bounds = west, south, east, north = _degrees_of(field)
        beside = (boxes[:, 0] <= east, boxes[:, 2] >= west)
        across = beside[0] & beside[1] if west <= east else beside[0] | beside[1]  # else it spans the 180th meridian
        near = across & (boxes[:, 1] <= north) & (boxes[:, 3] >= south)
        beneath = np.flatnonzero(near).tolist()
        found = ((index, _spot(field.shape[1:], transform, crs, areas[index], bounds)) for index in beneath)
        spots = [(index, spot) for index, spot in found if spot]
        held = _held(field, [spot.window for _, spot in spots])
        taken: list[np.ndarray] = []
        for index, spot in spots:
            inside = np.flatnonzero(spot.mask(transform) & held[spot.window])
            if len(inside) > most:
                rng = np.random.default_rng((seed, index))
                inside = inside[np.sort(rng.choice(len(inside), most, replace=False))]
            if len(inside):
                taken.append(spot.pixels(inside))
                owners += [index] * len(inside)
                # On fields of two zones a label has two positions, but lies in one square.
                square = (str(crs), int(spot.middle[0] // block_m), int(spot.middle[1] // block_m))
                square_of.setdefault(index, square)
        if taken:
            vectors.append(vectors_at(field, *np.concatenate(taken, axis=1)))
    area_of = np.array(owners, np.int64)
    present = {areas[index].label for index in set(owners)}
    if len(present) < 2:
        words = f"only {present.pop()!r}" if present else "no label"
        raise LabelError(f"expected labels of at least two classes on the fields, found {words} of {len(areas)} there")
    numbers = {square: number for number, square in enumerate(dict.fromkeys(square_of.values()))}
    return Samples(
        np.concatenate(vectors),
        np.array([code_of[areas[index].label] for index in owners], np.int64),
        area_of,
        np.array([numbers[square_of[index]] for index in owners], np.int64),
        classes,
        len(areas) - len(np.unique(area_of)),
    )


def _degrees_of(field: xarray.DataArray) -> Bounds:
    """West, south, east, north of a field; west of one that spans the 180th meridian is the larger."""
    edges = array_bounds(field.sizes["y"], field.sizes["x"], transform_of(field))
    # Corners alone would miss what lies under a grid that is turned against north.
    return transform_bounds(field.rio.crs, "EPSG:4326", *edges)


@dataclass(frozen=True)
class _Spot:
    """What a label covers of a field.

    Attributes:
        geometry: in the field's coordinates.
        window: rows and columns of the field that hold it.
        middle: of the whole label, x and y.
    """

    geometry: Mapping[str, Any]
    window: Window
    middle: tuple[float, float]

    def mask(self, transform: Affine) -> np.ndarray:
        """(rows, columns) bool of the window: pixels whose centre it holds, or what it touches if it holds none."""
        rows, columns = self.window
        here = transform @ Affine.translation(columns.start, rows.start)
        shape = (rows.stop - rows.start, columns.stop - columns.start)
        mask = rasterize([self.geometry], shape, transform=here, dtype="uint8")
        if not mask.any():  # narrower than a pixel
            mask = rasterize([self.geometry], shape, transform=here, dtype="uint8", all_touched=True)
        return mask.astype(bool)

    def pixels(self, inside: np.ndarray) -> np.ndarray:
        """Numbers of pixels of the window, row by row → rows and columns of the field, (2, N)."""
        rows, columns = self.window
        y, x = np.divmod(inside, columns.stop - columns.start)
        return np.stack([y + rows.start, x + columns.start])


def _spot(shape: tuple[int, ...], transform: Affine, crs: Any, area: LabelledArea, bounds: Bounds) -> _Spot | None:
    """Where an area lies on a field of a grid and of bounds in degrees; None beside it."""
    part = _part_near(area.geometry, bounds)
    if part is None:
        return None
    geometry = transform_geom("EPSG:4326", crs, part)
    west, south, east, north = bounds_of(geometry)[:4]
    rows, columns = (
        sorted(one.tolist()) for one in rowcol(transform, np.array([west, east]), np.array([south, north]))
    )
    down = slice(max(rows[0], 0), min(rows[1] + 1, shape[0]))
    along = slice(max(columns[0], 0), min(columns[1] + 1, shape[1]))
    if down.start >= down.stop or along.start >= along.stop:
        return None
    return _Spot(geometry, (down, along), ((west + east) / 2, (south + north) / 2))


def _held(field: xarray.DataArray, wanted: Sequence[Window]) -> np.ndarray:
    """Which pixels (y, x) have a vector, looked up where a wanted window lies."""
    held = np.zeros((field.sizes["y"], field.sizes["x"]), bool)
    edges = np.array([(rows.start, rows.stop, columns.start, columns.stop) for rows, columns in wanted]).reshape(-1, 4)
    for rows, columns in parts(field):
        meets = (edges[:, 0] < rows.stop) & (edges[:, 1] > rows.start)
        meets &= (edges[:, 2] < columns.stop) & (edges[:, 3] > columns.start)
        if meets.any():
            held[rows, columns] = np.isfinite(field[0, rows, columns].values)
    return held


def _part_near(geometry: Mapping[str, Any], bounds: Bounds) -> Mapping[str, Any] | None:
    """What a geometry has within a tenth around a field's bounds; None where it has nothing.

    Its other parts and corners may lie where the field's projection does not reach, and long edges, straight in degrees,
    are curves there.
    """
    import shapely
    from shapely.geometry import mapping, shape

    west, south, east, north = bounds
    beside, above = 0.1 * ((east - west) % 360) + 1e-4, 0.1 * (north - south) + 1e-4  # 1e-4 degrees: 11 m
    ranges = [(west - beside, east + beside)] if west <= east else [(west - beside, 180.0), (-180.0, east + beside)]
    whole = shape(geometry)
    parts = [shapely.clip_by_rect(whole, left, south - above, right, north + above) for left, right in ranges]
    parts = [part for part in parts if not part.is_empty]
    return mapping(shapely.GeometryCollection(parts)) if parts else None
