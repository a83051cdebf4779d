"""Only what passes of an accumulated step need of each other: teachers of some samples, their shared period and texts."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import torch

from aef.data.batch import Batch, FrameBlock, TargetBlock, TextBlock, bucket_frames, filler_frames


def teacher_batches(
    batches: Sequence[Batch], chosen: Sequence[Sequence[int]], count: int, device: torch.device
) -> Iterator[Batch]:
    """``count`` batches on a device, one at a time, that together hold the samples ``chosen`` in each micro-batch, in order
    and about equally many each.

    Their segments are teachers only; their summaries the period that teacher and student share, of every sample, and those of
    texts; their targets dummies: no reconstruction or consistency can be taken of them. Where fewer samples are chosen
    than there are batches, the last ones hold one that was not, since every rank must run as often as the others. Not
    padded: without gradients nothing runs compiled. Only what is chosen is moved, without a wait from page-locked memory.
    """
    micro = [_Micro(batch) for batch in batches]
    flat = [(part, sample) for part, samples in zip(micro, chosen, strict=True) for sample in samples]
    start = 0
    for number in range(count):
        size = len(flat) // count + (number < len(flat) % count)
        part = flat[start : start + size]
        start += size
        yield _pack(part, device) if part else _pack([(micro[0], 0)], device, silent=True)


class _Micro:
    """A micro-batch on the host, and where its frames, texts and summaries lie."""

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


def _pack(chosen: Sequence[tuple[_Micro, int]], device: torch.device, *, silent: bool = False) -> Batch:
    """Chosen samples as one batch, with their texts; ``silent``: without."""
    first = chosen[0][0].batch
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

    rows_of_samples = torch.arange(len(chosen))
    packed = Batch(
        side_px=first.side_px,
        frames={name: _frames(name, chosen, teachers, starts, device) for name in first.frames},
        cu_frames=torch.tensor([sum(spans[:number]) for number in range(len(spans) + 1)], dtype=torch.int32),
        max_frames=bucket_frames(max(spans)),
        frame_time_ms=torch.cat(times),
        frame_segment=torch.arange(len(spans)).repeat_interleave(torch.tensor(spans)),
        support_start_ms=supports,
        periods=torch.stack(periods),
        period_segment=torch.tensor(segments, dtype=torch.int32),
        pairs=sum(lengths[segment] for segment in segments),
        targets={name: _dummy(block) for name, block in first.targets.items()},
        teacher_row=rows_of_samples,
        student_row=rows_of_samples,
        consistency_weight=torch.zeros(len(chosen)),
        text=TextBlock(
            vector=torch.stack([batch.text.vector[row] for batch, row, _ in texts]),
            pixel=torch.stack([batch.text.pixel[row] for batch, row, _ in texts]),
            radius_px=torch.stack([batch.text.radius_px[row] for batch, row, _ in texts]),
            period_row=torch.tensor([row for _, _, row in texts]),
            sample=torch.tensor([segments[row] for _, _, row in texts]),
            identity=identity,
        ),
        sample_hash=torch.stack([part.batch.sample_hash[sample] for part, sample in chosen]),
        places=[part.batch.places[sample] for part, sample in chosen],
        global_index=[part.batch.global_index[sample] for part, sample in chosen],
        sample_ids=[part.batch.sample_ids[sample] for part, sample in chosen],
        key=first.key,
    )
    return packed.to(device, non_blocking=True)


def _frames(
    source: str,
    chosen: Sequence[tuple[_Micro, int]],
    teachers: Sequence[slice],
    starts: Sequence[int],
    device: torch.device,
) -> FrameBlock:
    """Frames of one source; their images are moved before they are put together, as the host would copy them first."""
    found = []
    for (part, _), frames, start in zip(chosen, teachers, starts, strict=True):
        rows = part.rows(source, frames)
        if rows.stop > rows.start:
            block = part.batch.frames[source]
            values, valid = (of[rows].to(device, non_blocking=True) for of in (block.values, block.valid))
            found.append((values, valid, block.position[rows] + (start - frames.start)))
    if not found:
        block = chosen[0][0].batch.frames[source]
        values, valid = (torch.zeros_like(of[:1], device=device) for of in (block.values, block.valid))
        return FrameBlock(values, valid, torch.full_like(block.position[:1], -1))
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
