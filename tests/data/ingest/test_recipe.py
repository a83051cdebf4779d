"""Recipes are read strictly: what is wrong is one line that names file and field, whatever is thrown at them."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from aef.data.ingest.recipe import RecipeError, parse_recipe, read_recipe
from aef.data.ingest.schema import Bits, Input

RECIPES = Path(__file__).parents[3] / "launcher" / "configs" / "ingest"
SMALL = {
    "name": "small",
    "place": {"group_by": "^(?P<place>[^/]+)/", "bounds": {"input": "s2"}},
    "inputs": [
        {
            "name": "s2",
            "glob": "*/*.tif",
            "source": "sentinel2",
            "band_map": {"B2": 1},
            "nodata": {"values": [0]},
            "valid": "all",
            "weight": {"var": "2", "in": [4, 5]},
            "time": {"from": "file_name", "regex": r"(?P<time>\d{8})"},
        }
    ],
}


def changed(path: str, value: object) -> dict:
    entries = copy.deepcopy(SMALL)
    block: object = entries
    keys = [int(key) if key.isdigit() else key for key in path.split(".")]
    for key in keys[:-1]:
        block = block[key]
    if value is None:
        del block[keys[-1]]
    else:
        block[keys[-1]] = value
    return entries


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_recipes_are_valid_and_named_after_their_file(path):
    recipe = read_recipe(path)
    assert recipe.name == path.stem and recipe.licence and recipe.attribution
    assert all(item.source in recipe.registry for item in recipe.inputs if item.role != "qa")


def test_values_become_typed_fields():
    (item,) = parse_recipe(SMALL).inputs
    assert isinstance(item, Input) and item.band_map["B2"].var == "1" and item.nodata.values == (0.0,)
    assert item.weight[0].within == (4.0, 5.0) and item.valid == "all"
    flags = parse_recipe(changed("inputs.0.weight", [{"var": "QA", "bits": {"clear": [1, 3]}}]))
    assert flags.inputs[0].weight[0].bits == Bits(clear=(1, 3))


WRONG = [
    ("name", None, "the field name is missing"),
    ("inputs.0.globb", "x", "unknown field 'globb': did you mean glob?"),
    ("inputs", [], "inputs: expected at least one"),
    ("inputs.0.source", "sentinel9", "input s2: source: unknown source 'sentinel9'"),
    ("inputs.0.source", None, "input s2: source is missing"),
    ("inputs.0.band_map", {"B99": 1}, "sentinel2 has no band B99"),
    ("inputs.0.valid", None, "input s2: valid is missing"),
    ("inputs.0.weight", None, "input s2: weight is missing"),
    ("inputs.0.weight", "cloudy", "weight: expected none or its rules, found 'cloudy'"),
    ("inputs.0.weight", {"var": "2"}, "needs one of in, not_in, range, bits"),
    ("inputs.0.weight.in", "clear", "weight.*in.*expected float, found 'clear'"),
    ("inputs.0.weight.input", "masks", "unknown input masks"),
    ("inputs.0.nodata.ranges", [[5, 1]], "ranges: expected pairs"),
    ("inputs.0.time", None, "time is missing"),
    ("inputs.0.time.regex", "(", "not a regular expression"),
    ("inputs.0.time.regex", r"\d{8}", "a group named time or start"),
    ("inputs.0.time.step", "8 days", "ISO 8601 duration"),
    ("inputs.0.time.precision", "month", "precision month does not fit source sentinel2"),
    ("inputs.0.time.from", "guess", "expected coord or tag"),
    ("inputs.0.resample", "cubic", "resample: expected nearest or bilinear or area, found 'cubic'"),
    ("inputs.0.role", "static", "role static does not fit source sentinel2"),
    ("inputs.0.erode_px", -1, "erode_px: expected 0 or more"),
    ("inputs.0.erode_px", True, "erode_px: expected int, found True"),
    ("inputs.0.dedupe", {"within_s": 60, "keep": "best"}, "keep: expected all or most_valid"),
    ("inputs.0.metadata", {"heading": "missing"}, "source sentinel2 has no field heading"),
    ("inputs.0.dtype_view", "uint17", "dtype_view: expected a type of numbers like uint16, found 'uint17'"),
    ("inputs.0.dtype_view", "M8[ms]", "dtype_view: expected a type of numbers"),
    ("inputs.0.cell_m", 0, "cell_m: expected more than 0, found 0"),
    ("inputs.0.pixel_m", -10, "pixel_m: expected more than 0, found -10"),
    ("inputs.0.layout", {"per_step": []}, "layout: per_step: expected at least one name"),
    ("inputs.0.axes", ["time"], "axes: expected y and x"),
    ("inputs.0.cell_m", 500, "cell_m is for sources on their native grid"),
    ("place.group_by", "^([^/]+)/", "a group named place"),
    ("place.bounds", {"input": "s3"}, "unknown input s3"),
    ("place.bounds", {}, "exactly one of input, geojson, map"),
    ("place.crs", "UTM", "crs: expected file or EPSG:NUMBER"),
    ("place.grid", {"res_m": 30}, "res_m: a chip's grid is 10 m, found 30"),
    ("labels", [{"name": "x", "glob": "*"}], "label x: needs exactly one of var, constant"),
    (
        "labels",
        [{"name": "x", "glob": "a", "var": 1}, {"name": "x", "glob": "b", "var": 1}],
        "the name x is used twice",
    ),
    ("inputs.0.glob", "*/S2_{2020,2021}*.tif", "input s2: glob: expected no braces but those of {place}"),
    ("inputs.0.time.glob", "{place", "input s2: time: glob: expected no braces"),
    ("place.id", "{name}", "place: id: expected no braces"),
    ("sources", ["nowhere.yaml"], "no such file"),
    ("sources", [{"name": "x"}], "source 'x'.*is missing"),
    ("registry", {}, "unknown field registry"),
]


@pytest.mark.parametrize(("path", "value", "words"), WRONG, ids=lambda value: str(value)[:30])
def test_a_wrong_field_is_named(path, value, words):
    with pytest.raises(RecipeError, match=words) as refusal:
        parse_recipe(changed(path, value), "folder/mine.yaml")
    assert str(refusal.value).startswith("folder/mine.yaml: ") and "\n" not in str(refusal.value)


def test_sentinel1_must_declare_its_geometry():
    radar = changed("inputs.0.source", "sentinel1")
    radar["inputs"][0]["band_map"] = {"VV": 1}
    with pytest.raises(RecipeError, match="heading of source sentinel1 is not declared"):
        parse_recipe(radar)


def test_classes_are_never_interpolated():
    cover = changed("inputs.0.source", "nlcd")
    cover["inputs"][0] |= {"band_map": {"landcover": 1}, "resample": "bilinear"}
    with pytest.raises(RecipeError, match="nlcd is categorical and takes nearest"):
        parse_recipe(cover)


@pytest.mark.parametrize(
    "content", [b"", b"- a\n- b", b"name: [", b"\xff\xfe\x00", b"name: !!python/object:os.system {}"]
)
def test_a_file_that_is_no_recipe_is_named(tmp_path, content):
    path = tmp_path / "broken.yaml"
    path.write_bytes(content)
    with pytest.raises(RecipeError, match=r"broken\.yaml") as refusal:
        read_recipe(path)
    assert "\n" not in str(refusal.value)


def leaves(value: object, path: tuple = ()) -> list[tuple]:
    """Paths to every mapping entry and list item of a recipe."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    found = [path] if path else []
    for key, item in items:
        found += leaves(item, (*path, key))
    return found


JUNK = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-5, 70000)
    | st.floats()
    | st.text(max_size=6)
    | st.sampled_from(["all", "none"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_junk_anywhere_is_a_named_line_or_a_recipe(data):
    entries = copy.deepcopy(SHIPPED[data.draw(st.sampled_from(sorted(SHIPPED)))])
    for _ in range(data.draw(st.integers(1, 3))):
        path = data.draw(st.sampled_from(leaves(entries)))
        block = entries
        for key in path[:-1]:
            block = block[key]
        action = data.draw(st.sampled_from(["replace", "delete", "add"]))
        if action == "replace":
            block[path[-1]] = data.draw(JUNK)
        elif action == "delete":
            del block[path[-1]]
        elif isinstance(block, dict):
            block[data.draw(st.text(max_size=8))] = data.draw(JUNK)
        if not leaves(entries):
            break
    try:
        parse_recipe(entries, RECIPES / "junk.yaml")
    except RecipeError as refusal:
        assert "junk.yaml: " in str(refusal) and "\n" not in str(refusal)


def _unshared(value: object) -> object:
    if isinstance(value, dict):
        return {key: _unshared(item) for key, item in value.items()}
    return [_unshared(item) for item in value] if isinstance(value, list) else value


def _with_its_sources(name: str) -> dict:
    """A shipped recipe with the entries of its sources file written into it (reading that file is slow)."""
    entries = _unshared(yaml.safe_load((RECIPES / f"{name}.yaml").read_text()))
    used = {item.get("source") for item in entries["inputs"]}
    further = _unshared(yaml.safe_load((RECIPES / entries["sources"][0]).read_text()))
    return entries | {"sources": [source for source in further["sources"] if source["name"] in used]}


SHIPPED = {name: _with_its_sources(name) for name in ("gee_monthly_stacks", "treesatai_ts", "eolearn_eopatch")}
