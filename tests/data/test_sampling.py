"""What the sampler promises: the sections S1-S2.3 of the paper and the readings of docs/data.md."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from aef.config import DataConfig
from aef.data.chips import ChipError
from aef.data.collate import Collator
from aef.data.periods import overlap
from aef.data.sampling import Sampler
from aef.data.withheld import WithheldDates
from aef.sources import BUILT_IN, INPUTS
from aef.timecode import DAY_MS, Period

CONFIG = DataConfig(chip_px=16, frame_budget=1.0)
HOUR_MS = 3_600_000


def sampler(**settings) -> Sampler:
    extra = {key: settings.pop(key) for key in ("inputs", "targets", "withheld", "text") if key in settings}
    return Sampler(dataclasses.replace(CONFIG, **settings), BUILT_IN, **extra)


def draw(chip, epoch=0, **settings):
    return sampler(**settings).draw(chip, seed=0, epoch=epoch, global_index=0)


def draws(chip, count, **settings):
    one = sampler(**settings)
    return [one.draw(chip, seed=0, epoch=epoch, global_index=epoch) for epoch in range(count)]


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


@pytest.fixture
def chip(make_chip):
    return make_chip("place")


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


def test_a_chip_of_a_few_days_gives_what_it_has(make_chip):
    chip = make_chip("place", sources=("sentinel2", "sentinel1"), days=6)
    sample = draw(chip)
    assert sample.support.length_ms == 8 * DAY_MS
    assert sum(len(f.time_ms) for f in sample.teacher.values()) + 2 >= 12


def test_a_frame_that_shows_nothing_of_the_crop_is_no_frame(make_chip):
    chip = make_chip("place", sources=("sentinel2",))
    chip.sources["sentinel2"].valid[::2] = False
    lost = set(chip.sources["sentinel2"].time_ms[::2].tolist())
    for sample in draws(chip, 5):
        assert not lost & set(sample.teacher["sentinel2"].time_ms.tolist())


def test_a_chip_without_input_is_refused_by_name(make_chip):
    with pytest.raises(ChipError, match=r"place: holds no frame of an input source \(sentinel2, sentinel1, landsat\)"):
        draw(make_chip("place", sources=("glo30", "nlcd")))


# --- targets ---------------------------------------------------------------------------------------------------------


def test_every_source_gives_the_wanted_number_of_targets(make_chip):
    chip = make_chip("place", frames={"sentinel2": 30, "landsat": 9})
    sample = draw(chip, targets_per_source=3)
    counts = {name: len(targets) for name, targets in sample.targets.items()}
    assert counts["sentinel2"] == counts["sentinel1"] == counts["landsat"] == counts["era5_land"] == counts["gedi"] == 3
    # A static source and a map hold one frame; two PALSAR-2 scenes are all there is.
    assert counts["glo30"] == counts["nlcd"] == 1 and counts["palsar2"] == 2


@pytest.mark.parametrize(("frames", "expected"), [(1, 1), (3, 1), (4, 2), (5, 2), (6, 3), (9, 3)])
def test_further_targets_take_at_most_half_of_an_inputs_frames(make_chip, frames, expected):
    chip = make_chip("place", sources=("landsat", "sentinel1"), frames={"landsat": frames})
    sample = draw(chip, targets_per_source=3, support_days=3660.0)
    assert len(sample.targets["landsat"]) == expected


def test_targets_leave_the_input_with_their_twins(make_chip):
    chip = make_chip("place", sources=("sentinel2", "landsat"), frames={"sentinel2": 40})
    series = chip.sources["sentinel2"]
    # Every second frame is the twin of the one before.
    series.time_ms[1::2] = series.time_ms[::2] + np.arange(20) * 3 * 60_000
    for sample in draws(chip, 20, targets_per_source=2):
        times = [target.time_ms for target in sample.targets["sentinel2"]]
        assert len(times) == 2 and abs(times[0] - times[1]) > HOUR_MS
        for view in (sample.teacher, sample.student):
            if "sentinel2" in view:
                assert np.abs(view["sentinel2"].time_ms[:, None] - np.array(times)).min() > HOUR_MS


def test_without_twins_only_the_target_itself_leaves(chip):
    sample = draw(chip, twin_minutes=0.0)
    target = sample.targets["sentinel2"][0].time_ms
    assert target not in sample.teacher["sentinel2"].time_ms
    assert len(sample.teacher["sentinel2"].time_ms) >= 10


def test_targets_are_drawn_in_proportion_to_their_clear_weight(make_chip):
    chip = make_chip("place", sources=("sentinel2",), frames={"sentinel2": 4})
    series = chip.sources["sentinel2"]
    series.valid[:] = True
    shares = np.array([0.0, 1.0, 2.0, 5.0]) / 8
    series.weight = np.array([0, 40, 80, 200], np.uint8)[:, None, None, None] * np.ones((1, 1, 16, 16), np.uint8)
    counts = {int(t): 0 for t in series.time_ms}
    for sample in draws(chip, 800):
        counts[sample.targets["sentinel2"][0].time_ms] += 1
    found = np.array(list(counts.values())) / 800
    assert found[0] == 0 and found == pytest.approx(shares, abs=0.06)
    uniform = {s.targets["sentinel2"][0].time_ms for s in draws(chip, 60, target_by_clear_weight=False)}
    assert uniform == set(series.time_ms[1:].tolist())


def test_a_source_without_a_clear_frame_has_no_target(make_chip):
    chip = make_chip("place", sources=("sentinel2", "landsat"))
    chip.sources["sentinel2"].weight[:] = 0
    sample = draw(chip)
    assert not sample.targets.get("sentinel2") and sample.targets["landsat"]
    assert len(sample.teacher["sentinel2"].time_ms)


@pytest.mark.parametrize("source", INPUTS)
def test_a_target_that_would_empty_the_input_stays_with_weight_zero(make_chip, source):
    chip = make_chip("place", sources=(source,), frames={source: 1})
    if chip.sources[source].weight is not None:
        chip.sources[source].weight[:] = 255
    sample = draw(chip)
    (target,) = sample.targets[source]
    assert target.item_weight == 0
    assert sample.teacher[source].time_ms.tolist() == [target.time_ms]


def test_of_two_frames_either_is_decoded_from_the_other(make_chip):
    chip = make_chip("place", sources=("sentinel2", "landsat"), frames={"sentinel2": 1, "landsat": 1})
    chip.sources["sentinel2"].weight[:] = 255
    decoded = set()
    for sample in draws(chip, 20):
        weights = {name: target.item_weight for name, (target,) in sample.targets.items()}
        assert sorted(weights.values()) == [0.0, 1.0]
        assert list(sample.teacher) == [name for name, weight in weights.items() if weight == 0]
        decoded |= {name for name, weight in weights.items() if weight == 1}
    assert decoded == {"sentinel2", "landsat"}


def test_targets_carry_raw_values_masks_weights_and_metadata(chip):
    sample = draw(chip, crop_jitter=False)
    for name, targets in sample.targets.items():
        source, series = BUILT_IN[name], chip.sources[name]
        for target in targets:
            assert target.values.shape[-1] == source.channels and target.metadata.shape == (len(source.metadata),)
            if source.grid == "chip" and source.time == "instant":
                frame = int(np.flatnonzero(series.time_ms == target.time_ms)[0])
                assert (target.values == np.moveaxis(series.values[frame], 0, -1)).all()
                assert (target.valid == np.moveaxis(series.valid[frame], 0, -1)).all()
                weight = 255 if series.weight is None else np.moveaxis(series.weight[frame], 0, -1)
                assert (target.weight == weight).all()
                if series.metadata is not None:
                    assert (target.metadata == series.metadata[frame]).all()


def test_missing_metadata_is_nan(chip):
    chip.sources["sentinel1"].metadata = None
    assert np.isnan(draw(chip).targets["sentinel1"][0].metadata).all()


def test_footprints_of_one_month_are_one_target(chip):
    series = chip.sources["gedi"]
    for sample in draws(chip, 10):
        for target in sample.targets["gedi"]:
            month = (target.time_ms >= series.time_ms) & (target.time_ms < series.time_end_ms)
            inside = np.zeros((16, 16), bool)
            inside[series.row[month], series.col[month]] = True
            assert target.values.shape == (16, 16, 101) and (target.valid[..., 0] == inside).all()


def test_a_static_source_is_decoded_at_any_time(chip):
    positions = []
    for sample in draws(chip, 100):
        (target,) = sample.targets["glo30"]
        assert target.period.contains(target.time_ms)
        positions.append((target.time_ms - sample.support.start_ms) / sample.support.length_ms)
    assert min(positions) < 0.1 and max(positions) > 0.9


def test_the_nearest_mapped_year_is_decoded_inside_the_support(chip):
    """Maps of 2017 and, nearer by 200 days, of February 2020 to 2021."""
    series = chip.sources["nlcd"]
    for sample in draws(chip, 10, crop_jitter=False):
        (target,) = sample.targets["nlcd"]
        assert sample.support.contains(target.time_ms) and target.period.contains(target.time_ms)
        middle = (sample.support.start_ms + sample.support.end_ms) / 2
        nearest = int(np.argmin(np.abs(series.moment_ms - middle)))
        assert (target.values == np.moveaxis(series.values[nearest], 0, -1)).all()


def test_months_are_decoded_at_their_middle_from_a_period_that_covers_half(chip):
    series = chip.sources["era5_land"]
    for sample in draws(chip, 60):
        for target in sample.targets["era5_land"]:
            frame = int(np.flatnonzero(series.moment_ms == target.time_ms)[0])
            month = Period(int(series.time_ms[frame]), int(series.time_end_ms[frame]))
            within = min(month.length_ms // 2, overlap(month, sample.support))
            assert overlap(target.period, month) >= within and target.period.contains(target.time_ms)
            assert target.values.shape == (1, 1, 12)


def test_every_target_lies_in_its_period_of_more_than_four_days(chip):
    for settings in ({}, {"periods_per_sample": 4, "targets_per_source": 3}, {"period_beyond_days": 183.0}):
        for sample in draws(chip, 10, **settings):
            for targets in sample.targets.values():
                for target in targets:
                    assert target.period.contains(target.time_ms) and target.period.length_ms > 4 * DAY_MS
                    assert overlap(target.period, sample.support) > 0
                    if not settings.get("period_beyond_days"):
                        assert overlap(target.period, sample.support) == target.period.length_ms


def test_shared_periods_are_fewer_than_targets(chip):
    own = draw(chip, targets_per_source=3)
    shared = draw(chip, targets_per_source=3, periods_per_sample=4)

    def periods(sample):
        return {target.period for targets in sample.targets.values() for target in targets}

    assert len(periods(own)) > 8 > len(periods(shared))


# --- budgets ---------------------------------------------------------------------------------------------------------


def test_the_papers_budget_is_65_17_and_21_frames(make_chip):
    chip = make_chip("place", side=4, frames={"sentinel2": 90, "sentinel1": 40, "landsat": 30})
    sample = draw(chip)
    assert {name: len(frames.time_ms) for name, frames in sample.teacher.items()} == {
        "sentinel2": 65,
        "sentinel1": 17,
        "landsat": 21,
    }


@pytest.mark.parametrize(("share", "expected"), [(0.6, (39, 10, 13)), (0.01, (1, 1, 1))])
def test_a_budget_is_scaled_but_never_below_one_frame(make_chip, share, expected):
    chip = make_chip("place", side=4, frames={"sentinel2": 90, "sentinel1": 40, "landsat": 30})
    teacher = draw(chip, frame_budget=share).teacher
    assert tuple(len(teacher[name].time_ms) for name in INPUTS) == expected


def test_a_spread_budget_varies_from_sample_to_sample(make_chip):
    chip = make_chip("place", side=4, sources=("sentinel1",), frames={"sentinel1": 40})
    counts = {len(sample.teacher["sentinel1"].time_ms) for sample in draws(chip, 60, budget_spread=0.5)}
    assert min(counts) in (8, 9) and max(counts) in (16, 17) and len(counts) > 5


def test_jitter_moves_all_times_of_a_sample_together(make_chip):
    chip = make_chip("place")
    for still, moved in zip(draws(chip, 8), draws(chip, 8, time_jitter_days=20.0)):
        by = moved.support.start_ms - still.support.start_ms
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


def test_frames_are_thinned_evenly(make_chip):
    chip = make_chip("place", side=4, sources=("sentinel1",), frames={"sentinel1": 40})
    counts = dict.fromkeys(chip.sources["sentinel1"].time_ms.tolist(), 0)
    for sample in draws(chip, 300):
        for time in sample.teacher["sentinel1"].time_ms.tolist():
            counts[time] += 1
    assert np.array(list(counts.values())) / 300 == pytest.approx(np.full(40, 17 / 40), abs=0.12)


# --- line gap --------------------------------------------------------------------------------------------------------


def test_one_line_is_missing_from_all_sentinel_1_inputs_and_from_no_target(make_chip):
    chip = make_chip("place", side=32, sources=("sentinel1", "sentinel2"))
    for series in chip.sources.values():
        series.valid = np.ones((series.frames, 1, 32, 32), bool)
    widths = []
    for sample in draws(chip, 40, chip_px=32):
        valid = sample.teacher["sentinel1"].valid
        gap = ~valid[0, ..., 0]
        assert (valid == valid[:1]).all() and gap.any()
        if "sentinel1" in sample.student:
            assert (sample.student["sentinel1"].valid == valid[:1]).all()
        assert sample.teacher["sentinel2"].valid.all() and sample.targets["sentinel1"][0].valid.all()
        # The gap is one straight line: all its pixels lie near the line through the two that are farthest apart.
        points = np.argwhere(gap).astype(float)
        distance = np.linalg.norm(points[:, None] - points, axis=-1)
        i, j = np.unravel_index(distance.argmax(), distance.shape)
        along = (points[j] - points[i]) / max(distance[i, j], 1e-9)
        off = (points - points[i]) @ np.array([-along[1], along[0]])
        assert np.abs(off).max() <= 2.1
        if distance[i, j] > 16:
            widths.append(gap.sum() / (distance[i, j] + 1))
    assert min(widths) > 0.7 and max(widths) < 2.2
    assert 1.0 < np.median(widths) < 1.5 < max(widths)


def test_the_line_gap_can_be_switched_off(chip):
    chip.sources["sentinel1"].valid[:] = True
    assert draw(chip, line_gap=False).teacher["sentinel1"].valid.all()


# --- student ---------------------------------------------------------------------------------------------------------


def strategy(index: int) -> tuple[float, ...]:
    return tuple(float(i == index) for i in range(3))


def test_the_student_sees_a_part_of_the_teachers_frames(make_chip):
    chip = make_chip("place", frames={"sentinel2": 40, "sentinel1": 30, "landsat": 20})
    for sample in draws(chip, 20):
        for name, frames in sample.student.items():
            place = np.searchsorted(sample.teacher[name].time_ms, frames.time_ms)
            assert (sample.teacher[name].time_ms[place] == frames.time_ms).all()
            assert (sample.teacher[name].values[place] == frames.values).all()
            assert (sample.teacher[name].valid[place] == frames.valid).all()


def test_frames_are_dropped_one_by_one_with_the_papers_odds(make_chip):
    chip = make_chip("place", side=4, sources=INPUTS, frames={"sentinel2": 60, "sentinel1": 30, "landsat": 30})
    kept, had, whole = dict.fromkeys(INPUTS, 0), dict.fromkeys(INPUTS, 0), dict.fromkeys(INPUTS, 0)
    samples = draws(chip, 300, student_strategies=strategy(0))
    for sample in samples:
        assert sample.support.start_ms <= sample.consistency_period.start_ms
        for name in INPUTS:
            whole[name] += name not in sample.student
            if name in sample.student:
                kept[name] += len(sample.student[name].time_ms)
                had[name] += len(sample.teacher[name].time_ms)
    assert {name: whole[name] / 300 for name in INPUTS} == pytest.approx(
        {"sentinel2": 0, "sentinel1": 0.3, "landsat": 0.3}, abs=0.08
    )
    assert {name: 1 - kept[name] / had[name] for name in INPUTS} == pytest.approx(
        {"sentinel2": 0.5, "sentinel1": 0.3, "landsat": 0.3}, abs=0.03
    )


@pytest.mark.parametrize("forecast", [True, False])
def test_the_student_loses_half_a_year_and_is_asked_about_it(make_chip, forecast):
    chip = make_chip("place", frames={"sentinel2": 40})
    for sample in draws(chip, 20, student_strategies=strategy(1 if forecast else 2)):
        middle = (sample.support.start_ms + sample.support.end_ms) // 2
        lost = Period(middle, sample.support.end_ms) if forecast else Period(sample.support.start_ms, middle)
        assert overlap(sample.consistency_period, lost) == sample.consistency_period.length_ms
        assert not any(lost.contains(int(t)) for f in sample.student.values() for t in f.time_ms)
        kept = sample.student["sentinel2"].time_ms
        teacher = sample.teacher["sentinel2"].time_ms
        assert len(kept) == np.sum((teacher < middle) == forecast)


def test_the_three_strategies_have_equal_odds(make_chip):
    chip = make_chip("place", side=4, sources=("sentinel2",), frames={"sentinel2": 60})
    kinds = [0, 0, 0]
    for sample in draws(chip, 300):
        middle = (sample.support.start_ms + sample.support.end_ms) // 2
        before = sample.student["sentinel2"].time_ms < middle
        kinds[1 if before.all() else 2 if not before.any() else 0] += 1
    assert np.array(kinds) / 300 == pytest.approx(np.full(3, 1 / 3), abs=0.09)


def test_a_student_that_lost_everything_counts_nothing(make_chip):
    chip = make_chip("place", sources=("sentinel2",), frames={"sentinel2": 2})
    chip.sources["sentinel2"].weight[:] = 255
    samples = draws(chip, 40)
    assert {bool(sample.student) for sample in samples} == {True, False}
    assert all(sample.consistency_weight == bool(sample.student) for sample in samples)


def test_the_teacher_keeps_all_frames_unless_it_drops_them_too(make_chip):
    chip = make_chip("place", side=4, sources=("sentinel2",), frames={"sentinel2": 60})
    full = [len(sample.teacher["sentinel2"].time_ms) for sample in draws(chip, 30)]
    dropped = [len(sample.teacher["sentinel2"].time_ms) for sample in draws(chip, 30, teacher_frame_drop=True)]
    assert min(full) >= 58
    assert np.mean(dropped) == pytest.approx(0.5 * np.mean(full), rel=0.1)


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
