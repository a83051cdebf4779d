"""Going through an embedding field window by window, whether it lies in memory or in a file larger than that.

field = open_field("tile.tif")
with writing_map("similar.tif", field) as write:
    for rows, columns, vectors in windows(field):
        write(rows, columns, similarity(vectors, vector))
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate, pairwise, product
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import xarray

WINDOW_PX = 2**18
"""Pixels of a window: 67 MB of vectors, of which what uses them makes a few copies."""
READ_PX = 2**20
"""Pixels read at once where a block of a file holds more than a window (the published files' has 1024 x 1024)."""
SHOWN_PX = 512
"""Most rows or columns of what is kept of a field for a picture."""

Window = tuple[slice, slice]
"""Rows and columns."""


def windows(field: xarray.DataArray) -> Iterator[tuple[slice, slice, np.ndarray]]:
    """Rows, columns and vectors (D, rows, columns) of windows that cover a field (band, y, x), blocks of its file read once.

    Raises:
        DamagedFieldError: of a field that `open_field` gave, the file cannot be read to its end.
    """
    for rows, columns in parts(field):
        vectors = field[:, rows, columns].values
        step = max(1, WINDOW_PX // vectors.shape[2])
        for first in range(rows.start, rows.stop, step):
            inside = slice(first - rows.start, min(first + step, rows.stop) - rows.start)
            yield slice(first, rows.start + inside.stop), columns, vectors[:, inside]


def parts(field: xarray.DataArray) -> list[Window]:
    """What of a field is read at once: as many whole blocks of its file as make a window, one at least.

    A block of more than `READ_PX` pixels is read in parts, each time anew. Arrays that are of no file are taken by rows.
    """
    height, width = field.sizes["y"], field.sizes["x"]
    blocks = field.encoding.get("preferred_chunks", {})
    y, x = (tuple(blocks.get(axis, ())) for axis in "yx")
    if (sum(y), sum(x)) != (height, width):  # of no file, or a part of one
        y, x = (1,) * height, (width,)
    columns = _joined(x, WINDOW_PX // max(y), READ_PX // max(y))
    widest = max(part.stop - part.start for part in columns)
    return list(product(_joined(y, WINDOW_PX // widest, READ_PX // widest), columns))


def _joined(sides: Sequence[int], wanted: int, most: int) -> list[slice]:
    """Neighbouring blocks together up to a length that is wanted, and none longer than the most."""
    ends = [0]
    for start, stop in pairwise(accumulate(sides, initial=0)):
        if stop - ends[-1] > wanted and start > ends[-1]:
            ends.append(start)
        ends += range(start + max(most, 1), stop, max(most, 1))
    return [slice(start, stop) for start, stop in pairwise([*ends, sum(sides)])]


def vectors_at(field: xarray.DataArray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """The vectors (N, D) of pixels of a field, each part of a file that holds any read once. Raises as `windows` does."""
    vectors = np.empty((len(rows), field.sizes["band"]), np.float32)
    for down, across in parts(field):
        inside = (rows >= down.start) & (rows < down.stop) & (columns >= across.start) & (columns < across.stop)
        here = np.flatnonzero(inside)
        if len(here):
            y, x = rows[here], columns[here]
            block = field[:, y.min() : y.max() + 1, x.min() : x.max() + 1].values
            vectors[here] = block[:, y - y.min(), x - x.min()].T
    return vectors


class Thinned:
    """Every n-th row and column of what comes window by window, so that neither side is longer than `SHOWN_PX`.

    Attributes:
        step: n.
        values: (…, y, x), NaN or 0 where nothing came.
    """

    def __init__(self, sizes: Sequence[int], dtype: np.typing.DTypeLike = np.float32) -> None:
        *leading, height, width = sizes
        self.step = -(-max(height, width) // SHOWN_PX)
        self.values = np.zeros((*leading, -(-height // self.step), -(-width // self.step)), dtype)

    def take(self, rows: slice, columns: slice, values: np.ndarray) -> None:
        """Keep of a window (…, rows, columns) what is shown."""
        (top, y), (left, x) = ((-(-one.start // self.step), -one.start % self.step) for one in (rows, columns))
        shown = values[..., y :: self.step, x :: self.step]
        self.values[..., top : top + shown.shape[-2], left : left + shown.shape[-1]] = shown

    def put(self, row: int, col: int, value: float | np.ndarray) -> None:
        """Let a pixel of the whole stand for the shown one that is nearest to it on the north-west."""
        self.values[..., row // self.step, col // self.step] = value
