"""A chip → an embedding field: one unit vector per 10 m pixel and valid period, from any trained model.

The model sees the chip through windows of the side that it was trained on. Windows overlap, and each pixel is taken
from the window in which it lies farthest from the border: of 128 px an inner window gives its central 96 px. (The paper
tiles at 960 m and buffers by 160 m: windows of 128 px at a pitch of 96 px, of which 8 px a side are trimmed. 112 px
remain, neighbours overlap by 16 px, and how they are merged is not stated.) All frames of the support
(`aef.mapping.support`) are encoded, without a budget (paper, v2.1), once for all periods of one support.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from aef.data.chips import Chip, SourceSeries
from aef.data.sample import Frames
from aef.timecode import Period

MARGIN = 1 / 8
"""Share of a window's side that is trimmed at an inner border: 16 of 128 px, which gives the paper's pitch of 96 px."""


class EmbeddingError(ValueError):
    """A chip or period that cannot be embedded; one line."""


@dataclass(frozen=True)
class MadeBy:
    """What a field was made by, which travels in its file's tags: fields of different makers do not compare.

    Attributes:
        version: preset and step of the model.
        weights: SHA-256 of its weights.
        left_out: input sources that were ignored.
        inpainted: pixels that were never observed have a vector too.
    """

    version: str
    weights: str = ""
    left_out: tuple[str, ...] = ()
    inpainted: bool = False

    @property
    def tags(self) -> dict[str, str]:
        every = {
            "model_version": self.version,
            "model_weights": self.weights,
            "left_out": ", ".join(self.left_out),
            "unobserved": "inpainted" if self.inpainted else "",
        }
        return {name: value for name, value in every.items() if value}

    def other_model(self, tags: Mapping[str, str]) -> str | None:
        """Both models in words if a field's tags tell of another one, else None."""
        if all(tags.get(name) == self.tags.get(name) for name in ("model_version", "model_weights")):
            return None
        return f"expected model {_model_in_words(self.tags)}, found {_model_in_words(tags)}"

    def difference(self, tags: Mapping[str, str], support: Period | None = None) -> str | None:
        """What a field's tags tell of another maker, or of another support than the one that is given; None if nothing."""
        if (model := self.other_model(tags)) is not None:
            return model
        wanted, found = (given.get("left_out") for given in (self.tags, tags))
        if wanted != found:
            return f"expected {wanted or 'no source'} left out, found {found or 'none'}"
        wanted, found = (given.get("unobserved", "no data") for given in (self.tags, tags))
        if wanted != found:
            return f"expected unobserved pixels to be {wanted}, found {found}"
        if support is not None and tags.get("support") != str(support):
            return f"expected the support {support}, found {tags.get('support', 'none stated')}"
        return None


def _model_in_words(tags: Mapping[str, str]) -> str:
    weights = tags.get("model_weights")
    return f"{tags.get('model_version', 'unknown')} (weights {weights[:12] if weights else 'not stated'})"


@dataclass(frozen=True)
class Pass:
    """One pass of the encoder over a chip: the frames of one support, for the valid periods that it serves.

    Attributes:
        sources: the input sources with a frame in the support that shows something.
        times_ms: (N,) of all these frames.
        observed: (H, W) bool: where one of them shows something.
    """

    support: Period
    periods: tuple[Period, ...]
    sources: tuple[str, ...]
    times_ms: np.ndarray
    observed: np.ndarray

    def about(self, period: Period) -> dict[str, str | int]:
        """What the file of a period's field says of the frames that it was made from."""
        inside = (self.times_ms >= period.start_ms) & (self.times_ms < period.end_ms)
        return {
            "sources": ", ".join(self.sources),
            "support": str(self.support),
            "frames": len(self.times_ms),
            "frames_in_period": int(inside.sum()),
        }


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


def look_over(
    chip: Chip,
    support: Period,
    periods: Sequence[Period],
    inputs: Sequence[str],
    without_ms: Mapping[str, Sequence[int]] | None = None,
) -> Pass:
    """What there is to encode of a chip over a support. Raises EmbeddingError where no frame shows anything.

    Args:
        without_ms: per source, frames to leave out, to the millisecond.
    """
    observed = np.zeros((chip.height, chip.width), bool)
    times: dict[str, list[int]] = {}
    for name in inputs:
        series = chip.sources.get(name)
        if series is None or series.moment_ms is None:
            continue
        for index in np.flatnonzero(_inside(series.moment_ms, support, (without_ms or {}).get(name, ()))):
            shown = series.valid[index].any(axis=0)
            if shown.any():
                observed |= shown
                times.setdefault(name, []).append(int(series.moment_ms[index]))
    if not times:
        raise EmbeddingError(
            f"chip {chip.id}: no frame of {', '.join(inputs)} within the support {support} of the period "
            f"{', '.join(map(str, periods))}: there is nothing to embed"
        )
    every = np.sort(np.concatenate([np.array(of_source, np.int64) for of_source in times.values()]))
    return Pass(support, tuple(periods), tuple(times), every, observed)


def _inside(moments_ms: np.ndarray, support: Period, without_ms: Sequence[int]) -> np.ndarray:
    """Which frames (T,) lie inside a support and are not left out."""
    chosen = (moments_ms >= support.start_ms) & (moments_ms < support.end_ms)
    return chosen & ~np.isin(moments_ms, np.asarray(without_ms, np.int64))


def cut_frames(
    series: SourceSeries, support: Period, rows: slice, columns: slice, side_px: int, without_ms: Sequence[int] = ()
) -> Frames | None:
    """The frames of one source inside a support, cut to a window; None if there are none that show anything of it.

    Pixels beyond the chip are invalid. `without_ms` lists frames to leave out, to the millisecond.
    """
    moments = series.moment_ms
    assert moments is not None
    chosen = _inside(moments, support, without_ms)
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
