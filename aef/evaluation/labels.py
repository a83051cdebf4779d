"""Labels of chips as tables for probes: which pixels count, and which independent unit each belongs to."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import ndimage

from aef.data.chips import Chip, Label
from aef.data.contract import METRES_PER_DEGREE
from aef.evaluation.probes import Labelled, ProbeError
from aef.timecode import SUPPORT_MS, Period

BLOCK_M = 200.0
Unit = Literal["field", "block", "place"]


@dataclass(frozen=True)
class LabelledPixels:
    """A `Labelled` table and where its rows lie: ``chip`` (N,) index into the chips, ``row``, ``column`` (N,)."""

    labelled: Labelled
    chip: np.ndarray
    row: np.ndarray
    column: np.ndarray

    def drawn(self, most: int, seed: int = 0) -> LabelledPixels:
        """At most `most` of the pixels, drawn at random. A class that is left with a single unit is dropped."""
        chosen = np.sort(np.random.default_rng(seed).permutation(len(self.chip))[:most])
        chosen = chosen[_in_units(self.labelled.labels[chosen], self.labelled.units[chosen], 2)]
        labelled = Labelled(self.labelled.labels[chosen], self.labelled.units[chosen])
        return LabelledPixels(labelled, self.chip[chosen], self.row[chosen], self.column[chosen])

    def gather(self, fields: Iterable[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
        """Fields by name, (D, h, w) of one chip after the other → tables by name, (N, D) of the labelled pixels."""
        tables: dict[str, np.ndarray] = {}
        for index, of_chip in enumerate(fields):
            self.fill(tables, index, of_chip)
        return tables

    def fill(self, tables: dict[str, np.ndarray], chip: int, fields: Mapping[str, np.ndarray]) -> None:
        """Put the labelled pixels of one chip's fields into tables by name, which the first chip makes."""
        mine = self.chip == chip
        for name, field in fields.items():
            if name not in tables:
                tables[name] = np.empty((len(self.chip), len(field)), field.dtype)
            tables[name][mine] = field[:, self.row[mine], self.column[mine]].T


def labelled_pixels(
    chips: Sequence[Chip], name: str, *, unit: Unit = "field", classes: Sequence[int] = (), min_units: int = 2
) -> LabelledPixels:
    """The pixels of a label raster that some chips carry, and their units.

    A field that several chips of one grid show, say in two years, is one unit: what the first of them with the label
    calls a field or block holds for the others; what it did not label belongs to the unit that the later field shares
    most ground with.

    Args:
        chips: those without the label contribute nothing.
        name: of the label.
        unit: ``field`` (its field ids, else connected regions of one class), ``block`` of 200 m, or ``place``.
        classes: codes to keep; empty: every code that is not ignored.
        min_units: classes with fewer units are dropped.

    Raises:
        ProbeError: fewer than two classes remain.
    """
    tables: list[np.ndarray] = []
    grounds: dict[tuple, tuple[int, np.ndarray]] = {}
    for index, chip in enumerate(chips):
        if name not in chip.labels:
            continue
        label = chip.labels[name]
        keep = np.isin(label.values, list(classes)) if classes else ~np.isin(label.values, list(label.ignore))
        units = _units(chip, label, unit)
        keep &= units > 0
        grid = (chip.crs, tuple(chip.transform), chip.height, chip.width)
        owner, known = grounds.get(grid, (index, np.zeros_like(units)))
        units = np.where(keep, _continued(units, known, keep), known)
        grounds[grid] = owner, units
        row, column = np.nonzero(keep)
        codes, owners = label.values[keep].astype(np.int64), np.full_like(row, owner)
        tables.append(np.stack([codes, units[keep], np.full_like(row, index), row, column, owners]))
    if not tables:
        raise ProbeError(f"no chip carries the label {name!r}")
    *_, owners = table = np.concatenate(tables, axis=1)
    table[1] = _place_numbers(chips)[table[2]] if unit == "place" else unit_numbers(owners, table[1])
    table = table[:, _in_units(table[0], table[1], min_units)]
    if len(np.unique(table[0])) < 2:
        raise ProbeError(f"label {name!r}: fewer than two classes have {min_units} {unit}s each")
    return LabelledPixels(Labelled(table[0], table[1]), *table[2:5])


def _continued(units: np.ndarray, known: np.ndarray, keep: np.ndarray) -> np.ndarray:
    """The units of a later chip (H, W), where those of earlier ones on its grid are `known` (0: none): known ground keeps
    its unit, and the rest of a field goes with most of its known ground."""
    shared = keep & (known > 0)
    fields, of_field = np.unique(units, return_inverse=True)
    joined = fields + known.max()
    pairs, counts = np.unique(
        np.stack([of_field.reshape(units.shape)[shared], known[shared]]), axis=1, return_counts=True
    )
    for (field, unit), _ in sorted(zip(pairs.T.tolist(), counts.tolist()), key=lambda pair: pair[1]):
        joined[field] = unit
    return np.where(known > 0, known, joined[of_field].reshape(units.shape))


def _in_units(codes: np.ndarray, units: np.ndarray, least: int) -> np.ndarray:
    """Which rows are of a class that lies in at least so many units, (N,) bool."""
    few = [code for code in np.unique(codes) if len(np.unique(units[codes == code])) < least]
    return ~np.isin(codes, few)


def block_units(lon: np.ndarray, lat: np.ndarray, side_m: float) -> np.ndarray:
    """Unit numbers (N,) of points by square blocks of ``side_m``: neighbours within a block are one observation.

    For labelled points rather than rasters; 2 to 5 km keep fields of one farm, and of one weather, together.
    """
    east = lon * METRES_PER_DEGREE * np.cos(np.radians(np.mean(lat)))
    corner = np.floor(np.stack([east, lat * METRES_PER_DEGREE]) / side_m)
    return unit_numbers(*corner.astype(np.int64))


def label_period(chip: Chip, name: str, span: Period) -> Period:
    """The year to judge a label in: a year around the middle of its valid period, or of the observations if it has none."""
    label = chip.labels.get(name)
    if label is not None and label.valid_start_ms is not None and label.valid_end_ms is not None:
        middle = (label.valid_start_ms + label.valid_end_ms) // 2
    else:
        middle = (span.start_ms + span.end_ms) // 2
    return year_around(middle, span)


def year_around(middle_ms: int, span: Period) -> Period:
    """A year around a time, moved inside the observations where they are longer."""
    start = middle_ms - SUPPORT_MS // 2
    latest = max(span.end_ms - SUPPORT_MS, span.start_ms)
    start = min(max(start, span.start_ms), latest)
    return Period(start, start + SUPPORT_MS)


def unit_numbers(*columns: np.ndarray) -> np.ndarray:
    """Unit numbers (N,) of columns of N integers: equal where all columns are, counted from 0 in the columns' order."""
    number = np.zeros(len(columns[0]), np.int64)
    for column in columns:
        values, rank = np.unique(column, return_inverse=True)
        number = np.unique(number * len(values) + rank, return_inverse=True)[1]
    return number


def _place_numbers(chips: Sequence[Chip]) -> np.ndarray:
    """The number of each chip's place, counted from 0 in the order of their names."""
    return np.unique([chip.place for chip in chips], return_inverse=True)[1]


def _units(chip: Chip, label: Label, unit: Unit) -> np.ndarray:
    """(H, W) positive unit numbers, unique within the chip; 0 where there is none."""
    if unit == "place":
        return np.ones(label.values.shape, np.int64)
    if unit == "block":
        side = round(BLOCK_M / abs(chip.transform[0]))
        row, column = np.indices(label.values.shape) // side
        return 1 + row * (1 + column.max()) + column
    return field_units(label)


def field_units(label: Label) -> np.ndarray:
    """(H, W) positive numbers of a label's fields, its field ids or else connected regions of one class; 0: no field."""
    if label.fields is not None:
        return label.fields.astype(np.int64)
    units = np.zeros(label.values.shape, np.int64)
    for code in np.unique(label.values):
        regions, _ = ndimage.label(label.values == code)
        units = np.where(regions > 0, regions + units.max(), units)
    return units
