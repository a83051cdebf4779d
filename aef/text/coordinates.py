"""Which of a corpus's coordinates can be used, and what is wrong with the others."""

from __future__ import annotations

import math


def coordinate_fault(lon: float, lat: float) -> str | None:
    """Why a position cannot be used, or None: ``coordinates_swapped``, ``coordinates_out_of_range``,
    ``coordinates_zero``."""
    if not (math.isfinite(lon) and math.isfinite(lat)):
        return "coordinates_out_of_range"
    if abs(lat) > 90:
        return "coordinates_swapped" if abs(lat) <= 180 and abs(lon) <= 90 else "coordinates_out_of_range"
    if abs(lon) > 180:
        return "coordinates_out_of_range"
    return "coordinates_zero" if lon == 0 and lat == 0 else None
