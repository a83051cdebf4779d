"""Input projectors: one per source, from raw frames to the precision path's states at half resolution.

Paper section 2: individual source encoders map every frame to a common latent space and do the first down-scaling.
What they consist of is not stated; ours is a learned stride-2 convolution, GELU, and a 3×3 convolution.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aef.data.batch import FrameBlock
from aef.data.standardizer import Standardizer
from aef.data.statistics import Statistics
from aef.sources import Registry, Source

from .layers import Conv3x3, Down

KERNEL = 3


class Projector(nn.Module):
    """z-scores ⊕ validity of one source (F_s, H, W, C) → states (F_s, H/2, W/2, width)."""

    def __init__(self, source: Source, statistics: Statistics, width: int, clip_sigma: float) -> None:
        super().__init__()
        self.classes = source.classes
        self.standardize = None if source.classes else Standardizer(source, statistics, clip_sigma)
        # Per-band validity tells an absent polarisation from one that happens to be at its mean.
        self.down = Down(2 * source.decoded_channels, width, KERNEL)
        self.conv = Conv3x3(width, width)

    def forward(self, block: FrameBlock, dtype: torch.dtype) -> Tensor:
        z = self._one_hot(block) if self.standardize is None else self.standardize(block.values, block.valid)
        image = torch.cat((z, block.valid.expand_as(z)), dim=-1).to(dtype)
        return self.conv(F.gelu(self.down(image)))

    def _one_hot(self, block: FrameBlock) -> Tensor:
        return ((block.values == _codes(self.classes, block.values.device)) & block.valid).float()


# A table built on the device at every step would stall it.
@lru_cache(maxsize=32)
def _codes(classes: tuple[int, ...], device: torch.device) -> Tensor:
    return torch.tensor(classes, device=device)


class Projectors(nn.Module):
    """Every input source's projector, and the packed sequence: all frames, in the order of the batch.

    A source without a frame in the batch runs on its dummy all the same, because ZeRO needs every module to run on
    every rank; the dummy lands in a row that nobody reads, so that its gradients are exact zeros.
    """

    def __init__(
        self, registry: Registry, names: Sequence[str], statistics: Statistics, width: int, clip_sigma: float
    ) -> None:
        super().__init__()
        self.sources = nn.ModuleDict({name: Projector(registry[name], statistics, width, clip_sigma) for name in names})

    def forward(self, frames: Mapping[str, FrameBlock], total_frames: int, dtype: torch.dtype) -> Tensor:
        """frames by source → (F, H/2, W/2, width) of type `dtype`; filler frames are zero."""
        projected = torch.cat([projector(frames[name], dtype) for name, projector in self.sources.items()])
        position = torch.cat([frames[name].position for name in self.sources])
        unread = total_frames
        position = torch.where(position < 0, unread, position)
        packed = projected.new_zeros(total_frames + 1, *projected.shape[1:])
        return packed.index_copy(0, position, projected)[:total_frames]
