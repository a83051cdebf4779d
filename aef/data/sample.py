"""One training sample: what the sampler draws from a chip, as NumPy arrays."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

import numpy as np

from aef.hashing import stable_hash
from aef.timecode import Period


@dataclass
class Frames:
    """Frames of one source in one view. ``values`` (T, h, w, C) in the chip's type, ``valid`` (T, h, w, C or 1) bool,
    ``time_ms`` (T,) int64."""

    values: np.ndarray
    valid: np.ndarray
    time_ms: np.ndarray


@dataclass
class Target:
    """One frame to decode, on the crop's grid or, for coarse sources, on g x g cells that cover the crop.

    ``values`` (h, w, C) in the chip's type, ``valid`` (h, w, C or 1) bool, ``weight`` (h, w, 1) uint8 (loss weight /
    255), ``metadata`` (M,) float32 with NaN where missing, ``period`` the summary that it is decoded from,
    ``item_weight`` 0 for a target that had to stay in the input.
    """

    values: np.ndarray
    valid: np.ndarray
    weight: np.ndarray
    time_ms: int
    metadata: np.ndarray
    period: Period
    item_weight: float = 1.0


@dataclass
class Text:
    """One text aligned with the crop: the tower's vector, its pixel (row, col) and disc radius, period and identity."""

    vector: np.ndarray
    row: int
    col: int
    radius_px: float
    period: Period
    identity: int


@dataclass
class Sample:
    """What the sampler draws from a chip in one epoch; both views share arrays.

    ``periods`` are further summaries of the teacher, wanted for themselves (embedding) rather than for a target.
    """

    id: str
    place: str
    global_index: int
    support: Period
    side_px: int
    teacher: dict[str, Frames]
    student: dict[str, Frames] = field(default_factory=dict)
    targets: dict[str, list[Target]] = field(default_factory=dict)
    consistency_period: Period | None = None
    consistency_weight: float = 1.0
    texts: tuple[Text, ...] = ()
    periods: tuple[Period, ...] = ()
    epoch: int = 0

    @property
    def hash(self) -> int:
        """Keys every draw made for this sample after it was sampled: the same id has other noise in another epoch."""
        return stable_hash(f"{self.id}@{self.epoch}")

    def moved(self, by_ms: int) -> Sample:
        """The same sample at another time: support, frames, targets and periods all moved by `by_ms`."""

        def later(frames: dict[str, Frames]) -> dict[str, Frames]:
            return {name: dataclasses.replace(one, time_ms=one.time_ms + by_ms) for name, one in frames.items()}

        def at(period: Period) -> Period:
            return Period(period.start_ms + by_ms, period.end_ms + by_ms)

        return dataclasses.replace(
            self,
            support=at(self.support),
            teacher=later(self.teacher),
            student=later(self.student),
            targets={
                name: [dataclasses.replace(t, time_ms=t.time_ms + by_ms, period=at(t.period)) for t in targets]
                for name, targets in self.targets.items()
            },
            consistency_period=None if self.consistency_period is None else at(self.consistency_period),
            texts=tuple(dataclasses.replace(text, period=at(text.period)) for text in self.texts),
            periods=tuple(at(period) for period in self.periods),
        )
