"""One picture of a chip: every source over time, masks, weights, labels, texts, and the numbers that tell whether to
trust it. Needs matplotlib (extra ``eval``).

From top to bottom: where and when; a lane per source with every frame on one time axis; a strip of frames per source
with its weights below; terrain, labels and texts; a table of numbers, with what looks suspicious in red.
"""

from __future__ import annotations

import textwrap

import numpy as np
from matplotlib.figure import Figure, SubFigure

from aef.clock import format_date
from aef.data.chip_maps import count_maps, draw_maps
from aef.data.chip_timeline import curve_bands, draw_curves, draw_timeline
from aef.data.contract import Chip, SourceSeries
from aef.data.figure_style import ALARM, CLEAR, COUNTED, FAINT, INK, PAPER, show_image
from aef.data.rendering import MISSING, Rendering, shown_bands
from aef.data.source_summary import SourceSummary, summarise
from aef.figure_file import new_figure
from aef.sources import Registry, Source

WIDTH_IN = 15.0
LINE_CHARACTERS = 38
"""Of what to look at twice: more would not fit between its column and the border."""

FRAMES = 10
"""Frames shown per source: spread over time, each the clearest of its share."""


def draw_chip(chip: Chip, registry: Registry) -> Figure:
    """The picture of a chip, as a figure to save (`savefig`)."""
    strips = [name for name, series in chip.sources.items() if _has_strip(registry[name], series)]
    curves = [name for name, series in chip.sources.items() if _has_curve(registry[name], series)]
    maps = count_maps(chip, registry)
    summaries = [summarise(registry[name], series) for name, series in chip.sources.items()]
    heights = [0.75, 0.75 + 0.3 * len(chip.sources)]
    heights += [1.75 if chip.sources[name].weight is not None else 1.45 for name in strips]
    heights += [0.6 + 0.26 * len(curve_bands(chip.sources[name])) for name in curves]
    heights += ([2.7] if maps else []) + [0.75 + 0.27 * _table_lines(summaries)]
    figure = new_figure(WIDTH_IN, sum(heights), layout=None)
    figure.set_facecolor(PAPER)
    parts: list[SubFigure] = list(np.ravel(figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)))
    _draw_title(parts.pop(0), chip)
    limits = draw_timeline(parts.pop(0), chip, registry)
    for name in strips:
        _draw_strip(parts.pop(0), registry[name], chip.sources[name])
    for name in curves:
        draw_curves(parts.pop(0), registry[name], chip.sources[name], limits)
    if maps:
        draw_maps(parts.pop(0), chip, registry)
    _draw_table(parts.pop(0), summaries)
    return figure


def _has_strip(source: Source, series: SourceSeries) -> bool:
    return source.time != "static" and source.grid != "points" and min(series.values.shape[-2:]) > 1


def _has_curve(source: Source, series: SourceSeries) -> bool:
    return source.time != "static" and source.grid != "points" and min(series.values.shape[-2:]) == 1


def _draw_title(part: SubFigure, chip: Chip) -> None:
    start, end = chip.span_ms
    side = f"{chip.width * 10} m × {chip.height * 10} m ({chip.width} × {chip.height} px of 10 m)"
    part.text(0.03, 0.62, chip.id, fontsize=17, fontweight="bold", color=INK, va="center")
    where = (
        f"{abs(chip.lat):.4f}° {'N' if chip.lat >= 0 else 'S'}, {abs(chip.lon):.4f}° {'E' if chip.lon >= 0 else 'W'}"
    )
    when = f"{format_date(start)} to {format_date(end)}"
    line = "   ·   ".join((f"place {chip.place}", where, chip.crs, side, when))
    part.text(0.03, 0.2, line, fontsize=9.5, color=FAINT, va="center")
    scale = part.add_axes((0.81, 0.57, 0.12, 0.11))
    scale.imshow(np.linspace(0, 1, 128)[None], aspect="auto", cmap=CLEAR)
    scale.set_axis_off()
    scale.text(-4, 0, "a frame: cloudy", ha="right", va="center", fontsize=8, color=FAINT)
    scale.text(131, 0, "clear", ha="left", va="center", fontsize=8, color=FAINT)
    if chip.synthetic:
        part.text(0.68, 0.62, "synthetic", fontsize=11, color=ALARM, ha="right", va="center", fontweight="bold")


def _chosen_frames(source: Source, series: SourceSeries, names: tuple[str, ...]) -> list[int]:
    """The clearest frame of each of FRAMES equal shares of the series, with all shown bands if there is one."""
    index = [min(source.band_names.index(name), series.valid.shape[1] - 1) for name in names] or [0]
    seen = np.asarray(series.valid[:, index].all(axis=1))
    counted = seen if series.weight is None else seen & (series.weight[:, 0] > 0)
    score = counted.reshape(len(counted), -1).mean(axis=1) + 1e-3 * seen.reshape(len(seen), -1).mean(axis=1)
    shares = np.array_split(np.arange(series.frames), min(FRAMES, series.frames))
    return [int(share[np.argmax(score[share])]) for share in shares]


def _bands_shown(source: Source, series: SourceSeries) -> tuple[str, ...]:
    """The usual bands if they occur in this chip, else those that do."""
    present = series.valid.any(axis=(0, 2, 3))
    there = [name for name, seen in zip(source.band_names, np.broadcast_to(present, source.channels)) if seen]
    wanted = shown_bands(source)
    if set(wanted) <= set(there) or source.classes:
        return wanted
    for choice in (("B11", "B8A", "B05"), ("B11", "B08", "B04"), ("B08", "B04", "B03")):
        if set(choice) <= set(there):
            return choice
    return tuple(there[:3]) if len(there) >= 3 else tuple(there[:1])


def _draw_strip(part: SubFigure, source: Source, series: SourceSeries) -> None:
    """Frames in a row, their weights below."""
    names = _bands_shown(source, series)
    frames = _chosen_frames(source, series, names)
    pictures = _pictures(source, series, frames, names)
    weighted = series.weight is not None
    label = "classes" if source.classes else " ".join(dict.fromkeys(names))
    part.text(0.03, 0.66, source.name, fontsize=10.5, fontweight="bold", color=INK, va="center")
    part.text(0.03, 0.54, label, fontsize=8, color=FAINT, va="center")
    left, width = 0.15, 0.82 / FRAMES
    for column, (frame, picture) in enumerate(zip(frames, pictures)):
        low, high = (0.27, 0.62) if weighted else (0.04, 0.8)
        axes = part.add_axes((left + column * width, low, width * 0.96, high))
        show_image(axes, picture)
        assert series.time_ms is not None
        axes.set_title(format_date(int(series.time_ms[frame])), fontsize=7.5, color=FAINT, pad=2)
        if weighted:
            assert series.weight is not None
            under = part.add_axes((left + column * width, 0.01, width * 0.96, 0.24))
            show_image(under, series.weight[frame, 0] > 0, cmap=COUNTED, vmin=0, vmax=1)
    if weighted:
        part.text(0.143, 0.13, "counts in the loss", fontsize=7.5, color=FAINT, ha="right", va="center")


def _pictures(source: Source, series: SourceSeries, frames: list[int], names: tuple[str, ...]) -> list[np.ndarray]:
    values = [series.values[frame] for frame in frames]
    if not names:
        return [np.full((*picture.shape[-2:], 3), MISSING) for picture in values]
    valid = [np.broadcast_to(series.valid[frame], series.values[frame].shape) for frame in frames]
    # Clear pixels alone set the stretch: clouds are brighter than any ground.
    clear = [mask if series.weight is None else mask & (series.weight[f] > 0) for f, mask in zip(frames, valid)]
    rendering = Rendering.of(source, values, clear, bands=names, percentiles=(1, 99))
    return [rendering.draw(picture, mask) for picture, mask in zip(values, valid)]


COLUMNS = (
    ("source", 0.03),
    ("frames", 0.175),
    ("span", 0.225),
    ("observed", 0.385),
    ("clear", 0.45),
    ("clear obs. per pixel", 0.505),
    ("longest gap", 0.61),
    ("bands that never occur", 0.68),
    ("look twice", 0.83),
)


def _draw_table(part: SubFigure, summaries: list[SourceSummary]) -> None:
    """A row per source, of as many lines as its suspicions, in red, take."""
    lines = [_wrapped(summary) for summary in summaries]
    step = 0.8 / (_table_lines(summaries) + 1)
    for name, x in COLUMNS:
        part.text(x, 0.94, name, fontsize=8, color=FAINT, va="top")
    y = 0.94 - step
    for summary, suspicions in zip(summaries, lines):
        cells = (
            summary.source,
            str(summary.frames),
            summary.span,
            f"{summary.observed:.0%}",
            "–" if summary.clear is None else f"{summary.clear:.0%}",
            "–" if summary.span == "static" else f"{summary.per_pixel:g}",
            "–" if summary.gap_days is None else f"{summary.gap_days:.0f} d",
            _shortened(summary.missing),
        )
        for (_, x), text in zip(COLUMNS, cells):
            part.text(x, y, text, fontsize=8.5, color=INK, va="top", fontweight="bold" if x == COLUMNS[0][1] else None)
        part.text(COLUMNS[-1][1], y, suspicions, fontsize=8.5, color=ALARM, va="top", linespacing=1.0)
        y -= step * (suspicions.count("\n") + 1)


def _wrapped(summary: SourceSummary) -> str:
    """Suspicions in lines that end at the right border."""
    return "\n".join(textwrap.wrap(", ".join(summary.suspicions), LINE_CHARACTERS))


def _table_lines(summaries: list[SourceSummary]) -> int:
    return sum(_wrapped(summary).count("\n") + 1 for summary in summaries)


def _shortened(names: tuple[str, ...]) -> str:
    text = ", ".join(names)
    return text if len(text) <= 26 else f"{names[0]} and {len(names) - 1} more"
