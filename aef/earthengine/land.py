"""An offline land mask: one bit per 0.05 degree cell, set where Natural Earth's 1:10m land touches the cell.

Natural Earth is in the public domain (see NOTICE). Cells are about 5.5 km high, four chips: a cell that land touches
counts as land as a whole, so coasts are kept and the open sea is not.
"""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np

_FILE = Path(__file__).with_name("land_mask.npz")


@functools.cache
def _cells() -> np.ndarray:
    with np.load(_FILE, allow_pickle=False) as archive:
        rows, cols = archive["shape"]
        return np.unpackbits(archive["bits"], count=int(rows) * int(cols)).reshape(rows, cols).view(np.bool_)


def is_land(lon: np.ndarray | float, lat: np.ndarray | float) -> np.ndarray:
    """True where land lies in the 0.05 degree cell of each point. Degrees; arrays broadcast."""
    cells = _cells()
    rows, cols = cells.shape
    row = np.clip(((90.0 - np.asarray(lat)) * rows / 180).astype(np.int64), 0, rows - 1)
    col = ((np.asarray(lon) + 180.0) * cols / 360).astype(np.int64) % cols
    return cells[row, col]
