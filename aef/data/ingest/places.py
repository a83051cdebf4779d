"""Which file belongs to which place, and each place's 10 m grid."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from functools import cached_property
from glob import escape
from pathlib import Path

from rasterio.transform import Affine

from aef.data.contract import MOST_ID_BYTES
from aef.data.ingest.grids import Grid, centre_of, chip_grid, joined, overlap, parse_crs
from aef.data.ingest.readers import Raster, geojson_outline, open_raster
from aef.data.ingest.schema import Input, LabelRule, Recipe


class IngestError(ValueError):
    """Files do not fit their recipe; one line naming place, file and reason."""


def list_files(root: Path) -> list[Path]:
    """Every file below a folder, a Zarr store counting as one; sorted, hidden ones left out."""
    if not root.is_dir():
        raise FileNotFoundError(f"{root}: no such folder")
    found: list[Path] = []
    pending = [root]
    while pending:
        for path in pending.pop().iterdir():
            if path.name.startswith("."):
                continue
            if path.is_dir() and path.suffix != ".zarr":
                pending.append(path)
            else:
                found.append(path)
    return sorted(found)


@dataclass
class PlaceFiles:
    """One place of a folder: the files of each input and label, and its grid."""

    recipe: Recipe
    root: Path
    name: str
    files: list[Path]
    shared: list[Path] = field(default_factory=list)
    footprints: dict[Path, Grid] = field(default_factory=dict)
    extent_note: str = ""

    def of(self, rule: Input | LabelRule) -> list[Path]:
        """Files of an input, in order; those found by overlap are the ones that reach the chip."""
        pattern = rule.glob.format(place=escape(self.name))
        if rule.match == "group":
            return [path for path in self.files if fnmatch(self.relative(path), pattern)]
        return [path for path in self.shared if self.reached_by(path, rule)]

    def reached_by(self, path: Path, rule: Input | LabelRule) -> bool:
        """Whether a shared file belongs to a rule and lies on the chip. Where it lies is looked up once for all places."""
        if not fnmatch(self.relative(path), rule.glob.format(place=escape(self.name))):
            return False
        if path not in self.footprints:
            with open_raster(path, rule) as raster:
                if raster.grid is None:
                    raise raster.refuse("has no georeference, so it cannot be matched by overlap")
                self.footprints[path] = raster.grid
        return overlap(self.footprints[path], self.grid)

    def relative(self, path: Path) -> str:
        return path.relative_to(self.root).as_posix()

    def open(self, path: Path, rule: Input | LabelRule) -> Raster:
        """Open a file of this place; plain arrays take the place's outline as their georeference."""
        raster = open_raster(path, rule, self.extent)
        if raster.grid is None:
            raster.close()
            raise raster.refuse("has no coordinate reference system or coordinates: add crs, or axes for a plain array")
        return raster

    @cached_property
    def extent(self) -> Grid | None:
        """The stated outline as a one-pixel grid; None where it is that of an input's file."""
        bounds, place = self.recipe.place.bounds, self.recipe.place
        if bounds.input:
            return None
        if bounds.geojson:
            outline = self._one(bounds.geojson)
            box, crs = geojson_outline(outline)
        else:
            if self.name not in bounds.map:
                raise IngestError(f"{self.recipe.name}: place: bounds: map has no place {self.name}")
            left, bottom, right, top = bounds.map[self.name]
            box, crs = (left, bottom, right, top), ""
        crs = place.crs if place.crs != "file" else crs
        if not crs:
            raise IngestError(f"{self.recipe.name}: place: crs: bounds given as numbers need EPSG:NUMBER")
        left, bottom, right, top = box
        return Grid(parse_crs(crs), Affine(right - left, 0, left, 0, bottom - top, top), 1, 1)

    @cached_property
    def grid(self) -> Grid:
        """The chip's 10 m UTM grid."""
        rule = self.recipe.place
        outline = self.extent or self._file_extent()
        try:
            return chip_grid(outline.bounds, outline.crs, rule.grid.align, rule.grid.crop_px)
        except (ValueError, OverflowError):  # infinite, or no number
            left, bottom, right, top = outline.bounds
            raise IngestError(
                f"{self.recipe.name}: place {self.name}: its outline ({left:g}, {bottom:g}, {right:g}, {top:g}) is none in "
                f"{outline.crs.to_string()}: is the projection another (place: crs)?"
            ) from None

    def _file_extent(self) -> Grid:
        rule = self.recipe.place.bounds
        names = rule.input
        items = [item for item in map(self.recipe.input, names) if item.match == "group"]
        found = [(item, self.of(item)) for item in items]
        item, files = next(((item, files) for item, files in found if files), (None, []))
        if item is None:
            raise IngestError(
                f"{self.recipe.name}: place {self.name}: no file of input {' or '.join(names)} gives its bounds"
            )
        found_grids = [self._extent_of(path, item) for path in (files if rule.extent == "union" else files[:1])]
        whole = joined(found_grids)
        if whole is None:
            raise IngestError(
                f"{self.recipe.name}: place {self.name}: its {len(files)} files of input {item.name} lie scattered (first "
                f"{files[0].name}): does group_by name the place? otherwise bounds: {{input: {item.name}, extent: first}}"
            )
        if whole is not found_grids[0]:
            sizes = sorted({(grid.height, grid.width) for grid in found_grids})
            self.extent_note = (
                f"{len(files)} files of {item.name}, of {' and '.join(f'{h} x {w} px' for h, w in sizes[:4])}, reach differently "
                "far: the chip covers them all (bounds: extent: first keeps to the first)"
            )
        return whole

    def _extent_of(self, path: Path, item: Input) -> Grid:
        with open_raster(path, item) as raster:
            if raster.grid is None:
                raise raster.refuse("gives the place's bounds but has no georeference: use bounds: geojson or map")
            override = self.recipe.place.crs
            if override != "file":
                return Grid(parse_crs(override), raster.grid.transform, raster.grid.height, raster.grid.width)
            return raster.grid

    def _one(self, pattern: str) -> Path:
        pattern = pattern.format(place=escape(self.name))
        found = sorted(self.root.glob(pattern))
        if len(found) != 1:
            raise IngestError(f"{self.recipe.name}: place {self.name}: expected one file {pattern}, found {len(found)}")
        return found[0]

    def attributes(self) -> dict[str, object]:
        """Facts about the place that a JSON sidecar states."""
        rule = self.recipe.place
        if not rule.sidecar:
            return {}
        path = self._one(rule.sidecar)
        try:
            content = json.loads(path.read_text(encoding="utf-8-sig"))
            return {name: content[key] for name, key in rule.attributes.items()}
        except (ValueError, KeyError, TypeError) as error:
            raise IngestError(f"{path}: place: attributes: {type(error).__name__} {error}") from None

    def asides(self) -> set[Path]:
        """Sidecars and siblings of this place: files that are read, but not as rasters."""
        return sidecars(self.recipe, self.root, [self.name])

    def lon_lat(self) -> tuple[float, float]:
        return centre_of(self.grid.bounds, self.grid.crs)


def unreached(places: Sequence[PlaceFiles]) -> list[Path]:
    """Files that are matched by where they lie, and lie on none of the places."""
    one = places[0]
    rules = [rule for rule in one.recipe.rules if rule.match == "overlap"]
    return [path for path in one.shared if not any(place.reached_by(path, rule) for rule in rules for place in places)]


def find_places(recipe: Recipe, root: Path, only: Iterable[str] = ()) -> tuple[list[PlaceFiles], list[Path]]:
    """Group the files of a folder by place.

    Returns:
        The places in order of name, and the files that belong to none.

    Raises:
        IngestError: no file belongs to any place, or a place of ``only`` does not exist.
    """
    files = list_files(root)
    groups: dict[str, list[Path]] = {}
    rest: list[Path] = []
    for path in files:
        name = _place_of(recipe, path.relative_to(root).as_posix())
        if name is None:
            rest.append(path)
        else:
            groups.setdefault(name, []).append(path)
    shared = [rule.glob for rule in recipe.rules if rule.match == "overlap"]
    common = [path for path in files if any(fnmatch(path.relative_to(root).as_posix(), glob) for glob in shared)]
    wanted = [rule.glob for rule in recipe.inputs if rule.match == "group" and rule.role != "qa"]
    names = sorted(
        name
        for name, members in groups.items()
        if any(fnmatch(p.relative_to(root).as_posix(), g.format(place=escape(name))) for p in members for g in wanted)
    )
    _refuse_orphans(recipe, root, rest, groups)
    missing = set(only) - set(names)
    if not names:
        raise IngestError(f"{root}: no file belongs to a place of recipe {recipe.name}: wrong folder or group_by?")
    if missing:
        raise IngestError(f"{root}: no place {sorted(missing)[0]}: known are {', '.join(names[:20])}")
    chosen = [name for name in names if not only or name in set(only)]
    if len(chosen) > 1 and "{place" not in recipe.place.id:
        raise IngestError(
            f"{recipe.name}: place: id: {recipe.place.id!r} names {len(chosen)} places ({', '.join(chosen[:3])}): a chip each "
            "needs {place} in it"
        )
    for name in chosen:
        _require_file_name(recipe, name)
    lonely = [path for name, members in groups.items() if name not in names for path in members]
    asides = [item.time.glob for item in recipe.inputs if item.time] + [
        recipe.place.bounds.geojson,
        recipe.place.sidecar,
    ]
    known = {path for glob in asides if glob for name in names for path in root.glob(glob.format(place=escape(name)))}
    unused = [path for path in (*rest, *lonely) if path not in common and path not in known]
    footprints: dict[Path, Grid] = {}
    return [PlaceFiles(recipe, root, name, groups[name], common, footprints) for name in chosen], sorted(unused)


def _require_file_name(recipe: Recipe, name: str) -> None:
    """Raises IngestError where a place's chip would have an id that names no file that readers of chips find."""
    chip = recipe.place.id_of(name)
    if not chip or chip.startswith(".") or any(letter in chip for letter in "/\\\0"):
        why = f"expected a name without slashes and leading dot, found {chip!r}"
    elif (size := len(chip.encode("utf-8", "surrogatepass"))) > MOST_ID_BYTES:
        why = f"expected at most {MOST_ID_BYTES} bytes, found {size} ({chip[:40]} …)"
    else:
        return
    raise IngestError(
        f"{recipe.name}: place {name[:60]}: the id of its chip names a file: {why}: change group_by, map or id"
    )


def _refuse_orphans(recipe: Recipe, root: Path, rest: list[Path], groups: dict[str, list[Path]]) -> None:
    """An input whose files all lie outside every place would be missing from the chips without a word."""
    for rule in (rule for rule in recipe.rules if rule.match == "group"):
        orphans = [path for path in rest if fnmatch(path.relative_to(root).as_posix(), rule.glob)]
        placed = any(
            fnmatch(path.relative_to(root).as_posix(), rule.glob.format(place=escape(name)))
            for name, members in groups.items()
            for path in members
        )
        if orphans and not placed:
            raise IngestError(
                f"{orphans[0]}: belongs to {rule.name} ({rule.glob}) but to no place: change group_by, "
                "or state match: overlap for files that are matched by where they lie"
            )


def sidecars(recipe: Recipe, root: Path, names: Iterable[str]) -> set[Path]:
    """Files that recipes read beside rasters: times, outlines, facts."""
    globs = [item.time.glob for item in recipe.inputs if item.time] + [
        recipe.place.bounds.geojson,
        recipe.place.sidecar,
    ]
    return {path for glob in globs if glob for name in names for path in root.glob(glob.format(place=escape(name)))}


def _place_of(recipe: Recipe, relative: str) -> str | None:
    rule = recipe.place
    if rule.map:
        return next((name for glob, name in rule.map.items() if fnmatch(relative, glob)), None)
    found = re.search(rule.group_by, relative)
    return found.group("place") if found else None
