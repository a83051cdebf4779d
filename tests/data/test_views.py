"""Teacher and student: the frames each may see (budgets, the line gap) and what the student loses."""

from __future__ import annotations

import numpy as np
import pytest

from aef.data.periods import overlap
from aef.data.sampling import _draw_line_gap
from aef.sources import INPUTS
from aef.timecode import DAY_MS, Period
from tests.data.drawing import draw, draws

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


def test_a_line_gap_is_up_to_two_pixels_wide_and_never_narrower_than_one():
    widths = []
    for seed in range(300):
        gap = np.argwhere(_draw_line_gap(np.random.default_rng(seed), 192))
        length = np.hypot(*(np.ptp(gap, axis=0) + 1))
        if length > 96:
            widths.append(len(gap) / length)
    # Drawn between 0.5 and 2, and at least 1: a third is 1, the rest is uniform up to 2.
    assert np.quantile(widths, [0.02, 0.25, 0.6, 0.98]) == pytest.approx([1, 1, 1.4, 1.97], abs=0.08)


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


def test_a_student_without_single_frames_is_asked_about_any_period_of_more_than_four_days(make_chip):
    chip = make_chip("place", side=4, sources=("sentinel2",), frames={"sentinel2": 20})
    samples = draws(chip, 200, student_strategies=strategy(0))
    lengths = [sample.consistency_period.length_ms / DAY_MS for sample in samples]
    assert min(lengths) > 4 and max(lengths) == 365 and len(set(lengths)) > 120
    assert all(overlap(s.consistency_period, s.support) == s.consistency_period.length_ms for s in samples)
    assert np.mean([length < 182 for length in lengths]) > 0.3


@pytest.mark.parametrize("beyond", [0.0, 183.0])
@pytest.mark.parametrize("forecast", [True, False])
def test_the_student_loses_half_a_year_and_is_asked_about_it(make_chip, forecast, beyond):
    chip = make_chip("place", frames={"sentinel2": 40})
    settings = {"student_strategies": strategy(1 if forecast else 2), "period_beyond_days": beyond}
    for sample in draws(chip, 20, **settings):
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
