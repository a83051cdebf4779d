"""One self-contained HTML page about a run: what went in, what came out, and how good it is.

Pictures are PNGs inside the page; it needs no network and prints on paper.
"""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from aef.atomic import writing
from aef.clock import DAY_MS, Period, format_date
from aef.data.chips import Chip
from aef.data.rendering import Rendering, class_colours
from aef.data.withheld import WithheldDates
from aef.evaluation.few_shot import year_of
from aef.evaluation.judgement import Judgement
from aef.evaluation.reconstruction import hidden_times
from aef.evaluation.series import clear_pixels
from aef.mapping.picture import pca_rgb, similarity
from aef.mapping.trained_model import TrainedModel
from aef.objective.uniformity import RANDOM_FLOOR
from aef.sources import Source

DPI = 110
PLACES = 3
"""Places that have pictures."""

STYLE = """
:root { --ink: #1d2429; --soft: #5b6a75; --line: #d9e0e5; --paper: #ffffff; --accent: #0b6e4f; }
* { box-sizing: border-box; }
body { font: 15px/1.55 system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif; color: var(--ink);
       background: var(--paper); max-width: 1040px; margin: 0 auto; padding: 2.2rem 1.4rem 4rem; }
h1 { font-size: 1.75rem; line-height: 1.2; margin: 0 0 .3rem; letter-spacing: -.01em; }
h2 { font-size: 1.2rem; margin: 2.4rem 0 .5rem; padding-top: .9rem; border-top: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 1.4rem 0 .3rem; }
p, figcaption { max-width: 74ch; } .lead { color: var(--soft); margin-top: 0; }
figure { margin: .8rem 0 1.2rem; } img { max-width: 100%; height: auto; display: block; }
figcaption, .note { color: var(--soft); font-size: .88rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; margin: .6rem 0; font-size: .93rem; }
th, td { text-align: right; padding: .28rem .8rem; border-bottom: 1px solid var(--line); }
th:first-child, td:first-child { text-align: left; padding-left: 0; } thead th { border-bottom: 2px solid var(--ink); }
tr.ours td { color: var(--accent); font-weight: 600; }
.numbers { display: flex; flex-wrap: wrap; gap: .6rem 2.2rem; margin: 1rem 0; padding: 0; }
.numbers div b { display: block; font-size: 1.3rem; } .numbers div span { color: var(--soft); font-size: .85rem; }
pre { background: #f4f6f8; padding: .7rem .9rem; overflow-x: auto; font-size: .85rem; border-radius: 4px; }
@media print { body { max-width: none; padding: 0; font-size: 10.5pt; } h2, figure, table, pre { break-inside: avoid; }
  h2 { break-after: avoid; } pre { white-space: pre-wrap; } }
"""


@dataclass
class Report:
    """The page as it grows: blocks of HTML in order."""

    title: str
    lead: str
    blocks: list[str] = field(default_factory=list)

    def heading(self, text: str) -> None:
        """A heading below the page's title."""
        self.blocks.append(f"<h2>{html.escape(text)}</h2>")

    def paragraph(self, text: str, kind: str = "") -> None:
        """A paragraph; `kind` is its class in `STYLE`."""
        self.blocks.append(f'<p class="{kind}">{html.escape(text)}</p>')

    def code(self, text: str) -> None:
        """Lines as they were typed."""
        self.blocks.append(f"<pre>{html.escape(text)}</pre>")

    def figure(self, figure: Figure, caption: str) -> None:
        """A picture inside the page, with its caption."""
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=DPI, bbox_inches="tight", facecolor="white")
        encoded = base64.b64encode(buffer.getvalue()).decode()
        text = html.escape(caption)
        self.blocks.append(
            f'<figure><img alt="{text}" src="data:image/png;base64,{encoded}"><figcaption>{text}</figcaption></figure>'
        )

    def numbers(self, pairs: Sequence[tuple[str, str]]) -> None:
        """Large numbers in a row, each with what it is."""
        cells = "".join(f"<div><b>{html.escape(n)}</b><span>{html.escape(what)}</span></div>" for n, what in pairs)
        self.blocks.append(f'<div class="numbers">{cells}</div>')

    def table(self, head: Sequence[str], rows: Sequence[Sequence[str]], ours: str = "") -> None:
        """A table; rows whose first cell starts with `ours` stand out."""
        lines = ["<table><thead><tr>", *(f"<th>{html.escape(cell)}</th>" for cell in head), "</tr></thead><tbody>"]
        for row in rows:
            mark = ' class="ours"' if ours and row[0].startswith(ours) else ""
            lines += [f"<tr{mark}>", *(f"<td>{html.escape(cell)}</td>" for cell in row), "</tr>"]
        self.blocks.append("".join([*lines, "</tbody></table>"]))

    def write(self, path: Path) -> Path:
        """The whole page, atomically."""
        page = (
            f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{html.escape(self.title)}</title>'
            f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{STYLE}</style></head><body>'
            f'<h1>{html.escape(self.title)}</h1><p class="lead">{html.escape(self.lead)}</p>'
            + "\n".join(self.blocks)
            + "</body></html>\n"
        )
        with writing(path, "w") as stream:
            stream.write(page)
        return path


# --- pictures --------------------------------------------------------------------------------------------------------


def learning_curve(log: Sequence[dict[str, Any]]) -> Figure:
    """Loss terms over the steps, smoothed over a fiftieth of the run; uniformity beside its floor."""
    steps = np.array([record["step"] for record in log])
    figure = Figure(figsize=(11, 3.1), layout="constrained")
    left, right = figure.subplots(1, 2)
    for name, values in _per_source(log).items():
        left.plot(steps, _smooth(values), lw=1.2, label=name)
    left.plot(steps, _smooth(_column(log, "reconstruction")), color="black", lw=2, label="mean")
    left.set(title="reconstruction, standard deviations", xlabel="step", ylim=(0, None))
    for name, colour in (("uniformity", "#0b6e4f"), ("consistency", "#b3541e")):
        values = _column(log, name)
        if np.isfinite(values).any():
            right.plot(steps, _smooth(values), lw=1.8, color=colour, label=name)
    right.axhline(RANDOM_FLOOR, color="#0b6e4f", lw=0.8, ls=":", label="uniformity of random vectors")
    right.set(title="uniformity and consistency", xlabel="step", ylim=(0, None))
    left.legend(fontsize=7, frameon=False, loc="upper left", bbox_to_anchor=(1.01, 1.02), borderaxespad=0)
    right.legend(fontsize=8, frameon=False)
    for axes in (left, right):
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def _column(log: Sequence[dict[str, Any]], name: str) -> np.ndarray:
    return np.array([np.nan if record.get(name) is None else record[name] for record in log], float)


def _per_source(log: Sequence[dict[str, Any]]) -> dict[str, np.ndarray]:
    names = dict.fromkeys(name for record in log for name in record.get("per_source") or {})
    rows = [record.get("per_source") or {} for record in log]
    return {name: np.array([np.nan if row.get(name) is None else row[name] for row in rows], float) for name in names}


def _smooth(values: np.ndarray) -> np.ndarray:
    """Running mean over a fiftieth of the length, of the finite values."""
    width = max(1, len(values) // 50)
    known = np.isfinite(values)
    kernel = np.ones(width)
    total = np.convolve(np.where(known, values, 0), kernel)[: len(values)]
    count = np.convolve(known.astype(float), kernel)[: len(values)]
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def clearest_frame(chip: Chip, source: Source, period: Period) -> int | None:
    """The frame of a source inside a period with the most clear pixels, the one nearest to the middle among equals."""
    series = chip.sources.get(source.name)
    if series is None or series.time_ms is None or series.row is not None:
        return None
    inside = np.flatnonzero((series.time_ms >= period.start_ms) & (series.time_ms < period.end_ms))
    if not len(inside):
        return None
    observed = series.valid.any(axis=(0, 2, 3))
    bands = np.flatnonzero(np.broadcast_to(observed, source.channels)).tolist()
    clear = clear_pixels(series, bands).mean(axis=(1, 2))[inside]
    if not clear.any():
        clear = series.valid.any(axis=1).mean(axis=(1, 2))[inside]
    middle = (period.start_ms + period.end_ms) / 2
    distance = np.abs(series.time_ms[inside] - middle)
    return int(inside[np.lexsort((distance, -np.round(clear, 2)))[0]])


def reconstructions(model: TrainedModel, chip: Chip, period: Period) -> Figure | None:
    """Observed frames above what the model decodes for the same instants, without having seen them."""
    columns = []
    for name in model.targets:
        source = model.registry[name]
        index = clearest_frame(chip, source, period)
        if index is None or source.grid != "chip":
            continue
        series = chip.sources[name]
        assert series.time_ms is not None
        time_ms = int(series.time_ms[index])
        half = 60 * DAY_MS
        request = (time_ms, Period(time_ms - half, time_ms + half))
        # A twin, or what another source saw within the hour, would show the scene.
        hidden = WithheldDates({(chip.place, ""): [time_ms]}, twin_ms=model.config.data.twin_ms)
        decoded = model.reconstruct(chip, name, [request], without_ms=hidden_times(hidden, chip))[0]
        truth, valid = series.values[index], np.broadcast_to(series.valid[index], series.values[index].shape)
        columns.append((source, time_ms, truth, valid, decoded))
    if not columns:
        return None
    figure = Figure(figsize=(2.3 * len(columns), 4.8), layout="constrained")
    rows = figure.subplots(2, len(columns), squeeze=False)
    for (source, time_ms, truth, valid, decoded), above, below in zip(columns, rows[0], rows[1]):
        rendering = Rendering.of(source, [truth], [valid])
        picture(above, rendering.draw(truth, valid), f"{source.name}\n{format_date(time_ms)}")
        picture(below, rendering.draw(decoded), "reconstruction")
    return figure


def embedding_pictures(
    chips: Sequence[Chip], fields: Sequence[np.ndarray], label: str | None, legend_title: str
) -> Figure:
    """Per place: the embedding in its three main directions, similarity to a marked pixel, and the labels if known."""
    columns = 2 + (label is not None)
    figure = Figure(figsize=(3.4 * columns, 3.2 * len(chips)), layout="constrained")
    rows = figure.subplots(len(chips), columns, squeeze=False)
    shown = None
    for chip, field_, colours, row in zip(chips, fields, pca_rgb(fields), rows):
        y, x = _telling_pixel(field_)
        picture(row[0], colours, f"{chip.place}\nembedding, three main directions")
        alike = similarity(field_, field_[:, y, x])
        shown = row[1].imshow(alike, vmin=0, vmax=1, cmap="viridis", interpolation="nearest")
        row[1].plot(x, y, "o", ms=9, mfc="none", mec="white", mew=2)
        row[1].set(xticks=[], yticks=[])
        row[1].set_title("similarity to the marked pixel", fontsize=9)
        if label is not None:
            _draw_label(row[2], chip, label, legend_title)
    if shown is not None:
        column = rows[:, 1].tolist()
        # Without panchor the images of its column would sink towards it.
        bar = figure.colorbar(shown, ax=column, location="bottom", aspect=25, pad=0.01, extend="min", panchor=False)
        bar.set_label("cosine", fontsize=8)
        bar.ax.tick_params(labelsize=8)
    return figure


def _telling_pixel(field_: np.ndarray) -> tuple[int, int]:
    """A pixel near the middle whose neighbours resemble it: the inside of a field rather than its rim."""
    height, width = field_.shape[1:]
    inner = field_[:, height // 4 : -(height // 4) or None, width // 4 : -(width // 4) or None]
    right = inner[:, 1:-1, 1:-1] * (inner[:, 1:-1, 2:] + inner[:, 1:-1, :-2] + inner[:, 2:, 1:-1] + inner[:, :-2, 1:-1])
    if not right.size:
        return height // 2, width // 2
    y, x = np.unravel_index(right.sum(axis=0).argmax(), right.shape[1:])
    return int(y) + height // 4 + 1, int(x) + width // 4 + 1


def _draw_label(axes: Axes, chip: Chip, name: str, title: str) -> None:
    label = chip.labels.get(name)
    if label is None:
        axes.axis("off")
        return
    codes = [int(code) for code in np.unique(label.values) if code not in label.ignore]
    known = sorted(label.legend) or codes
    colours = dict(zip(known, class_colours(len(known))))
    canvas = np.full((*label.values.shape, 3), 0.93)
    for code in codes:
        canvas[label.values == code] = colours.get(code, (0.5, 0.5, 0.5))
        axes.plot([], [], "s", color=colours.get(code, (0.5, 0.5, 0.5)), label=label.legend.get(code, str(code))[:24])
    picture(axes, canvas, title)
    axes.legend(fontsize=6, loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False, handletextpad=0.3)


def picture(axes: Axes, image: np.ndarray, title: str) -> None:
    """An image without axes, its pixels as they are."""
    axes.imshow(image, interpolation="nearest")
    axes.set_title(title, fontsize=9)
    axes.set(xticks=[], yticks=[])


# --- the page --------------------------------------------------------------------------------------------------------


def write_report(
    path: Path,
    model: TrainedModel,
    chips: Sequence[Chip],
    log: Sequence[dict[str, Any]],
    judgement: Judgement,
    commands: Sequence[str],
) -> Path:
    """Write the page.

    Args:
        path: of the HTML file.
        model: the trained model.
        chips: places with pictures; the first three are used.
        log: lines of the run's log.
        judgement: tables of `aef.evaluation.judgement`.
        commands: what was typed to get here.
    """
    synthetic = any(chip.synthetic for chip in chips)
    ground = "a synthetic Earth (rendered, not observed)" if synthetic else "real observations"
    report = Report(
        f"AlphaEarth Foundations: model “{model.version}”",
        f"Trained from scratch on {ground}. Every number on this page was measured by the commands at its end.",
    )
    _summary(report, model, log, judgement)
    _pictures(report, model, chips[:PLACES])
    report.heading("How it learned")
    report.figure(
        learning_curve(log),
        "Reconstruction error of the training targets, decoded from noisy samples of the embedding, and the two terms "
        "that shape the embedding space. Uniformity is the mean |cosine| between different places: 1 would be a collapse.",
    )
    _tables(report, judgement)
    report.heading("How this page was made")
    report.code("\n".join(commands))
    return report.write(path)


def _summary(report: Report, model: TrainedModel, log: Sequence[dict[str, Any]], judgement: Judgement) -> None:
    parameters = sum(parameter.numel() for parameter in model.network.parameters())
    numbers = [
        (f"{parameters / 1e6:.2f} M", "parameters"),
        (f"{log[-1]['step']:,}", "training steps"),
        (f"{len(model.inputs)} → {len(model.targets)}", "sources encoded → decoded"),
    ]
    for table in judgement.withheld:
        numbers.append((f"{table.ratio:.2f}", f"error on unseen {table.source} dates ÷ linear interpolation"))
    for probes in judgement.probes:
        numbers.append(
            (f"{probes.ours:.2f}", f"balanced accuracy, {probes.shots}-shot; best baseline {probes.best:.2f}")
        )
    report.numbers(numbers)


def _pictures(report: Report, model: TrainedModel, chips: Sequence[Chip]) -> None:
    report.heading("From frames to one vector per pixel, and back")
    report.paragraph(
        "Each place is seen by several sensors at irregular times. The model turns all of it into one 64-dimensional unit "
        "vector per 10 m pixel; decoders turn that vector back into what each sensor would have seen at a given time. The "
        "frames shown were removed from the input."
    )
    fields = []
    for chip in chips:
        period = year_of(model, chip)
        fields.append(model.embed_array(chip, [period])[0])
        figure = reconstructions(model, chip, period)
        if figure is not None:
            report.figure(figure, f"{chip.place}: observed above, decoded from the embedding below.")
    label = next((name for chip in chips for name in chip.labels), None)
    report.figure(
        embedding_pictures(chips, fields, label, f"labels ({label}), never seen in training"),
        "The embedding fields. Colours are shared by all places: equal colours mean similar vectors.",
    )


def _tables(report: Report, judgement: Judgement) -> None:
    for table in judgement.withheld:
        report.heading(f"Dates that nobody has seen: {table.source}")
        report.paragraph(
            "Whole frames were withheld from training and from every predictor, with their twins of the same hour. Error: "
            "mean absolute difference over clear pixels and bands, in standard deviations; lower is better. "
            f"{table.dates} dates at {len(table.places)} places."
        )
        report.table(*table.rows(), ours="model")
    for probes in judgement.probes:
        report.heading(f"Few labels: {probes.label} on places that training never saw")
        report.paragraph(
            f"{probes.shots} labelled pixels per class, {probes.classes} classes, {probes.units} fields, split by field: "
            f"balanced accuracy of the better of ridge and 3 nearest neighbours, {probes.trials} splits. "
            "Baselines see the same frames and masks."
        )
        report.table(*probes.rows(), ours="embedding")
        if probes.difference is not None:
            low, high = probes.interval
            report.paragraph(
                f"Embedding minus the best baseline: {probes.difference:+.3f}, 95 % interval {low:+.3f} to {high:+.3f} "
                "(bootstrap over fields).",
                "note",
            )
    if judgement.health:
        report.heading("Health")
        report.table(("figure", "value"), [(name, f"{value:.3f}") for name, value in judgement.health.items()])
    if judgement.not_judged:
        report.heading("Not judged")
        for line in judgement.not_judged:
            report.paragraph(f"{line[0].upper()}{line[1:]}.")
