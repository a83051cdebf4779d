"""Earth Engine graphs per source: equal to their golden copies, and saying what the registry says."""

import dataclasses
import json

import pytest
from readable import GOLDEN, graphs, readable

from aef.earthengine import recipes
from aef.earthengine.recipes import RECIPES, deprecated, in_use
from aef.sources import BUILT_IN, VERSION_2_1, Band, Source

SOURCES = BUILT_IN.extended(VERSION_2_1.values())


@pytest.mark.parametrize("name", RECIPES)
def test_graph_equals_its_golden_copy(offline, name):
    """A wanted change: look at the difference, then `python tests/earthengine/readable.py`."""
    assert graphs(name) == (GOLDEN / f"{name}.txt").read_text()


@pytest.mark.parametrize("name", RECIPES)
def test_graph_reads_the_collections_and_bands_of_the_registry(offline, name):
    text, source = graphs(name), in_use(SOURCES[name])
    for collection in source.collections:
        assert f'"{collection}"' in text
    for band in RECIPES[name].fetched or (("rh0", "rh100") if name == "gedi" else source.band_names):
        assert f'"{band}"' in text


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        (
            "sentinel2",
            ['linkedBands=["cs"]', "value=0.5", "CLOUD_SCORE_PLUS", 'mode="bilinear"', "toUint16", "value=65535"],
        ),
        ("sentinel1", ['leftField="instrumentMode", rightValue="IW"', 'mode="bilinear"', "toFloat"]),
        (
            "landsat",
            ['leftField="SUN_ELEVATION", rightValue=0', "Filter.greaterThan", "QA_PIXEL", "value=18", "toFloat"],
        ),
        ("palsar2", ['leftField="Polarizations", rightValue="HH"', "MSK", "value=7", "value=1", "updateMask"]),
        ("gedi", ['"quality_flag"', '"degrade_flag"', "Image.sample", "Image.projection", "dropNulls=true"]),
        ("glo30", ['"DEM"', "ImageCollection.mosaic", 'mode="bilinear"']),
    ],
)
def test_graph_holds_the_masks_and_weights_of_the_paper(offline, name, parts):
    text = " ".join(graphs(name).split())
    for part in parts:
        assert part in text, part


@pytest.mark.parametrize("name", ["nlcd", "cdl", "era5_land", "grace", "gedi"])
def test_codes_and_native_grids_are_never_interpolated(offline, name):
    assert "bilinear" not in graphs(name)


def test_graph_survives_the_client_s_own_deserialiser(offline):
    import ee
    from ee import deserializer

    from aef.earthengine import expressions
    from aef.earthengine.grid import ChipGrid

    source = SOURCES["sentinel2"]
    frame = recipes.Frame((recipes.Scene(source.collections[0], "a", 0),), 0, None, source.band_names)
    for graph in (
        expressions.pixels(source, RECIPES["sentinel2"], [frame, frame]),
        expressions.listing(source, RECIPES["sentinel2"], ChipGrid.around(8, 47, 128), None),
    ):
        encoded = ee.serializer.toJSON(graph)
        assert json.loads(ee.serializer.toJSON(deserializer.fromJSON(encoded))) == json.loads(encoded)


def test_a_year_of_frames_stays_a_small_flat_graph(offline):
    import ee

    from aef.earthengine import expressions

    source = SOURCES["sentinel2"]
    frames = [
        recipes.Frame((recipes.Scene(source.collections[0], f"s{n}", n),), n, None, source.band_names)
        for n in range(160)
    ]
    assert len(ee.serializer.toJSON(expressions.pixels(source, RECIPES["sentinel2"], frames))) < 2**18


# --- which collections -----------------------------------------------------------------------------------------------


def test_deprecated_collections_warn_and_name_their_successor():
    (warning,) = deprecated(["COPERNICUS/DEM/GLO30"])
    assert "GLO30_2024_1" in warning
    assert not deprecated(["COPERNICUS/S2_HARMONIZED"])


def test_exactly_one_of_a_deprecated_collection_and_its_successor_is_read():
    assert in_use(SOURCES["grace"]).collections == ("NASA/GRACE/MASS_GRIDS_V03/MASCON_CRI",)
    assert in_use(SOURCES["grace"], successors=True).collections == ("NASA/GRACE/MASS_GRIDS_V04/MASCON_CRI",)
    assert in_use(SOURCES["glo30"], successors=True).collections == ("COPERNICUS/DEM/GLO30_2024_1",)
    assert len(in_use(SOURCES["landsat"]).collections) == 2


def test_a_source_of_one_s_own_needs_no_recipe_on_the_chip_grid():
    own = Source("aerosol", "a", ("X/Y",), (Band("b1", "1", 0, 1), Band("b2", "1", 0, 1)), "target", 1000)
    assert recipes.recipe_of(own).frames is recipes.every_image
    with pytest.raises(ValueError, match="native"):
        recipes.recipe_of(Source("coarse", "a", ("X/Y",), (Band("b1", "1", 0, 1),), "target", 1000, grid="native"))
    with pytest.raises(ValueError, match="names no Earth Engine collection"):
        recipes.recipe_of(Source("none", "a", (), (Band("b1", "1", 0, 1),), "target", 10))


@pytest.mark.parametrize("time", ["interval", "static"])
def test_codes_of_a_class_map_of_one_s_own_are_neither_averaged_nor_cut(offline, time):
    from aef.earthengine import expressions

    codes = (111, 112, 523)
    band = Band("landcover", "class", 0, 1000)
    rules = {"classes": codes, "loss": "cross_entropy", "time": time}
    corine = Source("corine", "CORINE", ("COPERNICUS/CORINE/V20/100m",), (band,), "target", 100, **rules)
    recipe = recipes.recipe_of(corine)
    frame = recipes.Frame((recipes.Scene(corine.collections[0], "2018", 0),), 0, 1, corine.band_names)
    graph = readable(expressions.pixels(corine, recipe, [frame]))
    assert "bilinear" not in graph and "round" not in graph and "toUint16" in graph and "value=65535" in graph
    with pytest.raises(ValueError, match="source corine: expected codes of 0 to 65534, found -1 to 523"):
        recipes.recipe_of(dataclasses.replace(corine, classes=(-1, *codes)))


def test_version_2_1_sources_are_entries_that_are_off():
    assert VERSION_2_1["cdl"].collections == ("USDA/NASS/CDL",) and not VERSION_2_1["cdl"].enabled
    assert "cdl" not in BUILT_IN
