"""The von Mises–Fisher bottleneck: training decodes from a noisy sample around each mean direction.

Paper section 3: a fixed concentration κ = 8000 on S⁶³ (a mean angle of 5.06° between sample and mean); inference uses
the mean direction itself. κ is not learned and there is no KL term.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from aef import kernels

COUNTER_SHIFT = 23
"""Bits of a counter below the sample's hash: slot * pixels + pixel."""


class Bottleneck(nn.Module):
    """Draws vMF(μ, κ) in training and hands on μ otherwise; it has no parameters."""

    def __init__(self, kappa: float) -> None:
        super().__init__()
        self.kappa = kappa

    def forward(self, mean: Tensor, sample_hash: Tensor, slot: Tensor, key: tuple[int, int]) -> Tensor:
        """One sample per target and pixel.

        Args:
            mean: (N, P, D) fp32, the mean directions that N targets are decoded from.
            sample_hash: (N,) int64, the hash of each target's sample id.
            slot: (N,) int64, which target of its sample it is.
            key: (seed, epoch). The noise of (key, sample, slot, pixel) is the same on every device, rank and batch.

        Returns:
            (N, P, D) fp32 unit vectors.
        """
        if not self.training:
            return mean
        pixels = mean.shape[1]
        pixel = torch.arange(pixels, device=mean.device)
        counter = (sample_hash << COUNTER_SHIFT)[:, None] + slot[:, None] * pixels + pixel  # (N, P)
        drawn = kernels.sample_vmf(mean.reshape(-1, mean.shape[-1]), self.kappa, key, counter.view(-1))
        return drawn.view_as(mean)
