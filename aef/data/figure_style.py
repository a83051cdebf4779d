"""Colours, images and time axes of the figures of chips. Needs matplotlib (extra ``eval``)."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, ListedColormap
from matplotlib.dates import AutoDateLocator, ConciseDateFormatter

INK, FAINT, ALARM, PAPER = "#1b2733", "#8a97a5", "#c0392b", "#ffffff"
CLEAR = LinearSegmentedColormap.from_list("clear", ["#c9d1d9", "#f2c14e", "#1f8a70"])
"""Of a frame, by its clear share."""

COUNTED = ListedColormap(["#20262d", "#f7f5ef"])
"""Of a pixel: whether it counts in the loss."""


def show_image(axes: Axes, picture: np.ndarray, **options) -> None:
    """An image with square pixels and a thin frame."""
    axes.imshow(picture, interpolation="nearest", **options)
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_color("#d5dbe1")
        spine.set_linewidth(0.6)


def style_time_axis(axes: Axes) -> None:
    """Dates below, in days since 1970, with faint lines up from them."""
    locator = AutoDateLocator(minticks=5, maxticks=16)
    axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_major_formatter(ConciseDateFormatter(locator))
    axes.tick_params(axis="x", labelsize=8, colors=FAINT, length=3)
    axes.grid(axis="x", color="#eef1f4", lw=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color("#d5dbe1")
