"""The validation figure of a run: what it knows of unseen dates and places, and how healthy it is, over its steps."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from aef.figure_file import NO_MATPLOTLIB, new_figure, save_png
from aef.objective.uniformity import RANDOM_FLOOR
from aef.run import Run

from .figures import FOLDER
from .validation import BEST, OF, PER_LINEAR, PROBE, RIVALS, WITHHELD

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FILE_NAME = "validation.png"
PRESENCE = "presence of "  # as `judge_health` calls it
CHANCE = 0.5
"""Balanced accuracy of a guess between two."""

LINES = (":", "-.", "--", (0, (5, 1)))


def write_validation_figure(run: Run, records: Sequence[Mapping[str, Any]]) -> str | None:
    """Draw all validations of a run into ``RUN/figures/validation.png``; returns what to tell the user if it cannot."""
    names = list(dict.fromkeys(name for record in records for name in record if name != "step"))
    sources = [n for n in names if n.startswith(WITHHELD) and OF not in n and not n.endswith(PER_LINEAR)]
    panels: list[Callable[[Axes], None]] = [partial(_withheld, records=records, name=name) for name in sources]
    if any(name.startswith(PROBE) for name in names):
        panels.append(partial(_probes, records=records, names=names))
    if any(name.startswith(PRESENCE) for name in names):
        panels.append(partial(_presence, records=records, names=names))
    panels.append(partial(_health, records=records))
    columns = min(len(panels), 3)
    rows = -(-len(panels) // columns)
    try:
        figure = new_figure(4.4 * columns, 3.2 * rows)
    except ImportError:
        return f"no figure: {NO_MATPLOTLIB}"
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis in axes[len(panels) :]:
        axis.set_axis_off()
    for draw, axis in zip(panels, axes, strict=False):
        draw(axis)
        axis.set_xlabel("step", fontsize=8)
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.tick_params(labelsize=7)
        axis.spines[["top", "right"]].set_visible(False)
    folder = run.path / FOLDER
    folder.mkdir(exist_ok=True)
    save_png(folder / FILE_NAME, figure)
    return None


def _withheld(axes: Axes, records: Sequence[Mapping[str, Any]], name: str) -> None:
    """The model's error on withheld dates of a source over the steps, naive predictors as level lines."""
    _line(axes, records, name, label="model", lw=2)
    for rival, style in zip(RIVALS, LINES, strict=True):
        _level(axes, records, f"{name}{OF}{rival}", rival, style)
    axes.set_ylim(bottom=0)
    _finish(axes, f"{name}: L1, standard deviations")


def _probes(axes: Axes, records: Sequence[Mapping[str, Any]], names: Sequence[str]) -> None:
    for number, name in enumerate(n for n in names if n.startswith(PROBE) and OF not in n):
        _line(axes, records, name, label=name.removeprefix(PROBE), color=f"C{number}", lw=2)
        _level(axes, records, f"{name}{OF}{BEST}", BEST, "--", color=f"C{number}")
    axes.set_ylim(0, 1)
    _finish(axes, "few-shot probes, balanced accuracy")


def _presence(axes: Axes, records: Sequence[Mapping[str, Any]], names: Sequence[str]) -> None:
    for name in (n for n in names if n.startswith(PRESENCE)):
        _line(axes, records, name, label=name.removeprefix(PRESENCE), lw=1.6)
    axes.axhline(CHANCE, color="0.5", lw=0.8, ls=":", label="chance")
    axes.set_ylim(0.3, 1.02)
    _finish(axes, "was the source present? balanced accuracy")


def _health(axes: Axes, records: Sequence[Mapping[str, Any]]) -> None:
    _line(axes, records, "norm", label="norm", lw=1.2)
    _line(axes, records, "uniformity", label="uniformity", lw=2)
    axes.axhline(RANDOM_FLOOR, color="0.5", lw=0.8, ls=":", label="uniformity of random vectors")
    axes.set_ylim(0, 1.1)
    right = axes.twinx()
    _line(right, records, "effective_rank", label="effective rank (right)", color="C3", lw=1.6)
    right.set_ylim(bottom=0)
    right.tick_params(labelsize=7)
    right.legend(fontsize=6, frameon=False, loc="center right")
    _finish(axes, "health")


def _line(axes: Axes, records: Sequence[Mapping[str, Any]], name: str, **style: Any) -> None:
    points = [(record["step"], record[name]) for record in records if record.get(name) is not None]
    if points:
        axes.plot(*zip(*points, strict=True), marker="o", ms=2.5, **style)


def _level(
    axes: Axes, records: Sequence[Mapping[str, Any]], name: str, label: str, style: Any, color: str = "0.45"
) -> None:
    values = [record[name] for record in records if record.get(name) is not None]
    if values:
        axes.axhline(values[-1], color=color, lw=0.9, ls=style, label=label)


def _finish(axes: Axes, title: str) -> None:
    axes.set_title(title, fontsize=9)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=6, frameon=False, loc="lower left")
