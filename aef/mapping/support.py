"""The support of a valid period: the year of frames from which it is embedded.

Fields of one period are compared between places and years, so the support of a field follows from its valid period
alone: not from the other periods of a call, and not from the first or last frame of a chip.

| valid period | support |
| --- | --- |
| inside one calendar year (UTC) | that year, as in the published product |
| longer than the supports of training | the period itself |
| any other | as many days as in training around its middle, from midnight |
| before or after all observations | as many days from the first, or to the last, observed month |

Only the last row reads the chip, for a year around such a period would hold few frames or none. A support that is named
(`embed(..., support=)`) serves every period of the call.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from datetime import UTC, date, datetime
from numbers import Real

import numpy as np

from aef.data.chips import Chip
from aef.mapping.errors import EmbeddingError
from aef.timecode import DAY_MS, Period, format_time, parse_period, parse_time

DateLike = str | date | np.datetime64
PeriodLike = str | tuple[DateLike, DateLike] | Period
TimeLike = int | DateLike
"""Epoch milliseconds, or a date."""

RequestLike = tuple[TimeLike, PeriodLike]
"""A time to decode, and the valid period that holds it."""

FIRST_MS, LAST_MS = -62_135_596_800_000, 253_402_300_799_999
"""The years 1 to 9999, which dates can tell."""

BEYOND_MS = 183 * DAY_MS
"""How far a valid period may lie outside the observations, or outside a support that is named (paper: 6 months)."""

FAR_LONGER = 1.5
"""A valid period of more than so many supports is warned of: training saw none that is longer than its support."""


class LongPeriodWarning(UserWarning):
    """A valid period far longer than any that the model has seen; one line."""


class UnobservedPeriodWarning(UserWarning):
    """A valid period of which more than six months to one side were not observed; one line."""


class SparseSupportWarning(UserWarning):
    """A support that holds less than half of the frames that another one around the period would; one line."""


# --- periods in words ------------------------------------------------------------------------------------------------


def as_period(value: PeriodLike) -> Period:
    """A period, or what stands for one: START/END, or a pair of dates (text, `datetime`, NumPy or pandas). Raises ValueError."""
    if isinstance(value, Period):
        period = Period(as_time(value.start_ms), as_time(value.end_ms))
        if period.length_ms <= 0:
            raise EmbeddingError(f"the period {period} must end after it starts")
        return period
    if isinstance(value, str):
        return parse_period(value)
    if isinstance(value, tuple) and len(value) == 2 and all(map(_is_date, value)):
        start, end = map(_as_text, value)
        return parse_period((start, end))
    raise EmbeddingError(f'expected a period like ("2018-01-01", "2019-01-01"), found {value!r}')


def as_periods(value: PeriodLike | Sequence[PeriodLike]) -> tuple[list[Period], bool]:
    """One period, or a list or tuple of them; and whether it is one. Raises ValueError."""
    if isinstance(value, list):
        if len(value) == 2 and all(_is_date(one) and "/" not in str(one) for one in value):
            raise EmbeddingError(
                f"expected periods, found the dates {value!r}: give one period as a tuple, (START, END)"
            )
        return [as_period(one) for one in value], False
    if isinstance(value, tuple) and all(isinstance(one, tuple) or "/" in str(one) for one in value):
        return [as_period(one) for one in value], False
    return [as_period(value)], True  # type: ignore[arg-type]


def as_time(value: TimeLike) -> int:
    """Epoch milliseconds of a time: a whole number of them, or a date as in `as_period`. Raises ValueError."""
    if _is_date(value):
        return parse_time(_as_text(value))  # type: ignore[arg-type]
    if isinstance(value, bool | np.timedelta64) or not isinstance(value, Real) or value != value // 1:
        raise EmbeddingError(f'expected a time like "2018-06-01" or whole epoch milliseconds, found {value!r}')
    if not FIRST_MS <= value <= LAST_MS:
        raise EmbeddingError(f"expected a time in epoch milliseconds, found {value}, which lies beyond the year 9999")
    return int(value)


def as_requests(value: RequestLike | Sequence[RequestLike]) -> tuple[list[tuple[int, Period]], bool]:
    """One request, or a list or tuple of them; and whether it is one. Raises ValueError."""
    if isinstance(value, tuple) and len(value) == 2 and not isinstance(value[0], tuple | list):
        return [(as_time(value[0]), as_period(value[1]))], True  # type: ignore[arg-type]
    found = []
    for one in value if isinstance(value, tuple | list) else [value]:
        if not isinstance(one, tuple | list) or len(one) != 2:
            raise EmbeddingError(f'expected requests (TIME, PERIOD), like ("2018-06-01", PERIOD), found {one!r}')
        time, period = one
        found.append((as_time(time), as_period(period)))  # type: ignore[arg-type]
    return found, False


def _as_text(value: DateLike) -> str:
    """A date of any kind in ISO, NumPy's years and months by their first day."""
    if isinstance(value, np.datetime64):
        return str(value.astype("datetime64[ms]"))
    return value if isinstance(value, str) else value.isoformat()


def _is_date(value: object) -> bool:
    return isinstance(value, str | date | np.datetime64)


# --- observations ----------------------------------------------------------------------------------------------------


def observed_span(chip: Chip, inputs: Sequence[str]) -> Period:
    """From the first to just after the last frame of the model's input sources. Raises EmbeddingError if there is none."""
    held = [chip.sources[name].time_ms for name in inputs if name in chip.sources]
    span = span_of(times for times in held if times is not None)
    if span is None:
        raise EmbeddingError(
            f"chip {chip.id}: holds no frame of any input of the model ({', '.join(inputs)}); it holds "
            f"{', '.join(chip.sources) or 'nothing'}"
        )
    return span


def span_of(times_ms: Iterable[np.ndarray]) -> Period | None:
    """From the first to just after the last of some sorted frame times; None without a frame."""
    held = [times for times in times_ms if len(times)]
    return Period(min(int(t[0]) for t in held), max(int(t[-1]) for t in held) + 1) if held else None


def count_frames(chip: Chip, support: Period, inputs: Sequence[str]) -> int:
    """Frames of some sources whose times lie in a support."""
    moments = [chip.sources[name].moment_ms for name in inputs if name in chip.sources]
    return sum(int(((t >= support.start_ms) & (t < support.end_ms)).sum()) for t in moments if t is not None)


# --- which support ---------------------------------------------------------------------------------------------------


def support_of(period: Period, length_ms: int) -> Period:
    """The support of a valid period, from the period alone. `length_ms`: of the supports of training."""
    year = _calendar_year(period)
    if year is not None and abs(year.length_ms - length_ms) <= DAY_MS:
        return year
    if period.length_ms >= length_ms:
        return period
    start = (period.start_ms + period.end_ms - length_ms) // 2
    start = max(start // DAY_MS * DAY_MS, period.end_ms - length_ms)
    return Period(start, start + length_ms)


def support_at(period: Period, span: Period, length_ms: int, chip_id: str) -> Period:
    """`support_of` for a period that meets the observations, else the support at the observed end that is nearer to it.

    Raises EmbeddingError as `require_reach` does.
    """
    require_reach(period, span, chip_id)
    if not _lies_beyond(period, span):
        return support_of(period, length_ms)
    months = _whole_months(span)
    if period.end_ms <= span.start_ms:
        return Period(months.start_ms, months.start_ms + length_ms)
    return Period(months.end_ms - length_ms, months.end_ms)


def support_inside(period: Period, span: Period, length_ms: int) -> Period:
    """The support around a valid period, moved inside a span; a longer period is its own support.

    For what is compared with the truth and not between places: it holds as many frames as there are.
    """
    if period.length_ms > length_ms:
        return period
    latest = max(span.end_ms - length_ms, span.start_ms)
    start = min(max((period.start_ms + period.end_ms - length_ms) // 2, span.start_ms), latest)
    return Period(start, start + length_ms)


def group_requests(periods: Sequence[Period], span: Period, length_ms: int, chip_id: str) -> dict[Period, list[int]]:
    """Indices of periods by the `support_inside` that serves them, in whole tenths of its length so that few are needed.

    Neighbouring periods share a support: it stays within a twentieth of its length of being centred.
    """
    step = max(length_ms // 10, 1)
    groups: dict[Period, list[int]] = {}
    for index, period in enumerate(periods):
        require_reach(period, span, chip_id)
        support = support_inside(period, span, length_ms)
        start = span.start_ms + round((support.start_ms - span.start_ms) / step) * step
        start = min(max(start, span.start_ms), max(span.end_ms - support.length_ms, span.start_ms))
        groups.setdefault(Period(start, start + support.length_ms), []).append(index)
    return groups


def _calendar_year(period: Period) -> Period | None:
    """The calendar year that holds a whole period, or None."""
    year = _moment(period.start_ms).year
    start, end = (_epoch_ms(one, 1) for one in (year, year + 1))
    return Period(start, end) if period.end_ms <= end else None


def _whole_months(span: Period) -> Period:
    """A span with the rest of its first and last month: a frame more or less does not move it, as a rule."""
    first, last = _moment(span.start_ms), _moment(span.end_ms - 1)
    years, month = divmod(last.month, 12)
    return Period(_epoch_ms(first.year, first.month), _epoch_ms(last.year + years, month + 1))


def _moment(time_ms: int) -> datetime:
    return datetime.fromtimestamp(time_ms // 1000, UTC)


def _epoch_ms(year: int, month: int) -> int:
    return round(datetime(year, month, 1, tzinfo=UTC).timestamp()) * 1000


def _lies_beyond(period: Period, span: Period) -> bool:
    return period.end_ms <= span.start_ms or period.start_ms >= span.end_ms


# --- what is refused, and what is warned of --------------------------------------------------------------------------


def require_reach(period: Period, span: Period, chip_id: str) -> None:
    """Raises EmbeddingError for a period outside the observations that reaches more than six months beyond them.

    Warns:
        UnobservedPeriodWarning: it meets the observations, but as much of it lies beyond.
    """
    reach = max(span.start_ms - period.start_ms, period.end_ms - span.end_ms)
    if reach <= BEYOND_MS:
        return
    frames = f"{format_time(span.start_ms)}/{format_time(span.end_ms - 1)}"
    if _lies_beyond(period, span):
        first, last = -(-(span.start_ms - BEYOND_MS) // DAY_MS) * DAY_MS, (span.end_ms + BEYOND_MS) // DAY_MS * DAY_MS
        raise EmbeddingError(
            f"chip {chip_id}: the period {period} reaches more than six months beyond the observations ({frames}): choose "
            f"one that meets them, or lies within {format_time(first)}/{format_time(last)}"
        )
    warnings.warn(
        f"chip {chip_id}: the period {period} reaches {reach / DAY_MS:.0f} days beyond the observations ({frames}): its "
        "field tells little of that time",
        UnobservedPeriodWarning,
        stacklevel=3,
    )


def require_support(support: Period, periods: Sequence[Period]) -> None:
    """Raises EmbeddingError for periods that reach more than six months beyond a support that is named for them."""
    for period in periods:
        if max(support.start_ms - period.start_ms, period.end_ms - support.end_ms) > BEYOND_MS:
            raise EmbeddingError(f"the period {period} reaches more than six months beyond the support {support}")


def warn_of_long(period: Period, length_ms: int) -> None:
    """Warn of a period far longer than the supports of training (`length_ms`)."""
    if period.length_ms > FAR_LONGER * length_ms:
        warnings.warn(
            f"the period {period} is {period.length_ms / DAY_MS:.0f} days long, but the model was trained on periods of up "
            f"to {length_ms / DAY_MS:.0f} days: its field may be poor; embed shorter periods, such as each year by itself",
            LongPeriodWarning,
            stacklevel=3,
        )


def warn_of_sparse(
    chip: Chip, support: Period, periods: Sequence[Period], inputs: Sequence[str], length_ms: int
) -> None:
    """Warn of a support with less than half of the frames that one of `length_ms` inside the observations would hold."""
    months, held = _whole_months(observed_span(chip, inputs)), count_frames(chip, support, inputs)
    for period in periods:
        other = support_inside(period, months, length_ms)
        if 2 * held < (frames := count_frames(chip, other, inputs)):
            warnings.warn(
                f"chip {chip.id}: the support {support} of the period {period} holds {held} frames: name {other} as its "
                f"support, which holds {frames}",
                SparseSupportWarning,
                stacklevel=3,
            )
