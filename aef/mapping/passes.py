"""One run of the encoder over a chip: which frames it reads, and which valid periods it serves.

All frames of the support (`aef.mapping.support`) are encoded, without a budget (paper, v2.1), once for all periods of
one support.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from aef.data.chips import Chip
from aef.mapping.errors import EmbeddingError
from aef.timecode import Period


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

    @classmethod
    def of(
        cls,
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
            for index in np.flatnonzero(frames_inside(series.moment_ms, support, (without_ms or {}).get(name, ()))):
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
        return cls(support, tuple(periods), tuple(times), every, observed)

    def about(self, period: Period) -> dict[str, str | int]:
        """What the file of a period's field says of the frames that it was made from."""
        inside = (self.times_ms >= period.start_ms) & (self.times_ms < period.end_ms)
        return {
            "sources": ", ".join(self.sources),
            "support": str(self.support),
            "frames": len(self.times_ms),
            "frames_in_period": int(inside.sum()),
        }


def frames_inside(moments_ms: np.ndarray, support: Period, without_ms: Sequence[int]) -> np.ndarray:
    """Which frames (T,) lie inside a support and are not left out."""
    chosen = (moments_ms >= support.start_ms) & (moments_ms < support.end_ms)
    return chosen & ~np.isin(moments_ms, np.asarray(without_ms, np.int64))
