"""The z-score with which a model sees a source: transform, global statistics, clip at six deviations (paper S2.1).

It refuses to be applied twice.
"""

from __future__ import annotations

import torch
from torch import Tensor

from aef.data.statistics import Statistics, StatisticsError
from aef.data.transform import inverse_transform, require_channels, transform
from aef.sources import Source

_STANDARDIZED = "_aef_standardized"


class Standardizer:
    """Raw values → z-scores of one source: transform, subtract the mean, divide by the deviation, clip, mask.

    A plain object, not a module: an engine that casts modules to bfloat16 must not touch its constants.

    Raises:
        StatisticsError: the statistics lack the source or belong to other bands; or, when called, the values have
            another number of bands or were standardised already.
    """

    def __init__(self, source: Source, statistics: Statistics, clip_sigma: float = 6.0) -> None:
        found = statistics.require(source)
        self.source, self.clip_sigma = source, float(clip_sigma)
        self._mean = torch.tensor(found.mean, dtype=torch.float32)
        self._std = torch.tensor(found.std, dtype=torch.float32)
        self._on: dict[torch.device, tuple[Tensor, Tensor]] = {}

    def __call__(self, values: Tensor, valid: Tensor) -> Tensor:
        """values (..., C) raw, any type; valid (..., C or 1) bool → (..., C) float32, 0 where not valid."""
        if getattr(values, _STANDARDIZED, None) is not None:
            raise StatisticsError(
                f"source {self.source.name}: these values were standardised already, as {getattr(values, _STANDARDIZED)}"
            )
        mean, std = self._constants(values.device)
        z = (transform(self.source, values) - mean) / std
        # where, not a product: an unobserved value may be NaN.
        z = torch.where(valid, z.clamp(-self.clip_sigma, self.clip_sigma), 0.0)
        setattr(z, _STANDARDIZED, self.source.name)
        return z

    def invert(self, z: Tensor) -> Tensor:
        """z-scores (..., C) → stored physical units, float32; what was clipped stays at the clip."""
        require_channels(self.source, z)
        mean, std = self._constants(z.device)
        return inverse_transform(self.source, z.to(torch.float32) * std + mean)

    def _constants(self, device: torch.device) -> tuple[Tensor, Tensor]:
        if device not in self._on:
            self._on[device] = (self._mean.to(device), self._std.to(device))
        return self._on[device]
