"""Packs samples (`aef.data.sample`) into a batch (`aef.data.batch`)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from aef.data.batch import Batch, FrameBlock, TargetBlock, TextBlock, bucket_frames, filler_frames
from aef.data.sample import Frames, Sample, Target, Text
from aef.hashing import stable_hash
from aef.sources import Registry, Source
from aef.timecode import Period


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
            position = np.empty_like(order)
            position[order] = np.arange(len(order))
            start = 0
            for name, frames in present:
                count = len(frames.time_ms)
                blocks[name].append((frames, position[start : start + count] + offset))
                start += count
            times.append(joined[order])
            lengths.append(len(joined))
            offset += len(joined)
        supports = [s.support.start_ms for s in samples for _ in range(self.views)]
        filler = filler_frames(offset, self.frame_bucket)
        if filler is not None:
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
