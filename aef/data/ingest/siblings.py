"""Masks and scene classes that stand in other files than the bands that they speak about."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import numpy as np

from aef.data.ingest.grids import resample
from aef.data.ingest.places import PlaceFiles
from aef.data.ingest.planes import QaPlane
from aef.data.ingest.readers import Raster
from aef.data.ingest.schema import Input
from aef.data.ingest.times import FrameTimes


class SiblingFiles:
    """Which file of another input holds which time. Asked of every file once for a series, and none is kept open: a place
    has as many masks as frames, so that opening all of them for each frame would be work that grows with the square.

    Args:
        place: whose files they are.
        interval: whether the frames' source has intervals.
    """

    def __init__(self, place: PlaceFiles, interval: bool) -> None:
        self.place, self._interval = place, interval
        self._steps: dict[str, list[tuple[Path, dict[int, int]]]] = {}

    def of(self, name: str) -> list[tuple[Path, dict[int, int]]]:
        """Files of an input, each with its steps by their times: no step where the input has no time."""
        if name not in self._steps:
            item = self.place.recipe.input(name)
            self._steps[name] = [(path, self._steps_of(path, item)) for path in self.place.of(item)]
        return self._steps[name]

    def _steps_of(self, path: Path, item: Input) -> dict[int, int]:
        with self.place.open(path, item) as raster:
            if item.time is not None:
                rule = FrameTimes(item, self.place.name, self._interval)
                starts, _ = rule.of(raster, path, self.place.relative(path), self.place.root)
                return {start: step for step, start in reversed(list(enumerate(starts)))}
            if raster.steps > 1:
                raise raster.refuse(f"holds {raster.steps} steps of input {item.name}, which has no time: add it")
            return {}


class Siblings:
    """Planes of other inputs (masks, scene classes) at the time of the frame being read, on that frame's grid.

    Args:
        files: those of the place, and their times.
        raster: the raster being read.
        stack: closes what is opened here.
    """

    def __init__(self, files: SiblingFiles, raster: Raster, stack: ExitStack) -> None:
        self._files, self._raster, self._stack = files, raster, stack
        self._opened: dict[tuple[str, Path], Raster] = {}

    def at(self, time_ms: int) -> QaPlane:
        """(input, variable) → its plane at a time; None where there is none."""

        def read(name: str, variable: str) -> np.ndarray | None:
            timeless: np.ndarray | None = None
            for path, steps in self._files.of(name):
                if steps and time_ms not in steps:
                    continue
                raster = self._open(name, path)
                plane = raster.read(variable, steps.get(time_ms, 0))
                assert raster.grid is not None and self._raster.grid is not None
                moved, seen = resample(
                    plane[None], np.ones((1, *plane.shape), np.bool_), raster.grid, self._raster.grid, "nearest"
                )
                if not seen.all():  # it may be the mask of a neighbouring tile of the same time
                    continue
                if steps:
                    return moved[0]
                if timeless is not None and not np.array_equal(moved[0], timeless, equal_nan=moved.dtype.kind == "f"):
                    raise raster.refuse(
                        f"{variable}: input {name} has other files that say otherwise, and no time that tells which one is meant: "
                        "add its time"
                    )
                timeless = moved[0]
            return timeless

        return read

    def _open(self, name: str, path: Path) -> Raster:
        if (name, path) not in self._opened:
            place = self._files.place
            self._opened[name, path] = self._stack.enter_context(place.open(path, place.recipe.input(name)))
        return self._opened[name, path]
