"""Labelled pixels: the units in which ground is left out, the year in which a label is judged, what is refused."""

import dataclasses

import numpy as np
import pytest

from aef.data.chips import Label
from aef.evaluation.few_shot import judge_labels, year_of
from aef.evaluation.judgement import judge_health
from aef.evaluation.labels import label_period, labelled_pixels
from aef.evaluation.probes import ProbeError
from aef.timecode import DAY_MS, Period
from tests.evaluation.four_fields import SIDE, START, a_chip


def test_units_are_fields_blocks_or_places(chips):
    assert len(np.unique(labelled_pixels(chips, "crop").labelled.units)) == 12
    assert len(np.unique(labelled_pixels(chips, "crop", unit="place").labelled.units)) == 3
    regions = [a_chip(0), a_chip(1)]
    for chip in regions:
        chip.labels["crop"].fields = None
    assert len(np.unique(labelled_pixels(regions, "crop").labelled.units)) == 4  # columns of one class are connected


def test_fields_of_two_chips_are_never_one_unit_whatever_their_parcels_are_numbered():
    """Real parcel numbers have seven digits and more."""
    two = [a_chip(0), a_chip(1)]
    two[0].labels["crop"].fields += 1_000_000
    pixels = labelled_pixels(two, "crop")
    assert len(np.unique(pixels.labelled.units)) == 8
    assert all(len(np.unique(pixels.chip[pixels.labelled.units == unit])) == 1 for unit in pixels.labelled.units)


@pytest.mark.parametrize("unit", ["field", "block"])
def test_the_ground_of_two_years_is_one_unit(unit):
    """Else a field of one year would be tested by what was learnt from the same field of another."""
    first = a_chip(0)
    later = dataclasses.replace(a_chip(0), id="later", place=first.place)
    crop = later.labels["crop"]
    crop.values = 1 - crop.values  # crops rotate, and parcels are numbered and drawn anew
    crop.fields = crop.fields[::-1] + 100
    crop.fields[:3] = 7
    pixels = labelled_pixels([first, later, a_chip(1)], "crop", unit=unit)
    units = pixels.labelled.units
    for number in (0, 1):
        of_chip = units[pixels.chip == number].reshape(SIDE, SIDE)
        assert len(np.unique(of_chip)) == (4 if unit == "field" else 1)
        np.testing.assert_array_equal(of_chip, units[pixels.chip == 0].reshape(SIDE, SIDE))
    assert not set(units[pixels.chip == 2]) & set(units[pixels.chip == 0])


def test_ground_that_only_a_later_year_labels_goes_with_its_field():
    """Half of each field is ignored in the first year: the other half, a year later, is no field of its own."""
    first, later = a_chip(0), a_chip(0)
    first.labels["crop"].ignore = (255,)
    first.labels["crop"].values[:, ::2] = 255
    first.labels["crop"].values[-8:, :8] = 255  # one field is labelled later only
    later = dataclasses.replace(later, id="later", place=first.place)
    later.labels["crop"].fields += 100
    pixels = labelled_pixels([first, later], "crop")
    of_later = pixels.labelled.units[pixels.chip == 1].reshape(2, 8, 2, 8)
    assert (of_later == of_later[:, :1, :, :1]).all() and len(np.unique(pixels.labelled.units)) == 4
    of_first = pixels.chip == 0
    units = of_later[pixels.row[of_first] // 8, 0, pixels.column[of_first] // 8, 0]
    np.testing.assert_array_equal(pixels.labelled.units[of_first], units)


def test_blocks_of_a_large_chip_are_never_one_unit():
    """A chip of more than a thousand blocks a row, 200 m each."""
    chip = a_chip(0)
    values = np.zeros((40, 20_020), np.int32)
    values[20:] = 1
    chip.labels["crop"] = Label(values, legend={0: "early", 1: "late"})
    pixels = labelled_pixels([chip], "crop", unit="block")
    assert len(np.unique(pixels.labelled.units)) == 2 * 1001


def test_a_label_is_judged_in_the_year_around_the_middle_of_its_own_period(chips):
    chip = a_chip(0)
    span = Period(START, START + 1000 * DAY_MS)

    def days(first=None, last=None):
        label = chip.labels["crop"]
        label.valid_start_ms, label.valid_end_ms = (None if d is None else START + d * DAY_MS for d in (first, last))
        found = label_period(chip, "crop", span)
        return (found.start_ms - START) / DAY_MS, (found.end_ms - START) / DAY_MS

    assert days(300, 500) == (217.5, 582.5) and days() == (317.5, 682.5)
    assert days(0, 100) == (0, 365) and days(900, 1000) == (635, 1000)  # no further than there are observations


def test_a_year_that_the_observations_leave_out_is_not_asked_for(model):
    """Frames of two years with two years between them: the middle one holds nothing to embed."""
    chip = a_chip(0)
    for name, series in chip.sources.items():
        times = series.time_ms + (np.arange(len(series.time_ms)) >= 2) * 4 * 365 * DAY_MS
        chip.sources[name] = dataclasses.replace(series, time_ms=times)
    year = year_of(model, chip)
    assert any(year.contains(time) for time in chip.sources["sentinel2"].time_ms.tolist())
    assert np.isfinite(list(judge_health(model, [chip]).values())).all()


def test_a_chip_without_the_label_takes_no_sensor_from_the_baselines(model, chips):
    """Else features of Sentinel-2 alone would stand for the best that can be had by hand."""
    bare = dataclasses.replace(a_chip(7), labels={})
    del bare.sources["sentinel1"]
    found, known = (judge_labels(model, some, "crop", trials=2) for some in ([*chips, bare], chips))
    assert {name: found.accuracy(name) for name in found.scores} == {
        name: known.accuracy(name) for name in known.scores
    }


def test_a_label_that_cannot_be_judged_is_refused_by_name(model, chips):
    with pytest.raises(ProbeError, match="no chip carries the label 'soil'"):
        judge_labels(model, chips, "soil")
    with pytest.raises(ProbeError, match="fewer than two classes"):
        labelled_pixels(chips, "crop", classes=[0])
