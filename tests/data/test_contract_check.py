"""A chip that breaks the contract is refused with source, field and reason."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aef.data.chips import ChipError, TextPoint, validate
from aef.data.contract import ARRAYS
from aef.sources import BUILT_IN, INPUTS
from aef.timecode import DAY_MS


def refused(chip, *words: str) -> None:
    with pytest.raises(ChipError) as caught:
        validate(chip, BUILT_IN, file="x.npz")
    message = str(caught.value)
    assert "\n" not in message and message.startswith("x.npz: ")
    for word in words:
        assert word in message, message


@pytest.fixture
def chip(make_chip):
    return make_chip("place")


def test_a_lawful_chip_passes(chip):
    validate(chip, BUILT_IN)


@pytest.mark.parametrize("source", INPUTS)
def test_one_frame_of_one_source_is_enough(make_chip, source):
    validate(make_chip("place", sources=(source,), frames={source: 1}), BUILT_IN)


def test_a_wrong_band_count_is_refused(chip):
    series = chip.sources["sentinel2"]
    series.values = series.values[:, :4]
    refused(chip, "source sentinel2", "field values", "expected (T, 5, H, W)")


def test_a_wrong_band_order_is_refused(chip):
    series = chip.sources["sentinel2"]
    series.bands = (series.bands[1], series.bands[0], *series.bands[2:])
    refused(chip, "source sentinel2", "field bands", "B2, B3, B4, B8, B11 in this order", "found B3, B2")


def test_another_unit_is_refused(chip):
    chip.sources["landsat"].units = ("reflectance x 10000",) * 7
    refused(chip, "source landsat", "field units")


def test_an_observed_nan_frame_is_refused(chip):
    series = chip.sources["landsat"]
    series.values[2] = np.nan
    refused(chip, "source landsat", "field values", "not finite", "frame 2", "valid to False")


def test_an_unobserved_nan_frame_is_lawful(chip):
    series = chip.sources["landsat"]
    series.values[2], series.valid[2] = np.nan, False
    validate(chip, BUILT_IN)


def test_a_mask_written_as_zero_is_refused(chip):
    series = chip.sources["sentinel2"]
    series.values[:, :, :3] = 0
    series.valid[:] = True
    refused(chip, "source sentinel2", "field valid", "exactly 0 in all bands", "never into a zero")


def test_a_few_zeros_are_values(chip):
    chip.sources["sentinel2"].values[0, :, 0, 0] = 0
    validate(chip, BUILT_IN)


def test_an_undeclared_no_data_value_is_refused(chip):
    chip.sources["landsat"].values[0, 6, :5] = 0.0
    chip.sources["landsat"].valid[:] = True
    refused(chip, "source landsat", "field values", "band B10", "150 to 373 K", "no-data value?")


@pytest.mark.parametrize("step", [0, -1])
def test_times_that_do_not_increase_are_refused(chip, step):
    times = chip.sources["sentinel1"].time_ms
    times[3] = times[2] + step
    refused(chip, "source sentinel1", "field time_ms", "strictly increasing", "after frame 2")


def test_footprints_may_share_a_time_but_not_go_back(chip):
    times = chip.sources["gedi"].time_ms
    assert (np.diff(times) == 0).any()
    times[0] = times[-1] + 1
    refused(chip, "source gedi", "field time_ms")


@pytest.mark.parametrize("dtype", ["float32", "float64", "int32"])
def test_times_of_another_type_are_refused(chip, dtype):
    series = chip.sources["sentinel2"]
    series.time_ms = series.time_ms.astype(dtype)
    refused(chip, "source sentinel2", "field time_ms", "expected int64", f"found {dtype}")


def test_an_unknown_source_is_refused_with_the_known_ones(chip):
    chip.sources["sentinel9"] = chip.sources["sentinel2"]
    refused(chip, "source sentinel9", "unknown source", "sentinel2", "YAML")


def test_inputs_without_a_common_support_are_refused(chip):
    chip.sources["landsat"].time_ms += 900 * DAY_MS
    refused(chip, "field time_ms", "no common support", "landsat starts")


def test_a_static_source_has_one_frame_and_no_time(chip):
    chip.sources["glo30"].time_ms = np.zeros(1, np.int64)
    refused(chip, "source glo30", "field time_ms", "static")


def test_an_interval_needs_an_end_after_its_start(chip):
    series = chip.sources["era5_land"]
    series.time_end_ms[1] = series.time_ms[1]
    refused(chip, "source era5_land", "field time_end_ms", "end after it starts")
    series.time_end_ms = None
    refused(chip, "source era5_land", "field time_end_ms", "is missing")


def test_a_native_grid_needs_its_own_affine(chip):
    chip.sources["era5_land"].transform = None
    refused(chip, "source era5_land", "field transform")


def test_a_footprint_outside_the_chip_is_refused(chip):
    chip.sources["gedi"].row[3] = 16
    refused(chip, "source gedi", "field row", "0 to 15")


@pytest.mark.parametrize(
    ("field", "change"),
    [
        ("valid", lambda s: s.valid[:, :, :-1]),
        ("valid", lambda s: s.valid.astype(np.uint8)),
        ("weight", lambda s: s.weight[:, 0]),
        ("weight", lambda s: s.weight.astype(np.float32)),
        ("values", lambda s: s.values[:-1]),
        ("values", lambda s: s.values.astype(bool)),
        ("values", lambda s: s.values.astype(">u2")),
    ],
)
def test_arrays_of_another_shape_or_type_are_refused(chip, field, change):
    series = chip.sources["sentinel2"]
    setattr(series, field, change(series))
    refused(chip, "source sentinel2", "expected")


def test_metadata_has_a_column_per_field_of_the_registry(chip):
    series = chip.sources["sentinel1"]
    series.metadata = series.metadata[:, :1]
    refused(chip, "source sentinel1", "field metadata", "(8, 2)")


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"id": "a/b"}, "field id"),
        ({"id": ""}, "field id"),
        ({"crs": None}, "field crs"),
        ({"height": 0}, "field height"),
        ({"transform": (30.0, 0.0, 0.0, 0.0, -30.0, 0.0)}, "expected 10 m pixels"),
        ({"transform": (10.0, 0.0, float("nan"), 0.0, -10.0, 0.0)}, "field transform"),
        ({"lat": 91.0}, "field lon"),
        ({"sources": {}}, "holds no source"),
    ],
)
def test_a_place_that_is_none_is_refused(chip, changes, word):
    refused(dataclasses.replace(chip, **changes), word)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"text": ""}, "expected a text, found ''"),
        ({"text": None}, "expected a text, found None"),
        ({"x": float("nan")}, "expected a finite position"),
        ({"uncertainty_m": float("nan")}, "expected an uncertainty of 0 m or more, found nan"),
        ({"uncertainty_m": -1.0}, "expected an uncertainty of 0 m or more, found -1.0"),
        ({"time_end_ms": 0}, "expected a period that ends after it starts, found 0 to 0"),
        ({"time_ms": "2019"}, "a field is not of its type"),
    ],
)
def test_a_text_that_nothing_could_be_learnt_from_is_refused(chip, changes, words):
    """A position that is no number ended training, at whatever epoch drew the chip, without a word of the file."""
    good = TextPoint(5.0, 5.0, 0.0, 0, DAY_MS, "a mill", "gbif:7", "CC0 1.0")
    chip.texts = [good]
    validate(chip, BUILT_IN)
    chip.texts = [good, dataclasses.replace(good, **changes)]
    refused(chip, words, *(() if "type" in words else ("field texts", "text 1 (gbif:7)")))


def test_labels_are_integers_on_the_chips_grid(chip):
    chip.labels["crop"].values = chip.labels["crop"].values.astype(np.float32)
    refused(chip, "labels/crop", "expected integers")


# --- anything at all -------------------------------------------------------------------------------------------------

JUNK = st.one_of(
    st.none(),
    st.text(max_size=3),
    st.integers(-3, 3),
    st.floats(),
    st.lists(st.integers(-1, 1), max_size=3),
    st.builds(np.zeros, st.sampled_from([0, 1, (2, 3), (3, 5, 4, 4), (3, 1, 4, 4), (12, 5, 16, 16), (12,)])),
    st.builds(lambda kind: np.array(["x", "y"]).astype(kind), st.sampled_from(["U1", "O"])),
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    source=st.sampled_from(tuple(BUILT_IN)), field=st.sampled_from((*ARRAYS, "bands", "units", "transform")), junk=JUNK
)
def test_whatever_stands_in_a_field_is_lawful_or_a_named_line(make_chip, source, field, junk):
    chip = make_chip("place", sources=(source,))
    setattr(chip.sources[source], field, junk)
    try:
        validate(chip, BUILT_IN, file="x.npz")
    except ChipError as error:
        assert str(error).startswith(f"x.npz: source {source}: ") and "\n" not in str(error)


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    field=st.sampled_from(
        ("id", "place", "crs", "transform", "height", "width", "lon", "lat", "sources", "labels", "texts")
    ),
    junk=JUNK,
)
def test_whatever_a_chip_says_of_itself_is_lawful_or_a_named_line(make_chip, field, junk):
    chip = make_chip("place", sources=("sentinel2",))
    setattr(chip, field, junk)
    try:
        validate(chip, BUILT_IN, file="x.npz")
    except ChipError as error:
        assert str(error).startswith("x.npz: ") and "\n" not in str(error)
