"""One item, a chip and a source: list its scenes, ask for their pixels in slabs, make its series."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np

from aef.clock import DAY_MS, Period
from aef.data.chips import SourceSeries
from aef.earthengine import decode, expressions
from aef.earthengine.download import Budget, Fetched
from aef.earthengine.errors import TooLargeError
from aef.earthengine.grid import Affine, ChipGrid
from aef.earthengine.manifest import PlannedChip
from aef.earthengine.recipes import Frame, Recipe, Scene, Surrounding, recipe_of
from aef.earthengine.service import Service
from aef.sources import Source

SLAB_BYTES = 4 * 2**20
"""Largest uncompressed answer that is asked for: a twelfth of the service's limit (48 MiB), so that 40 of them in
flight fit a small machine and a lost one costs little."""

SLAB_BANDS = 1000
"""The service answers at most 1024 bands at once."""

MEMORY_BYTES = 128 * 2**20
"""Arrays of items under way, all together; a larger item waits until it is alone."""

LISTED_MS = 400 * DAY_MS
"""Longest span of time that one listing asks for; the service lists at most 5000 elements."""

FEWEST_ROWS = 8


class EarthEngineFetcher:
    """Fetches items from a connected project: requests of one item run side by side, arrays share a memory budget.

    Close it (or use it as a context manager) when the download is over.
    """

    def __init__(self, service: Service, sources: Mapping[str, Source]) -> None:
        self.service = service
        self.recipes = {name: recipe_of(source) for name, source in sources.items()}
        # More items than the gate lets through: while some wait for the disk, others keep its places filled.
        self.width = 3 * service.gate.limit
        self._slabs = ThreadPoolExecutor(service.gate.limit + 8, "slab")
        self._budget = Budget(MEMORY_BYTES)

    @contextmanager
    def fetching(self, chip: PlannedChip, source: Source) -> Iterator[Fetched]:
        """One source of one chip, whose memory is held until the block ends. Raises what `ItemFetch.run` raises."""
        with ExitStack() as held:

            def reserve(size: int) -> None:
                held.enter_context(self._budget.held(size))

            recipe = self.recipes[source.name]
            item = ItemFetch(self.service, source, recipe, chip.grid, chip.lon, chip.period, self._slabs, reserve)
            yield item.run()

    def stop(self) -> None:
        """Wake every waiting request and let it give up."""
        self.service.stop()

    def __enter__(self) -> EarthEngineFetcher:
        return self

    def __exit__(self, *_: object) -> None:
        self._slabs.shutdown(cancel_futures=True)


class ItemFetch:
    """Fetches one item. ``slabs`` runs requests side by side; ``reserve`` waits for so many bytes of memory.

    Raises what `Service` raises, and `ChipError` where the values cannot be what the registry says they are.
    """

    def __init__(
        self,
        service: Service,
        source: Source,
        recipe: Recipe,
        grid: ChipGrid,
        lon: float,
        period: Period,
        slabs: Executor,
        reserve: Callable[[int], None],
    ) -> None:
        self.service, self.source, self.recipe, self.grid = service, source, recipe, grid
        self.around = Surrounding(grid.crs, lon, period)
        self._slabs, self._reserve = slabs, reserve
        self.requests = self.bytes = 0

    def run(self) -> Fetched:
        """List the scenes, make frames of them, fetch those: the item's series, with its cost."""
        frames = self.recipe.frames(self.scenes(), self.around, self.source)
        if not frames:
            return Fetched(None, requests=self.requests, reason="no image")
        result = self._footprints(frames) if self.source.grid == "points" else self._pixels(frames)
        if result is None:
            return Fetched(None, requests=self.requests, bytes=self.bytes, reason="nothing observed")
        series, kept = result
        products = [[scene.id for scene in frame.scenes] for frame in kept]
        return Fetched(series, products, self.requests, self.bytes)

    # --- scenes ------------------------------------------------------------------------------------------------------

    def scenes(self) -> list[Scene]:
        """Everything that the service lists for the chip, each image once."""
        found: dict[str, Scene] = {}
        for window in self._windows():
            for scene in self._list(window):
                found[scene.id] = scene
        return list(found.values())

    def _windows(self) -> Iterable[Period | None]:
        if self.recipe.listed is None:
            return [None]
        period = self.around.period
        start = period.start_ms - round(self.recipe.listed * DAY_MS)
        starts = range(start, period.end_ms, LISTED_MS)
        return [Period(s, min(s + LISTED_MS, period.end_ms)) for s in starts]

    def _list(self, window: Period | None) -> list[Scene]:
        try:
            self.requests += 1
            answer = self.service.value(expressions.listing(self.source, self.recipe, self.grid, window))
        except TooLargeError:
            if window is None or window.length_ms < 2 * DAY_MS:
                raise
            middle = window.start_ms + window.length_ms // 2
            return self._list(Period(window.start_ms, middle)) + self._list(Period(middle, window.end_ms))
        return [_scene(feature["properties"]) for feature in answer.get("features", ())]

    # --- pixels ------------------------------------------------------------------------------------------------------

    def _pixels(self, frames: Sequence[Frame]) -> tuple[SourceSeries, list[Frame]] | None:
        affine, crs, height, width, first_cell = self._window()
        bands = len(self.recipe.fetched or self.source.band_names)
        # Values, masks and weights, and half as much again while they are checked and written.
        size = len(frames) * height * width * ((np.dtype(self.recipe.dtype).itemsize + 1) * bands + 1)
        self._reserve(size * 3 // 2)
        stack = decode.Stack(self.source, self.recipe, frames, height, width)

        def fill(slab: tuple[int, int]) -> None:
            self._fill(stack, slab[0], slab[1], slice(0, height), affine, crs, width)

        slabs = list(self._slab_bounds(frames, height * width))
        if len(slabs) == 1:
            fill(slabs[0])
        else:
            list(self._slabs.map(fill, slabs))
        return decode.series_of(self.source, self.recipe, stack, affine=affine, crs=crs, first_cell=first_cell)

    def _window(self) -> tuple[Affine, str, int, int, tuple[int, int]]:
        margin = self.recipe.margin_px
        if self.recipe.native:
            affine, height, width, first_cell = self.recipe.native.under(self.grid, margin)
            return affine, "EPSG:4326", height, width, first_cell
        grid = self.grid.grown(margin)
        return grid.affine, grid.crs, grid.px, grid.px, (0, 0)

    def _slab_bounds(self, frames: Sequence[Frame], pixels: int) -> Iterable[tuple[int, int]]:
        """Slabs (first frame, number of frames) of at most SLAB_BYTES and SLAB_BANDS; at least one frame each."""
        first, size, bands = 0, 0, 0
        for number, frame in enumerate(frames):
            more = decode.bytes_per_pixel(self.recipe, frame) * pixels
            names = len(expressions.wire_names(self.recipe, [frame]))
            if number > first and (size + more > SLAB_BYTES or bands + names > SLAB_BANDS):
                yield first, number - first
                first, size, bands = number, 0, 0
            size, bands = size + more, bands + names
        yield first, len(frames) - first

    def _fill(
        self, stack: decode.Stack, first: int, count: int, rows: slice, affine: Affine, crs: str, width: int
    ) -> None:
        """Fetch a slab; where the service runs out of memory or time, halve it along time, then along rows."""
        frames = stack.frames[first : first + count]
        a, b, c, d, e, f = affine
        moved = (a, b, c + b * rows.start, d, e, f + e * rows.start)
        height = rows.stop - rows.start
        try:
            self.requests += 1
            answer = self.service.pixels(
                expressions.pixels(self.source, self.recipe, frames),
                expressions.wire_grid(moved, crs, height, width),
                expressions.wire_names(self.recipe, frames),
                expressions.wire_types(self.recipe, frames),
            )
        except TooLargeError:
            if count > 1:
                half = count // 2
                self._fill(stack, first, half, rows, affine, crs, width)
                self._fill(stack, first + half, count - half, rows, affine, crs, width)
                return
            if height < 2 * FEWEST_ROWS:
                raise
            middle = rows.start + height // 2
            self._fill(stack, first, count, slice(rows.start, middle), affine, crs, width)
            self._fill(stack, first, count, slice(middle, rows.stop), affine, crs, width)
            return
        self.bytes += answer.nbytes
        stack.put(first, count, rows, answer)

    # --- footprints --------------------------------------------------------------------------------------------------

    def _footprints(self, frames: Sequence[Frame]) -> tuple[SourceSeries, list[Frame]] | None:
        return decode.footprints_of(self.source, frames, self._sampled(frames, 0), self.grid)

    def _sampled(self, frames: Sequence[Frame], first: int) -> list[dict[str, Any]]:
        try:
            self.requests += 1
            answer = self.service.value(expressions.footprints(self.source, self.recipe, frames, self.grid))
        except TooLargeError:
            if len(frames) == 1:
                raise
            half = len(frames) // 2
            return self._sampled(frames[:half], first) + self._sampled(frames[half:], first + half)
        features = answer.get("features", [])
        for feature in features:
            feature["properties"]["frame"] += first
        self.bytes += 4 * len(self.source.bands) * len(features)
        return features


def _scene(properties: dict[str, Any]) -> Scene:
    own = {"collection", "index", "time_ms", "end_ms"}
    end = properties.get("end_ms")
    return Scene(
        str(properties["collection"]),
        str(properties["index"]),
        int(properties.get("time_ms") or 0),
        None if end is None else int(end),
        {name: value for name, value in properties.items() if name not in own},
    )
