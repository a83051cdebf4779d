"""The sources of a chip over time: a lane of frames for each, and curves of those with a single cell."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import SubFigure

from aef.data.contract import Chip, SourceSeries
from aef.data.figure_style import CLEAR, FAINT, INK, PAPER, style_time_axis
from aef.data.rendering import class_colours
from aef.data.source_summary import observed_and_clear
from aef.sources import Registry, Source
from aef.timecode import DAY_MS


def draw_timeline(part: SubFigure, chip: Chip, registry: Registry) -> tuple[float, float]:
    """A lane per source: a mark per frame, coloured by its clear share; bars for intervals. Returns the time axis."""
    axes = part.add_axes((0.15, 0.24, 0.82, 0.74))
    names = list(chip.sources)
    for lane, name in enumerate(names):
        _draw_lane(axes, len(names) - 1 - lane, registry[name], chip.sources[name])
    axes.set_yticks(range(len(names)), [f"{name}  " for name in reversed(names)], fontsize=9, color=INK)
    axes.set_ylim(-0.6, len(names) - 0.4)
    limits = _time_limits(chip)
    axes.set_xlim(limits)
    style_time_axis(axes)
    axes.tick_params(axis="y", length=0)
    return limits


def _time_limits(chip: Chip) -> tuple[float, float]:
    """First and last time of the chip with a little air."""
    timed = [series for series in chip.sources.values() if series.time_ms is not None and len(series.time_ms)]
    if not timed:
        return 0.0, 365.0
    first = min(int(series.time_ms[0]) for series in timed)  # type: ignore[index]
    last = max(int((series.time_ms if series.time_end_ms is None else series.time_end_ms)[-1]) for series in timed)  # type: ignore[index]
    air = max((last - first) // 80, DAY_MS // 2)
    return (first - air) / DAY_MS, (last + air) / DAY_MS


def _draw_lane(axes: Axes, lane: int, source: Source, series: SourceSeries) -> None:
    if series.time_ms is None:
        axes.axhline(lane, color="#dfe4e9", lw=5, solid_capstyle="butt")
        axes.text(0.005, lane, "static", transform=axes.get_yaxis_transform(), fontsize=7.5, color=FAINT, va="center")
        return
    _, clear = observed_and_clear(series)
    colours = CLEAR(clear.reshape(len(clear), -1).mean(axis=1))
    if source.time == "interval" and series.time_end_ms is not None:
        widths = [(end - start) / DAY_MS for start, end in zip(series.time_ms, series.time_end_ms)]
        border = 0.6 if np.median(widths) > 3 else 0.0
        bars = axes.barh([lane] * len(widths), widths, left=_days(series.time_ms), height=0.34, color=colours)
        for bar in bars:
            bar.set_edgecolor(PAPER)
            bar.set_linewidth(border)
    else:
        axes.vlines(_days(series.time_ms), lane - 0.3, lane + 0.3, colors=colours, lw=1.5)
    axes.text(
        1.005, lane, f"{series.frames}", transform=axes.get_yaxis_transform(), fontsize=8, color=FAINT, va="center"
    )


def draw_curves(part: SubFigure, source: Source, series: SourceSeries, limits: tuple[float, float]) -> None:
    """A source of one cell: a curve per observed band in a lane of its own, each on its own scale."""
    part.text(0.03, 0.8, source.name, fontsize=10.5, fontweight="bold", color=INK, va="center")
    axes = part.add_axes((0.15, 0.16, 0.62, 0.8))
    assert series.time_ms is not None
    lanes = curve_bands(series)
    for lane, (index, colour) in enumerate(zip(lanes, class_colours(len(lanes)))):
        mask = series.valid[:, min(index, series.valid.shape[1] - 1), 0, 0]
        values = series.values[mask, index, 0, 0].astype(float)
        low, high = values.min(), values.max()
        base = len(lanes) - 1 - lane
        height = base + 0.82 * (values - low) / (high - low or 1)
        days = _days(series.time_ms[mask])
        axes.fill_between(days, base, height, color=colour, alpha=0.25, lw=0)
        axes.plot(days, height, "-" if len(days) > 3 else "o", color=colour, lw=0.7, ms=3)
        band = source.bands[index]
        line = f"{band.name}   {low:.4g} … {high:.4g} {band.unit}"
        axes.text(1.01, base + 0.35, line, transform=axes.get_yaxis_transform(), fontsize=7.8, color=INK, va="center")
    axes.set_ylim(0, max(len(lanes), 1))
    axes.set_xlim(limits)
    style_time_axis(axes)
    axes.set_yticks([])


def curve_bands(series: SourceSeries) -> list[int]:
    """Indices of the bands that occur."""
    there = np.broadcast_to(series.valid.any(axis=(0, 2, 3)), series.values.shape[1])
    return [int(index) for index in np.flatnonzero(there)]


def _days(times_ms: np.ndarray) -> np.ndarray:
    """Days since 1970, which is how matplotlib counts dates."""
    return np.asarray(times_ms) / DAY_MS
