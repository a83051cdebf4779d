"""The windows through which a model sees a chip, the frames cut to them, and batches of them.

The model sees the chip through windows of the side that it was trained on. Windows overlap, and each pixel is taken
from the window in which it lies farthest from the border: of 128 px an inner window gives its central 96 px, of 4 px,
which `small` has, its central 2. (The paper tiles at 960 m and buffers by 160 m: windows of 128 px at a pitch of 96 px,
of which 8 px a side are trimmed. 112 px remain, neighbours overlap by 16 px, and how they are merged is not stated.)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise, product
from typing import NamedTuple

import numpy as np

from aef.data.batch import Batch
from aef.data.chips import Chip, SourceSeries
from aef.data.collate import Collator
from aef.data.sample import Frames, Sample, Target
from aef.mapping.passes import frames_inside
from aef.mapping.support import count_frames
from aef.timecode import Period

MARGIN = 1 / 8
"""Share of a window's side that is trimmed at an inner border: 16 of 128 px, which gives the paper's pitch of 96 px."""

LEAST_MARGIN_PX = 1
"""Of windows of 4 px, as of `small`, too: those that abut show in a map as blocks of their size."""

FRAME_PIXELS = 2**19
"""Frames x pixels encoded at once: about 0.3 GB at the width of `small`; a single window may exceed it."""


class Window(NamedTuple):
    """One model window of a chip along one axis: it starts at pixel `origin` and gives the pixels [start, stop)."""

    origin: int
    start: int
    stop: int

    @property
    def chip(self) -> slice:
        """The pixels of the chip that it gives."""
        return slice(self.start, self.stop)

    @property
    def inner(self) -> slice:
        """The same pixels, as its own."""
        return slice(self.start - self.origin, self.stop - self.origin)


def windows_along(side_px: int, window_px: int) -> list[Window]:
    """Windows of `window_px` that cover `side_px`, each pixel given by the one in which it lies most central.

    A chip smaller than the window has one window at 0, which reaches beyond it.
    """
    if side_px <= window_px:
        return [Window(0, 0, side_px)]
    pitch = max(1, window_px - 2 * max(LEAST_MARGIN_PX, round(MARGIN * window_px)))
    count = 1 + -(-(side_px - window_px) // pitch)
    origins = [min(i * pitch, side_px - window_px) for i in range(count)]
    borders = [0, *((left + right + window_px) // 2 for left, right in pairwise(origins)), side_px]
    return [Window(origin, start, stop) for origin, (start, stop) in zip(origins, pairwise(borders))]


def cut_frames(
    series: SourceSeries, support: Period, rows: slice, columns: slice, side_px: int, without_ms: Sequence[int] = ()
) -> Frames | None:
    """The frames of one source inside a support, cut to a window; None if there are none that show anything of it.

    Pixels beyond the chip are invalid. `without_ms` lists frames to leave out, to the millisecond.
    """
    moments = series.moment_ms
    assert moments is not None
    chosen = frames_inside(moments, support, without_ms)
    chosen &= series.valid[:, :, rows, columns].any(axis=(1, 2, 3))
    index = np.flatnonzero(chosen)
    if not len(index):
        return None
    # The window first: choosing frames copies whatever is left.
    values = np.moveaxis(series.values[..., rows, columns][index], 1, -1)  # (T, h, w, C)
    valid = np.moveaxis(series.valid[..., rows, columns][index], 1, -1)
    missing = [(0, 0), (0, side_px - values.shape[1]), (0, side_px - values.shape[2]), (0, 0)]
    if any(after for _, after in missing):
        values, valid = np.pad(values, missing), np.pad(valid, missing)
    return Frames(np.ascontiguousarray(values), np.ascontiguousarray(valid), moments[index])


def window_batches(
    collate: Collator,
    chip: Chip,
    support: Period,
    inputs: Sequence[str],
    side_px: int,
    *,
    without_ms: Mapping[str, Sequence[int]],
    periods: tuple[Period, ...] = (),
    targets: dict[str, list[Target]] | None = None,
) -> Iterator[tuple[Batch, list[tuple[Window, Window]]]]:
    """The windows of a chip as batches of one view, row by row from north to south.

    Args:
        inputs: the sources whose frames inside the support are encoded.
        side_px: of a window.
        without_ms: per source, frames to leave out, to the millisecond.
        periods: valid periods that are embedded.
        targets: what is decoded, the same of every window.

    Yields:
        a batch, and of each of its samples the window along y and along x.
    """
    every = list(product(windows_along(chip.height, side_px), windows_along(chip.width, side_px)))
    frames = count_frames(chip, support, inputs)
    at_once = max(1, FRAME_PIXELS // max(frames * side_px * side_px, 1))
    for first in range(0, len(every), at_once):
        group = every[first : first + at_once]
        samples = [
            Sample(
                id=chip.id,
                place=chip.place,
                global_index=number,
                support=support,
                side_px=side_px,
                teacher=_frames_of(chip, support, inputs, side_px, without_ms, *window),
                targets=targets or {},
                consistency_period=periods[0] if periods else None,
                periods=periods,
            )
            for number, window in enumerate(group)
        ]
        yield collate(samples), group


def _frames_of(
    chip: Chip,
    support: Period,
    inputs: Sequence[str],
    side_px: int,
    without_ms: Mapping[str, Sequence[int]],
    vertical: Window,
    horizontal: Window,
) -> dict[str, Frames]:
    """The frames of a window, by source; a source without any is left out."""
    rows, columns = (slice(window.origin, window.origin + side_px) for window in (vertical, horizontal))
    cut = {
        name: cut_frames(chip.sources[name], support, rows, columns, side_px, without_ms.get(name, ()))
        for name in inputs
        if name in chip.sources
    }
    return {name: frames for name, frames in cut.items() if frames is not None}


def keep_inner(out: np.ndarray, picture: np.ndarray, vertical: Window, horizontal: Window) -> None:
    """Write the pixels that a window gives of its picture (C, h, w) into the whole one (C, H, W)."""
    out[:, vertical.chip, horizontal.chip] = picture[:, vertical.inner, horizontal.inner]
