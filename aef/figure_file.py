"""Figures for files: drawn in memory, without pyplot, so that a notebook keeps its backend and its open figures."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from aef.atomic import writing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NO_MATPLOTLIB = "matplotlib is not installed (pip install 'aef-engine[eval]')"


def new_figure(width: float, height: float, *, layout: str | None = "constrained") -> Figure:
    """An empty figure of so many inches. Raises ModuleNotFoundError where matplotlib is not installed."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout=layout)  # type: ignore[arg-type]
    FigureCanvasAgg(figure)
    return figure


def save_png(path: str | os.PathLike, figure: Figure, dpi: int = 110) -> None:
    """Write a figure as a PNG file. Atomic."""
    with writing(path) as stream:
        figure.savefig(stream, format="png", dpi=dpi)
