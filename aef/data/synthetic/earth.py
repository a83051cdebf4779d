"""A place of the synthetic Earth as a chip, and a folder of them, on any number of cores."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from aef.clock import DAY_MS
from aef.data.chips import Chip, Label, SourceSeries, write_chip
from aef.data.making import making
from aef.data.synthetic import cover, maps, optical, radar
from aef.data.synthetic.landscape import Scene
from aef.data.synthetic.likeness import lifelike_scene
from aef.data.synthetic.texts import texts
from aef.sources import BUILT_IN

LICENCE = "CC0-1.0"
PREFIX = "synthetic_"
FIRST_YEAR = 2019
LEAST_PX, MOST_PX = 16, 4096
MOST_PLACES = 10**8
SOURCES: dict[str, Callable[[Scene], SourceSeries | None]] = {
    "sentinel2": optical.sentinel2,
    "sentinel1": radar.sentinel1,
    "landsat": optical.landsat,
    "palsar2": radar.palsar2,
    "glo30": maps.glo30,
    "gedi": maps.gedi,
    "era5_land": maps.era5_land,
    "grace": maps.grace,
    "nlcd": maps.nlcd,
}
"""How each source of the registry is rendered from a scene; None where it does not exist at that place."""

NOT_EVERYWHERE = ("nlcd",)
"""Sources that exist at some places only."""


class SyntheticError(ValueError):
    """The synthetic Earth cannot be made as asked; one line."""


@dataclass(frozen=True)
class Earth:
    """What to render.

    Attributes:
        seed: of everything; with the number of a place it decides that place wholly.
        chip_px: side of a chip, 16 to 4096.
        years: calendar years of observations, the same at every place, so that one period embeds a whole folder.
        first_year: the first of them.
        sources: names out of `SOURCES`.
    """

    seed: int = 0
    chip_px: int = 64
    years: int = 1
    sources: tuple[str, ...] = tuple(SOURCES)
    first_year: int = FIRST_YEAR

    def __post_init__(self) -> None:
        unknown = [name for name in self.sources if name not in SOURCES]
        if unknown or not self.sources:
            raise SyntheticError(
                f"sources: expected some of {', '.join(SOURCES)}, found {', '.join(unknown) or 'none'}"
            )
        if set(self.sources) <= set(NOT_EVERYWHERE):
            raise SyntheticError(
                f"sources: {', '.join(self.sources)} exists in America only: name another one beside it, which the other "
                "places hold"
            )
        limits = {"chip_px": (LEAST_PX, MOST_PX), "years": (1, 100), "seed": (0, 10**18), "first_year": (1970, 2900)}
        for name, (least, most) in limits.items():
            if not least <= getattr(self, name) <= most:
                raise SyntheticError(f"{name}: expected {least} to {most}, found {getattr(self, name)}")

    def scene(self, place: int) -> Scene:
        """The latent truth of a place."""
        return lifelike_scene(self.seed, place, px=self.chip_px, first_year=self.first_year, years=self.years)

    def chip(self, place: int) -> Chip:
        """One place with all its sources, labels and texts. Labels are those of the last year."""
        scene = self.scene(place)
        return render_chip(scene, self.sources)


def generate(
    place: int, *, seed: int = 0, chip_px: int = 64, years: int = 1, sources: Sequence[str] = tuple(SOURCES)
) -> Chip:
    """One chip of the synthetic Earth: the same for the same arguments, everywhere. Raises SyntheticError."""
    return Earth(seed, chip_px, years, tuple(sources)).chip(place)


def place_name(seed: int, place: int) -> str:
    """The name of a synthetic place and of its chip."""
    return f"{PREFIX}{seed}_{place:05d}"


def is_synthetic(name: str) -> bool:
    """Whether a place bears the name of a synthetic one."""
    return re.fullmatch(rf"{PREFIX}\d+_\d{{5,}}", name) is not None


def render_chip(scene: Scene, sources: Sequence[str]) -> Chip:
    """Every source of a scene that exists there, with labels and texts."""
    name = place_name(scene.seed, scene.place)
    rendered = {}
    for key in sources:
        series = SOURCES[key](scene)
        if series is not None:
            entry = BUILT_IN[key]
            series.bands, series.units = entry.band_names, entry.units
            series.collection = f"synthetic/{entry.collections[0]}"
            series.native_resolution_m = entry.native_resolution_m
            series.licence = LICENCE
            rendered[key] = series
    return Chip(
        id=name,
        place=name,
        crs=scene.site.crs,
        transform=scene.site.transform,
        height=scene.px,
        width=scene.px,
        lon=scene.site.lon,
        lat=scene.site.lat,
        sources=rendered,
        labels=_labels(scene),
        texts=texts(scene),
        synthetic=True,
        attributes={"seed": scene.seed, "place": scene.place, "generator": "aef.data.synthetic"},
    )


def _labels(scene: Scene) -> dict[str, Label]:
    year = len(scene.weather.year_starts) - 1
    crops, covers, ids = scene.labels(year)
    start = int(scene.weather.year_starts[year])
    end = scene.weather.start_ms + scene.weather.days * DAY_MS

    def label(values: np.ndarray, legend: dict[int, str]) -> Label:
        return Label(values, legend, (cover.UNKNOWN,), start, end, fields=ids.copy(), licence=LICENCE)

    return {"crop": label(crops, cover.CROP_LEGEND), "land_cover": label(covers, cover.COVER_LEGEND)}


def write_earth(
    earth: Earth,
    out: str | os.PathLike,
    places: int,
    *,
    workers: int = 0,
    compress: bool = False,
    overwrite: bool = False,
) -> Iterator[Path]:
    """Write the chips of places 0 to ``places`` - 1 into a folder; files are the same for any number of workers.

    Args:
        workers: processes; 0 renders in this one.
        compress: a third of the space, and several times slower to write.
        overwrite: write chips again that the folder holds already. Otherwise those of an interrupted call of the same
            Earth are kept (`aef.data.making`), and others are refused before any is made.

    Yields:
        Each file, once it is on disk, in order; those that were kept first.

    Raises:
        SyntheticError: fewer than one place, or a negative number of workers.
        ChipError: the folder holds some of these chips already.
    """
    require_counts(places, workers)
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    names = [place_name(earth.seed, place) for place in range(places)]
    with making(folder, dict.fromkeys(names, ""), dataclasses.asdict(earth), overwrite=overwrite) as kept:
        yield from (folder / f"{name}.npz" for name in names if name in kept)
        yield from _write_all(
            [(earth, i, folder, compress) for i, name in enumerate(names) if name not in kept], workers
        )


def require_counts(places: int, workers: int) -> None:
    """Refuse numbers of places and of processes that cannot be. Raises SyntheticError."""
    if not 1 <= places <= MOST_PLACES or workers < 0:
        raise SyntheticError(
            f"expected at least one place, at most {MOST_PLACES:,}, and no negative workers, found {places} and {workers}"
        )


def _write_all(jobs: list[tuple[Earth, int, Path, bool]], workers: int) -> Iterator[Path]:
    if workers == 0 or not jobs:
        yield from map(_write, jobs)
        return
    with ProcessPoolExecutor(min(workers, len(jobs))) as pool:
        yield from pool.map(_write, jobs, chunksize=max(1, min(8, len(jobs) // (4 * workers))))


def _write(job: tuple[Earth, int, Path, bool]) -> Path:
    earth, place, folder, compress = job
    chip = earth.chip(place)
    return write_chip(folder / f"{chip.id}.npz", chip, BUILT_IN, compress=compress)
