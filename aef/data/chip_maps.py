"""What a chip holds once and not over time, as maps: terrain, labels with their legends, footprints, texts."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import SubFigure

from aef.clock import format_date
from aef.data.contract import Chip, Label, SourceSeries
from aef.data.figure_style import FAINT, INK, PAPER, show_image
from aef.data.rendering import MISSING, Rendering, class_colours
from aef.sources import Registry, Source

MAX_LABELS = 5


def count_maps(chip: Chip, registry: Registry) -> int:
    """How many maps `draw_maps` would draw."""
    static = [name for name in chip.sources if registry[name].time == "static"]
    points = [name for name in chip.sources if registry[name].grid == "points"]
    return len(static) + len(chip.labels) + len(points) + bool(chip.texts)


def draw_maps(part: SubFigure, chip: Chip, registry: Registry) -> None:
    """Terrain and other static sources, labels with their legends, footprints, texts."""
    drawers: list[tuple[float, Callable[[tuple[float, float]], None]]] = []
    for name, series in chip.sources.items():
        if registry[name].time == "static":
            drawers.append((2.0, partial(_draw_static, part, registry[name], series)))
        elif registry[name].grid == "points":
            drawers.append((2.0, partial(_draw_points, part, chip, registry[name], series)))
    for name, label in list(chip.labels.items())[:MAX_LABELS]:
        drawers.append((4.1, partial(_draw_label, part, name, label)))
    if chip.texts:
        drawers.append((4.1, partial(_draw_texts, part, chip)))
    unit = min(0.94 / max(sum(width for width, _ in drawers), 1e-9), 0.068)
    left = 0.03
    for width, draw in drawers:
        draw((left, width * unit))
        left += width * unit


def _map_axes(part: SubFigure, box: tuple[float, float], title: str, share: float = 0.94) -> Axes:
    axes = part.add_axes((box[0], 0.05, box[1] * share, 0.8))
    axes.set_title(title, fontsize=9.5, fontweight="bold", color=INK, loc="left", pad=4)
    axes.set_anchor("NW")
    return axes


def _draw_static(part: SubFigure, source: Source, series: SourceSeries, box: tuple[float, float]) -> None:
    """The first band, or the classes; what was not observed in grey."""
    mask = np.broadcast_to(series.valid, series.values.shape)[0]
    values = np.where(mask[0], series.values[0, 0].astype(float), np.nan)
    axes = _map_axes(part, box, f"{source.name} {source.bands[0].name}")
    if source.classes:
        show_image(axes, Rendering.of(source, [series.values[0]], [mask]).draw(series.values[0], mask))
        return
    axes.set_facecolor((MISSING,) * 3)
    show_image(axes, values, cmap="terrain")
    if mask[0].any():
        span = f"{np.nanmin(values):.4g} … {np.nanmax(values):.4g} {source.bands[0].unit}"
        axes.text(0, -0.04, span, transform=axes.transAxes, fontsize=7.5, color=FAINT, va="top")


def _draw_points(part: SubFigure, chip: Chip, source: Source, series: SourceSeries, box: tuple[float, float]) -> None:
    """Where footprints observed the last band, and what; or their classes."""
    axes = _map_axes(part, box, source.name)
    show_image(axes, np.full((chip.height, chip.width, 3), 0.96))
    assert series.row is not None and series.col is not None
    seen = np.broadcast_to(series.valid, series.values.shape)[:, -1]
    row, col, values = series.row[seen], series.col[seen], series.values[seen, -1]
    if source.classes:
        matches = values[:, None] == np.asarray(source.classes)
        colours = np.where(matches.any(1)[:, None], class_colours(len(source.classes))[matches.argmax(1)], MISSING)
        axes.scatter(col, row, c=colours, s=9)
    else:
        axes.scatter(col, row, c=values, s=9, cmap="viridis")
    line = f"{series.frames} footprints, colour: {source.band_names[-1]}"
    axes.text(0, -0.04, line, transform=axes.transAxes, fontsize=7.5, color=FAINT, va="top")


def _draw_label(part: SubFigure, name: str, label: Label, box: tuple[float, float]) -> None:
    """Codes in colours, field borders in white, ignored codes in grey, and the legend with counts."""
    present = [int(code) for code in np.unique(label.values)]
    codes = [code for code in present if code not in label.ignore]
    colours = class_colours(max(len(codes), 1))
    picture = np.full((*label.values.shape, 3), 0.88)
    for code, colour in zip(codes, colours):
        picture[label.values == code] = colour
    if label.fields is not None and max(label.fields.shape) > 24:
        border = np.zeros(label.fields.shape, np.bool_)
        border[:, 1:] |= label.fields[:, 1:] != label.fields[:, :-1]
        border[1:] |= label.fields[1:] != label.fields[:-1]
        picture[border & (label.fields > 0)] *= 0.72
    axes = _map_axes(part, box, name, share=0.48)
    show_image(axes, picture)
    axes.text(0, -0.04, _label_line(label), transform=axes.transAxes, fontsize=7.5, color=FAINT, va="top")
    listed = sorted(codes, key=lambda code: -int((label.values == code).sum()))[:14]
    for row, code in enumerate(listed):
        y = 0.97 - row * 0.068
        axes.text(1.04, y, "■", transform=axes.transAxes, fontsize=9, color=colours[codes.index(code)], va="center")
        share = float((label.values == code).mean())
        text = f"{label.legend.get(code, '?')[:28]} ({code})  {share:.0%}"
        axes.text(1.1, y, text, transform=axes.transAxes, fontsize=7.2, color=INK, va="center")


def _label_line(label: Label) -> str:
    ignored = float(np.isin(label.values, label.ignore).mean())
    parts = []
    if label.valid_start_ms is not None and label.valid_end_ms is not None:
        parts.append(f"{format_date(label.valid_start_ms)} to {format_date(label.valid_end_ms)}")
    if label.fields is not None:
        parts.append(f"{len(np.unique(label.fields[label.fields > 0]))} fields")
    if ignored:
        parts.append(f"{ignored:.0%} ignored")
    return ", ".join(parts)


def _draw_texts(part: SubFigure, chip: Chip, box: tuple[float, float]) -> None:
    axes = _map_axes(part, box, f"{len(chip.texts)} texts", share=0.4)
    show_image(axes, np.full((chip.height, chip.width, 3), 0.96))
    a, _, left, _, e, top = chip.transform
    for number, point in enumerate(chip.texts[:9], start=1):
        col, row = (point.x - left) / a, (point.y - top) / e
        axes.text(
            col,
            row,
            str(number),
            fontsize=7.5,
            color=PAPER,
            ha="center",
            va="center",
            bbox={"boxstyle": "circle", "fc": INK, "ec": "none"},
        )
        line = f"{number}  {point.text[:40]}{'…' * (len(point.text) > 40)}"
        axes.text(1.04, 1 - number * 0.095, line, transform=axes.transAxes, fontsize=7, color=INK)
