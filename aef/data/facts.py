"""Numbers of a chip's sources that tell whether to trust them, and what to look at twice."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from aef.data.contract import SourceSeries
from aef.data.withheld import TWIN_MS
from aef.sources import Source
from aef.timecode import DAY_MS, format_time

LONG_GAP_DAYS, FEW_FRAMES = 60, 4


@dataclass(frozen=True)
class Facts:
    """Numbers of one source of a chip.

    ``observed`` is the share of valid values among the bands that occur at all, ``clear`` the share of valid pixels
    whose weight is not 0, ``per_pixel`` the median number of clear observations, ``gap_days`` the longest gap between
    frames that are more than half clear, ``missing`` the bands that never occur, ``doubts`` what to look at twice.
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
    doubts: tuple[str, ...]


def facts_of(source: Source, series: SourceSeries) -> Facts:
    """Count what tells whether a source can be trusted."""
    valid = series.valid
    axes = (0,) if source.grid == "points" else (0, 2, 3)
    present = valid.any(axis=axes)
    observed = float(valid[:, present].mean()) if present.any() else 0.0
    seen = np.asarray(valid.any(axis=1))
    counted = seen if series.weight is None else seen & (series.weight[:, 0] > 0)
    share = counted.reshape(len(counted), -1).mean(axis=1) if len(counted) else np.zeros(0)
    span, gap, twins = "static", None, 0
    if series.time_ms is not None and len(series.time_ms):
        last = series.time_ms if series.time_end_ms is None else series.time_end_ms
        span = f"{format_time(int(series.time_ms[0]))[:10]} to {format_time(int(last[-1]))[:10]}"
        good = series.time_ms[share > 0.5]
        gap = float(np.diff(good).max() / DAY_MS) if len(good) > 1 and source.grid != "points" else None
        if source.time == "instant" and source.grid == "chip":
            twins = int((np.diff(series.time_ms) <= TWIN_MS).sum())
    missing = tuple(
        band.name for band, there in zip(source.bands, np.broadcast_to(present, source.channels)) if not there
    )
    facts = Facts(
        source=source.name,
        frames=series.frames,
        span=span,
        observed=observed,
        clear=clear_share(series),
        per_pixel=float(np.median(counted.sum(axis=0))) if source.grid != "points" else float(series.frames),
        gap_days=gap,
        twins=twins,
        missing=missing,
        doubts=(),
    )
    return replace(facts, doubts=tuple(_doubts(source, series, facts)))


def clear_share(series: SourceSeries) -> float | None:
    """The share of observed pixels, those with any valid band, whose weight is not 0; None without a cloud rule."""
    if series.weight is None:
        return None
    seen = np.asarray(series.valid.any(axis=1))
    return float((seen & (series.weight[:, 0] > 0)).sum() / max(int(seen.sum()), 1))


def _doubts(source: Source, series: SourceSeries, facts: Facts) -> list[str]:
    found = []
    if facts.observed < 0.8 and source.grid != "points":
        found.append(f"{1 - facts.observed:.0%} not observed")
    if facts.clear is not None and facts.clear < 0.2:
        found.append(f"only {facts.clear:.0%} clear")
    if source.role == "input" and source.time == "instant" and facts.frames < FEW_FRAMES:
        found.append(f"only {facts.frames} frame{'s' * (facts.frames != 1)}")
    if facts.gap_days is not None and facts.gap_days > LONG_GAP_DAYS and source.role == "input":
        found.append(f"{facts.gap_days:.0f} d without a clear frame")
    if facts.twins:
        found.append(f"{facts.twins} twins")
    if series.weight is None and source.role == "input" and any("reflectance" in band.unit for band in source.bands):
        found.append("no cloud rule")
    if "noon" in series.note:
        found.append("known to the day")
    return found
