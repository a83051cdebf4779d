"""From stored values to the scale on which the model learns, and back, band by band.

The registry's transform (paper S1: s(x) = log(x + 1) / 10 for optical bands) runs where the model runs: chips hold raw values.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from aef.sources import Source

DB_FLOOR = 1e-10
"""Least power of which a ``db`` transform takes the logarithm: 0 would be minus infinity."""


@dataclass(frozen=True)
class _Formula:
    """A source's transforms as vectors over its bands, on one device. ``chosen`` masks the bands of each kind."""

    scale: Tensor
    offset: Tensor
    chosen: dict[str, Tensor]

    def pick(self, formulas: Mapping[str, Callable[[], Tensor]]) -> Tensor:
        """Evaluate the formula of each kind that some band has and pick per band."""
        (first, _), *others = self.chosen.items()
        result = formulas[first]()
        for kind, chosen in others:
            result = torch.where(chosen, formulas[kind](), result)
        return result


# Building constants on the device at every step would stall it.
@lru_cache(maxsize=256)
def _formula(source: Source, device: torch.device) -> _Formula:
    transforms = [band.transform for band in source.bands]
    return _Formula(
        torch.tensor([t.scale for t in transforms], device=device),
        torch.tensor([t.offset for t in transforms], device=device),
        {
            kind: torch.tensor([t.kind == kind for t in transforms], device=device)
            for kind in sorted({t.kind for t in transforms})
        },
    )


def transform(source: Source, values: Tensor) -> Tensor:
    """Stored values (..., C) of any type → the learning scale, float32, band by band (`aef.sources.Transform`)."""
    require_channels(source, values)
    x, f = values.to(torch.float32), _formula(source, values.device)
    return f.pick(
        {
            "linear": lambda: f.scale * x + f.offset,
            "log": lambda: torch.log1p((f.scale * x).clamp(min=0)) / 10,
            "db": lambda: f.scale * torch.log10(x.clamp(min=DB_FLOOR)) + f.offset,
        }
    )


def inverse_transform(source: Source, values: Tensor) -> Tensor:
    """Inverse of :func:`transform`: (..., C) on the learning scale → stored physical units, float32."""
    require_channels(source, values)
    y, f = values.to(torch.float32), _formula(source, values.device)
    return f.pick(
        {
            "linear": lambda: (y - f.offset) / f.scale,
            "log": lambda: torch.expm1(10 * y) / f.scale,
            "db": lambda: torch.pow(10.0, (y - f.offset) / f.scale),
        }
    )


def require_channels(source: Source, values: Tensor) -> None:
    """Raises ValueError where values (..., C) have another number of bands than their source."""
    if values.shape[-1:] != (source.channels,):
        raise ValueError(
            f"source {source.name}: expected values (..., {source.channels}) for bands {', '.join(source.band_names)}, "
            f"found {tuple(values.shape)}"
        )
