"""Only what passes of an accumulated step need of each other: teachers of some samples, their shared period and texts."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from aef.data.batch import Batch, FrameBlock, TargetBlock, TextBlock, bucket_frames, filler_frames


def teacher_batches(batches: Sequence[Batch], chosen: Sequence[Sequence[int]], count: int) -> list[Batch]:
    """``count`` batches that together hold the samples ``chosen`` in each micro-batch, in order and about equally many each.

    Their segments are teachers only; their summaries the period that teacher and student share, of every sample, and those of
    texts; their targets dummies: no reconstruction or consistency can be taken of them. Where fewer samples are chosen
    than there are batches, the last ones hold one that was not, since every rank must run as often as the others. Not
    padded: without gradients nothing runs compiled. Waits once for what is queued on the device.
    """
    micro = [_Micro(batch) for batch in batches]
    flat = [(part, sample) for part, samples in zip(micro, chosen, strict=True) for sample in samples]
    parts, start = [], 0
    for number in range(count):
        size = len(flat) // count + (number < len(flat) % count)
        parts.append(flat[start : start + size])
        start += size
    return [_pack(part) if part else _pack([(micro[0], 0)], silent=True) for part in parts]


class _Micro:
    """A micro-batch, and on the host where its frames, texts and summaries lie."""

    def __init__(self, batch: Batch) -> None:
        self.batch = batch
        self.views = len(batch.support_start_ms) // batch.samples
        self.offsets: list[int] = batch.cu_frames.tolist()
        self.positions: dict[str, list[int]] = {name: block.position.tolist() for name, block in batch.frames.items()}
        self.teacher_row: list[int] = batch.teacher_row.tolist()
        self.text_sample: list[int] = batch.text.sample.tolist()
        self.text_period: list[int] = batch.text.period_row.tolist()

    def teacher(self, sample: int) -> slice:
        """Its frames in the packed sequence."""
        segment = sample * self.views
        return slice(self.offsets[segment], self.offsets[segment + 1])

    def rows(self, source: str, frames: slice) -> slice:
        """Rows of a source's block that lie there."""
        found = [row for row, at in enumerate(self.positions[source]) if frames.start <= at < frames.stop]
        return slice(found[0], found[-1] + 1) if found else slice(0, 0)

    def texts(self, sample: int) -> list[int]:
        identities = self.batch.text.identity
        return [row for row, of in enumerate(self.text_sample) if of == sample and identities[row] is not None]


def _pack(chosen: Sequence[tuple[_Micro, int]], *, silent: bool = False) -> Batch:
    """Chosen samples as one batch, with their texts; ``silent``: without."""
    first = chosen[0][0].batch
    device = first.frame_time_ms.device
    teachers = [part.teacher(sample) for part, sample in chosen]
    lengths = [frames.stop - frames.start for frames in teachers]
    starts = [sum(lengths[:number]) for number in range(len(lengths))]

    periods = [part.batch.periods[part.teacher_row[sample]] for part, sample in chosen]
    segments = list(range(len(chosen)))
    texts: list[tuple[Batch, int, int]] = []  # micro-batch, row, row of the new periods
    for segment, (part, sample) in enumerate(chosen):
        rows = {part.teacher_row[sample]: segment}
        for text in () if silent else part.texts(sample):
            row = rows.setdefault(part.text_period[text], len(periods))
            if row == len(periods):
                periods.append(part.batch.periods[part.text_period[text]])
                segments.append(segment)
            texts.append((part.batch, text, row))
    identity: list[int | None] = [batch.text.identity[row] for batch, row, _ in texts] or [None]
    texts = texts or [(first, 0, 0)]

    times = [part.batch.frame_time_ms[frames] for (part, _), frames in zip(chosen, teachers, strict=True)]
    supports = torch.stack([part.batch.support_start_ms[sample * part.views] for part, sample in chosen])
    spans = list(lengths)
    if filler := filler_frames(sum(lengths), 0):
        times.append(supports[-1].expand(filler))
        spans.append(filler)

    def numbers(values: Sequence[int], dtype: torch.dtype = torch.int64) -> Tensor:
        return torch.tensor(values, dtype=dtype).to(device, non_blocking=True)

    rows_of_samples = numbers(range(len(chosen)))
    return Batch(
        side_px=first.side_px,
        frames={name: _frames(name, chosen, teachers, starts) for name in first.frames},
        cu_frames=numbers([sum(spans[:number]) for number in range(len(spans) + 1)], torch.int32),
        max_frames=bucket_frames(max(spans)),
        frame_time_ms=torch.cat(times),
        frame_segment=numbers([segment for segment, span in enumerate(spans) for _ in range(span)]),
        support_start_ms=supports,
        periods=torch.stack(periods),
        period_segment=numbers(segments, torch.int32),
        pairs=sum(lengths[segment] for segment in segments),
        targets={name: _dummy(block) for name, block in first.targets.items()},
        teacher_row=rows_of_samples,
        student_row=rows_of_samples,
        consistency_weight=torch.zeros(len(chosen), device=device),
        text=TextBlock(
            vector=torch.stack([batch.text.vector[row] for batch, row, _ in texts]),
            pixel=torch.stack([batch.text.pixel[row] for batch, row, _ in texts]),
            radius_px=torch.stack([batch.text.radius_px[row] for batch, row, _ in texts]),
            period_row=numbers([row for _, _, row in texts]),
            sample=numbers([segments[row] for _, _, row in texts]),
            identity=identity,
        ),
        sample_hash=torch.stack([part.batch.sample_hash[sample] for part, sample in chosen]),
        places=[part.batch.places[sample] for part, sample in chosen],
        global_index=[part.batch.global_index[sample] for part, sample in chosen],
        sample_ids=[part.batch.sample_ids[sample] for part, sample in chosen],
        key=first.key,
    )


def _frames(
    source: str, chosen: Sequence[tuple[_Micro, int]], teachers: Sequence[slice], starts: Sequence[int]
) -> FrameBlock:
    found = []
    for (part, _), frames, start in zip(chosen, teachers, starts, strict=True):
        rows = part.rows(source, frames)
        if rows.stop > rows.start:
            block = part.batch.frames[source]
            found.append((block.values[rows], block.valid[rows], block.position[rows] + (start - frames.start)))
    if not found:
        block = chosen[0][0].batch.frames[source]
        valid = torch.zeros_like(block.valid[:1])
        return FrameBlock(torch.zeros_like(block.values[:1]), valid, torch.full_like(block.position[:1], -1))
    # Samples may disagree on one mask for all bands or one per band.
    wide = max(valid.shape[-1] for _, valid, _ in found)
    return FrameBlock(
        values=torch.cat([values for values, _, _ in found]),
        valid=torch.cat([valid.expand(*valid.shape[:-1], wide) for _, valid, _ in found]),
        position=torch.cat([position for _, _, position in found]),
    )


def _dummy(block: TargetBlock) -> TargetBlock:
    """The first target, of weight 0, of the first sample and summary."""
    one = {field.name: getattr(block, field.name)[:1] for field in dataclasses.fields(TargetBlock)}
    absent = {name: torch.zeros_like(one[name]) for name in ("period_row", "sample", "slot", "item_weight")}
    return TargetBlock(**(one | absent))
