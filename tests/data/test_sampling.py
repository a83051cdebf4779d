"""A sample follows from seed, epoch and place, is cut from one window and support, and holds only what was asked for."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from aef.data.chips import ChipError
from aef.data.collate import Collator
from aef.data.crop import Crop
from aef.data.periods import overlap
from aef.data.withheld import WithheldDates
from aef.sources import BUILT_IN, INPUTS
from aef.timecode import DAY_MS, Period, parse_time
from tests.data.drawing import draw, draws, sampler

START = parse_time("2019-01-01")
"""Where the chips of make_chip begin."""


def same(one, other) -> bool:
    if isinstance(one, np.ndarray):
        return one.dtype == other.dtype and np.array_equal(one, other, equal_nan=one.dtype.kind == "f")
    if dataclasses.is_dataclass(one):
        return all(same(getattr(one, f.name), getattr(other, f.name)) for f in dataclasses.fields(one))
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


# --- randomness ------------------------------------------------------------------------------------------------------


def test_a_sample_is_a_function_of_seed_epoch_and_id(make_chip):
    chip, twin = make_chip("place"), make_chip("place")
    one = sampler().draw(chip, seed=3, epoch=7, global_index=5)
    # Another sampler that has drawn something else before.
    other = sampler()
    other.draw(make_chip("elsewhere"), seed=3, epoch=7, global_index=4)
    assert same(one, other.draw(twin, seed=3, epoch=7, global_index=5))


@pytest.mark.parametrize("key", [{"seed": 1}, {"epoch": 1}, {"name": "another"}])
def test_another_seed_epoch_or_id_draws_another_sample(make_chip, chip, key):
    one = sampler().draw(chip, seed=0, epoch=0, global_index=0)
    other = chip if "name" not in key else dataclasses.replace(chip, id=key["name"])
    again = sampler().draw(other, seed=key.get("seed", 0), epoch=key.get("epoch", 0), global_index=0)
    assert not same(one, dataclasses.replace(again, id=one.id, epoch=one.epoch))
    assert one.hash != again.hash or "seed" in key


# --- crops and supports ----------------------------------------------------------------------------------------------


def test_frames_and_targets_are_cut_from_the_same_window(make_chip):
    """Every source stores the chip's pixel numbers, so a window is recognised by them."""
    chip = make_chip("place", side=24, sources=("sentinel2", "landsat", "glo30"))
    numbers = np.arange(24 * 24).reshape(24, 24)
    for series in chip.sources.values():
        series.values = np.broadcast_to(numbers, series.values.shape).astype(np.float32)
        series.valid = np.ones_like(series.valid)
        series.weight = None
    sample = draw(chip)
    windows = [
        *(f.values[0, ..., 0] for f in sample.teacher.values()),
        *(f.values[0, ..., 0] for f in sample.student.values()),
    ]
    windows += [target.values[..., 0] for targets in sample.targets.values() for target in targets]
    assert len(windows) >= 4 and all((window == windows[0]).all() for window in windows)
    assert windows[0].shape == (16, 16) and (np.diff(windows[0], axis=1) == 1).all()


def test_a_small_chip_is_padded_with_what_is_not_valid(make_chip):
    chip = make_chip("place", side=10)
    sample = draw(chip)
    for frames in sample.teacher.values():
        assert frames.values.shape[1:3] == (16, 16)
        assert frames.valid.any(axis=(0, 3)).sum() <= 100
    target = sample.targets["glo30"][0]
    assert target.valid.sum() == 100


def test_inputs_lie_in_a_support_of_a_year(make_chip):
    chip = make_chip("place", days=900, frames={"sentinel2": 60, "sentinel1": 40, "landsat": 20})
    for sample in draws(chip, 20):
        assert sample.support.length_ms == 365 * DAY_MS
        for frames in (*sample.teacher.values(), *sample.student.values()):
            assert (frames.time_ms >= sample.support.start_ms).all() and (frames.time_ms < sample.support.end_ms).all()
            assert (np.diff(frames.time_ms) > 0).all()


def test_a_support_ends_before_its_end(chip):
    times = chip.sources["sentinel2"].time_ms
    support = Period(int(times[2]), int(times[5]))
    found = sampler()._candidates(chip, "sentinel2", support, Crop(0, 0, 16))
    assert found.moment_ms.tolist() == times[2:5].tolist()


def test_a_chip_of_a_few_days_gives_what_it_has(make_chip):
    chip = make_chip("place", sources=("sentinel2", "sentinel1"), days=6)
    sample = draw(chip)
    assert sample.support.length_ms == 365 * DAY_MS
    assert sum(len(f.time_ms) for f in sample.teacher.values()) + 2 >= 12


@pytest.fixture(params=[60, 215])
def season(request, make_chip):
    """A year of months, of which the frames cover the days from the 70th on only."""
    chip = make_chip("place", side=4, frames={"sentinel2": 60, "sentinel1": 30, "landsat": 30})
    for name in ("sentinel2", "sentinel1", "landsat", "palsar2"):
        since = chip.sources[name].time_ms - START
        chip.sources[name].time_ms = START + 70 * DAY_MS + since * request.param // 365
    return chip, Period(START + 70 * DAY_MS, START + (70 + request.param) * DAY_MS)


def test_a_season_lies_anywhere_in_its_year_and_the_months_around_it_are_decoded(season):
    chip, observed = season
    samples = draws(chip, 60, text=lambda _: np.ones(4, np.float32))
    starts = np.array([(sample.support.start_ms - observed.start_ms) / DAY_MS for sample in samples])
    assert np.ptp(starts) > 0.8 * (365 - observed.length_ms / DAY_MS)
    for sample in samples:
        assert sample.support.length_ms == 365 * DAY_MS
        assert overlap(sample.support, observed) >= observed.length_ms - 5 * DAY_MS  # all frames, that is
        asked = [target.period for targets in sample.targets.values() for target in targets]
        for period in (*asked, sample.consistency_period, *(text.period for text in sample.texts)):
            assert 4 * DAY_MS < period.length_ms == overlap(period, sample.support)
        assert all(one.period.contains(one.time_ms) for targets in sample.targets.values() for one in targets)
    outside = [not observed.contains(sample.targets["era5_land"][0].time_ms) for sample in samples]
    assert np.mean(outside) > 0.2


def test_the_lost_half_year_of_a_season_is_asked_only_of_a_student_that_kept_frames(season):
    chip, observed = season
    for strategies in ((0.0, 1.0, 0.0), (0.0, 0.0, 1.0)):
        weights, lost = [], []
        for sample in draws(chip, 40, student_strategies=strategies):
            weights.append(sample.consistency_weight)
            assert sample.consistency_weight == bool(sample.student)
            kept = len(sample.student["sentinel2"].time_ms) if "sentinel2" in sample.student else 0
            lost.append(len(sample.teacher["sentinel2"].time_ms) - kept)
        # The middle of the year is always among the frames of the long season, seldom among those of the short one.
        long = observed.length_ms > 182.5 * DAY_MS
        assert (min(weights), min(lost) > 0) == ((1, True) if long else (0, False))
        assert np.mean(weights) > 0.3


def test_jitter_moves_all_times_of_a_sample_together(make_chip):
    chip = make_chip("place")
    seen = []
    for still, moved in zip(draws(chip, 8), draws(chip, 8, time_jitter_days=20.0)):
        by = moved.support.start_ms - still.support.start_ms
        seen.append(by)
        assert 0 < abs(by) <= 20 * DAY_MS and moved.support.length_ms == still.support.length_ms
        assert moved.consistency_period.start_ms - still.consistency_period.start_ms == by
        for view in ("teacher", "student"):
            for name, frames in getattr(still, view).items():
                assert np.array_equal(
                    getattr(moved, view)[name].time_ms - frames.time_ms, np.full(len(frames.time_ms), by)
                )
        for name, targets in still.targets.items():
            for one, other in zip(targets, moved.targets[name]):
                assert other.time_ms - one.time_ms == other.period.start_ms - one.period.start_ms == by
    assert min(seen) < 0 < max(seen)  # both ways: seasons stay where they are on average


def test_a_frame_that_shows_nothing_of_the_crop_is_no_frame(make_chip):
    chip = make_chip("place", sources=("sentinel2",))
    chip.sources["sentinel2"].valid[::2] = False
    lost = set(chip.sources["sentinel2"].time_ms[::2].tolist())
    for sample in draws(chip, 5):
        assert not lost & set(sample.teacher["sentinel2"].time_ms.tolist())


def test_a_chip_without_input_is_refused_by_name(make_chip):
    with pytest.raises(ChipError, match=r"place: holds no frame of an input source \(sentinel2, sentinel1, landsat\)"):
        draw(make_chip("place", sources=("glo30", "nlcd")))


# --- withheld dates, sources, text -----------------------------------------------------------------------------------


def test_withheld_dates_and_their_twins_are_in_no_input_and_no_target(make_chip):
    chip = make_chip("place", sources=("sentinel2", "sentinel1"), frames={"sentinel2": 20})
    series = chip.sources["sentinel2"]
    series.time_ms[5] = series.time_ms[4] + 20 * 60_000
    dates = [int(series.time_ms[4]), int(series.time_ms[10])]
    hidden = {int(series.time_ms[i]) for i in (4, 5, 10)}
    withheld = WithheldDates({("place", ""): dates})
    for sample in draws(chip, 30, withheld=withheld, targets_per_source=3):
        views = [view["sentinel2"] for view in (sample.teacher, sample.student) if "sentinel2" in view]
        seen = {int(t) for frames in views for t in frames.time_ms}
        seen |= {target.time_ms for target in sample.targets["sentinel2"]}
        assert not seen & hidden
    elsewhere = WithheldDates({("elsewhere", ""): dates})
    assert any(hidden & {int(t) for t in s.teacher["sentinel2"].time_ms} for s in draws(chip, 5, withheld=elsewhere))


def test_only_the_wanted_sources_are_read(chip):
    sample = draw(chip, inputs=("landsat",), targets=("landsat", "glo30"))
    assert set(sample.teacher) == {"landsat"} and set(sample.targets) == {"landsat", "glo30"}


def test_a_text_in_the_crop_comes_with_its_pixel_disc_and_period(chip):
    sample = draw(chip, crop_jitter=False, text=lambda text: np.full(8, len(text), np.float32))
    (text,) = sample.texts
    assert (text.row, text.col) == (7, 3) and text.radius_px == 2.5 and (text.vector == len("a meadow")).all()
    assert overlap(text.period, sample.support) == text.period.length_ms > 4 * DAY_MS


def test_a_text_without_vector_out_of_the_crop_or_of_another_time_is_left_out(chip):
    vector = lambda _: np.ones(8, np.float32)  # noqa: E731
    assert draw(chip).texts == ()
    assert draw(chip, text=lambda _: None).texts == ()
    (point,) = chip.texts
    chip.texts = [dataclasses.replace(point, x=point.x - 1000)]
    assert draw(chip, text=vector).texts == ()
    chip.texts = [dataclasses.replace(point, time_ms=0, time_end_ms=1)]
    assert draw(chip, text=vector).texts == ()


def test_texts_of_a_sample_are_different_ones_over_one_period(chip):
    (point,) = chip.texts
    words = ["a meadow", "a wood", "a road"]
    chip.texts = [dataclasses.replace(point, text=text) for text in words]
    settings = {"text": lambda text: np.full(8, words.index(text), np.float32), "crop_jitter": False}
    for count in (1, 2, 3, 9):
        drawn = [draw(chip, epoch=epoch, texts_per_sample=count, **settings).texts for epoch in range(30)]
        assert all(len({text.identity for text in texts}) == len(texts) == min(count, 3) for texts in drawn)
        assert all(len({text.period for text in texts}) == 1 for texts in drawn)
        assert {float(text.vector[0]) for texts in drawn for text in texts} == {0.0, 1.0, 2.0}


def test_a_text_may_hold_for_the_whole_support(chip):
    vector = lambda _: np.ones(8, np.float32)  # noqa: E731
    samples = [draw(chip, epoch=epoch, text=vector, text_period="support") for epoch in range(6)]
    assert all(text.period == sample.support for sample in samples for text in sample.texts)
    drawn = [draw(chip, epoch=epoch, text=vector) for epoch in range(6)]
    assert any(text.period != sample.support for sample in drawn for text in sample.texts)


# --- what trains -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {"sources": ("sentinel1",)},
        {"sources": ("sentinel2",), "frames": {"sentinel2": 1}},
        {"sources": ("landsat", "gedi", "nlcd")},
        {"side": 10},
        {"side": 40},
        {"days": 900},
    ],
)
def test_any_lawful_chip_collates_with_any_other(make_chip, options):
    collate = Collator(BUILT_IN, INPUTS, tuple(BUILT_IN))
    samples = [draw(make_chip("a", **options)), draw(make_chip("b"))]
    batch = collate(samples)
    assert batch.samples == 2 and batch.cu_frames[-1] == batch.total_frames
