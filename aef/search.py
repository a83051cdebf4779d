"""Search by words or by example: the similarity of every pixel of embedding fields to one direction.

Texts and places share one sphere (paper section 4.5): the trained text head turns a text and a valid period into a
direction, and its cosine with an embedding says how well the text describes the pixel in that period. A pixel's own
embedding is a direction as well.

    model = aef.load("RUN")
    vector = run_tower("RUN").encode(["a lake in the mountains"])[0]
    fields = embed_fields(model, ChipFolder("CHIPS", model.registry), "2019-01-01/2020-01-01")
    for match in search(fields, lambda field: text_direction(model, vector, field), top=5):
        print(match.chip, match.lon, match.lat, match.similarity)
"""

from __future__ import annotations

import csv
import heapq
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from pyproj import Transformer
from rasterio.transform import rowcol
from rasterio.transform import xy as raster_xy
from rasterio.warp import transform as warp

from aef.atomic import writing
from aef.data.arrays import transform_of
from aef.data.chips import ChipFolder
from aef.figure_file import new_figure, save_png
from aef.mapping.chip_choice import periods_by_chip, read_times
from aef.mapping.field_windows import Thinned, windows
from aef.mapping.files import WriteWindow, origin_tags, writing_map
from aef.mapping.picture import PANELS, pca_rgb, similarity
from aef.mapping.trained_model import TrainedModel
from aef.run import TEXT_TOWER
from aef.text.tower import TextTower, TowerIdentity, is_file
from aef.timecode import Period, format_time, parse_period

if TYPE_CHECKING:
    import xarray


class SearchError(ValueError):
    """A search that cannot be made; one line."""


@dataclass(frozen=True)
class Match:
    """The best pixel of one field, and for a picture every ``step``-th pixel of the field.

    Attributes:
        map: (y, x), similarity.
        vectors: (D, y, x), of the same pixels. In both the best pixel stands for the one that is nearest to it.
    """

    chip: str
    place: str
    period: str
    row: int
    col: int
    lon: float
    lat: float
    similarity: float
    step: int
    map: np.ndarray
    vectors: np.ndarray


# --- fields ----------------------------------------------------------------------------------------------------------


class Searched(NamedTuple):
    """The chips that are searched, all over one period, and those that did not observe it."""

    period: Period
    paths: list[Path]
    left_out: list[Path]


def chips_to_search(model: TrainedModel, chips: ChipFolder, period: str | Period | None = None) -> Searched:
    """Which chips are searched over a period: of several of one place, the one that observed most of it.

    Vectors of different seasons compare seasons as much as places, so all are of one period; None: the calendar year
    that the chips observed most of. Chips without a frame in that year are left out.

    Raises:
        SearchError: ``period`` is None, and no chip holds a frame of an input.
    """
    times = [read_times(path, model.inputs) for path in chips.files]
    wanted = parse_period(period) if isinstance(period, str) else period
    left_out: list[Path] = []
    if wanted is None:
        wanted = year_of_most(chip.span for chip in times)
        left_out = [chip.path for chip in times if chip.span is not None and not _overlap_ms(chip.span, wanted)]
        times = [chip for chip in times if chip.path not in set(left_out)]
    chosen = periods_by_chip(times, [wanted])
    return Searched(wanted, [path for path, periods in chosen.items() if periods], left_out)


def year_of_most(spans: Iterable[Period | None]) -> Period:
    """The calendar year that observed spans cover most of in sum, the later of equals. Raises SearchError without a span."""
    held = [span for span in spans if span is not None]
    if not held:
        raise SearchError("no chip holds a frame of an input of the model: nothing to search")
    first, last = min(_year(span.start_ms) for span in held), max(_year(span.end_ms - 1) for span in held)
    years = [parse_period(f"{year}-01-01/{year + 1}-01-01") for year in range(last, first - 1, -1)]
    return max(years, key=lambda year: sum(_overlap_ms(span, year) for span in held))


def _year(time_ms: int) -> int:
    return int(format_time(time_ms)[:4])


def _overlap_ms(a: Period, b: Period) -> int:
    return max(0, min(a.end_ms, b.end_ms) - max(a.start_ms, b.start_ms))


def embed_fields(
    model: TrainedModel, chips: ChipFolder, period: str | Period | None = None
) -> Iterator[xarray.DataArray]:
    """The embedding fields of `chips_to_search`, one at a time, over one valid period."""
    searched = chips_to_search(model, chips, period)
    return (model.embed(path, searched.period) for path in searched.paths)


# --- directions ------------------------------------------------------------------------------------------------------


def run_tower(run: str | os.PathLike, weights: str | None = None, *, device: str = "cpu") -> TextTower:
    """The text tower that a run learnt from.

    Args:
        weights: its weights, where they are not those of the run by name: a local file.

    Raises:
        SearchError: the run learnt from no text.
        TowerError: the weights cannot be had, or are not those of the run.
    """
    path = Path(run) / TEXT_TOWER
    if not path.is_file():
        raise SearchError(f"{run}: this run learnt from no text: train on chips with texts and `aef text --encode`")
    identity = TowerIdentity.read(path)
    fixed = identity.weights == "fixed random"
    if weights is None and is_file(identity.weights) and not Path(identity.weights).is_file():
        raise SearchError(f"{run}: its text tower was read from a file {identity.weights}: name it by --weights FILE")
    tower = TextTower(identity.name, None if fixed else weights or identity.weights, device=device)
    tower.identity.require(identity, str(path))
    return tower


def text_direction(model: TrainedModel, vector: np.ndarray, field: xarray.DataArray) -> np.ndarray:
    """The direction (D,) of a text in the period of a field.

    Args:
        vector: (text_dim,) of the text, by the tower that the run learnt from (`run_tower`).

    Raises:
        SearchError: the model has no text head, the vector does not fit it, or the field states no period.
    """
    head = model.network.text_head
    if head is None:
        raise SearchError("this model has no text head: it learnt from no text")
    width = model.config.model.text_dim
    if vector.shape != (width,):
        raise SearchError(f"expected a text vector of width {width}, found shape {vector.shape}: of another tower")
    if "period" not in field.attrs:
        raise SearchError(f"{field.attrs.get('chip', 'the field')}: states no period: embed it with `aef embed`")
    period = parse_period(field.attrs["period"])
    periods = torch.tensor([period], device=model.device)
    with torch.inference_mode():
        direction, _ = head(torch.from_numpy(vector[None]).to(model.device), periods, model.network.compute_dtype)
    return direction[0].float().cpu().numpy()


def pixel_direction(fields: Iterable[xarray.DataArray], lon: float, lat: float) -> np.ndarray:
    """The embedding (D,) of the pixel that holds a position.

    Raises:
        SearchError: no field holds it, its pixel is no data, or fields of several periods hold it.
    """
    by_period: dict[str, np.ndarray] = {}
    for field in fields:
        row, col = pixel_at(field, lon, lat)
        if 0 <= row < field.sizes["y"] and 0 <= col < field.sizes["x"]:
            period, vector = str(field.attrs.get("period", "")), field[:, row, col].values
            if (
                period not in by_period or not np.isfinite(by_period[period]).all()
            ):  # another field may have observed it
                by_period[period] = vector
    if not by_period:
        raise SearchError(f"no field holds {at(lon, lat)} (longitude, latitude)")
    if len(by_period) > 1:
        raise SearchError(
            f"{at(lon, lat)}: fields of {', '.join(sorted(by_period))} hold this pixel: choose one by --period"
        )
    (vector,) = by_period.values()
    if not np.isfinite(vector).all():
        raise SearchError(f"{at(lon, lat)}: no frame observed this pixel, so it has no vector: choose another")
    return vector


def at(lon: float, lat: float) -> str:
    """A position as `--at` takes it: longitude first, to 1 m."""
    return ",".join(f"{round(degrees, 5):.10g}" for degrees in (lon, lat))


def pixel_at(field: xarray.DataArray, lon: float, lat: float) -> tuple[int, int]:
    """Row and column of the pixel that holds a position; they may lie outside.

    (-1, -1) for one that the field's projection does not reach, a quarter of the globe away.
    """
    x, y = Transformer.from_crs("EPSG:4326", field.rio.crs, always_xy=True).transform(lon, lat)
    if not np.isfinite([x, y]).all():
        return -1, -1
    row, col = rowcol(transform_of(field), x, y)
    return int(row), int(col)


# --- search ----------------------------------------------------------------------------------------------------------


def search(
    fields: Iterable[xarray.DataArray],
    direction: np.ndarray | Callable[[xarray.DataArray], np.ndarray],
    *,
    top: int = 5,
    open_map: Callable[[xarray.DataArray], AbstractContextManager[WriteWindow]] | None = None,
) -> list[Match]:
    """The fields that come nearest to a direction by their best pixel, best first.

    Args:
        fields: (band, y, x), taken one at a time and window by window, so that those of `open_field` may be larger than
            memory.
        direction: (D,) for all fields, or a function that gives it for one, as a text's depends on the period.
        top: how many.
        open_map: gives of every field where its similarity map is written, window by window (`writing_similarity`).

    Raises:
        SearchError: there is no field, or none with a vector in it.
    """
    best: list[tuple[float, int, Match]] = []
    for number, field in enumerate(fields):
        vector = direction(field) if callable(direction) else direction
        if field.sizes["band"] != len(vector):
            raise SearchError(f"expected fields of {len(vector)} bands, found {field.sizes['band']} in {_name(field)}")
        with open_map(field) if open_map else nullcontext() as write:
            match = _best_pixel(field, vector, write)
        if match:
            heapq.heappush(best, (match.similarity, -number, match))
            if len(best) > top:
                heapq.heappop(best)
    if not best:
        raise SearchError("there is no embedding field to search, or none that holds a vector")
    return [match for _, _, match in sorted(best, key=lambda item: item[:2], reverse=True)]


def _name(field: xarray.DataArray) -> str:
    return str(field.attrs.get("chip", "field"))


def _best_pixel(field: xarray.DataArray, vector: np.ndarray, write: WriteWindow | None) -> Match | None:
    """The pixel of a field that is nearest to a vector, of equals the first; None of a field without a vector."""
    best: tuple[float, int, int] | None = None
    map_, shown = Thinned(field.shape[1:]), Thinned(field.shape)
    for rows, columns, vectors in windows(field):
        part = similarity(vectors, vector).astype(np.float32)
        if write:
            write(rows, columns, part)
        map_.take(rows, columns, part)
        shown.take(rows, columns, vectors)
        if np.isfinite(part).any():
            row, col = (int(i) for i in np.unravel_index(np.nanargmax(part), part.shape))
            found = (float(part[row, col]), -rows.start - row, -columns.start - col)
            if best is None or found > best:
                best, example = found, vectors[:, row, col].copy()
    if best is None:
        return None
    nearest, row, col = best[0], -best[1], -best[2]
    map_.put(row, col, nearest)
    shown.put(row, col, example)
    x, y = raster_xy(transform_of(field), row, col)
    (lon,), (lat,) = warp(field.rio.crs, "EPSG:4326", [x], [y])
    name = _name(field)
    place, period = str(field.attrs.get("place", name)), str(field.attrs.get("period", ""))
    return Match(name, place, period, row, col, lon, lat, nearest, map_.step, map_.values, shown.values)


# --- what a search leaves behind -------------------------------------------------------------------------------------


def map_name(field: xarray.DataArray) -> str:
    """The file name of a field's similarity map: CHIP_START_END_similarity.tif."""
    period = str(field.attrs.get("period", "")).replace("/", "_").replace(":", "")
    return "_".join(word for word in (_name(field), period, "similarity.tif") if word)


def writing_similarity(path: Path, field: xarray.DataArray, query: str) -> AbstractContextManager[WriteWindow]:
    """A similarity map, to be written as `writing_map` says: a float32 GeoTIFF that says to what, when and by which model."""
    return writing_map(path, field, bands=["cosine similarity"], tags=origin_tags(field) | {"query": query})


def write_matches(path: Path, matches: Sequence[Match]) -> None:
    """The best pixels as a table, atomically. Raises OSError where it cannot be written."""
    with writing(path, "w") as stream:
        table = csv.writer(stream, lineterminator="\n")
        table.writerow(("rank", "chip", "place", "period", "lon", "lat", "row", "col", "similarity"))
        for rank, match in enumerate(matches, 1):
            where = (f"{match.lon:.6f}", f"{match.lat:.6f}", match.row, match.col)
            table.writerow((rank, match.chip, match.place, match.period, *where, f"{match.similarity:.4f}"))


def write_picture(path: Path, matches: Sequence[Match], query: str) -> None:
    """A picture: the best fields' embeddings in false colours (shared), and how similar each pixel is to the query."""
    matches = matches[:PANELS]
    colours = pca_rgb([match.vectors for match in matches])
    low = min(float(np.nanpercentile(match.map, 2)) for match in matches)
    high = max(match.similarity for match in matches)
    figure = new_figure(2.6 * len(matches) + 0.8, 5.8)
    axes = figure.subplots(2, len(matches), squeeze=False)
    for column, (match, colour) in enumerate(zip(matches, colours)):
        axes[0, column].imshow(colour, interpolation="nearest")
        axes[0, column].set_title(f"{column + 1}. {match.place}\nlon, lat {at(match.lon, match.lat)}", fontsize=8)
        image = axes[1, column].imshow(match.map, cmap="viridis", vmin=low, vmax=high, interpolation="nearest")
        axes[1, column].plot(match.col // match.step, match.row // match.step, "o", mfc="none", mec="red", ms=9)
        axes[1, column].set_title(f"cosine {match.similarity:.2f}", fontsize=8)
        for axis in axes[:, column]:
            axis.set_xticks([])
            axis.set_yticks([])
    figure.colorbar(image, ax=axes[1, :].tolist(), shrink=0.8)
    figure.suptitle(query, fontsize=10)
    save_png(path, figure)
