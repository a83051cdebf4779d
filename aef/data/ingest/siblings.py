"""Masks and scene classes that stand in other files than the bands that they speak about."""

from __future__ import annotations

from contextlib import ExitStack

import numpy as np

from aef.data.ingest.grids import resample
from aef.data.ingest.places import PlaceFiles
from aef.data.ingest.planes import QaPlane
from aef.data.ingest.readers import Raster
from aef.data.ingest.times import FrameTimes


class Siblings:
    """Planes of other inputs (masks, scene classes) at the time of the frame being read, on that frame's grid.

    Args:
        place: whose files they are.
        raster: the raster being read.
        stack: closes what is opened here.
        interval: whether the frame's source has intervals.
    """

    def __init__(self, place: PlaceFiles, raster: Raster, stack: ExitStack, interval: bool) -> None:
        self._place, self._raster, self._stack, self._interval = place, raster, stack, interval
        self._open: dict[str, list[tuple[Raster, dict[int, int]]]] = {}

    def at(self, time_ms: int) -> QaPlane:
        """(input, variable) → its plane at a time; None where there is none."""

        def read(name: str, variable: str) -> np.ndarray | None:
            timeless: np.ndarray | None = None
            for raster, steps in self._files(name):
                if steps and time_ms not in steps:
                    continue
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

    def _files(self, name: str) -> list[tuple[Raster, dict[int, int]]]:
        if name not in self._open:
            place = self._place
            item = place.recipe.input(name)
            opened = []
            for path in place.of(item):
                raster = self._stack.enter_context(place.open(path, item))
                steps: dict[int, int] = {}
                if item.time is not None:
                    rule = FrameTimes(item, place.name, self._interval)
                    starts, _ = rule.of(raster, path, place.relative(path), place.root)
                    steps = {start: step for step, start in reversed(list(enumerate(starts)))}
                elif raster.steps > 1:
                    raise raster.refuse(f"holds {raster.steps} steps of input {name}, which has no time: add it")
                opened.append((raster, steps))
            self._open[name] = opened
        return self._open[name]
