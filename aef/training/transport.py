"""Micro-batches on their way from a loader's process: all tensors in one block of shared memory.

Each shared tensor travels as a file descriptor of its own. A micro-batch holds about a hundred, a step of many micro-batches
thousands: more than processes may have open (``ulimit -n``, often 1024). As one block it is one descriptor, and one page-locked
copy where a GPU follows.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from aef.data.batch import Batch

ALIGNED_BYTES = 64
"""Where a tensor may begin in the block: a multiple of every element's size, and of a cache line."""


class Slice(NamedTuple):
    """The part of the block that is one tensor."""

    start: int
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        return self.dtype.itemsize * torch.Size(self.shape).numel()

    def view(self, block: Tensor) -> Tensor:
        return block[self.start : self.start + self.bytes].view(self.dtype).view(self.shape)


@dataclass
class Packed:
    """Micro-batches whose tensors are slices of ``block`` (bytes,) uint8: ``outlines`` are the batches with a `Slice` for each tensor."""

    block: Tensor
    outlines: list[Any]

    @classmethod
    def of(cls, batches: Sequence[Batch]) -> Packed:
        tensors: list[tuple[Tensor, Slice]] = []
        size = 0

        def put(tensor: Tensor) -> Slice:
            nonlocal size
            part = Slice(size, tensor.dtype, tuple(tensor.shape))
            tensors.append((tensor, part))
            size += -(-part.bytes // ALIGNED_BYTES) * ALIGNED_BYTES
            return part

        outlines = [_exchange(batch, Tensor, put) for batch in batches]
        block = torch.empty(size, dtype=torch.uint8).share_memory_()
        for tensor, part in tensors:
            part.view(block).copy_(tensor)
        return cls(block, outlines)

    def batches(self, *, pin: bool = False) -> list[Batch]:
        """The micro-batches, as views of the block or of its page-locked copy."""
        block = self.block.pin_memory() if pin else self.block
        return [_exchange(outline, Slice, lambda part: part.view(block)) for outline in self.outlines]


def _exchange(value: Any, kind: type, change: Callable[[Any], Any]) -> Any:
    """A copy of nested dataclasses and dictionaries in which every ``kind`` is changed."""
    if isinstance(value, kind):
        return change(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        changed = copy.copy(value)  # not by its constructor, which would look into tensors where slices stand
        for field in dataclasses.fields(value):
            object.__setattr__(changed, field.name, _exchange(getattr(value, field.name), kind, change))
        return changed
    if isinstance(value, dict):
        return {key: _exchange(item, kind, change) for key, item in value.items()}
    return value
