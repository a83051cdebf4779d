"""Gradient accumulation that keeps batch-coupled losses whole: cache and replay.

Uniformity and the contrastive term couple samples of a whole batch, so adding up per-micro-batch losses would change
them. Where partners are in one micro-batch, texts alone are aligned first (`aef.training.texts_first`). Otherwise (Gao et
al. 2021, "Scaling deep contrastive learning batch size under memory limited setup"):

1. every micro-batch runs forward without gradients, its outputs are kept;
2. the objective sees all of them as one batch, and its gradient with respect to each output is kept;
3. every micro-batch runs forward again and its outputs receive the kept gradients.

The result equals one large batch up to rounding; the price is one more forward pass and the cached outputs, about
``4 (D + decoded channels) L²`` bytes for each summary and target.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from aef.data.batch import Batch, TargetBlock, TextBlock
from aef.model.aef import Output


class CachedOutputs:
    """The micro-batches of a step as one batch, and their outputs as one output, for the objective.

    Use: ``cache = CachedOutputs(batches)`` before any of them runs; ``cache.join(outputs)`` belongs to ``cache.batch``;
    backward from the objective; then ``cache.replay(k, output_k)`` is a scalar whose gradient is micro-batch ``k``'s
    part.

    Attributes:
        batch: all samples; frames, which no loss reads, stay behind.
    """

    def __init__(self, batches: Sequence[Batch]) -> None:
        names = batches[0].targets
        self._kept = {name: _kept([batch.targets[name] for batch in batches]) for name in names}
        self._leaves: list[Output] = []
        self.batch = _join(batches, self._kept)

    def join(self, outputs: Sequence[Output]) -> Output:
        """One output for all samples."""
        self._leaves = [_leaves(output) for output in outputs]
        return Output(
            mean=torch.cat([leaf.mean for leaf in self._leaves]),
            reconstructions={
                name: torch.cat([self._leaves[k].reconstructions[name] for k in kept])
                for name, kept in self._kept.items()
            },
            text=torch.cat([leaf.text for leaf in self._leaves]),
            # One parameter, equal in all micro-batches: the mean hands each of them its share of the gradient.
            logit_scale=torch.stack([leaf.logit_scale for leaf in self._leaves]).mean(0),
        )

    def replay(self, index: int, output: Output) -> Tensor:
        """Σ ⟨cached gradient, output⟩: a scalar with the gradient of the whole batch's loss through this micro-batch."""
        total = output.mean.new_zeros(())
        for leaf, again in zip(_tensors(self._leaves[index]), _tensors(output), strict=True):
            # Outputs that no loss reads stay in the graph: every parameter gets a gradient in every micro-batch.
            total = total + (again * (torch.zeros_like(leaf) if leaf.grad is None else leaf.grad)).sum()
        return total


def _join(batches: Sequence[Batch], kept: Mapping[str, Sequence[int]]) -> Batch:
    """Micro-batches as one batch without frames: samples, periods and targets in order, indices moved along."""
    first = batches[0]
    samples = _offsets([batch.samples for batch in batches])
    rows = _offsets([len(batch.periods) for batch in batches])
    segments = _offsets([len(batch.support_start_ms) for batch in batches])

    def cat(name: str, offsets: Sequence[int] | None = None) -> Tensor:
        return torch.cat([getattr(b, name) + (offsets[k] if offsets else 0) for k, b in enumerate(batches)])

    return dataclasses.replace(
        first,
        frames={},
        support_start_ms=cat("support_start_ms"),
        periods=cat("periods"),
        period_segment=cat("period_segment", segments),
        targets={
            name: _join_targets([batch.targets[name] for batch in batches], kept[name], samples, rows)
            for name in first.targets
        },
        teacher_row=cat("teacher_row", rows),
        student_row=cat("student_row", rows),
        consistency_weight=cat("consistency_weight"),
        text=_join_texts([batch.text for batch in batches], samples, rows),
        sample_hash=cat("sample_hash"),
        places=[place for batch in batches for place in batch.places],
        global_index=[index for batch in batches for index in batch.global_index],
        sample_ids=[name for batch in batches for name in batch.sample_ids],
    )


def _kept(blocks: Sequence[TargetBlock]) -> list[int]:
    """Which micro-batches hold a real target of a source; the first where none does. A dummy has a grid of its own."""
    return [k for k, block in enumerate(blocks) if bool((block.item_weight > 0).any())] or [0]


def _join_targets(
    blocks: Sequence[TargetBlock], kept: Sequence[int], samples: Sequence[int], rows: Sequence[int]
) -> TargetBlock:
    wide = max(blocks[k].valid.shape[-1] for k in kept)
    fields: dict[str, Tensor] = {}
    for field in dataclasses.fields(TargetBlock):
        parts = [getattr(blocks[k], field.name) for k in kept]
        if field.name == "valid":
            parts = [part.expand(*part.shape[:-1], wide) for part in parts]
        if field.name in ("sample", "period_row"):
            parts = [part + (samples if field.name == "sample" else rows)[k] for k, part in zip(kept, parts)]
        fields[field.name] = torch.cat(parts)
    return TargetBlock(**fields)


def _join_texts(blocks: Sequence[TextBlock], samples: Sequence[int], rows: Sequence[int]) -> TextBlock:
    return TextBlock(
        vector=torch.cat([block.vector for block in blocks]),
        pixel=torch.cat([block.pixel for block in blocks]),
        radius_px=torch.cat([block.radius_px for block in blocks]),
        period_row=torch.cat([block.period_row + first for block, first in zip(blocks, rows, strict=True)]),
        sample=torch.cat([block.sample + first for block, first in zip(blocks, samples, strict=True)]),
        identity=[identity for block in blocks for identity in block.identity],
    )


def _offsets(lengths: Sequence[int]) -> list[int]:
    return [sum(lengths[:k]) for k in range(len(lengths))]


def _tensors(output: Output) -> list[Tensor]:
    return [output.mean, *output.reconstructions.values(), output.text, output.logit_scale]


def _leaves(output: Output) -> Output:
    def leaf(tensor: Tensor) -> Tensor:
        return tensor.detach().requires_grad_()

    return Output(
        mean=leaf(output.mean),
        reconstructions={name: leaf(tensor) for name, tensor in output.reconstructions.items()},
        text=leaf(output.text),
        logit_scale=leaf(output.logit_scale),
    )
