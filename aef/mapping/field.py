"""A chip → an embedding field: one unit vector per 10 m pixel and valid period, from any trained model.

The model sees the chip through windows of the side that it was trained on. Windows overlap, and each pixel is taken
from the window in which it lies farthest from the border: of 128 px an inner window gives its central 96 px. (The paper
tiles at 960 m and buffers by 160 m: windows of 128 px at a pitch of 96 px, of which 8 px a side are trimmed. 112 px
remain, neighbours overlap by 16 px, and how they are merged is not stated.) All frames of the support are encoded,
without a budget (paper, v2.1), once for all periods of one support.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from aef.data.chips import Chip, SourceSeries
from aef.data.collate import Frames
from aef.timecode import DAY_MS, Period

BEYOND_MS = 183 * DAY_MS
"""How far a valid period may lie outside the observations (paper: 6 months)."""

MARGIN = 1 / 8
"""Share of a window's side that is trimmed at an inner border: 16 of 128 px, which gives the paper's pitch of 96 px."""

FAR_LONGER = 1.5
"""A valid period of more than so many supports is warned of: training saw none that is longer than its support."""


class EmbeddingError(ValueError):
    """A chip or period that cannot be embedded; one line."""


class LongPeriodWarning(UserWarning):
    """A valid period far longer than any that the model has seen; one line."""


@dataclass(frozen=True)
class MadeBy:
    """What a field was made by, which travels in its file's tags: fields of different makers do not compare.

    Attributes:
        version: preset and step of the model.
        weights: SHA-256 of its weights.
        left_out: input sources that were ignored.
    """

    version: str
    weights: str = ""
    left_out: tuple[str, ...] = ()

    @property
    def tags(self) -> dict[str, str]:
        every = {"model_version": self.version, "model_weights": self.weights, "left_out": ", ".join(self.left_out)}
        return {name: value for name, value in every.items() if value}

    def other_model(self, tags: Mapping[str, str]) -> str | None:
        """Both models in words if a field's tags tell of another one, else None."""
        if all(tags.get(name) == self.tags.get(name) for name in ("model_version", "model_weights")):
            return None
        return f"expected model {_model_in_words(self.tags)}, found {_model_in_words(tags)}"

    def difference(self, tags: Mapping[str, str]) -> str | None:
        """What a field's tags tell of another maker, in words, or None."""
        if (model := self.other_model(tags)) is not None:
            return model
        wanted, found = (given.get("left_out") for given in (self.tags, tags))
        return None if wanted == found else f"expected {wanted or 'no source'} left out, found {found or 'none'}"


def _model_in_words(tags: Mapping[str, str]) -> str:
    weights = tags.get("model_weights")
    return f"{tags.get('model_version', 'unknown')} (weights {weights[:12] if weights else 'not stated'})"


class Window(NamedTuple):
    """One model window of a chip along one axis: it starts at pixel `origin` and gives the pixels [start, stop)."""

    origin: int
    start: int
    stop: int


def windows(side_px: int, window_px: int) -> list[Window]:
    """Windows of `window_px` that cover `side_px`, each pixel given by the one in which it lies most central.

    A chip smaller than the window has one window at 0, which reaches beyond it.
    """
    if side_px <= window_px:
        return [Window(0, 0, side_px)]
    pitch = window_px - 2 * round(MARGIN * window_px)
    count = 1 + -(-(side_px - window_px) // pitch)
    origins = [min(i * pitch, side_px - window_px) for i in range(count)]
    borders = [0, *((left + right + window_px) // 2 for left, right in pairwise(origins)), side_px]
    return [Window(origin, start, stop) for origin, (start, stop) in zip(origins, pairwise(borders))]


def observed_span(chip: Chip, inputs: Sequence[str]) -> Period:
    """From the first to just after the last frame of the model's input sources. Raises EmbeddingError if there is none."""
    held = [chip.sources[name].time_ms for name in inputs if name in chip.sources]
    times = [t for t in held if t is not None and len(t)]
    if not times:
        raise EmbeddingError(
            f"chip {chip.id}: holds no frame of any input of the model ({', '.join(inputs)}); it holds "
            f"{', '.join(chip.sources) or 'nothing'}"
        )
    return Period(int(min(t[0] for t in times)), int(max(t[-1] for t in times)) + 1)


def support_of(period: Period, span: Period, length_ms: int, chip_id: str) -> Period:
    """The support whose frames embed a valid period: `length_ms` around its middle, moved inside the observed span.

    A longer period is its own support. Raises EmbeddingError when the period lies more than six months outside.
    """
    if period.start_ms < span.start_ms - BEYOND_MS or period.end_ms > span.end_ms + BEYOND_MS:
        raise EmbeddingError(
            f"chip {chip_id}: the period {period} reaches more than six months beyond the observations ({span}): "
            "choose one inside or near them"
        )
    if period.length_ms > length_ms:
        return period
    latest = max(span.end_ms - length_ms, span.start_ms)
    middle = (period.start_ms + period.end_ms - length_ms) // 2
    start = min(max(middle, span.start_ms), latest)
    return Period(start, start + length_ms)


def warn_of_long(period: Period, length_ms: int) -> None:
    """Warn of a period far longer than the supports of training (`length_ms`)."""
    if period.length_ms > FAR_LONGER * length_ms:
        warnings.warn(
            f"the period {period} is {period.length_ms / DAY_MS:.0f} days long, but the model was trained on periods of up "
            f"to {length_ms / DAY_MS:.0f} days: its field may be poor; embed shorter periods, such as each year by itself",
            LongPeriodWarning,
            stacklevel=3,
        )


def group_by_support(
    periods: Sequence[Period], span: Period, length_ms: int, chip_id: str
) -> dict[Period, list[Period]]:
    """Periods that one support can serve together, so that the encoder runs once for them."""
    together = Period(min(p.start_ms for p in periods), max(p.end_ms for p in periods))
    groups: dict[Period, list[Period]] = {}
    for period in periods:
        one = support_of(period, span, length_ms, chip_id)
        shared = support_of(together, span, length_ms, chip_id) if together.length_ms <= length_ms else one
        groups.setdefault(shared, []).append(period)
    return groups


def cut_frames(
    series: SourceSeries, support: Period, rows: slice, columns: slice, side_px: int, without_ms: Sequence[int] = ()
) -> Frames | None:
    """The frames of one source inside a support, cut to a window; None if there are none that show anything of it.

    Pixels beyond the chip are invalid. `without_ms` lists frames to leave out, to the millisecond.
    """
    moments = series.moment_ms
    assert moments is not None
    chosen = (moments >= support.start_ms) & (moments < support.end_ms)
    chosen &= ~np.isin(moments, np.asarray(without_ms, np.int64))
    chosen &= series.valid[:, :, rows, columns].any(axis=(1, 2, 3))
    index = np.flatnonzero(chosen)
    if not len(index):
        return None
    values = np.moveaxis(series.values[index][..., rows, columns], 1, -1)  # (T, h, w, C)
    valid = np.moveaxis(series.valid[index][..., rows, columns], 1, -1)
    missing = [(0, 0), (0, side_px - values.shape[1]), (0, side_px - values.shape[2]), (0, 0)]
    if any(after for _, after in missing):
        values, valid = np.pad(values, missing), np.pad(valid, missing)
    return Frames(np.ascontiguousarray(values), np.ascontiguousarray(valid), moments[index])
