"""Withheld dates: predictors on series of known truth, and the published table on the real sample."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from aef.data.chips import Chip, SourceSeries
from aef.data.withheld import WithheldDates
from aef.evaluation.predictors import PREDICTORS, harmonic, linear, place_mean, temporal_mean
from aef.evaluation.reconstruction import (
    ORACLE,
    WithheldTable,
    WithheldTask,
    choose_dates,
    l1,
    model_table,
    naive_table,
)
from aef.evaluation.series import ClearSeries, Scale, cells, clear_series
from aef.sources import Band, Source, Transform
from aef.timecode import DAY_MS, YEAR_MS

PATCHES = Path(__file__).parents[3] / "shared" / "data" / "worldcereal_patches"
BANDS = ("B05", "B06", "B07", "B8A", "B11", "B12")
SURFACE = Source(
    name="s2_l2a",
    title="Sentinel-2 L2A, 20 m bands",
    collections=("S2",),
    bands=tuple(Band(name, "reflectance x 10000", 0, 65535, Transform("log")) for name in BANDS),
    role="input",
    native_resolution_m=20,
    frame_budget=65,
)


def series_of(values: np.ndarray, days, clear=None, place="p") -> ClearSeries:
    values = np.asarray(values, np.float32)
    clear = np.ones((len(values), *values.shape[2:]), bool) if clear is None else clear
    return ClearSeries(place, np.asarray(days, np.int64) * DAY_MS, values, clear)


def test_another_product_of_a_withheld_scene_is_withheld_and_a_later_pass_is_not():
    products = (
        SURFACE,
        dataclasses.replace(SURFACE, name="s2_l1c"),
        dataclasses.replace(SURFACE, name="ndvi", role="target"),
    )
    monthly = dataclasses.replace(SURFACE, name="monthly", role="target", time="interval")
    registry = {source.name: source for source in (*products, monthly)}
    times = np.arange(10, dtype=np.int64) * DAY_MS
    values = np.ones((10, len(BANDS), 2, 2), np.uint16)

    def series(later_s):
        return SourceSeries(values, np.ones((10, 1, 2, 2), bool), times + 1000 * later_s)

    held = {"s2_l2a": series(0), "s2_l1c": series(40), "ndvi": series(300), "monthly": series(0)}
    chip = Chip("a", "EPSG:32632", (10, 0, 0, 0, -10, 0), 2, 2, 9.0, 0.0, held)
    rows = choose_dates([chip], registry)
    assert rows == [("a", "s2_l2a", 2 * DAY_MS), ("a", "s2_l2a", 7 * DAY_MS)] + [
        ("a", "s2_l1c", day * DAY_MS + 40_000) for day in (2, 7)
    ]


def test_linear_interpolation_is_exact_on_a_line_and_skips_clouds():
    days = np.array([0, 10, 20, 40])
    values = np.broadcast_to((2.0 * days)[:, None, None, None], (4, 1, 2, 2)).copy()
    clear = np.ones((4, 2, 2), bool)
    clear[1, 0, 0] = False
    values[1, :, 0, 0] = 1e6
    predict = linear(series_of(values, days, clear))
    assert np.allclose(predict(15 * DAY_MS), 30)
    assert np.allclose(predict(30 * DAY_MS), 60)
    assert np.allclose(predict(-5 * DAY_MS), 0) and np.allclose(predict(99 * DAY_MS), 80)


def test_a_pixel_without_clear_observation_gets_the_mean():
    clear = np.ones((3, 1, 2), bool)
    clear[:, 0, 1] = False
    series = series_of(np.full((3, 1, 1, 2), 5.0), [0, 1, 2], clear)
    for name, build in PREDICTORS.items():
        field = build(series)(DAY_MS)
        assert np.isfinite(field).all()
        if name not in ("the place's clear mean",):
            assert field[0, 0, 1] == pytest.approx(0)


def test_the_harmonic_fit_finds_an_annual_cycle():
    days = np.arange(0, 730, 5)
    phase = 2 * np.pi * days * DAY_MS / YEAR_MS
    truth = 1 + np.cos(phase) - 0.5 * np.sin(2 * phase)
    series = series_of(truth[:, None, None, None], days)
    guess = harmonic(series)(int(days[37]) * DAY_MS)
    assert guess[0, 0, 0] == pytest.approx(truth[37], abs=0.03)  # the ridge shrinks by a hundredth or two
    shrunk = harmonic(series_of(truth[:, None, None, None], days))(0)[0, 0, 0]
    assert shrunk < truth[0]


def test_means_count_clear_pixels_only():
    clear = np.array([[[True, True]], [[False, True]]])
    series = series_of(np.array([[[[1.0, 2.0]]], [[[100.0, 6.0]]]]), [0, 1], clear)
    assert np.allclose(place_mean(series)(0), 3)
    assert np.allclose(temporal_mean(series)(0), [[[1, 4]]])


def test_the_scale_pools_all_places_and_clips():
    scale = Scale.of([series_of(np.zeros((1, 1, 1, 1)), [0]), series_of(np.full((1, 1, 1, 1), 2.0), [0])])
    assert scale.mean == pytest.approx([1]) and scale.std == pytest.approx([1])
    assert scale.standardize(np.full((1, 1, 1), 100.0)).item() == 6


def test_clouds_have_no_part_in_the_scale():
    clear = np.array([[[True, True]], [[True, False]]])
    scale = Scale.of([series_of(np.array([[[[1.0, 3.0]]], [[[2.0, 1e6]]]]), [0, 1], clear)])
    assert scale.mean == pytest.approx([2]) and scale.std == pytest.approx([(2 / 3) ** 0.5])


def test_clouds_have_no_part_in_an_error():
    truth, clear = np.array([[[1.0, 9.0]], [[1.0, 9.0]]]), np.array([[True, False]])
    assert l1(np.array([[[2.0, 0.0]], [[4.0, 0.0]]]), truth, clear) == 2
    assert np.isnan(l1(truth, truth, np.zeros((1, 2), bool)))


def test_a_place_of_many_dates_counts_as_much_as_one_of_few():
    table = WithheldTable()
    for place, error in (("many", 1.0), ("many", 1.0), ("many", 1.0), ("few", 3.0)):
        table.add("model", place, error)
    assert table.mean("model") == 2


def test_cells_average_and_refuse_a_remainder():
    assert cells(np.arange(4.0).reshape(2, 2), 2).item() == 1.5
    with pytest.raises(ValueError, match="multiples of 2"):
        cells(np.zeros((3, 2)), 2)


def chip_with(times_ms, values, clear, place="p") -> Chip:
    side = values.shape[-1]
    series = SourceSeries(
        values=values,
        valid=np.ones_like(values, bool),
        weight=(255 * clear[:, None]).astype(np.uint8),
        time_ms=times_ms,
    )
    return Chip(place, "EPSG:32631", (10.0, 0, 0, 0, -10.0, 0), side, side, 3, 51, {SURFACE.name: series})


def test_a_withheld_frame_and_its_twin_are_hidden_from_every_predictor_and_only_the_frame_is_judged():
    times = np.array([0, 10 * DAY_MS, 10 * DAY_MS + 60_000, 20 * DAY_MS], np.int64)
    values = np.full((4, 6, 2, 2), 1000, np.uint16)
    values[1:3] = 9000
    chip = chip_with(times, values, np.ones((4, 2, 2), bool))
    dates = WithheldDates({("p", ""): [int(times[1])]})
    task = WithheldTask([chip], SURFACE, hidden=dates, judged=dates)
    series = task.scale.apply(task.observed(chip))
    hidden, judged = task.frames(series)
    assert hidden.tolist() == [False, True, True, False] and judged.tolist() == [1]
    table = naive_table(task)
    assert table.errors["linear interpolation"]["p"] == pytest.approx([2.0], rel=1e-3)  # two of four frames: ± 1 s.d.
    assert table.errors[ORACLE]["p"] == pytest.approx([0.0], abs=1e-5)


def test_a_withheld_frame_without_a_clear_pixel_does_not_void_the_table():
    times = np.array([0, 10, 20, 30], np.int64) * DAY_MS
    clear = np.ones((4, 2, 2), bool)
    clear[1] = False
    values = np.array([1000, 5000, 2000, 3000], np.uint16)[:, None, None, None].repeat(6, 1).repeat(2, 2).repeat(2, 3)
    dates = WithheldDates({("p", ""): [int(times[1]), int(times[2])]})
    task = WithheldTask([chip_with(times, values, clear)], SURFACE, hidden=dates, judged=dates)
    assert len(naive_table(task).errors[ORACLE]["p"]) == 1 and np.isfinite(
        naive_table(task).mean("linear interpolation")
    )


def test_a_pixel_is_clear_where_all_its_bands_are_observed_and_its_weight_is_positive():
    cloudless = np.array([[[True, False, True]] * 3])
    chip = chip_with(np.zeros(1, np.int64), np.ones((1, 6, 3, 3), np.uint16), cloudless)
    chip.sources[SURFACE.name].valid[0, 2, :, 2] = False
    assert clear_series(chip, SURFACE).clear.tolist() == [[[True, False, False]] * 3]
    assert clear_series(chip, SURFACE, bands=["B05"]).clear.tolist() == [[[True, False, True]] * 3]


class Listener:
    """A model that knows nothing and remembers what it was asked and forbidden to see."""

    def reconstruct(self, chip, source, requests, *, without_ms):
        self.asked, self.forbidden = requests, without_ms
        return np.ones((len(requests), 6, chip.height, chip.width), np.float32)


def test_a_model_sees_neither_a_withheld_frame_nor_what_any_other_source_saw_within_the_hour():
    times = np.array([0, 10, 20], np.int64) * DAY_MS
    chip = chip_with(times, np.ones((3, 6, 2, 2), np.uint16), np.ones((3, 2, 2), bool))
    chip.sources["radar"] = SourceSeries(
        values=np.zeros((3, 1, 2, 2), np.float32),
        valid=np.ones((3, 1, 2, 2), bool),
        time_ms=times + np.array([90, 20, -30]) * 60_000,
    )
    hidden, judged = (WithheldDates({("p", ""): dates.tolist()}) for dates in (times[1:], times[1:2]))
    model = Listener()
    table = model_table(WithheldTask([chip], SURFACE, hidden, judged), model, period_days=[8])
    assert model.forbidden == {SURFACE.name: times[1:].tolist(), "radar": chip.sources["radar"].time_ms[1:].tolist()}
    assert model.asked == [(10 * DAY_MS, (6 * DAY_MS, 14 * DAY_MS))] and table.errors == {"model, 8 d": {"p": [0.0]}}


def test_an_unknown_band_or_source_is_named():
    chip = chip_with(np.zeros(1, np.int64), np.ones((1, 6, 2, 2), np.uint16), np.ones((1, 2, 2), bool))
    with pytest.raises(ValueError, match="no band B99"):
        clear_series(chip, SURFACE, bands=["B99"])
    chip.sources.clear()
    with pytest.raises(ValueError, match="holds no source s2_l2a"):
        clear_series(chip, SURFACE)


REPORT = {
    "the band's clear mean": (0.762, 0.687, 0.959, 0.639),
    "the place's clear mean": (0.721, 0.689, 0.914, 0.561),
    "the pixel's temporal mean": (0.620, 0.545, 0.810, 0.505),
    "harmonic fit per pixel": (0.508, 0.381, 0.691, 0.453),
    "linear interpolation": (0.470, 0.372, 0.607, 0.430),
    "mean of linear and harmonic": (0.447, 0.344, 0.608, 0.388),
    ORACLE: (0.365, 0.256, 0.471, 0.367),
}
TUNING = {
    "the band's clear mean": 0.730,
    "the place's clear mean": 0.710,
    "the pixel's temporal mean": 0.618,
    "harmonic fit per pixel": 0.510,
    "linear interpolation": 0.481,
    "mean of linear and harmonic": 0.455,
    ORACLE: 0.391,
}


@pytest.fixture(scope="module")
def real_chips() -> list[Chip]:
    xarray = pytest.importorskip("xarray")
    if not PATCHES.is_dir():
        pytest.skip("the sample data is not beside the checkout")
    chips = []
    for folder in sorted(path for path in PATCHES.iterdir() if path.is_dir() and path.name != "dem"):
        (file,) = folder.glob("S2_L2A_20m*.nc")
        with xarray.open_dataset(file, mask_and_scale=False) as data:
            values = np.stack([data[band].values for band in BANDS], axis=1)
            clear = np.isin(data.SCL.values, (4, 5, 6)) & (values > 0).all(axis=1)
            times = data.timestamp.values.astype("datetime64[ms]").astype(np.int64)
        chips.append(chip_with(times, values, clear, folder.name))
    return chips


def test_the_published_table_of_naive_predictors_is_reproduced(real_chips):
    listed = PATCHES.parent / "withheld_dates.csv"
    hidden = WithheldDates.read(listed)
    report = naive_table(WithheldTask(real_chips, SURFACE, hidden, WithheldDates.read(listed, "report")))
    for name, (mean, *places) in REPORT.items():
        assert report.mean(name) == pytest.approx(mean, rel=0.02)
        for chip, expected in zip(real_chips, places):
            assert report.place(name, chip.place) == pytest.approx(expected, rel=0.02)
    tuning = naive_table(WithheldTask(real_chips, SURFACE, hidden, WithheldDates.read(listed, "tuning")))
    for name, mean in TUNING.items():
        assert tuning.mean(name) == pytest.approx(mean, rel=0.02)
