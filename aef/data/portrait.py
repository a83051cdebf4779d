"""One picture of a chip: every source over time, masks, weights, labels, texts, and the numbers that tell whether to
trust it. Needs matplotlib (extra ``eval``).

From top to bottom: where and when; a lane per source with every frame on one time axis; a strip of frames per source
with its weights below; terrain, labels and texts; a table of numbers, with what looks doubtful in red.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap, ListedColormap
from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
from matplotlib.figure import Figure, SubFigure

from aef.data.contract import Chip, Label, SourceSeries
from aef.data.facts import Facts, facts_of
from aef.data.rendering import Rendering, class_colours, shown_bands
from aef.sources import Registry, Source
from aef.timecode import DAY_MS, format_time

WIDTH_IN = 15.0
FRAMES = 10
"""Frames shown per source: spread over time, each the clearest of its share."""
MAX_LABELS = 5
INK, FAINT, ALARM, PAPER = "#1b2733", "#8a97a5", "#c0392b", "#ffffff"
CLEAR = LinearSegmentedColormap.from_list("clear", ["#c9d1d9", "#f2c14e", "#1f8a70"])
COUNTED = ListedColormap(["#20262d", "#f7f5ef"])
# --- the page --------------------------------------------------------------------------------------------------------


def draw_chip(chip: Chip, registry: Registry) -> Figure:
    """The picture of a chip, as a figure to save (`savefig`)."""
    strips = [name for name, series in chip.sources.items() if _has_strip(registry[name], series)]
    curves = [name for name, series in chip.sources.items() if _has_curve(registry[name], series)]
    maps = _count_maps(chip, registry)
    heights = [0.75, 0.75 + 0.3 * len(chip.sources)]
    heights += [1.75 if chip.sources[name].weight is not None else 1.45 for name in strips]
    heights += [0.6 + 0.26 * len(_curve_bands(chip.sources[name])) for name in curves]
    heights += ([2.7] if maps else []) + [0.75 + 0.27 * len(chip.sources)]
    figure = Figure(figsize=(WIDTH_IN, sum(heights)), facecolor=PAPER)
    FigureCanvasAgg(figure)
    parts: list[SubFigure] = list(np.ravel(figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)))
    facts = [facts_of(registry[name], series) for name, series in chip.sources.items()]
    _draw_title(parts.pop(0), chip)
    limits = _draw_timeline(parts.pop(0), chip, registry)
    for name in strips:
        _draw_strip(parts.pop(0), registry[name], chip.sources[name])
    for name in curves:
        _draw_curves(parts.pop(0), registry[name], chip.sources[name], limits)
    if maps:
        _draw_maps(parts.pop(0), chip, registry)
    _draw_table(parts.pop(0), facts)
    return figure


def _has_strip(source: Source, series: SourceSeries) -> bool:
    return source.time != "static" and source.grid != "points" and min(series.values.shape[-2:]) > 1


def _has_curve(source: Source, series: SourceSeries) -> bool:
    return source.time != "static" and source.grid != "points" and min(series.values.shape[-2:]) == 1


def _count_maps(chip: Chip, registry: Registry) -> int:
    static = [name for name in chip.sources if registry[name].time == "static"]
    points = [name for name in chip.sources if registry[name].grid == "points"]
    return len(static) + len(chip.labels) + len(points) + bool(chip.texts)


def _draw_title(part: SubFigure, chip: Chip) -> None:
    start, end = chip.span_ms
    side = f"{chip.width * 10} m × {chip.height * 10} m ({chip.width} × {chip.height} px of 10 m)"
    part.text(0.03, 0.62, chip.id, fontsize=17, fontweight="bold", color=INK, va="center")
    where = (
        f"{abs(chip.lat):.4f}° {'N' if chip.lat >= 0 else 'S'}, {abs(chip.lon):.4f}° {'E' if chip.lon >= 0 else 'W'}"
    )
    line = f"place {chip.place}   ·   {where}   ·   {chip.crs}   ·   {side}   ·   {format_time(start)[:10]} to {format_time(end)[:10]}"
    part.text(0.03, 0.2, line, fontsize=9.5, color=FAINT, va="center")
    scale = part.add_axes((0.81, 0.57, 0.12, 0.11))
    scale.imshow(np.linspace(0, 1, 128)[None], aspect="auto", cmap=CLEAR)
    scale.set_axis_off()
    scale.text(-4, 0, "a frame: cloudy", ha="right", va="center", fontsize=8, color=FAINT)
    scale.text(131, 0, "clear", ha="left", va="center", fontsize=8, color=FAINT)
    if chip.synthetic:
        part.text(0.68, 0.62, "synthetic", fontsize=11, color=ALARM, ha="right", va="center", fontweight="bold")


def _days(times_ms: np.ndarray) -> np.ndarray:
    """Days since 1970, which is how matplotlib counts dates."""
    return np.asarray(times_ms) / DAY_MS


def _draw_timeline(part: SubFigure, chip: Chip, registry: Registry) -> tuple[float, float]:
    """A lane per source: a mark per frame, coloured by its clear share; bars for intervals. Returns the time axis."""
    axes = part.add_axes((0.15, 0.24, 0.82, 0.74))
    names = list(chip.sources)
    for lane, name in enumerate(names):
        _draw_lane(axes, len(names) - 1 - lane, registry[name], chip.sources[name])
    axes.set_yticks(range(len(names)), [f"{name}  " for name in reversed(names)], fontsize=9, color=INK)
    axes.set_ylim(-0.6, len(names) - 0.4)
    limits = _time_limits(chip)
    axes.set_xlim(limits)
    _style_time_axis(axes)
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
    seen = np.asarray(series.valid.any(axis=1))
    counted = seen if series.weight is None else seen & (series.weight[:, 0] > 0)
    share = counted.reshape(len(counted), -1).mean(axis=1)
    colours = CLEAR(share)
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


def _style_time_axis(axes: Axes) -> None:
    locator = AutoDateLocator(minticks=5, maxticks=16)
    axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_major_formatter(ConciseDateFormatter(locator))
    axes.tick_params(axis="x", labelsize=8, colors=FAINT, length=3)
    axes.grid(axis="x", color="#eef1f4", lw=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color("#d5dbe1")


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
        _show(axes, picture)
        assert series.time_ms is not None
        axes.set_title(format_time(int(series.time_ms[frame]))[:10], fontsize=7.5, color=FAINT, pad=2)
        if weighted:
            assert series.weight is not None
            under = part.add_axes((left + column * width, 0.01, width * 0.96, 0.24))
            _show(under, series.weight[frame, 0] > 0, cmap=COUNTED, vmin=0, vmax=1)
    if weighted:
        part.text(0.143, 0.13, "counts in the loss", fontsize=7.5, color=FAINT, ha="right", va="center")


def _pictures(source: Source, series: SourceSeries, frames: list[int], names: tuple[str, ...]) -> list[np.ndarray]:
    if not names:
        side = series.values.shape[-2:]
        return [np.full((*side, 3), 0.85)] * len(frames)
    valid = [np.broadcast_to(series.valid[frame], series.values[frame].shape) for frame in frames]
    if source.classes:
        rendering = Rendering.of(source, [series.values[f] for f in frames], valid)
        return [rendering.draw(series.values[f], mask) for f, mask in zip(frames, valid)]
    index = [source.band_names.index(name) for name in names]
    values = [series.values[frame][index].astype(np.float64) for frame in frames]
    masks = [mask[index] for mask in valid]
    # Clear pixels alone set the stretch: clouds are brighter than any ground.
    clear = [m if series.weight is None else m & (series.weight[f] > 0) for m, f in zip(masks, frames)]
    pixels = [np.concatenate([v[c][m[c]] for v, m in zip(values, clear)]) for c in range(len(index))]
    pixels = [found if found.size else np.zeros(1) for found in pixels]
    low, high = np.array([np.percentile(found, [1, 99]) for found in pixels]).T
    high = np.where(high > low, high, low + 1)
    drawn = []
    for value, mask in zip(values, masks):
        picture = np.clip((value - low[:, None, None]) / (high - low)[:, None, None], 0, 1)
        picture = np.broadcast_to(np.moveaxis(picture, 0, -1), (*picture.shape[1:], 3)).copy()
        picture[~mask.all(axis=0)] = 0.85
        drawn.append(picture)
    return drawn


def _show(axes: Axes, picture: np.ndarray, **options) -> None:
    axes.imshow(picture, interpolation="nearest", **options)
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_color("#d5dbe1")
        spine.set_linewidth(0.6)


def _draw_curves(part: SubFigure, source: Source, series: SourceSeries, limits: tuple[float, float]) -> None:
    """A source of one cell: a curve per observed band in a lane of its own, each on its own scale."""
    part.text(0.03, 0.8, source.name, fontsize=10.5, fontweight="bold", color=INK, va="center")
    axes = part.add_axes((0.15, 0.16, 0.62, 0.8))
    assert series.time_ms is not None
    lanes = _curve_bands(series)
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
    _style_time_axis(axes)
    axes.set_yticks([])


def _curve_bands(series: SourceSeries) -> list[int]:
    there = np.broadcast_to(series.valid.any(axis=(0, 2, 3)), series.values.shape[1])
    return [int(index) for index in np.flatnonzero(there)]


# --- maps and numbers ------------------------------------------------------------------------------------------------


def _draw_maps(part: SubFigure, chip: Chip, registry: Registry) -> None:
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
        drawers.append((3.2, partial(_draw_texts, part, chip)))
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
    index = 0
    mask = series.valid[0, min(index, series.valid.shape[1] - 1)]
    values = np.where(mask, series.values[0, index].astype(float), np.nan)
    axes = _map_axes(part, box, f"{source.name} {source.bands[index].name}")
    _show(axes, values, cmap="terrain")
    if mask.any():
        span = f"{np.nanmin(values):.4g} … {np.nanmax(values):.4g} {source.bands[index].unit}"
        axes.text(0, -0.04, span, transform=axes.transAxes, fontsize=7.5, color=FAINT, va="top")


def _draw_points(part: SubFigure, chip: Chip, source: Source, series: SourceSeries, box: tuple[float, float]) -> None:
    axes = _map_axes(part, box, source.name)
    _show(axes, np.full((chip.height, chip.width, 3), 0.96))
    assert series.row is not None and series.col is not None
    axes.scatter(series.col, series.row, c=series.values[:, -2:].mean(axis=1), s=9, cmap="viridis")
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
    _show(axes, picture)
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
        parts.append(f"{format_time(label.valid_start_ms)[:10]} to {format_time(label.valid_end_ms)[:10]}")
    if label.fields is not None:
        parts.append(f"{int(label.fields.max())} fields")
    if ignored:
        parts.append(f"{ignored:.0%} ignored")
    return ", ".join(parts)


def _draw_texts(part: SubFigure, chip: Chip, box: tuple[float, float]) -> None:
    axes = _map_axes(part, box, f"{len(chip.texts)} texts", share=0.4)
    _show(axes, np.full((chip.height, chip.width, 3), 0.96))
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


def _draw_table(part: SubFigure, facts: list[Facts]) -> None:
    """A row per source; doubts in red."""
    step = 0.8 / (len(facts) + 1)
    for name, x in COLUMNS:
        part.text(x, 0.94, name, fontsize=8, color=FAINT, va="top")
    for row, fact in enumerate(facts, start=1):
        y = 0.94 - row * step
        cells = (
            fact.source,
            str(fact.frames),
            fact.span,
            f"{fact.observed:.0%}",
            "–" if fact.clear is None else f"{fact.clear:.0%}",
            "–" if fact.span == "static" else f"{fact.per_pixel:g}",
            "–" if fact.gap_days is None else f"{fact.gap_days:.0f} d",
            _shortened(fact.missing),
        )
        for (_, x), text in zip(COLUMNS, cells):
            part.text(x, y, text, fontsize=8.5, color=INK, va="top", fontweight="bold" if x == COLUMNS[0][1] else None)
        part.text(COLUMNS[-1][1], y, ", ".join(fact.doubts), fontsize=8.5, color=ALARM, va="top")


def _shortened(names: tuple[str, ...]) -> str:
    text = ", ".join(names)
    return text if len(text) <= 26 else f"{names[0]} and {len(names) - 1} more"
