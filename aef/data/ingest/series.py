"""One source of one place: its frames read one by one into the chip's arrays."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from rasterio.transform import Affine

from aef.data.chips import SourceSeries
from aef.data.contract import METRES_PER_DEGREE
from aef.data.ingest.collapse import collapse_space, require_constant_in_time
from aef.data.ingest.grids import Grid, cell_grid, copies, cut, joined, resample, same_crs
from aef.data.ingest.places import IngestError, PlaceFiles
from aef.data.ingest.planes import Decoder, radiometric_offset
from aef.data.ingest.readers import Raster
from aef.data.ingest.schema import BandRule, Input, Transform
from aef.data.ingest.siblings import SiblingFiles, Siblings
from aef.data.ingest.stated import StatedScales
from aef.data.ingest.times import FrameTimes
from aef.sources import Source


@dataclass(frozen=True)
class Frame:
    """One step of one file, and the time slot of the source that it fills."""

    item: Input
    path: Path
    step: int
    start_ms: int
    end_ms: int | None
    repeat: int = 0


class SeriesBuilder:
    """Builds a `SourceSeries` from all inputs of a source at one place.

    ``decoders`` keeps, per input, what was read and the extremes found; ``dropped`` and ``twins`` count frames without
    any observation and pairs within the dedupe window; ``stated`` holds the scales that the files state.
    """

    def __init__(self, source: Source, items: list[Input], place: PlaceFiles, files: dict[str, list[Path]]) -> None:
        self.source, self.items, self.place, self.files = source, items, place, files
        self.decoders = {item.name: Decoder(item) for item in items}
        self.stated = {item.name: StatedScales(item) for item in items}
        self.dropped = self.twins = 0
        self._offsets: dict[tuple[str, Path], float] = {}
        self._kinds: set[np.dtype] = set()

    # -- frames and slots

    @cached_property
    def frames(self) -> list[Frame]:
        """Every step of every file, with repeats of a time within an input numbered."""
        found: list[Frame] = []
        for item in self.items:
            seen: dict[int, int] = {}
            for path in self.files[item.name]:
                with self.place.open(path, item) as raster:
                    starts, ends = self._times(item, raster, path)
                    bands = self._bands(item, path, raster)
                    self.stated[item.name].add(path, raster, bands)
                    self._kinds |= self._kinds_of(item, raster, bands)
                for step, start in enumerate(starts):
                    repeat = seen.get(start, 0) if item.dedupe is None or item.dedupe.keep != "mosaic" else 0
                    seen[start] = repeat + 1
                    found.append(Frame(item, path, step, start, ends[step] if ends else None, repeat))
        return found

    def _kinds_of(self, item: Input, raster: Raster, bands: dict[str, BandRule]) -> set[np.dtype]:
        """The types that hold a file's bands once they are converted."""
        found = set()
        for rule in bands.values():
            plain = (rule.transform or item.transform).plain and self._copies(item, raster)
            for kind in {raster.dtype(rule.var, step) for step in range(raster.steps)}:
                found.add(kind if plain and kind.kind in "iu" else np.dtype(np.float32))
        return found

    def _copies(self, item: Input, raster: Raster) -> bool:
        """Whether a file's pixels become the series' as they are."""
        if item.resample == "nearest" or "space" in item.collapse:
            return True
        return raster.grid is not None and copies(raster.grid, self.grid, item.resample)

    def _times(self, item: Input, raster: Raster, path: Path) -> tuple[list[int], list[int] | None]:
        if item.role == "static":
            return [0], None
        relative = self.place.relative(path)
        try:
            return FrameTimes(item, self.place.name, self.source.time == "interval").of(
                raster, path, relative, self.place.root
            )
        except ValueError as error:
            raise IngestError(f"{path}: input {item.name}: {error}") from None

    @cached_property
    def slots(self) -> list[tuple[int, int]]:
        """(time, repeat) of every frame that the source will have, in order."""
        return sorted({self._slot(frame) for frame in self.frames})

    def _slot(self, frame: Frame) -> tuple[int, int]:
        return self._mosaics.get(frame.start_ms, frame.start_ms), frame.repeat

    @cached_property
    def _mosaics(self) -> dict[int, int]:
        """Time of a file → that of the mosaic that it is part of: the first within the rule's seconds."""
        rule = self.items[0].dedupe
        if rule is None or rule.keep != "mosaic" or self.source.time != "instant":
            return {}
        times = sorted({frame.start_ms for frame in self.frames})
        return dict(zip(times, _firsts(times, rule.within_s)))

    # -- geometry and type

    @cached_property
    def grid(self) -> Grid:
        """The grid of the series: the chip's, or the source's own."""
        if self.source.grid == "chip":
            return self.place.grid
        grids = [self._native_grid(item) for item in self.items]
        if any(not _alike(grid, grids[0]) for grid in grids):
            raise IngestError(f"{self.place.name}: source {self.source.name}: its inputs lie on different native grids")
        return grids[0]

    def _native_grid(self, item: Input) -> Grid:
        """The source's own grid, as far as the files of an input reach: that of a tile alone would lose its neighbours'
        cells."""
        files = self.files[item.name]
        grids = []
        for path in files[:1] if "space" in item.collapse else files:
            with self.place.open(path, item) as raster:
                assert raster.grid is not None
                grids.append(self._native(item, raster.grid))
        whole = joined(grids)
        if whole is None:
            raise IngestError(
                f"{self.place.name}: input {item.name}: its {len(files)} files lie scattered (first {files[0].name}), and no grid "
                "holds them all: does its glob take files of other places?"
            )
        return whole

    def _native(self, item: Input, grid: Grid) -> Grid:
        if "space" in item.collapse:
            left, bottom, right, top = grid.bounds
            return Grid(grid.crs, Affine(right - left, 0, left, 0, bottom - top, top), 1, 1)
        if item.cell_m is not None:
            return cell_grid(self.place.grid, item.cell_m)
        pixel_m = abs(grid.transform.a) * (METRES_PER_DEGREE if grid.crs.is_geographic else 1)
        if pixel_m < self.source.native_resolution_m / 4:
            raise IngestError(
                f"{self.place.name}: input {item.name}: its pixels of {pixel_m:.3g} m are copies of cells of "
                f"{self.source.native_resolution_m:g} m: state collapse: [space] or cell_m"
            )
        # Of a raster that many places share, each takes the cells under it and those from which it is interpolated.
        return cut(grid, self.place.grid, margin_px=2) if item.match == "overlap" else grid

    def _dtype(self) -> np.dtype:
        """Integers stay what they are where pixels are copied, in a type that holds those of every file; codes are int32;
        everything else is float32."""
        if self.source.classes:
            return np.dtype(np.int32)
        kind = np.result_type(*self._kinds) if self._kinds else np.dtype(np.float32)
        return np.dtype(np.float32) if kind.itemsize > 4 else kind

    def _bands(self, item: Input, path: Path, raster: Raster) -> dict[str, BandRule]:
        """The bands that this file gives; with ``band_regex`` the one that its name says."""
        if not item.band_regex:
            return dict(item.band_map)
        found = re.search(item.band_regex, self.place.relative(path))
        if not found:
            raise raster.refuse(f"band_regex {item.band_regex!r} does not match its name")
        named = {band: rule for band, rule in item.band_map.items() if rule.var == found.group("band")}
        # A file of one band: whatever the file calls it, the recipe names it after the regex.
        return {band: replace(rule, var=raster.variables[0]) for band, rule in named.items()}

    # -- filling

    def build(self) -> SourceSeries | None:
        """Read everything. None if the place has no frame of this source with an observation.

        Raises:
            IngestError: twins without a rule, undeclared extremes, axes that are not constant although collapsed.
            RasterError: a file is not as the recipe says.
        """
        if not self.frames:
            return None
        self._check_twins()
        for stated in self.stated.values():
            if problem := stated.disagreement():
                raise IngestError(f"{self.place.name}: {problem}")
        shape = (len(self.slots), self.source.channels, self.grid.height, self.grid.width)
        weighted = any(isinstance(item.weight, tuple) for item in self.items)
        try:
            values = np.zeros(shape, self._dtype())
            valid = np.zeros(shape, np.bool_)
            weight = np.full((shape[0], 1, *shape[2:]), 255, np.uint8) if weighted else None
        except MemoryError:
            raise IngestError(
                f"{self.place.name}: source {self.source.name}: {shape[0]} frames of {shape[1]} bands and {shape[2]} x {shape[3]} px do "
                "not fit into memory: is the outline of the place right? place: grid: {crop_px: …} keeps a central square"
            ) from None
        metadata = np.full((shape[0], len(self.source.metadata)), np.nan, np.float32)
        at = {slot: index for index, slot in enumerate(self.slots)}
        masks = SiblingFiles(self.place, self.source.time == "interval")
        for item, path, frames in self._by_file():
            with ExitStack() as stack:
                raster = stack.enter_context(self.place.open(path, item))
                qa = Siblings(masks, raster, stack)
                for frame in frames:
                    slot = at[self._slot(frame)]
                    self._fill(raster, frame, qa, values[slot], valid[slot], None if weight is None else weight[slot])
                    self._read_metadata(raster, frame, metadata[slot])
        self._refuse_extremes()
        return self._finish(values, valid, weight, metadata)

    def _by_file(self) -> Iterator[tuple[Input, Path, list[Frame]]]:
        groups: dict[tuple[str, Path], list[Frame]] = {}
        for frame in self.frames:
            groups.setdefault((frame.item.name, frame.path), []).append(frame)
        for frames in groups.values():
            yield frames[0].item, frames[0].path, frames

    def _fill(
        self,
        raster: Raster,
        frame: Frame,
        qa: Siblings,
        values: np.ndarray,
        valid: np.ndarray,
        weight: np.ndarray | None,
    ) -> None:
        """One step of a file into its slot: values (C, H, W), valid (C, H, W), weight (1, H, W)."""
        item = frame.item
        bands = self._bands(item, frame.path, raster)
        if not bands:
            return
        offset = self._offset(item, raster, bands, qa)
        decoder = self.decoders[item.name]
        planes, seen, counts = decoder.planes(raster, frame.step, bands, offset, qa.at(frame.start_ms))
        stack, observed = _stack(planes), np.stack(seen)
        if item.role == "static" and raster.steps > 1 and not item.layout and "time" not in item.collapse:
            raise raster.refuse(f"holds {raster.steps} steps of a static source: state collapse: [time], or select one")
        if "time" in item.collapse:
            require_constant_in_time(raster, bands, observed)
        source = raster.grid
        assert source is not None
        if "space" in item.collapse:
            stack, observed = collapse_space(raster, frame.step, bands, stack, observed)
            source = self.grid
        moved, observed = resample(stack, observed, source, self.grid, item.resample)
        before, filled = valid.any(axis=0), np.zeros(valid.shape[1:], np.bool_)
        for band, plane, mask in zip(bands, moved, observed):
            at = self.source.band_names.index(band)
            mask = mask & ~valid[at]
            values[at][mask] = plane[mask]
            valid[at] |= mask
            filled |= mask
        if weight is not None:
            self._fill_weight(raster, counts, weight[0], filled & ~before, filled | ~valid.any(axis=0))

    def _fill_weight(
        self, raster: Raster, counts: np.ndarray | None, weight: np.ndarray, first: np.ndarray, shared: np.ndarray
    ) -> None:
        """A file's weight (0/1 on its own grid, None: no rule) into its frame's (H, W): it alone speaks for the pixels
        that it was the ``first`` to fill, and may only lower the weight of those that it ``shared`` with other
        files."""
        own = np.full_like(weight, 255)
        if counts is not None:
            assert raster.grid is not None
            moved, _ = resample(counts[None], np.ones_like(counts)[None], raster.grid, self.grid, "nearest")
            own = np.where(moved[0], 255, 0).astype(np.uint8)
        np.minimum(weight, own, out=weight, where=shared & ~first)
        np.copyto(weight, own, where=first)

    def _offset(self, item: Input, raster: Raster, bands: dict[str, BandRule], qa: Siblings) -> float:
        def lowest() -> float:
            frames = [frame for frame in self.frames if (frame.item.name, frame.path) == key]
            decoder = self.decoders[item.name]
            return min(decoder.lowest(raster, frame.step, bands, qa.at(frame.start_ms)) for frame in frames)

        key = item.name, raster.path
        if key not in self._offsets:
            self._offsets[key] = radiometric_offset(item.offset_rule, lowest, self.place.name)
        return self._offsets[key]

    def _read_metadata(self, raster: Raster, frame: Frame, row: np.ndarray) -> None:
        for index, field in enumerate(self.source.metadata):
            rule = frame.item.metadata[field.name]
            if rule.constant is not None:
                row[index] = rule.constant
            elif rule.var:
                along = np.atleast_1d(raster.coordinate(rule.var))
                if along.dtype.kind not in "biuf" or along.shape not in ((1,), (raster.steps,)):
                    raise raster.refuse(
                        f"{rule.var} (metadata {field.name}): expected one number, or one for each of {raster.steps} steps, found "
                        f"{along.dtype} of shape {along.shape}"
                    )
                self.decoders[frame.item.name].used.add(rule.var)
                row[index] = along[frame.step if len(along) > 1 else 0]

    # -- after reading

    def _check_twins(self) -> None:
        if self.source.time == "static":
            return
        rules = {item.dedupe for item in self.items}
        if len(rules) > 1:
            raise IngestError(
                f"{self.place.recipe.name}: source {self.source.name}: its inputs state different dedupe rules"
            )
        rule = rules.pop()
        times = [start for start, _ in self.slots]
        window_ms = 3_600_000 if rule is None else rule.within_s * 1000
        gaps = np.diff(times)
        self.twins = int((gaps <= window_ms).sum()) if self.source.time == "instant" else int((gaps == 0).sum())
        same = bool((gaps == 0).any())
        if self.twins and (rule is None or (same and rule.keep == "all")):
            at = int(np.argmin(gaps))
            moment = np.datetime64(times[at], "ms")
            if same and rule:
                cure = "keep: all cannot keep two frames of one time"
            else:
                cure = "state a dedupe rule"
                if any(item.band_regex for item in self.items):
                    cure += "; files of one band each are put together by dedupe: {within_s: 60, keep: mosaic}"
            raise IngestError(
                f"{self.place.name}: source {self.source.name}: {self.twins} frames follow another within "
                f"{window_ms / 1000:g} s (first at {moment}, {gaps[at] / 1000:g} s): {cure}"
            )

    def _refuse_extremes(self) -> None:
        for item in self.items:
            for (band, _), tally in self.decoders[item.name].tallies.items():
                if self.source.classes:
                    continue
                rule = item.band_map[band]
                reason = tally.suspicion(item.accept if rule.accept is None else rule.accept)
                if reason:
                    raise IngestError(
                        f"{self.files[item.name][0]}: {self.place.name}: input {item.name}: {rule.var} (band {band}): {reason}, "
                        "declared neither no-data (nodata, valid) nor a measurement (accept)"
                    )

    def _finish(
        self, values: np.ndarray, valid: np.ndarray, weight: np.ndarray | None, metadata: np.ndarray
    ) -> SourceSeries | None:
        keep = self._chosen(valid)
        if not keep.any():
            return None
        if not keep.all():
            values, valid, metadata = values[keep], valid[keep], metadata[keep]
            weight = None if weight is None else weight[keep]
        if all(np.array_equal(valid[:, c], valid[:, 0]) for c in range(1, valid.shape[1])):
            valid = valid[:, :1].copy()
        static, native = self.source.time == "static", self.source.grid == "native"
        ends = {self._slot(f): f.end_ms for f in self.frames}
        slots = [slot for slot, kept in zip(self.slots, keep) if kept]
        interval = self.source.time == "interval"
        transforms = {item.transform for item in self.items}
        one = transforms.pop() if len(transforms) == 1 else Transform()
        return SourceSeries(
            values=values,
            valid=valid,
            weight=weight,
            time_ms=None if static else np.array([start for start, _ in slots], np.int64),
            time_end_ms=np.array([ends[slot] for slot in slots], np.int64) if interval else None,
            metadata=metadata if self.source.metadata else None,
            transform=tuple(self.grid.transform)[:6] if native else None,
            crs=self.grid.crs.to_string() if native else None,
            bands=self.source.band_names,
            units=tuple(band.unit for band in self.source.bands),
            collection=next((item.collection for item in self.items if item.collection), ""),
            native_resolution_m=self.source.native_resolution_m,
            applied_scale=one.scale,
            applied_offset=one.offset,
            licence=next((item.licence for item in self.items if item.licence), "") or self.source.licence,
            note=self._note(weight),
        )

    def _chosen(self, valid: np.ndarray) -> np.ndarray:
        """Frames that stay: with an observation, and of twins the one that the rule keeps."""
        counts = valid.sum(axis=(1, 2, 3))
        keep = counts > 0
        self.dropped = int((~keep).sum())
        rule = self.items[0].dedupe
        if rule is None or rule.keep in ("all", "mosaic") or self.source.time == "static":
            return keep
        group = np.array(_firsts([start for start, _ in self.slots], rule.within_s))
        for first in np.unique(group):
            members = np.flatnonzero((group == first) & keep)
            if len(members) > 1:
                best = members[np.argmax(counts[members])] if rule.keep == "most_valid" else members[0]
                keep[members[members != best]] = False
        return keep

    def _note(self, weight: np.ndarray | None) -> str:
        notes = [item.note for item in self.items if item.note]
        if self.source.time != "static" and weight is None:
            notes.append("no cloud rule: weight is 1 everywhere")
        if any(item.time and item.time.precision == "day" for item in self.items) and self.source.time == "instant":
            notes.append("times are known to the day; noon UTC stands in")
        return "; ".join(dict.fromkeys(notes))


def _firsts(times_ms: Sequence[int], within_s: float) -> list[int]:
    """For each of some sorted times the first of its group, none of which lies more than ``within_s`` after its first."""
    firsts: list[int] = []
    for time in times_ms:
        firsts.append(firsts[-1] if firsts and time - firsts[-1] <= within_s * 1000 else time)
    return firsts


def _stack(planes: list[np.ndarray]) -> np.ndarray:
    kind = np.result_type(*(plane.dtype for plane in planes))
    return np.stack([plane.astype(kind, copy=False) for plane in planes])


def _alike(a: Grid, b: Grid) -> bool:
    return (
        same_crs(a.crs, b.crs) and (a.height, a.width) == (b.height, b.width) and a.transform.almost_equals(b.transform)
    )
