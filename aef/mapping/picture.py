"""Pictures of embedding fields: the three main directions as colours, and similarity to a pixel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

PANELS = 6
"""Most fields that a picture shows."""


def principal_directions(vectors: np.ndarray, count: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Mean (D,) and the `count` directions (count, D) of largest variance of vectors (N, D), each of a fixed sign.

    Vectors with a NaN are left out; fewer distinct vectors than directions give zeros for the rest.

    Raises:
        ValueError: every vector has a NaN.
    """
    finite = vectors[np.isfinite(vectors).all(axis=1)].astype(np.float64)
    if not len(finite):
        raise ValueError("expected at least one vector without NaN")
    mean = finite.mean(axis=0)
    covariance = np.cov(finite.T, bias=True) if len(finite) > 1 else np.zeros((len(mean), len(mean)))
    _, directions = np.linalg.eigh(np.atleast_2d(covariance))
    directions = directions[:, ::-1].T[:count]
    # An eigenvector's sign is arbitrary; its largest component is made positive so that colours repeat.
    largest = np.take_along_axis(directions, np.abs(directions).argmax(axis=1)[:, None], axis=1)
    return mean, directions * np.sign(largest)


@dataclass(frozen=True)
class Colours:
    """Three directions of an embedding as red, green and blue, stretched from the 2nd to the 98th percentile."""

    mean: np.ndarray
    directions: np.ndarray
    low: np.ndarray
    scale: np.ndarray

    @classmethod
    def of(cls, fields: Sequence[np.ndarray]) -> Colours:
        """The main directions of all vectors of some fields (D, y, x), or of a sample of them.

        Raises:
            ValueError: no pixel of them has a vector.
        """
        vectors = np.concatenate([_table(field) for field in fields])
        mean, directions = principal_directions(vectors)
        low, high = np.nanpercentile((vectors - mean) @ directions.T, [2, 98], axis=0)
        return cls(mean, directions, low, np.where(high > low, high - low, 1))

    def picture(self, field: np.ndarray) -> np.ndarray:
        """A field (D, y, x) → (y, x, 3) in [0, 1]. Missing vectors become white."""
        colours = np.clip(((_table(field) - self.mean) @ self.directions.T - self.low) / self.scale, 0, 1)
        return np.where(np.isfinite(colours), colours, 1).reshape(*field.shape[1:], 3)


def _table(field: np.ndarray) -> np.ndarray:
    """(D, y, x) → (y x, D)."""
    return np.moveaxis(field, 0, -1).reshape(-1, field.shape[0])


def pca_rgb(fields: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Fields (D, y, x) → pictures (y, x, 3) in [0, 1], with the directions and the stretch shared by all of them.

    Raises:
        ValueError: no pixel of them has a vector.
    """
    colours = Colours.of(fields)
    return [colours.picture(field) for field in fields]


def similarity(field: np.ndarray, vector: np.ndarray) -> np.ndarray:
    """Cosine of every pixel's vector with one vector: (D, y, x), (D,) → (y, x)."""
    length = np.linalg.norm(vector) * np.linalg.norm(field, axis=0)
    return np.einsum("dyx,d->yx", field, vector) / np.where(length > 0, length, 1)
