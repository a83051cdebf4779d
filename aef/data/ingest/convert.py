"""A folder of rasters and a recipe → chips, one place at a time."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

from aef.data.chips import Chip, require_free, write_chip
from aef.data.ingest.labels import read_label
from aef.data.ingest.places import IngestError, PlaceFiles, find_places
from aef.data.ingest.report import Report, band_lines, frame_line
from aef.data.ingest.schema import Input, LabelRule, Recipe
from aef.data.ingest.series import SeriesBuilder
from aef.data.plausibility import UNSEEN, survey_chips, wrong_scale
from aef.settings_file import SOURCES_FILE, registry_of, write_sources
from aef.sources import BUILT_IN


def convert_place(recipe: Recipe, place: PlaceFiles) -> tuple[Chip, Report]:
    """Read one place into memory, frame by frame.

    Raises:
        IngestError, RasterError: the files do not fit the recipe, or their values cannot be in the source's unit; one line
            naming place, input and file.
    """
    files = {item.name: place.of(item) for item in recipe.inputs}
    height, width = place.grid.height, place.grid.width
    lon, lat = place.lon_lat()
    chip = Chip(
        id=_chip_id(recipe, place),
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
    report.suspicions = [f"{r.source} {r.band}: {r.suspicion}" for r in rows if r.suspicion not in ("", UNSEEN)]
    report.suspicions += [text for b in builders for stated in b.stated.values() if (text := stated.suspicion())]
    report.notes = [place.extent_note] if place.extent_note else []
    report.unused = unused_variables(recipe, place, files, builders, label_files)
    return chip, report


def _chip_id(recipe: Recipe, place: PlaceFiles) -> str:
    return recipe.place.id.format(place=place.name)


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
    workers: int = 1,
    overwrite: bool = False,
) -> Iterator[Report]:
    """Convert every place of a folder into ``out``; a chip is written whole or not at all.

    Args:
        recipe: what the folder is.
        root: the folder.
        out: folder of the chips; entries of further sources are added to its ``sources.yaml`` first.
        places: convert only these.
        compress: smaller files that load more slowly.
        workers: processes that convert places side by side; the chips are the same.
        overwrite: write chips again that ``out`` holds already; otherwise they are refused before any is made.

    Yields:
        A report per place, in order of name, once its chip is on disk.

    Raises:
        IngestError, RasterError, ChipError: what is wrong, where, and what to do; chips already written stay.
    """
    found, _ = find_places(recipe, root, places)
    out.mkdir(parents=True, exist_ok=True)
    if not overwrite:
        require_free(out, (_chip_id(recipe, place) for place in found))
    _carry_sources(recipe, out)
    write = partial(_convert_to_file, recipe, out=out, compress=compress)
    if workers <= 1 or len(found) == 1:
        yield from map(write, found)
        return
    # Spawned, not forked: GDAL and HDF5 keep state that a fork would share.
    with ProcessPoolExecutor(min(workers, len(found)), mp_context=get_context("spawn")) as pool:
        yield from pool.map(write, found)


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
