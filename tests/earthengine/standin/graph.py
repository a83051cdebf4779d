# ruff: noqa: N802 (functions are named after the service's algorithms)
"""An interpreter of Earth Engine graphs, for the functions that the downloader uses. Anything else is an error.

Images are lazy: they know their bands, and are read on the grid that a request names. ``resample`` acts where an image
is read, as in the service: on the image's own pixels, before any arithmetic.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np

from . import world as w
from .rasters import Grid, Raster, transformer
from .world import Rectangle, SceneInfo, World

Read = Callable[[Grid, bool], list[tuple[np.ndarray, np.ndarray]]]


class GraphError(Exception):
    """Answered as HTTP 400 with this message, as the service does."""


@dataclass(frozen=True)
class Image:
    bands: tuple[str, ...]
    read: Read
    properties: dict = field(default_factory=dict)
    projection: Grid | None = None


@dataclass(frozen=True)
class Collection:
    id: str
    elements: tuple | None = None
    filters: tuple = ()


class Interpreter:
    """Evaluates one expression (the body of value:compute and image:computePixels)."""

    def __init__(self, world: World, expression: dict) -> None:
        self.world, self.nodes = world, expression["values"]
        self._memo: dict[str, object] = {}
        self.root = expression["result"]

    def value(self):
        return self._reference(self.root, {})

    def _reference(self, name: str, arguments: dict):
        if arguments:  # inside a mapped function nothing may be remembered
            return self._node(self.nodes[name], arguments)
        if name not in self._memo:
            self._memo[name] = self._node(self.nodes[name], arguments)
        return self._memo[name]

    def _node(self, node: dict, arguments: dict):
        (kind, content), *_ = node.items()
        match kind:
            case "constantValue":
                return content
            case "valueReference":
                return self._reference(content, arguments)
            case "argumentReference":
                return arguments[content]
            case "arrayValue":
                return [self._node(item, arguments) for item in content["values"]]
            case "dictionaryValue":
                return {key: self._node(item, arguments) for key, item in content["values"].items()}
            case "functionDefinitionValue":
                names, body = content["argumentNames"], content["body"]
                return lambda *given: self._reference(body, {**arguments, **dict(zip(names, given))})
            case "functionInvocationValue":
                given = {key: self._node(item, arguments) for key, item in content["arguments"].items()}
                function = getattr(self, "f_" + content["functionName"].replace(".", "_"), None)
                if function is None:
                    raise GraphError(f"the stand-in does not know {content['functionName']}")
                return function(**given)
        raise GraphError(f"unknown node {kind}")

    # --- collections, filters, features ------------------------------------------------------------------------------

    def f_ImageCollection_load(self, id):
        return Collection(id)

    def f_ImageCollection_fromImages(self, images):
        return Collection("", tuple(images))

    def f_Collection(self, features):
        return Collection("", tuple(features))

    def f_Collection_filter(self, collection, filter):
        return replace(collection, filters=(*collection.filters, filter))

    def f_Filter_intersects(self, leftField, rightValue):
        return ("bounds", rightValue["geometry"])

    def f_Filter_dateRangeContains(self, leftValue, rightField):
        return ("date", leftValue)

    def f_Filter_equals(self, leftField, rightValue):
        return ("test", lambda p: p.get(leftField) == rightValue)

    def f_Filter_greaterThan(self, leftField, rightValue):
        return ("test", lambda p: p.get(leftField) is not None and p[leftField] > rightValue)

    def f_Filter_listContains(self, leftField, rightValue):
        return ("test", lambda p: rightValue in p.get(leftField, ()))

    def f_DateRange(self, start, end):
        return (start, end)

    def f_Feature(self, geometry=None, metadata=None):
        return {"geometry": geometry, "properties": dict(metadata or {})}

    def f_Projection(self, crs):
        return crs

    def f_GeometryConstructors_Rectangle(self, coordinates, crs, geodesic=True):
        return Rectangle(crs, *map(float, coordinates))

    def f_Element_get(self, object, property):
        return object.all_properties.get(property)

    def f_Element_copyProperties(self, destination, source, properties):
        held = source.all_properties
        copied = {name: held[name] for name in properties if name in held}
        return {**destination, "properties": {**destination["properties"], **copied}}

    def f_Element_set(self, object, key, value):
        properties = {**object["properties"], key: value}
        return {**object, "properties": {k: v for k, v in properties.items() if v is not None}}

    def f_Collection_map(self, collection, baseAlgorithm):
        return Collection("", tuple(baseAlgorithm(scene) for scene in self._scenes(collection)))

    def f_Collection_merge(self, collection1, collection2):
        return Collection("", collection1.elements + collection2.elements)

    def f_Collection_flatten(self, collection):
        return Collection("", tuple(feature for part in collection.elements for feature in part.elements))

    def _scenes(self, collection: Collection) -> list[SceneInfo]:
        chip = next((value for kind, value in collection.filters if kind == "bounds"), None)
        if chip is None:
            raise GraphError("the stand-in lists only collections that are filtered by bounds")
        try:
            scenes = self.world.scenes(collection.id, chip)
        except KeyError:
            raise GraphError(f"ImageCollection.load: ImageCollection asset '{collection.id}' not found.") from None
        for kind, value in collection.filters:
            if kind == "date":
                scenes = [s for s in scenes if s.time_ms is not None and value[0] <= s.time_ms < value[1]]
            elif kind == "test":
                scenes = [s for s in scenes if value(s.all_properties)]
        return scenes

    # --- images ------------------------------------------------------------------------------------------------------

    def f_Image_load(self, id):
        collection, _, index = id.rpartition("/")
        try:
            bands = self.world.bands(collection)
        except KeyError:
            raise GraphError(f"Image.load: Image asset '{id}' not found.") from None
        return self._stored(collection, index, bands)

    def _stored(self, collection: str, index: str, bands: tuple[str, ...]) -> Image:
        def read(grid: Grid, bilinear: bool):
            return [self._raster(collection, index, band).read(grid, bilinear) for band in bands]

        return Image(
            bands, read, {"id": f"{collection}/{index}", "index": index}, self._raster(collection, index, bands[0]).grid
        )

    def _raster(self, collection: str, index: str, band: str):
        raster = self.world.band(collection, index, band)
        if collection == w.GEDI and band in ("lon_highestreturn", "lat_highestreturn"):
            x, y = raster.grid.centres()
            lon, lat = transformer(raster.grid.crs, "EPSG:4326").transform(x + 3.0, y - 2.0)  # not the cell's centre
            raster = replace(raster, values=lon if band.startswith("lon") else lat)
        if collection == w.GEDI:  # all bands of a footprint are masked together
            raster = replace(raster, mask=self.world.band(collection, index, "rh0").mask)
        return raster

    def f_Image_select(self, input, bandSelectors, newNames=None):
        numbers = [s if isinstance(s, int) else self._position(input, s) for s in bandSelectors]
        names = tuple(newNames or (input.bands[n] for n in numbers))
        if input.properties.get("id") and not newNames:  # read no more bands than are wanted
            collection, _, index = input.properties["id"].rpartition("/")
            return self._stored(collection, index, names)

        def read(grid, bilinear):
            all_bands = input.read(grid, bilinear)
            return [all_bands[n] for n in numbers]

        return replace(input, bands=names, read=read)

    def _position(self, image: Image, name: str) -> int:
        if name not in image.bands:
            raise GraphError(
                f"Image.select: Band pattern '{name}' did not match any bands. Available bands: {list(image.bands)}"
            )
        return image.bands.index(name)

    def f_Image_resample(self, image, mode):
        if image.properties.get("id") is None:  # computed on its own grid first, then interpolated
            own = image.projection

            def read(grid, _):
                return [Raster(own, v, m).read(grid, mode == "bilinear") for v, m in image.read(own, False)]

            return replace(image, read=read)
        return replace(
            image,
            read=lambda grid, _: image.read(grid, mode == "bilinear"),
            properties={**image.properties, "id": None},
        )

    def f_Image_rename(self, input, names):
        if len(names) != len(input.bands):
            raise GraphError(f"Image.rename: got {len(input.bands)} bands and {len(names)} names")
        return replace(input, bands=tuple(names), properties={})

    def _map(self, image: Image, change) -> Image:
        return replace(image, read=lambda g, b: [change(v, m) for v, m in image.read(g, b)], properties={})

    def f_Image_unmask(self, input, value, sameFootprint=True):
        def read(grid, bilinear):
            (filler, _), *_ = value.read(grid, bilinear)
            return [
                (np.where(m, v, filler.astype(np.result_type(v, filler))), np.ones_like(m))
                for v, m in input.read(grid, bilinear)
            ]

        return replace(input, read=read, properties={})

    def f_Image_updateMask(self, image, mask):
        def read(grid, bilinear):
            (keep, seen), *_ = mask.read(grid, False)
            return [(v, m & seen & (keep != 0)) for v, m in image.read(grid, bilinear)]

        return replace(image, read=read, properties={})

    def f_Image_round(self, value):
        return self._map(value, lambda v, m: (np.round(v), m))

    def f_Image_toUint8(self, value):
        return self._map(value, lambda v, m: (v.astype("u1"), m))

    def f_Image_toUint16(self, value):
        return self._map(value, lambda v, m: (v.astype("<u2"), m))

    def f_Image_toInt16(self, value):
        return self._map(value, lambda v, m: (v.astype("<i2"), m))

    def f_Image_toFloat(self, value):
        return self._map(value, lambda v, m: (v.astype("<f4"), m))

    def f_Image_constant(self, value):
        def read(grid, bilinear):
            shape = (grid.height, grid.width)
            return [(np.full(shape, value), np.ones(shape, bool))]

        return Image(("constant",), read)

    def _binary(self, image1: Image, image2: Image, operate) -> Image:
        def read(grid, bilinear):
            one, two = image1.read(grid, bilinear), image2.read(grid, bilinear)
            two = two * len(one) if len(two) == 1 else two
            return [(operate(a, b), m & n) for (a, m), (b, n) in zip(one, two)]

        return replace(image1, read=read, properties={})

    def f_Image_gte(self, image1, image2):
        return self._binary(image1, image2, np.greater_equal)

    def f_Image_eq(self, image1, image2):
        return self._binary(image1, image2, np.equal)

    def f_Image_and(self, image1, image2):
        return self._binary(image1, image2, lambda a, b: (a != 0) & (b != 0))

    def f_Image_bitwiseAnd(self, image1, image2):
        return self._binary(image1, image2, lambda a, b: a.astype(int) & np.asarray(b).astype(int))

    def f_Image_addBands(self, dstImg, srcImg, overwrite=False):
        return Image(
            (*dstImg.bands, *srcImg.bands), lambda g, b: dstImg.read(g, b) + srcImg.read(g, b), {}, dstImg.projection
        )

    def f_Image_linkCollection(self, input, imageCollection, linkedBands):
        index = input.properties["index"]
        stored = self._stored(imageCollection.id, index, tuple(linkedBands))
        if index.startswith("2018") and "_A" in index:  # a granule without a score: fully masked
            stored = self._map(stored, lambda v, m: (v, np.zeros_like(m)))
        return replace(self.f_Image_addBands(input, stored), properties={"index": index})

    def f_ImageCollection_mosaic(self, collection):
        images = collection.elements

        def read(grid, bilinear):
            layers = [image.read(grid, bilinear) for image in images]
            result = layers[0]
            for layer in layers[1:]:
                result = [(np.where(m, v, below), m | n) for (v, m), (below, n) in zip(layer, result)]
            return result

        return Image(images[0].bands, read)

    def f_ImageCollection_toBands(self, collection):
        images = collection.elements
        names = tuple(f"{number}_{band}" for number, image in enumerate(images) for band in image.bands)
        return Image(names, lambda g, b: [band for image in images for band in image.read(g, b)])

    def f_Image_projection(self, image):
        return image.projection

    def f_Image_sample(self, image, region, projection, dropNulls=True):
        """Cells of the projection whose centres lie in the region, as features without geometry."""
        x, y = projection.centres()
        if projection.crs != region.crs:
            x, y = transformer(projection.crs, region.crs).transform(x, y)
        inside = (x >= region.left) & (x < region.right) & (y > region.bottom) & (y <= region.top)
        layers = image.read(projection, False)
        seen = inside & np.all([mask for _, mask in layers], axis=0)
        features = tuple(
            {
                "geometry": None,
                "properties": {name: values[row, col].item() for name, (values, _) in zip(image.bands, layers)},
            }
            for row, col in zip(*np.nonzero(seen))
        )
        return Collection("", features)


# --- answers ---------------------------------------------------------------------------------------------------------


def feature_collection(collection: Collection, limit: int = 5000) -> dict:
    if len(collection.elements) > limit:
        raise GraphError(f"Collection query aborted after accumulating over {limit} elements.")
    features = [{"type": "Feature", "id": str(n), **feature} for n, feature in enumerate(collection.elements)]
    return {"type": "FeatureCollection", "columns": {}, "features": features}


def pixels(image: Image, grid: Grid) -> np.ndarray:
    """A structured array with one field per band, as computePixels answers in NPY format. Masked pixels are 0."""
    layers = image.read(grid, False)
    size = sum(np.asarray(v).dtype.itemsize for v, _ in layers) * grid.height * grid.width
    if size > 48 * 2**20:
        raise GraphError(f"Total request size ({size} bytes) must be less than or equal to 50331648 bytes.")
    if len(layers) > 1024:
        raise GraphError(f"Too many bands: {len(layers)}; the limit is 1024.")
    answer = np.zeros(
        (grid.height, grid.width), [(name, np.asarray(v).dtype) for name, (v, _) in zip(image.bands, layers)]
    )
    for name, (values, mask) in zip(image.bands, layers):
        answer[name] = np.where(mask, values, 0)
    return answer
