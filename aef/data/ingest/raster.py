"""What every opened raster offers, whatever its format, and what is said where it cannot."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rasterio.errors import RasterioError

from aef.data.ingest.grids import Grid
from aef.one_line import one_line

DAMAGE = (
    OSError,
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    AttributeError,
    RuntimeError,
    MemoryError,
    RasterioError,
)
"""What libraries raise on files that are cut short or altered."""


class RasterError(ValueError):
    """A file cannot be read as the recipe says; one line naming file and variable."""


class Raster:
    """One opened file. ``steps`` is the length of its time axis (1 without one), ``grid`` its geometry, if it has any."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.steps = 1
        self.grid: Grid | None = None
        self.tags: dict[str, str] = {}
        self.variables: tuple[str, ...] = ()
        self._view = ""

    def __enter__(self) -> Raster:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Release the file."""

    def read(self, variable: str, step: int) -> np.ndarray:
        """One plane (h, w) in the stored type. Raises RasterError."""
        self.require(variable)
        try:
            return self._plane(variable, step)
        except RasterError:
            raise
        except DAMAGE as error:
            raise self.refuse(
                f"{variable}, step {step}: cannot be read: {one_line(error.__cause__ or error)}"
            ) from error

    def _plane(self, variable: str, step: int) -> np.ndarray:
        raise NotImplementedError

    def coordinate(self, name: str) -> np.ndarray:
        """A one-dimensional variable, such as times or product ids."""
        raise self.refuse(f"has no variable {name}")

    def dtype(self, variable: str, step: int) -> np.dtype:
        """The type in which `read` gives a plane, told without reading it. Raises RasterError."""
        self.require(variable)
        return np.dtype(self._view) if self._view else self._stored(variable, step)

    def _stored(self, variable: str, step: int) -> np.dtype:
        raise NotImplementedError

    def scaling(self, variable: str, step: int) -> tuple[float, float]:
        """Scale and offset that the file states for its stored values: 1 and 0 where it states none."""
        return 1.0, 0.0

    def nodata(self, variable: str, step: int) -> tuple[float, ...]:
        """Stored values that the file itself declares as no data."""
        return ()

    def mask(self, variable: str, step: int) -> np.ndarray | None:
        """Where (h, w) the file's own mask says that there is data; None where it has no mask. Raises RasterError."""
        return None

    def refuse(self, why: str) -> RasterError:
        return RasterError(f"{self.path}: {why}")

    def require(self, variable: str) -> None:
        if variable not in self.variables:
            raise self.refuse(f"has no variable {variable!r}: known are {', '.join(self.variables[:40])}")


def viewed(values: Sequence[Any], stored: np.dtype, view: str) -> tuple[float, ...]:
    """Declared values as they look once the stored bits are reinterpreted; those that the type cannot hold never occur."""
    found = []
    for value in values:
        if stored.kind in "iu":
            limits = np.iinfo(stored)
            if not (limits.min <= value <= limits.max and float(value).is_integer()):
                continue
        cast = np.asarray(value).astype(stored)
        found.append(float(cast.view(np.dtype(view)) if view else cast))
    return tuple(dict.fromkeys(found))


def view_as(block: np.ndarray, view: str, raster: Raster, variable: str) -> np.ndarray:
    if not view:
        return block
    wanted = np.dtype(view)
    if wanted.itemsize != block.dtype.itemsize:
        raise raster.refuse(f"{variable} is {block.dtype} and cannot be viewed as {view}: sizes differ")
    return np.ascontiguousarray(block).view(wanted)
