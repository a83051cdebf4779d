"""A chip's sources in numbers that tell whether to trust them, and what to look at twice."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from aef.clock import DAY_MS, format_date
from aef.data.contract import SourceSeries
from aef.data.withheld import TWIN_MS
from aef.sources import Source

LONG_GAP_DAYS, FEW_FRAMES = 60, 4


@dataclass(frozen=True)
class SourceSummary:
    """Numbers of one source of a chip.

    ``observed`` is the share of valid values among the bands that occur at all, ``clear`` the share of valid pixels
    whose weight is not 0, ``per_pixel`` the median number of clear observations, ``gap_days`` the longest gap between
    frames that are more than half clear, ``twins`` how many frames follow another within `TWIN_MS` (a run's own bound
    is ``data.twin_minutes``), ``missing`` the bands that never occur, ``suspicions`` what to look at twice.
    """

    source: str
    frames: int
    span: str
    observed: float
    clear: float | None
    per_pixel: float
    gap_days: float | None
    twins: int
    missing: tuple[str, ...]
    suspicions: tuple[str, ...]


def observed_and_clear(series: SourceSeries) -> tuple[np.ndarray, np.ndarray]:
    """Which pixels (T, ...) were observed in any band, and which of them count in the loss; all do without a weight."""
    seen = np.asarray(series.valid.any(axis=1))
    return seen, seen if series.weight is None else seen & (series.weight[:, 0] > 0)


def summarise(source: Source, series: SourceSeries) -> SourceSummary:
    """Count what tells whether a source can be trusted."""
    valid = series.valid
    axes = (0,) if source.grid == "points" else (0, 2, 3)
    present = valid.any(axis=axes)
    observed = float(valid[:, present].mean()) if present.any() else 0.0
    _, counted = observed_and_clear(series)
    share = counted.reshape(len(counted), -1).mean(axis=1) if len(counted) else np.zeros(0)
    span, gap, twins = "static", None, 0
    if series.time_ms is not None and len(series.time_ms):
        last = series.time_ms if series.time_end_ms is None else series.time_end_ms
        span = f"{format_date(int(series.time_ms[0]))} to {format_date(int(last[-1]))}"
        good = series.time_ms[share > 0.5]
        gap = float(np.diff(good).max() / DAY_MS) if len(good) > 1 and source.grid != "points" else None
        if source.time == "instant" and source.grid == "chip":
            twins = int((np.diff(series.time_ms) <= TWIN_MS).sum())
    missing = tuple(
        band.name for band, there in zip(source.bands, np.broadcast_to(present, source.channels)) if not there
    )
    summary = SourceSummary(
        source=source.name,
        frames=series.frames,
        span=span,
        observed=observed,
        clear=clear_share(series),
        per_pixel=float(np.median(counted.sum(axis=0))) if source.grid != "points" else float(series.frames),
        gap_days=gap,
        twins=twins,
        missing=missing,
        suspicions=(),
    )
    return replace(summary, suspicions=tuple(_suspicions(source, series, summary)))


def clear_share(series: SourceSeries) -> float | None:
    """The share of observed pixels, those with any valid band, whose weight is not 0; None without a cloud rule."""
    if series.weight is None:
        return None
    seen, clear = observed_and_clear(series)
    return float(clear.sum() / max(int(seen.sum()), 1))


def _suspicions(source: Source, series: SourceSeries, summary: SourceSummary) -> list[str]:
    suspicions = []
    if summary.observed < 0.8 and source.grid != "points":
        suspicions.append(f"{1 - summary.observed:.0%} not observed")
    if summary.clear is not None and summary.clear < 0.2:
        suspicions.append(f"only {summary.clear:.0%} clear")
    if source.role == "input" and source.time == "instant" and summary.frames < FEW_FRAMES:
        suspicions.append(f"only {summary.frames} frame{'s' * (summary.frames != 1)}")
    if summary.gap_days is not None and summary.gap_days > LONG_GAP_DAYS and source.role == "input":
        suspicions.append(f"{summary.gap_days:.0f} d without a clear frame")
    if summary.twins:
        suspicions.append(f"{summary.twins} twins")
    if series.weight is None and source.role == "input" and any("reflectance" in band.unit for band in source.bands):
        suspicions.append("no cloud rule")
    if "noon" in series.note:
        suspicions.append("known to the day")
    return suspicions
