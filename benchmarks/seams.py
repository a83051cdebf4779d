"""How large are the seams of a map that is put together from many fields? On the synthetic Earth.

    python -m benchmarks.seams --checkpoint demo/run

Landscapes that the model has not seen are cut into 3 x 3 chips that abut or overlap; their fields are put together as
`aef mosaic` does. Cosines of neighbouring pixels, across the lines halfway between two chips and everywhere else, are
compared with those of the same pixels where the landscape is one chip. Prints the table of docs/mapping.md.
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
from pathlib import Path

import numpy as np

import aef
from aef.data.chips import Chip, SourceSeries
from aef.data.synthetic import Earth
from aef.evaluation.tables import markdown_table
from aef.mapping.field_choice import field_files
from aef.mapping.files import read_field, write_field
from aef.mapping.mosaic import plan_mosaic, write_mosaic
from aef.mapping.trained_model import TrainedModel

YEAR = "2019-01-01/2020-01-01"
CELLS = 3
"""Cells along a side of a landscape."""


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--checkpoint", required=True, metavar="RUN", help="run folder of a trained model")
    options.add_argument("--places", type=int, default=4, metavar="N", help="landscapes")
    options.add_argument("--cell-px", type=int, default=48, metavar="PX", help="pitch of the chips")
    options.add_argument("--overlaps", type=int, nargs="+", default=[0, 8, 16, 32], metavar="PX")
    options.add_argument("--seed", type=int, default=5, metavar="N", help="of an Earth that the run was not trained on")
    given = options.parse_args()
    model = aef.load(given.checkpoint)
    side, edge = CELLS * given.cell_px, max(given.overlaps) // 2
    earth = Earth(given.seed, side + 2 * edge, sources=model.inputs)
    cosines: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}
    for place in range(given.places):
        landscape = earth.chip(place)
        maps = {f"overlap {px} px": in_chips(model, landscape, given.cell_px, edge, px) for px in given.overlaps}
        maps["one chip"] = model.embed(cut(landscape, edge, edge, side), YEAR).values
        for name, vectors in maps.items():
            cosines.setdefault(name, []).append(between_neighbours(vectors, given.cell_px))
    rows = []
    for name, found in cosines.items():
        groups = [np.concatenate(group) for group in zip(*found)]
        rows.append([name, *(f"{value:.3f}" for group in groups for value in (group.mean(), np.percentile(group, 5)))])
    print(markdown_table(["chips", "across seams: mean", "5 %", "elsewhere: mean", "5 %"], rows))


def in_chips(model: TrainedModel, landscape: Chip, cell_px: int, edge: int, overlap_px: int) -> np.ndarray:
    """The map (D, y, x) of a landscape without its edge, from chips of a cell and half the overlap on every side."""
    half, side = overlap_px // 2, CELLS * cell_px
    with tempfile.TemporaryDirectory() as folder:
        fields, path = Path(folder) / "fields", Path(folder) / "map.tif"
        fields.mkdir()
        for i, j in np.ndindex(CELLS, CELLS):
            corner = (edge - half + i * cell_px, edge - half + j * cell_px)
            chip = dataclasses.replace(cut(landscape, *corner, cell_px + overlap_px), id=f"{i}{j}")
            write_field(fields / f"{chip.id}.tif", model.embed(chip, YEAR))
        write_mosaic(path, plan_mosaic(field_files(fields)))
        return read_field(path).values[:, half : half + side, half : half + side]


def cut(landscape: Chip, row: int, col: int, side_px: int) -> Chip:
    """A square of a landscape as a chip of its own; coarse sources keep all their cells."""

    def inner(series: SourceSeries) -> SourceSeries:
        if series.transform is not None:
            return series
        arrays = {name: getattr(series, name) for name in ("values", "valid", "weight")}
        square = (..., slice(row, row + side_px), slice(col, col + side_px))
        return dataclasses.replace(series, **{name: a[square] for name, a in arrays.items() if a is not None})

    a, b, c, d, e, f = landscape.transform
    return dataclasses.replace(
        landscape,
        height=side_px,
        width=side_px,
        transform=(a, b, c + a * col, d, e, f + e * row),
        sources={name: inner(series) for name, series in landscape.sources.items()},
        labels={},
        texts=[],
    )


def between_neighbours(vectors: np.ndarray, cell_px: int) -> tuple[np.ndarray, np.ndarray]:
    """Cosines of neighbouring pixels (D, y, x) across the borders of cells, and those inside cells."""
    unit = vectors / np.linalg.norm(vectors, axis=0)
    across, inside = [], []
    for one in (unit, unit.swapaxes(1, 2)):
        cosine = (one[:, 1:] * one[:, :-1]).sum(axis=0)
        seam = np.arange(1, one.shape[1]) % cell_px == 0
        across.append(cosine[seam].ravel())
        inside.append(cosine[~seam].ravel())
    return tuple(values[np.isfinite(values)] for values in map(np.concatenate, (across, inside)))  # type: ignore[return-value]


if __name__ == "__main__":
    main()
