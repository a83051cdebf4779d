"""Epoch milliseconds and periods, without torch: for rooms that only need to say when (`aef.timecode` has the codes)."""

from __future__ import annotations

import re
from calendar import monthrange
from datetime import UTC, datetime
from typing import NamedTuple

DAY_MS = 86_400_000
YEAR_MS = 31_556_952_000
"""Mean Gregorian year, 365.2425 days."""

SUPPORT_MS = 365 * DAY_MS
"""Length of a support period in training: about one year, not aligned to the calendar."""


class Period(NamedTuple):
    """A half-open range [start_ms, end_ms) of epoch milliseconds UTC."""

    start_ms: int
    end_ms: int

    @property
    def length_ms(self) -> int:
        return self.end_ms - self.start_ms

    def contains(self, time_ms: int) -> bool:
        return self.start_ms <= time_ms < self.end_ms

    def __str__(self) -> str:
        return f"{format_time(self.start_ms)}/{format_time(self.end_ms)}"


def parse_time(text: str) -> int:
    """ISO date or date-time (UTC unless it says otherwise) → epoch milliseconds. Raises ValueError."""
    try:
        moment = datetime.fromisoformat(text.strip())
    except ValueError:
        raise ValueError(f"expected an ISO date like 2018-01-01, found {text!r}{_no_such_day(text)}") from None
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return round(moment.timestamp() * 1000)


def _no_such_day(text: str) -> str:
    """Why a date of the right form is none, to follow it in a message; empty for any other form."""
    form = re.match(r"(\d{4})-?(\d\d)-?(\d\d)(?!\d)", text.strip())
    year, month, day = map(int, form.groups()) if form else (1, 1, 1)
    if not 1 <= month <= 12:
        return f": there is no month {month:02d}, expected 01 to 12"
    last = monthrange(year, month)[1]
    if not 1 <= day <= last:
        return f": there is no such day, {year:04d}-{month:02d} has the days 01 to {last}"
    return ""


def format_time(time_ms: int) -> str:
    """Epoch milliseconds → ISO date, with the time of day and its milliseconds where there are any."""
    moment, fraction = datetime.fromtimestamp(time_ms // 1000, UTC), time_ms % 1000
    if time_ms % DAY_MS == 0:
        return moment.strftime("%Y-%m-%d")
    return moment.strftime("%Y-%m-%dT%H:%M:%S") + (f".{fraction:03d}Z" if fraction else "Z")


def format_date(time_ms: int) -> str:
    """Epoch milliseconds → ISO date, whatever the time of day."""
    return format_time(time_ms)[:10]


def parse_period(text: str | tuple[str, str]) -> Period:
    """``"2018-01-01/2019-01-01"`` or a pair of ISO dates → Period. Raises ValueError if it does not end after it starts."""
    parts = text.split("/") if isinstance(text, str) else list(text)
    if len(parts) != 2:
        raise ValueError(f"expected START/END, like 2018-01-01/2019-01-01, found {text!r}")
    period = Period(parse_time(parts[0]), parse_time(parts[1]))
    if period.length_ms <= 0:
        raise ValueError(f"the period {text!r} must end after it starts")
    return period
