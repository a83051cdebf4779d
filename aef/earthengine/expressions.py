"""Earth Engine graphs: which scenes there are, the pixels of some frames, the footprints of a month.

Every image is named by its id, so a graph reads exactly what its listing promised and nothing moves between the two.
Masked pixels arrive as the recipe's ``fill`` (the service would write 0), resampling is set on each image before
anything else touches it, and each band is named ``f<frame>_<band>``.

Units and formulas are not changed here: what the catalog stores is what a chip stores.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import ee

from aef.clock import Period
from aef.earthengine.grid import ChipGrid
from aef.earthengine.recipes import (
    CLEAR_SCORE,
    CLOUD_SCORE,
    FOOTPRINT_LAT,
    FOOTPRINT_LON,
    WEIGHT,
    Frame,
    Recipe,
)
from aef.sources import Source

LANDSAT_DILATED_CLOUD, LANDSAT_CLOUD_SHADOW = 1 << 1, 1 << 4
PALSAR_VALID, PALSAR_MASK_BITS = 1, 0b111

_CASTS = {"uint8": "toUint8", "uint16": "toUint16", "float32": "toFloat"}


# --- listing ---------------------------------------------------------------------------------------------------------


def listing(source: Source, recipe: Recipe, grid: ChipGrid, window: Period | None) -> ee.FeatureCollection:
    """Scenes over a chip in a time window (None: all times): one feature without geometry per image.

    ``computeValue`` of it answers a GeoJSON collection with the properties ``index``, ``collection``, ``time_ms``,
    ``end_ms`` and the recipe's own.
    """
    parts = [
        ee.FeatureCollection(
            call(
                "Collection.map",
                collection=_filtered(collection, recipe, grid, window),
                baseAlgorithm=_describe(collection, recipe.properties),
            )
        )
        for collection in source.collections
    ]
    return functools.reduce(lambda listed, part: listed.merge(part), parts)


def _filtered(collection: str, recipe: Recipe, grid: ChipGrid, window: Period | None) -> ee.ImageCollection:
    images = ee.ImageCollection(collection).filterBounds(outline(grid))
    if window is not None:
        images = images.filterDate(window.start_ms, window.end_ms)
    for operator, name, value in recipe.filters:
        # ee.Filter.listContains takes (leftField, rightValue) like the comparisons do.
        images = images.filter(getattr(ee.Filter, operator)(name, value))
    return images


@functools.cache
def _describe(collection: str, properties: tuple[str, ...]) -> ee.CustomFunction:
    """The mapped function: the same for every chip, and to make one costs more than all the rest of a listing."""

    def feature(image: ee.Image) -> ee.Feature:
        described = ee.Feature(None, {"collection": collection}).copyProperties(image, list(properties))
        return described.set(
            {
                "index": image.get("system:index"),
                "time_ms": image.get("system:time_start"),
                "end_ms": image.get("system:time_end"),
            }
        )

    return ee.CustomFunction.create(feature, "Feature", ["Image"])


def outline(grid: ChipGrid) -> ee.Geometry:
    """The chip's border in its own projection: straight lines there, not geodesics."""
    return ee.Geometry.Rectangle(list(grid.bounds), proj=grid.crs, geodesic=False)


# --- pixels ----------------------------------------------------------------------------------------------------------


def pixels(source: Source, recipe: Recipe, frames: Sequence[Frame]) -> ee.Image:
    """One image with all bands of all frames, named as `wire_names` says; masked pixels hold the recipe's ``fill``.

    What is the same for every frame is done once, on the stack of all bands: the graph stays small and flat.
    """
    values = _stack([_values(source, recipe, frame) for frame in frames]).unmask(recipe.fill, False)
    if recipe.dtype.startswith("uint") and not source.classes:
        values = values.round()  # a cast would cut bilinear values towards 0
    values = getattr(values, _CASTS[recipe.dtype])()
    if recipe.weight:
        # A pixel without a mask product (Cloud Score+ lacks a few granules) does not count: weight 0.
        weights = _stack(
            [_mosaic([WEIGHTS[recipe.weight](call("Image.load", id=s.id)) for s in frame.scenes]) for frame in frames]
        )
        values = values.addBands(weights.unmask(0, False).toUint8())
    return values.rename(wire_names(recipe, frames))


def wire_names(recipe: Recipe, frames: Sequence[Frame]) -> list[str]:
    """Band names of a request, in order: the values of every frame, then the weights of every frame."""
    names = [f"f{number}_{name}" for number, frame in enumerate(frames) for name in recipe.fetched or frame.bands]
    return names + [f"f{number}_{WEIGHT}" for number in range(len(frames)) if recipe.weight]


def wire_types(recipe: Recipe, frames: Sequence[Frame]) -> list[str]:
    """Types of a request's bands, in the order of `wire_names`."""
    return ["uint8" if name.endswith(f"_{WEIGHT}") else recipe.dtype for name in wire_names(recipe, frames)]


def call(function: str, **arguments: Any) -> ee.ComputedObject:
    """One node of a graph. The client's own methods build the same nodes, at several times the cost: they look up and
    promote every argument, which adds up over the thousands of nodes of a download."""
    return ee.ComputedObject(ee.ApiFunction.lookup(function), arguments)


def _values(source: Source, recipe: Recipe, frame: Frame) -> ee.ComputedObject:
    names = list(recipe.fetched or frame.bands)
    return _mosaic([_scene_values(source, recipe, scene.id, names) for scene in frame.scenes])


def _scene_values(source: Source, recipe: Recipe, image_id: str, names: list[str]) -> ee.ComputedObject:
    image = call("Image.load", id=image_id)
    values = call("Image.select", input=image, bandSelectors=names)
    if recipe.mask:  # before resampling, so that no masked value leaks into its neighbours
        values = call("Image.updateMask", image=values, mask=MASKS[recipe.mask](image))
    if source.resampling == "bilinear" and source.grid == "chip" and not source.classes:
        values = call("Image.resample", image=values, mode="bilinear")
    return values


def _mosaic(images: list[ee.ComputedObject]) -> ee.ComputedObject:
    """The last image lies on top."""
    if len(images) == 1:
        return images[0]
    return call("ImageCollection.mosaic", collection=call("ImageCollection.fromImages", images=images))


def _stack(images: list[ee.ComputedObject]) -> ee.Image:
    # toBands keeps the graph flat: a chain of addBands would nest as deep as there are frames.
    if len(images) == 1:
        return ee.Image(images[0])
    return ee.Image(call("ImageCollection.toBands", collection=call("ImageCollection.fromImages", images=images)))


def _is(image: ee.ComputedObject, value: float) -> ee.ComputedObject:
    return call("Image.eq", image1=image, image2=call("Image.constant", value=value))


def _band(image: ee.ComputedObject, name: str) -> ee.ComputedObject:
    return call("Image.select", input=image, bandSelectors=[name])


def _bits(image: ee.ComputedObject, name: str, mask: int) -> ee.ComputedObject:
    return call("Image.bitwiseAnd", image1=_band(image, name), image2=call("Image.constant", value=mask))


def _cloud_score(image: ee.ComputedObject) -> ee.ComputedObject:
    """Cloud Score+ of the same granule, thresholded (paper S1: cs at 0.5). Without a score a granule is cloudy."""
    scores = call("ImageCollection.load", id=CLOUD_SCORE)
    scored = call("Image.linkCollection", input=image, imageCollection=scores, linkedBands=["cs"])
    smooth = call("Image.resample", image=_band(scored, "cs"), mode="bilinear")
    return call("Image.gte", image1=smooth, image2=call("Image.constant", value=CLEAR_SCORE))


def _qa_pixel(image: ee.ComputedObject) -> ee.ComputedObject:
    """1 unless QA_PIXEL says dilated cloud or cloud shadow (the two bits of paper S1); nearest neighbour."""
    return _is(_bits(image, "QA_PIXEL", LANDSAT_DILATED_CLOUD | LANDSAT_CLOUD_SHADOW), 0)


def _palsar_msk(image: ee.ComputedObject) -> ee.ComputedObject:
    return _is(_bits(image, "MSK", PALSAR_MASK_BITS), PALSAR_VALID)


def _gedi_quality(image: ee.ComputedObject) -> ee.ComputedObject:
    good, whole = _is(_band(image, "quality_flag"), 1), _is(_band(image, "degrade_flag"), 0)
    return call("Image.and", image1=good, image2=whole)


WEIGHTS = {"cloud_score": _cloud_score, "qa_pixel": _qa_pixel}
MASKS = {"palsar_msk": _palsar_msk, "gedi_quality": _gedi_quality}


# --- footprints ------------------------------------------------------------------------------------------------------


def footprints(source: Source, recipe: Recipe, frames: Sequence[Frame], grid: ChipGrid) -> ee.FeatureCollection:
    """Footprints inside a chip: one feature per unmasked 25 m cell, with all bands, its longitude and latitude, and the
    number of its frame. Read at the product's own projection, never resampled."""
    region, sampled = outline(grid), []
    for number, frame in enumerate(frames):
        for scene in frame.scenes:
            image = ee.Image(scene.id)
            masked = image.select([*frame.bands, FOOTPRINT_LON, FOOTPRINT_LAT])
            if recipe.mask:
                masked = masked.updateMask(MASKS[recipe.mask](image))
            numbered = masked.addBands(ee.Image.constant(number).toInt16().rename(["frame"]))
            sampled.append(numbered.sample(region=region, projection=image.select([0]).projection(), dropNulls=True))
    return ee.FeatureCollection(sampled).flatten()


def wire_grid(affine: Sequence[float], crs: str, height: int, width: int) -> dict[str, Any]:
    """The `PixelGrid` of a computePixels request."""
    a, b, c, d, e, f = affine
    return {
        "dimensions": {"width": width, "height": height},
        "affineTransform": {
            "scaleX": a,
            "shearX": b,
            "translateX": c,
            "shearY": d,
            "scaleY": e,
            "translateY": f,
        },
        "crsCode": crs,
    }
