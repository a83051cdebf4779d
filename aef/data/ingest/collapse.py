"""Axes that a file repeats, checked to be constant before one value is kept of each."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from aef.data.ingest.readers import Raster
from aef.data.ingest.schema import BandRule


def require_constant_in_time(raster: Raster, bands: Mapping[str, BandRule], observed: np.ndarray) -> None:
    """Raises RasterError where an observed value of a band changes after the first step."""
    for (band, rule), seen in zip(bands.items(), observed):
        first = raster.read(rule.var, 0).copy()
        for step in range(1, raster.steps):
            if not np.array_equal(raster.read(rule.var, step)[seen], first[seen]):
                raise raster.refuse(f"{rule.var} (band {band}) changes at step {step}: it cannot be collapsed in time")


def collapse_space(
    raster: Raster, step: int, bands: Mapping[str, BandRule], stack: np.ndarray, observed: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Planes (C, h, w) that hold one value each → (C, 1, 1), and where that was observed.

    Raises:
        RasterError: observed values of a band differ.
    """
    values = np.zeros((len(stack), 1, 1), stack.dtype)
    seen = np.asarray(observed.any(axis=(1, 2), keepdims=True))
    for index, (rule, plane, mask) in enumerate(zip(bands.values(), stack, observed)):
        if not mask.any():
            continue
        values[index] = plane[mask][0]
        if (plane[mask] != plane[mask][0]).any():
            raise raster.refuse(
                f"{rule.var} is not constant in space at step {step} "
                f"({plane[mask].min():g} to {plane[mask].max():g}): do not collapse it, give it a cell_m"
            )
    return values, seen
