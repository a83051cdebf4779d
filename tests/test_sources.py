"""The registry: the paper's nine sources as it states them, and one entry for any other."""

from __future__ import annotations

import dataclasses
import math
import re
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aef.config import ConfigError
from aef.launcher import sources
from aef.launcher.command import run
from aef.settings_file import SOURCES_FILE, read_sources, registry_of, write_sources
from aef.sources import BUILT_IN, INPUTS, Band, MetadataField, Registry, Source, SourceError, Transform

TABLE_S1 = {
    "sentinel2": (("B2", "B3", "B4", "B8", "B11"), "input", 10),
    "sentinel1": (("VV", "VH", "HH", "HV", "angle"), "input", 10),
    "landsat": (("B2", "B3", "B4", "B5", "B6", "B8", "B10"), "input", 30),
    "palsar2": (("HH", "HV", "LIN"), "target", 25),
    "glo30": (("elevation", "sin_slope", "cos_slope", "sin_aspect", "cos_aspect"), "target", 30),
    "gedi": (tuple(f"rh{i}" for i in range(101)), "target", 25),
    "era5_land": (None, "target", 11132),
    "grace": (("lwe_thickness",), "target", 55660),
    "nlcd": (("landcover",), "target", 30),
}
"""Table S1: bands, role, metres."""

TABLE_S2 = {
    "sentinel2": (20, None, "l1", 1.0),
    "sentinel1": (20, None, "l1", 1.0),
    "landsat": (None, 30, "l1", 1.0),
    "palsar2": (None, 30, "l1", 1.0),
    "glo30": (None, 30, "l1", 1.0),
    "gedi": (None, 20, "l1", 1.0),
    "era5_land": (None, None, "l1", 1.0),
    "grace": (None, 1280, "l1", 0.5),
    "nlcd": (None, 30, "cross_entropy", 0.5),
}
"""Table S2: shift distance, re-grid spacing, metric, weight."""


def refused(action, *words: str, error=SourceError) -> None:
    with pytest.raises(error) as caught:
        action()
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message, message


# --- the paper -------------------------------------------------------------------------------------------------------


def test_the_registry_holds_the_papers_nine_gridded_sources_in_order():
    assert tuple(BUILT_IN) == tuple(TABLE_S1) and set(INPUTS) == {
        name for name, row in TABLE_S1.items() if row[1] == "input"
    }


@pytest.mark.parametrize("name", TABLE_S1)
def test_bands_roles_and_resolutions_are_those_of_table_s1(name):
    source, (bands, role, metres) = BUILT_IN[name], TABLE_S1[name]
    assert source.role == role and source.native_resolution_m == metres
    assert bands is None or source.band_names == bands
    assert source.licence and source.attribution and source.collections


def test_era5_land_has_its_twelve_monthly_bands():
    stems = ("total_precipitation", "temperature_2m", "dewpoint_temperature_2m", "surface_pressure")
    source = BUILT_IN["era5_land"]
    assert source.channels == 12 and all(any(b.startswith(stem) for stem in stems) for b in source.band_names)
    assert source.time == "interval" and source.grid == "native"


@pytest.mark.parametrize("name", TABLE_S2)
def test_shifts_spacings_metrics_and_weights_are_those_of_table_s2(name):
    source = BUILT_IN[name]
    assert (source.shift_m, source.regrid_m, source.loss, source.weight) == TABLE_S2[name]


def test_budgets_and_student_drops_are_the_papers():
    assert [BUILT_IN[name].frame_budget for name in INPUTS] == [65, 17, 21]
    assert [BUILT_IN[name].source_drop for name in INPUTS] == [0, 0.3, 0.3]
    assert [BUILT_IN[name].frame_drop for name in INPUTS] == [0.5, 0.3, 0.3]
    assert [name for name, source in BUILT_IN.items() if source.line_gap] == ["sentinel1"]


def test_nlcd_decodes_sixteen_classes_and_radar_knows_its_geometry():
    assert BUILT_IN["nlcd"].decoded_channels == 16 and BUILT_IN["nlcd"].channels == 1
    assert [item.name for item in BUILT_IN["sentinel1"].metadata] == ["heading", "inclination"]
    assert [item.name for item in BUILT_IN["palsar2"].metadata] == ["pass_direction", "antenna_pointing"]
    # Two angles as sine, cosine and "missing"; two flags and "missing".
    assert (BUILT_IN["sentinel1"].metadata_width, BUILT_IN["palsar2"].metadata_width) == (6, 4)


# --- entries ---------------------------------------------------------------------------------------------------------


def entry(**changes) -> dict:
    """A small lawful entry."""
    lawful = {
        "name": "modis_lst",
        "title": "MODIS land surface temperature, 8 days",
        "collections": ["MODIS/061/MOD11A2"],
        "bands": [{"name": "LST_Day", "unit": "K", "valid_min": 150, "valid_max": 373}],
        "role": "target",
        "native_resolution_m": 1000,
        "grid": "native",
        "time": "interval",
    }
    return {key: value for key, value in {**lawful, **changes}.items() if value != "absent"}


@pytest.mark.parametrize("name", BUILT_IN)
def test_an_entry_survives_yaml(name, tmp_path):
    source = BUILT_IN[name]
    write_sources(tmp_path / "sources.yaml", [source])
    (back,) = read_sources(tmp_path / "sources.yaml")
    assert back == source and back.note == source.note


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"name": "Modis"}, ("lower-case",)),
        ({"name": "modis lst"}, ("lower-case",)),
        ({"bands": []}, ("at least one band",)),
        ({"bands": "absent"}, ("at least one band",)),
        ({"title": "absent"}, ("'title' is missing",)),
        ({"frame_bugdet": 8}, ("unknown field 'frame_bugdet': did you mean frame_budget?",)),
        ({"role": "inptu"}, ("role must be one of input, target", "'inptu'")),
        ({"grid": "hexagons"}, ("grid",)),
        ({"time": "sometimes"}, ("time",)),
        ({"resampling": "cubic"}, ("resampling",)),
        ({"loss": "l2"}, ("loss",)),
        ({"role": "input"}, ("input source lies on the chip grid",)),
        ({"weight": -1}, ("weight",)),
        ({"weight": float("nan")}, ("weight must be a number",)),
        ({"native_resolution_m": 0}, ("native_resolution_m",)),
        ({"min_overlap": 2}, ("min_overlap must lie in [0, 1]",)),
        ({"classes": [1, 2]}, ("classes go with loss cross_entropy",)),
        ({"role": "target", "grid": "points", "time": "static"}, ("points are observed at a time each",)),
        ({"classes": [1, 1], "loss": "cross_entropy"}, ("different integers",)),
        ({"shift_m": 20, "regrid_m": 30}, ("not both",)),
        ({"shift_m": -1}, ("shift_m must be a positive number",)),
        ({"collections": "MODIS/061/MOD11A2"}, ("collections must be a list",)),
        ({"metadata": [{"name": "a", "kind": "colour"}]}, ("metadata 'a'", "colour")),
        ({"surprise": 1}, ("surprise",)),
        ({"title": 7}, ("title must be a text",)),
    ],
)
def test_a_wrong_entry_is_refused_with_source_and_field(changes, words):
    refused(lambda: Source.from_dict(entry(**changes)), "source ", *words)


@pytest.mark.parametrize(
    "band",
    [
        {"name": "a", "unit": "K", "valid_min": 5, "valid_max": 5},
        {"name": "a", "unit": "K", "valid_min": float("nan"), "valid_max": 5},
        {"name": 8, "unit": "K", "valid_min": 0, "valid_max": 5},
        {"name": "a", "unit": "K", "valid_min": 0},
        {"name": "a", "unit": "K", "valid_min": 0, "valid_max": 5, "transform": {"kind": "sqrt"}},
        {"name": "a", "unit": "K", "valid_min": 0, "valid_max": 5, "transform": {"scale": 0}},
        {"name": "a", "unit": "K", "valid_min": 0, "valid_max": 5, "transform": {"scale": math.inf}},
        {"name": "a", "unit": "K", "valid_min": 0, "valid_max": 5, "transform": {"kind": "log", "offset": 1}},
        "a",
        None,
    ],
)
def test_a_wrong_band_is_refused_with_its_source(band):
    refused(lambda: Source.from_dict(entry(bands=[band])), "source 'modis_lst'")


def test_repeated_bands_are_refused():
    band = {"name": "a", "unit": "K", "valid_min": 0, "valid_max": 5}
    refused(lambda: Source.from_dict(entry(bands=[band, band])), "band names repeat: a, a")


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=5,
)
FIELDS = [field.name for field in dataclasses.fields(Source)]


@settings(max_examples=200, deadline=None)
@given(changes=st.dictionaries(st.sampled_from(FIELDS), JUNK, min_size=1, max_size=3))
def test_any_entry_is_lawful_or_one_named_line(changes):
    try:
        Source.from_dict(entry(**changes))
    except SourceError as error:
        assert str(error).startswith("source ") and "\n" not in str(error)


@settings(max_examples=100, deadline=None)
@given(junk=JUNK)
def test_whatever_is_no_entry_is_one_named_line(junk):
    refused(lambda: Source.from_dict(junk), "source")


@settings(max_examples=100, deadline=None)
@given(
    changes=st.dictionaries(
        st.sampled_from(["name", "unit", "valid_min", "valid_max", "transform", "colour"]), JUNK, min_size=1
    )
)
def test_any_band_is_lawful_or_one_named_line(changes):
    band = {"name": "a", "unit": "K", "valid_min": 0, "valid_max": 5, **changes}
    try:
        Source.from_dict(entry(bands=[band]))
    except SourceError as error:
        assert str(error).startswith("source 'modis_lst': ") and "\n" not in str(error)


# --- registries and files --------------------------------------------------------------------------------------------


def test_an_unknown_source_is_named_with_the_known_ones():
    refused(lambda: BUILT_IN["sentinel9"], "sentinel9", "sentinel2", "YAML")


def test_an_entry_may_be_repeated_but_not_redefined():
    source = Source.from_dict(entry())
    assert len(BUILT_IN.extended([source, source])) == 10
    refused(lambda: BUILT_IN.extended([dataclasses.replace(source, name="sentinel2")]), "'sentinel2' is defined twice")


def test_a_selection_keeps_the_wanted_order():
    assert tuple(BUILT_IN.select(["nlcd", "glo30"])) == ("nlcd", "glo30")


def test_sources_are_read_back_from_a_file_and_found_beside_chips(tmp_path):
    mine = [Source.from_dict(entry()), dataclasses.replace(BUILT_IN["sentinel2"], name="sentinel2_l2a")]
    write_sources(tmp_path / SOURCES_FILE, mine)
    assert read_sources(tmp_path / SOURCES_FILE) == mine
    registry = registry_of(tmp_path)
    assert tuple(registry)[-2:] == ("modis_lst", "sentinel2_l2a") and isinstance(registry, Registry)
    assert registry_of(files=[tmp_path / SOURCES_FILE])["modis_lst"] == mine[0]


def test_the_table_of_a_folder_that_is_not_there_is_refused(tmp_path, capsys):
    assert run(sources.main, ["--data", str(tmp_path / "chpis")]) == 1
    said = capsys.readouterr()
    assert not said.out and "chpis: expected a folder of chips, found no folder" in said.err


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("sources: [{name: x}]", SourceError),
        ("3", SourceError),
        ("{a: [", ConfigError),
        ("sources: {a: 1}", SourceError),
        ("- &a [*a]", SourceError),
        ("!!python/object/apply:os.system ['true']", ConfigError),
    ],
)
def test_a_wrong_sources_file_is_refused_by_name(tmp_path, text, error):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    refused(lambda: read_sources(path), str(path), error=error)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.text(max_size=40) | JUNK.map(yaml.safe_dump))
def test_any_sources_file_is_lawful_or_one_named_line(tmp_path, content):
    path = tmp_path / "mine.yaml"
    path.write_text(content, encoding="utf-8")
    try:
        read_sources(path)
    except (SourceError, ConfigError) as error:
        assert str(path) in str(error) and "\n" not in str(error)


def test_no_other_module_asks_for_a_source_by_name():
    """`if source.name == "sentinel1"` belongs nowhere: what is special to a source is a field of its entry."""
    root = Path(__file__).parents[1]
    asked = re.compile(r"""(?:==|!=|\bin\b)\s*\(?["'](?:{})["']""".format("|".join(BUILT_IN)))
    allowed = {"sources.py"}
    rooms = ["config.py", "timecode.py", "model", "objective", "training", "mapping"]
    files = [
        f for room in rooms for f in ([root / "aef" / room] if "." in room else (root / "aef" / room).glob("*.py"))
    ]
    files += list((root / "aef" / "data").glob("*.py"))
    found = [
        f"{f.name}: {line.strip()}" for f in files if f.name not in allowed for line in f.open() if asked.search(line)
    ]
    assert found == []


def test_small_pieces_of_an_entry_check_themselves():
    refused(lambda: Transform("linear", 0.0), "scale")
    refused(lambda: Band("a", "K", 3, 1), "band a")
    refused(lambda: MetadataField("a", "colour"), "kind")  # type: ignore[arg-type]
