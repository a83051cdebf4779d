"""A folder of rasters and a recipe → chips, one place at a time."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

from aef.data.chips import Chip, write_chip
from aef.data.ingest.labels import read_label
from aef.data.ingest.places import IngestError, PlaceFiles, find_places
from aef.data.ingest.report import Report, band_lines, frame_line
from aef.data.ingest.schema import Input, LabelRule, Recipe
from aef.data.ingest.series import SeriesBuilder
from aef.data.making import digest_of, making
from aef.data.plausibility import survey_chips, suspicious, wrong_scale
from aef.settings_file import SOURCES_FILE, registry_of, write_sources
from aef.sources import BUILT_IN


def convert_place(recipe: Recipe, place: PlaceFiles) -> tuple[Chip, Report]:
    """Read one place into memory, frame by frame.

    Raises:
        IngestError, RasterError: the files do not fit the recipe, or their values cannot be in the source's unit; one
            line naming place, input and file.
    """
    files = {item.name: place.of(item) for item in recipe.inputs}
    height, width = place.grid.height, place.grid.width
    lon, lat = place.lon_lat()
    chip = Chip(
        id=recipe.place.id_of(place.name),
        place=place.name,
        crs=place.grid.crs.to_string(),
        transform=tuple(place.grid.transform)[:6],
        height=height,
        width=width,
        lon=lon,
        lat=lat,
        sources={},
    )
    report = Report(place.name, f"{chip.id}.npz", (height, width))
    builders: list[SeriesBuilder] = []
    for name in dict.fromkeys(item.source for item in recipe.inputs if item.source):
        items = [item for item in recipe.inputs if item.source == name and files[item.name] and item.role != "qa"]
        if not items:
            continue
        builder = SeriesBuilder(recipe.registry[name], items, place, files)
        series = builder.build()
        builders.append(builder)
        if series is not None:
            chip.sources[name] = series
            report.frames[name] = frame_line(chip, name, builder.dropped, builder.twins)
    if not chip.sources:
        raise IngestError(f"{place.name}: no input of recipe {recipe.name} has a file or an observation there")
    label_files = {rule.name: place.of(rule) for rule in recipe.labels}
    for rule in recipe.labels:
        label = read_label(rule, place, label_files[rule.name])
        if label is not None:
            chip.labels[rule.name] = label
    chip.attributes = {
        "recipe": recipe.name,
        "attribution": recipe.attribution,
        "licence": recipe.licence,
        "twins": {builder.source.name: builder.twins for builder in builders if builder.twins},
        **place.attributes(),
    }
    rows = survey_chips([chip], recipe.registry)
    if problem := wrong_scale(rows):
        raise IngestError(
            f"{place.name}: {problem}; say in the recipe how stored values become the unit (transform: {{scale: …, offset: …, function: …}})"
        )
    report.bands = band_lines(chip)
    report.suspicions = [f"{r.source} {r.band}: {r.suspicion}" for r in rows if suspicious(r)]
    report.suspicions += [text for b in builders for stated in b.stated.values() if (text := stated.suspicion())]
    report.notes = [place.extent_note] if place.extent_note else []
    report.unused = unused_variables(recipe, place, files, builders, label_files)
    return chip, report


def unused_variables(
    recipe: Recipe,
    place: PlaceFiles,
    files: dict[str, list[Path]],
    builders: list[SeriesBuilder],
    label_files: dict[str, list[Path]],
) -> list[str]:
    """Variables of the place's files, and whole files, that no input or label read."""
    used: dict[Path, set[str]] = {path: set() for path in place.asides()}
    openers: list[tuple[Input | LabelRule, Path]] = []
    for builder in builders:
        for item in builder.items:
            read = builder.decoders[item.name].used
            openers += [(item, path) for path in files[item.name]]
            for path in files[item.name]:
                used.setdefault(path, set()).update(read)
            for rule in item.other_inputs():
                for path in files[rule.input]:
                    used.setdefault(path, set()).add(rule.var)
    for label in recipe.labels:
        openers += [(label, path) for path in label_files[label.name]]
        for path in label_files[label.name]:
            used.setdefault(path, set()).add(label.var)
    lines: dict[str, None] = {}
    for opener, path in openers:
        with place.open(path, opener) as raster:
            left = [name for name in raster.variables if name not in used[path]]
        if left and len(left) < len(raster.variables):
            lines[f"{place.relative(path)}: {', '.join(left)}"] = None
    lines.update({place.relative(path): None for path in place.files if path not in used})
    return list(lines)


def convert(
    recipe: Recipe,
    root: Path,
    out: Path,
    *,
    places: tuple[str, ...] = (),
    compress: bool = True,
    workers: int = 0,
    overwrite: bool = False,
) -> Iterator[Report]:
    """Convert every place of a folder into ``out``; a chip is written whole or not at all.

    Args:
        recipe: what the folder is.
        root: the folder.
        out: folder of the chips; entries of further sources are added to its ``sources.yaml`` first.
        places: convert only these.
        compress: smaller files that load more slowly.
        workers: processes that convert places side by side; 0: this one. The chips are the same.
        overwrite: write chips again that ``out`` holds already. Otherwise those of an interrupted call with the same
            recipe and files are kept (`aef.data.making`), and others are refused before any is made.

    Yields:
        A report per place, in order of name, once its chip is on disk; of those that were kept first.

    Raises:
        IngestError, RasterError, ChipError: what is wrong, where, and what to do; chips already written stay.
    """
    found, _ = find_places(recipe, root, places)
    out.mkdir(parents=True, exist_ok=True)
    ids = {place.name: recipe.place.id_of(place.name) for place in found}
    chips = {ids[place.name]: _stamps(place) for place in found}
    with making(out, chips, _made_of(recipe), overwrite=overwrite) as kept:
        _carry_sources(recipe, out)
        for place in found:
            if ids[place.name] in kept:
                shape = (place.grid.height, place.grid.width)
                yield Report(place.name, f"{ids[place.name]}.npz", shape, notes=["kept: an interrupted call wrote it"])
        left = [place for place in found if ids[place.name] not in kept]
        yield from _convert_all(partial(_convert_to_file, recipe, out=out, compress=compress), left, workers)


def _convert_all(write: Callable[[PlaceFiles], Report], places: list[PlaceFiles], workers: int) -> Iterator[Report]:
    if workers == 0 or len(places) <= 1:
        yield from map(write, places)
        return
    # Spawned, not forked: GDAL and HDF5 keep state that a fork would share.
    with ProcessPoolExecutor(min(workers, len(places)), mp_context=get_context("spawn")) as pool:
        yield from pool.map(write, places)


def _made_of(recipe: Recipe) -> dict[str, str]:
    """What decides the content of every chip: all fields of the recipe, and its sources."""
    parts = [repr(getattr(recipe, item.name)) for item in dataclasses.fields(recipe) if item.name != "registry"]
    return {"recipe": recipe.name, "recipe_digest": digest_of([*parts, *map(repr, recipe.registry.values())])}


def _stamps(place: PlaceFiles) -> str:
    """A digest of the names, sizes and times of a place's files."""
    files = sorted({*place.files, *place.shared, *place.asides()})
    looks = ((os.path.relpath(path, place.root), path.stat()) for path in files)
    return digest_of(f"{name} {look.st_size} {look.st_mtime_ns}" for name, look in looks)


def _convert_to_file(recipe: Recipe, place: PlaceFiles, out: Path, compress: bool) -> Report:
    chip, report = convert_place(recipe, place)
    write_chip(out / report.file, chip, recipe.registry, compress=compress)
    return report


def _carry_sources(recipe: Recipe, out: Path) -> None:
    """Entries that the recipe needs beside the built-in ones travel with the chips; those of earlier recipes stay."""
    carried = {name: source for name, source in registry_of(out).items() if name not in BUILT_IN}
    needed = {item.source for item in recipe.inputs if item.source and item.source not in BUILT_IN}
    new = [source for source in recipe.sources if source.name in needed and source.name not in carried]
    registry_of(out).extended(source for source in recipe.sources if source.name in needed)
    if new:
        write_sources(out / SOURCES_FILE, [*carried.values(), *new])
