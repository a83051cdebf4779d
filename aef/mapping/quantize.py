"""The published int8 code of an embedding: 64 bytes a vector (paper section 6, supplement S5).

    q = clip(round(127.5 · sign(x) · √|x|), −127, 127)          x̂ = sign(q) · (|q| / 127.5)²

−128 marks no data; a pixel has it in all bands or in none. The square root gives small components, which are the most,
the finest steps. NumPy arrays in, NumPy arrays out, of any shape with the bands along `axis`.
"""

from __future__ import annotations

import numpy as np

SCALE = 127.5
LIMIT = 127
NODATA = -128


def quantize(vectors: np.ndarray, *, axis: int = 0) -> np.ndarray:
    """Unit vectors → int8. A vector with a NaN in every band becomes no data.

    Rounds half to even, as NumPy and JAX do.

    Args:
        vectors: floating point, components in [−1, 1].
        axis: the axis of the bands (0 for a (band, y, x) field, −1 for a table of vectors).

    Raises:
        ValueError: not floating point, a component beyond 1, or a vector with only some bands missing.
    """
    vectors = np.asarray(vectors)
    if vectors.dtype.kind != "f":
        raise ValueError(f"expected floating-point unit vectors, found {vectors.dtype}")
    missing = np.isnan(vectors)
    _require_whole(missing, axis, "NaN")
    largest = float(np.max(np.abs(vectors), initial=0.0, where=~missing))
    if largest > 1.001:
        raise ValueError(f"expected components of unit vectors in [-1, 1], found {largest:g}: normalise them first")
    roots = np.sign(vectors) * np.sqrt(np.abs(vectors))
    codes = np.clip(np.round(SCALE * np.where(missing, 0, roots)), -LIMIT, LIMIT).astype(np.int8)
    codes[missing] = NODATA
    return codes


def dequantize(codes: np.ndarray, *, axis: int = 0, dtype: type[np.floating] = np.float32) -> np.ndarray:
    """int8 → components in [−1, 1]; no data becomes NaN. Norms are 1.000 with a standard deviation of 0.002;
    renormalise where exact length matters.

    Raises:
        ValueError: not int8, or no data in only some bands of a vector.
    """
    codes = np.asarray(codes)
    if codes.dtype != np.int8:
        raise ValueError(f"expected int8 codes, found {codes.dtype}")
    missing = codes == NODATA
    _require_whole(missing, axis, f"no data ({NODATA})")
    wide = codes.astype(dtype)
    values = np.sign(wide) * np.square(np.abs(wide) / dtype(SCALE))
    values[missing] = np.nan
    return values


def _require_whole(missing: np.ndarray, axis: int, what: str) -> None:
    partly = missing.any(axis=axis) & ~missing.all(axis=axis)
    if partly.any():
        first = tuple(int(i) for i in np.argwhere(partly)[0])
        raise ValueError(
            f"{int(partly.sum())} vectors mix {what} with values (first at {first}): a vector has all bands or none"
        )
