"""The packed batch: the second contract. Frames are packed, never padded.

All frames of all samples, views and sources lie in one sequence of F frames. Segments are ordered (sample, view):
teacher then student of sample 0, then of sample 1, ... Dropped and missing frames do not exist. Embedding uses the same
batch with one view per sample and no targets.

Every parameterised module of the model runs every step, whatever the batch holds (ZeRO needs it): a source without a
frame or target in the batch, and an absent text, is represented by one dummy item, of position -1 or weight 0.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor


class _Movable:
    """Moves every tensor of a dataclass to a device or into page-locked memory, nested ones included."""

    def to(self, device: torch.device | str, non_blocking: bool = False):
        return self._each(lambda item: item.to(device, non_blocking=non_blocking))

    def pin_memory(self):
        return self._each(lambda item: item.pin_memory())

    def _each(self, change):
        def move(value):
            if isinstance(value, Tensor | _Movable):
                return change(value)
            if isinstance(value, dict):
                return {key: move(item) for key, item in value.items()}
            return value

        changes = {f.name: move(getattr(self, f.name)) for f in dataclasses.fields(self)}  # type: ignore[arg-type]
        return dataclasses.replace(self, **changes)  # type: ignore[type-var]


@dataclass
class FrameBlock(_Movable):
    """Frames of one source: values (F_s, h, w, C), valid (F_s, h, w, C or 1), position (F_s,) int64 in the packed
    sequence (-1: a dummy that no sample reads). Those of a segment lie together, in the order of the segments."""

    values: Tensor
    valid: Tensor
    position: Tensor


@dataclass
class TargetBlock(_Movable):
    """N targets of one source.

    values (N, g, g, C), valid (N, g, g, C or 1), weight (N, g, g, 1) uint8, time_ms (N,) int64, metadata (N, M),
    period_row (N,) int64 into ``Batch.periods``, sample (N,) int64, slot (N,) int64 (which target of its sample, for
    the vMF counter), item_weight (N,) float32 (0 for a dummy).
    """

    values: Tensor
    valid: Tensor
    weight: Tensor
    time_ms: Tensor
    metadata: Tensor
    period_row: Tensor
    sample: Tensor
    slot: Tensor
    item_weight: Tensor


@dataclass
class TextBlock(_Movable):
    """K texts: vector (K, D), pixel (K, 2) int64 row and col, radius_px (K,), period_row (K,), sample (K,); identity, K
    numbers for the host (equal texts are not negatives of each other), None for the dummy."""

    vector: Tensor
    pixel: Tensor
    radius_px: Tensor
    period_row: Tensor
    sample: Tensor
    identity: list[int | None]


@dataclass
class Batch(_Movable):
    """B samples, S = views * B segments, F frames, Q summaries.

    cu_frames (S + 1,) int32, one more with filler, which is then the last segment; max_frames a bucketed Python int;
    frame_time_ms (F,) and frame_segment (F,) int64; support_start_ms (S,) int64; periods (Q, 2) int64;
    period_segment (Q,) int32; pairs, the number of (period, frame of its segment) pairs, a Python int, so that a bias
    per pair needs no synchronisation; teacher_row, student_row (B,) int64 rows of the consistency summaries;
    consistency_weight (B,) float32; sample_hash (B,) int64; key (seed, epoch).

    What only the host reads stays with it: places, a hash of each sample's place, and global_index, each sample's
    number in the global order.

    Raises ValueError while it is on the host if cu_frames do not rise from 0 to F, or a segment is longer than
    max_frames: on a GPU nobody looks any more.
    """

    side_px: int
    frames: dict[str, FrameBlock]
    cu_frames: Tensor
    max_frames: int
    frame_time_ms: Tensor
    frame_segment: Tensor
    support_start_ms: Tensor
    periods: Tensor
    period_segment: Tensor
    pairs: int
    targets: dict[str, TargetBlock]
    teacher_row: Tensor
    student_row: Tensor
    consistency_weight: Tensor
    text: TextBlock
    sample_hash: Tensor
    places: list[int]
    global_index: list[int]
    sample_ids: list[str]
    key: tuple[int, int] = (0, 0)

    def __post_init__(self) -> None:
        if self.cu_frames.device.type != "cpu":
            return
        offsets = self.cu_frames.tolist()
        lengths = [end - start for start, end in pairwise(offsets)]
        if offsets[0] != 0 or offsets[-1] != self.total_frames or min(lengths) < 0:
            raise ValueError(
                f"cu_frames: expected offsets rising from 0 to {self.total_frames} frames, found {offsets}"
            )
        if max(lengths) > self.max_frames:
            raise ValueError(f"max_frames: expected at least {max(lengths)}, found {self.max_frames}")

    @property
    def samples(self) -> int:
        return len(self.sample_ids)

    @property
    def total_frames(self) -> int:
        return self.frame_time_ms.shape[0]

    def samples_with_text(self) -> list[int]:
        """In order."""
        known = zip(self.text.sample.tolist(), self.text.identity, strict=True)
        return sorted({sample for sample, identity in known if identity is not None})


def filler_frames(frames: int, bucket: int) -> int | None:
    """Frames of the segment that no sample reads, after ``frames`` of samples: up to a multiple of ``bucket``. None: there
    is no such segment. A batch without any frame gets one for the model to run on."""
    if not bucket:
        return None if frames else 1
    return -frames % bucket or int(frames == 0)


def bucket_frames(frames: int) -> int:
    """The next of 8, 12, 16, 24, 32, 48, 64, 96, ...: an upper bound that takes few values."""
    bucket = 8
    while bucket < frames:
        bucket = bucket * 3 // 2 if bucket & (bucket - 1) == 0 else bucket * 4 // 3
    return bucket
