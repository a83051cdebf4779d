"""Random supports and valid periods keep their bounds and their distribution."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aef.config import DataConfig
from aef.data.periods import PeriodLaw, TargetTime, draw_shared, draw_support, overlap
from aef.timecode import DAY_MS, Period, parse_time

START = parse_time("2019-03-01")
SUPPORT = Period(START, START + 365 * DAY_MS)
LAW = PeriodLaw.of(DataConfig())
seeds = st.integers(0, 2**32)


def rng(seed=0):
    return np.random.default_rng(seed)


def days(period: Period) -> float:
    return period.length_ms / DAY_MS


def test_lengths_are_half_uniform_a_quarter_log_uniform_a_quarter_the_whole_support():
    generator = rng()
    lengths = np.array([LAW.draw_length(generator, SUPPORT.length_ms) for _ in range(20000)]) / DAY_MS
    assert lengths.min() > 4 and lengths.max() == 365
    assert (lengths == 365).mean() == pytest.approx(0.25, abs=0.01)
    # Below 38.2 days, the geometric middle of 4 and 365, lie half of the log-uniform and 9.5 % of the uniform ones.
    assert (lengths < np.sqrt(4 * 365)).mean() == pytest.approx(0.25 / 2 + 0.5 * (38.2 - 4) / 361, abs=0.012)
    assert np.median(lengths[lengths > 200]) > 280


@pytest.mark.parametrize(("uniform", "log_uniform"), [(1.0, 0.0), (0.0, 1.0), (0.0, 0.0)])
def test_each_share_of_lengths_can_be_all_of_them(uniform, log_uniform):
    law = dataclasses.replace(LAW, uniform=uniform, log_uniform=log_uniform)
    generator = rng()
    lengths = np.array([law.draw_length(generator, SUPPORT.length_ms) for _ in range(2000)]) / DAY_MS
    assert (
        (lengths == 365).all()
        if uniform + log_uniform == 0
        else lengths.mean() == pytest.approx((4 + 365) / 2 if uniform else 361 / np.log(365 / 4), rel=0.06)
    )


@settings(max_examples=300, deadline=None)
@given(seed=seeds, share=st.floats(0, 1, exclude_max=True), beyond=st.sampled_from([0, 30, 183]))
def test_a_period_contains_its_target_and_stays_in_reach(seed, share, beyond):
    law = dataclasses.replace(LAW, beyond_ms=beyond * DAY_MS)
    time_ms = SUPPORT.start_ms + int(share * SUPPORT.length_ms)
    period = law.draw_covering(rng(seed), SUPPORT, TargetTime(time_ms))
    assert period.contains(time_ms)
    assert 4 < days(period) <= 365
    assert period.start_ms >= SUPPORT.start_ms - beyond * DAY_MS and period.end_ms <= SUPPORT.end_ms + beyond * DAY_MS


@settings(max_examples=300, deadline=None)
@given(seed=seeds, start=st.integers(-14, 350), length=st.integers(1, 120), need=st.sampled_from([0.1, 0.5, 0.9, 1.0]))
def test_a_period_covers_enough_of_an_interval(seed, start, length, need):
    interval = Period(SUPPORT.start_ms + start * DAY_MS, SUPPORT.start_ms + (start + length) * DAY_MS)
    middle = (interval.start_ms + interval.end_ms) // 2
    if not SUPPORT.contains(middle):
        return
    wanted = min(round(need * interval.length_ms), overlap(interval, SUPPORT))
    time = TargetTime(middle, interval, wanted)
    period = LAW.draw_covering(rng(seed), SUPPORT, time)
    assert period.contains(middle) and overlap(period, interval) >= wanted
    assert period.start_ms >= SUPPORT.start_ms and period.end_ms <= SUPPORT.end_ms
    assert time.covered_by(period)


def test_some_periods_reach_beyond_the_support_if_they_may():
    law = dataclasses.replace(LAW, beyond_ms=183 * DAY_MS)
    drawn = [law.draw_covering(rng(seed), SUPPORT, TargetTime(SUPPORT.start_ms + DAY_MS)) for seed in range(200)]
    assert any(period.start_ms < SUPPORT.start_ms for period in drawn)
    assert min(period.start_ms for period in drawn) < SUPPORT.start_ms - 100 * DAY_MS


def test_a_free_period_lies_within_the_bounds():
    for seed in range(300):
        period = LAW.draw_within(rng(seed), SUPPORT)
        assert SUPPORT.start_ms <= period.start_ms and period.end_ms <= SUPPORT.end_ms and days(period) > 4
        beyond = dataclasses.replace(LAW, beyond_ms=100 * DAY_MS).draw_within(rng(seed), SUPPORT)
        assert overlap(beyond, SUPPORT) > 0


def test_a_support_shorter_than_the_shortest_period_is_summarised_whole():
    short = Period(START, START + 2 * DAY_MS)
    assert LAW.draw_within(rng(), short) == short
    assert LAW.draw_covering(rng(), short, TargetTime(START + 5)) == short


# --- supports --------------------------------------------------------------------------------------------------------


@settings(max_examples=300, deadline=None)
@given(seed=seeds, frames=st.lists(st.integers(0, 3000), min_size=1, max_size=8, unique=True))
def test_a_support_is_a_year_that_holds_a_frame_and_all_where_they_span_less(seed, frames):
    times = START + np.sort(np.array(frames, np.int64)) * DAY_MS
    support = draw_support(rng(seed), times, 365 * DAY_MS)
    inside = (times >= support.start_ms) & (times < support.end_ms)
    assert days(support) == 365
    assert inside.any()
    if times[-1] - times[0] < 365 * DAY_MS:
        assert inside.all()


@pytest.mark.parametrize("span", [2000, 725, 215, 60, 0])
def test_supports_start_anywhere_not_with_the_calendar(span):
    """Among the frames where they span more than a year, around them where they span less."""
    times = START + np.arange(0, span + 5, 5, dtype=np.int64) * DAY_MS
    starts = np.array([draw_support(rng(seed), times, 365 * DAY_MS).start_ms for seed in range(400)])
    low, high = sorted((0, span - 365))
    share = (starts - START - low * DAY_MS) / ((high - low) * DAY_MS)
    assert -1e-6 <= share.min() < 0.05 and 0.95 < share.max() <= 1.0 + 1e-6
    assert share.mean() == pytest.approx(0.5, abs=0.05)


# --- shared periods --------------------------------------------------------------------------------------------------


def times(count: int, seed: int) -> list[TargetTime]:
    return [TargetTime(SUPPORT.start_ms + int(t)) for t in rng(seed).integers(0, SUPPORT.length_ms, count)]


def test_each_target_has_a_period_of_its_own_by_default():
    wanted = times(9, 1)
    periods = draw_shared(rng(), LAW, SUPPORT, wanted, 0)
    assert all(time.covered_by(period) for time, period in zip(wanted, periods))
    assert len({period for period in periods if period != SUPPORT}) == sum(period != SUPPORT for period in periods)


def test_targets_share_periods_and_only_an_uncovered_one_has_its_own():
    distinct = []
    for seed in range(200):
        wanted = times(9, seed)
        periods = draw_shared(rng(seed), LAW, SUPPORT, wanted, 4)
        assert all(time.covered_by(period) for time, period in zip(wanted, periods))
        distinct.append(len(set(periods)))
    assert np.mean(distinct) < 4.5 and max(distinct) <= 9


def test_shared_periods_of_no_target_are_none():
    assert draw_shared(rng(), LAW, SUPPORT, [], 4) == []
