"""The packed batch: the second contract. Frames are packed, never padded.

All frames of all samples, views and sources lie in one sequence of F frames. Segments are ordered (sample, view):
teacher then student of sample 0, then of sample 1, ... Dropped and missing frames do not exist. Embedding uses the same
batch with one view per sample and no targets.

Every parameterised module of the model runs every step, whatever the batch holds (ZeRO needs it): a source without a
frame or target in the batch, and an absent text, is represented by one dummy item, of position -1 or weight 0.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from aef.hashing import stable_hash
from aef.sources import Registry, Source
from aef.timecode import Period

# --- one sample ------------------------------------------------------------------------------------------------------


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

    ``values`` (h, w, C) in the chip's type, ``valid`` (h, w, C or 1) bool, ``weight`` (h, w, 1) uint8 (loss weight / 255),
    ``metadata`` (M,) float32 with NaN where missing, ``period`` the summary that it is decoded from, ``item_weight`` 0
    for a target that had to stay in the input.
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


# --- the batch -------------------------------------------------------------------------------------------------------


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
    sequence (-1: a dummy that no sample reads)."""

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

    What only the host reads stays with it: places, a hash of each sample's place, and global_index, each sample's number in
    the global order.

    Raises ValueError while it is on the host if cu_frames do not rise from 0 to F, or a segment is longer than max_frames:
    on a GPU nobody looks any more.
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


def bucket_frames(frames: int) -> int:
    """The next of 8, 12, 16, 24, 32, 48, 64, 96, ...: an upper bound that takes few values."""
    bucket = 8
    while bucket < frames:
        bucket = bucket * 3 // 2 if bucket & (bucket - 1) == 0 else bucket * 4 // 3
    return bucket


class Collator:
    """Packs samples into a `Batch`; picklable, so that loader workers can run it.

    Args:
        registry: sources of the model.
        inputs, targets: which of them are encoded and decoded.
        text_dim: width of the text vectors (at least 1; the dummy has it too).
        key: of the vMF draw, with the sample's hash, which carries its epoch: (seed, 0).
        frame_bucket: pad F to a multiple of this with one trailing filler segment; 0: never.
        views: segments per sample: 2 (teacher, student) in training, 1 for embedding.
    """

    def __init__(
        self,
        registry: Registry,
        inputs: Sequence[str],
        targets: Sequence[str],
        *,
        text_dim: int = 1,
        key: tuple[int, int] = (0, 0),
        frame_bucket: int = 0,
        views: int = 2,
    ) -> None:
        self.inputs: Mapping[str, Source] = {name: registry[name] for name in inputs}
        self.targets: Mapping[str, Source] = {name: registry[name] for name in targets}
        self.text_dim, self.key, self.frame_bucket, self.views = max(text_dim, 1), key, frame_bucket, views

    def __call__(self, samples: Sequence[Sample]) -> Batch:
        """Pack. Raises ValueError for an empty list, differing sides, non-int64 times or a source of wrong width."""
        if not samples:
            raise ValueError("cannot collate an empty list of samples")
        sides = {sample.side_px for sample in samples}
        if len(sides) > 1:
            raise ValueError(f"samples of one batch must share a side length, found {sorted(sides)} px")
        side = sides.pop()
        packed = self._pack_frames(samples, side)
        periods = _Periods(self.views)
        targets = {name: self._pack_targets(source, samples, side, periods) for name, source in self.targets.items()}
        teacher = [periods.add(_shared_period(s), i, 0) for i, s in enumerate(samples)]
        student = [periods.add(_shared_period(s), i, self.views - 1) for i, s in enumerate(samples)]
        text = self._pack_texts(samples, periods)
        for index, sample in enumerate(samples):
            for period in sample.periods:
                periods.add(period, index, 0)
        weights = [s.consistency_weight if s.consistency_period else 0.0 for s in samples]
        return Batch(
            side_px=side,
            **packed,
            periods=torch.tensor(periods.rows, dtype=torch.int64).view(-1, 2),
            period_segment=torch.tensor(periods.segments, dtype=torch.int32),
            pairs=int(packed["cu_frames"].diff()[periods.segments].sum()),
            targets=targets,
            teacher_row=torch.tensor(teacher),
            student_row=torch.tensor(student),
            consistency_weight=torch.tensor(weights, dtype=torch.float32),
            text=text,
            sample_hash=torch.tensor([s.hash for s in samples]),
            places=[stable_hash(s.place, 62) for s in samples],
            global_index=[s.global_index for s in samples],
            sample_ids=[s.id for s in samples],
            key=self.key,
        )

    def _pack_frames(self, samples: Sequence[Sample], side: int) -> dict:
        views = [view for s in samples for view in ((s.teacher, s.student) if self.views == 2 else (s.teacher,))]
        blocks: dict[str, list[tuple[Frames, np.ndarray]]] = {name: [] for name in self.inputs}
        times, lengths, offset = [], [], 0
        for view in views:
            present = [(name, view[name]) for name in self.inputs if name in view and len(view[name].time_ms)]
            for name, frames in present:
                self._check_frames(name, frames, side)
            joined = np.concatenate([f.time_ms for _, f in present]) if present else np.zeros(0, np.int64)
            order = np.argsort(joined, kind="stable")
            place = np.empty_like(order)
            place[order] = np.arange(len(order))
            start = 0
            for name, frames in present:
                count = len(frames.time_ms)
                blocks[name].append((frames, place[start : start + count] + offset))
                start += count
            times.append(joined[order])
            lengths.append(len(joined))
            offset += len(joined)
        supports = [s.support.start_ms for s in samples for _ in range(self.views)]
        filler = -offset % self.frame_bucket if self.frame_bucket else 0
        if self.frame_bucket or offset == 0:
            # Filler frames are read by no sample; a batch without any frame needs one for the model to run on.
            filler = filler or int(offset == 0)
            lengths.append(filler)
            times.append(np.full(filler, supports[-1], np.int64))
        return {
            "frames": {name: _frame_block(source, blocks[name], side) for name, source in self.inputs.items()},
            "cu_frames": torch.from_numpy(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)),
            "max_frames": bucket_frames(max(lengths)),
            "frame_time_ms": torch.from_numpy(np.concatenate(times)),
            "frame_segment": torch.from_numpy(np.repeat(np.arange(len(lengths)), lengths)),
            "support_start_ms": torch.tensor(supports, dtype=torch.int64),
        }

    def _check_frames(self, name: str, frames: Frames, side: int) -> None:
        source, count = self.inputs[name], len(frames.time_ms)
        if frames.time_ms.dtype != np.int64:
            raise ValueError(f"source {name}: time_ms must be int64 milliseconds, found {frames.time_ms.dtype}")
        if frames.values.shape != (count, side, side, source.channels):
            raise ValueError(
                f"source {name}: expected frames of {(count, side, side, source.channels)}, found {frames.values.shape}"
            )

    def _pack_targets(self, source: Source, samples: Sequence[Sample], side: int, periods: _Periods) -> TargetBlock:
        items, rows, owners, slots = [], [], [], []
        for index, sample in enumerate(samples):
            first = sum(len(sample.targets.get(name, ())) for name in self._before(source.name))
            for number, target in enumerate(sample.targets.get(source.name, ())):
                items.append(target)
                rows.append(periods.add(target.period, index, 0))
                owners.append(index)
                slots.append(first + number)
        if not items:
            items, rows, owners, slots = (
                [_dummy_target(source, samples[0])],
                [periods.add(_shared_period(samples[0]), 0, 0)],
                [0],
                [0],
            )
        return TargetBlock(
            values=_stack([t.values for t in items]),
            valid=_stack(_widen([t.valid for t in items])),
            weight=_stack([t.weight for t in items]),
            time_ms=torch.tensor([t.time_ms for t in items], dtype=torch.int64),
            metadata=_stack([np.asarray(t.metadata, np.float32) for t in items]),
            period_row=torch.tensor(rows),
            sample=torch.tensor(owners),
            slot=torch.tensor(slots),
            item_weight=torch.tensor([t.item_weight for t in items], dtype=torch.float32),
        )

    def _before(self, name: str) -> Iterable[str]:
        names = list(self.targets)
        return names[: names.index(name)]

    def _pack_texts(self, samples: Sequence[Sample], periods: _Periods) -> TextBlock:
        found = [(index, text) for index, sample in enumerate(samples) for text in sample.texts]
        identity: list[int | None] = [text.identity for _, text in found]
        if not found:
            identity = [None]
            found = [(0, Text(np.zeros(self.text_dim, np.float32), 0, 0, 0.0, _shared_period(samples[0]), 0))]
        return TextBlock(
            vector=_stack([np.asarray(text.vector, np.float32) for _, text in found]),
            pixel=torch.tensor([[text.row, text.col] for _, text in found]),
            radius_px=torch.tensor([text.radius_px for _, text in found], dtype=torch.float32),
            period_row=torch.tensor([periods.add(text.period, index, 0) for index, text in found]),
            sample=torch.tensor([index for index, _ in found]),
            identity=identity,
        )


def _shared_period(sample: Sample) -> Period:
    """The period that both views summarise. Dummies take it too, since it is pooled anyway."""
    return sample.consistency_period or sample.support


class _Periods:
    """Summaries wanted by a batch: equal periods of one segment are pooled once."""

    def __init__(self, views: int) -> None:
        self.views = views
        self.rows: list[tuple[int, int]] = []
        self.segments: list[int] = []
        self._known: dict[tuple[int, int, int], int] = {}

    def add(self, period: Period, sample: int, view: int) -> int:
        segment = sample * self.views + view
        known = (period.start_ms, period.end_ms, segment)
        if known not in self._known:
            self._known[known] = len(self.rows)
            self.rows.append((period.start_ms, period.end_ms))
            self.segments.append(segment)
        return self._known[known]


def _widen(masks: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Samples may disagree on one mask for all bands or one per band: as many channels as the widest."""
    wide = max(mask.shape[-1] for mask in masks)
    return [np.broadcast_to(mask, (*mask.shape[:-1], wide)) for mask in masks]


def _stack(arrays: Sequence[np.ndarray]) -> Tensor:
    return torch.from_numpy(np.stack(arrays))


def _frame_block(source: Source, parts: list[tuple[Frames, np.ndarray]], side: int) -> FrameBlock:
    if not parts:
        return FrameBlock(
            values=torch.zeros(1, side, side, source.channels),
            valid=torch.zeros(1, side, side, 1, dtype=torch.bool),
            position=torch.full((1,), -1),
        )
    return FrameBlock(
        values=torch.from_numpy(np.concatenate([frames.values for frames, _ in parts])),
        valid=torch.from_numpy(np.concatenate(_widen([frames.valid for frames, _ in parts]))),
        position=torch.from_numpy(np.concatenate([position for _, position in parts])),
    )


def _dummy_target(source: Source, sample: Sample) -> Target:
    return Target(
        values=np.zeros((1, 1, source.channels), np.float32),
        valid=np.zeros((1, 1, 1), np.bool_),
        weight=np.zeros((1, 1, 1), np.uint8),
        time_ms=sample.support.start_ms,
        metadata=np.full(len(source.metadata), np.nan, np.float32),
        period=_shared_period(sample),
        item_weight=0.0,
    )
