"""Mean and deviation of every band over the training set, with where they come from; `CHIPS/stats.json`.

Statistics are taken over *clear* pixels by default: with clouds in, the deviation of a visible band is two to three
times the clear one and the signal shrinks to a third (docs/data.md). They are bound to the bands of their source.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from aef import atomic
from aef.data.chips import Chip, ChipError, ChipFolder, SourceSeries, validate
from aef.data.transform import transform
from aef.data.withheld import WithheldDates
from aef.sources import Registry, Source

FORMAT_VERSION = 1
FILE_NAME = "stats.json"


class StatisticsError(ValueError):
    """Statistics are missing, foreign, damaged or applied twice; one line naming file and source."""


@dataclass(frozen=True)
class SourceStatistics:
    """Mean and standard deviation of every band after the transform, and where they come from.

    ``count`` is the number of observations behind each band; a band that was never observed has count 0, mean 0 and
    standard deviation 1, and so passes through unscaled.
    """

    bands: tuple[str, ...]
    units: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    count: tuple[int, ...]
    collections: tuple[str, ...] = ()

    @property
    def unobserved(self) -> tuple[str, ...]:
        return tuple(band for band, count in zip(self.bands, self.count) if count == 0)


@dataclass(frozen=True)
class TakenOver:
    """What statistics were taken over: how many chips, and a digest of these and of the dates left out.

    Statistics of other values than a model sees shrink or blow up its signal, and nothing else would tell.
    """

    chips: int
    digest: str

    @classmethod
    def of(cls, folder: ChipFolder, places: Collection[str] | None, withheld: WithheldDates | None) -> TakenOver:
        """Of the chips of some places (None: all) without the withheld dates. Reads headers, no pixels."""
        indices = _indices(folder, places)
        found = hashlib.sha256(folder.digest(indices).encode())
        if withheld is not None:
            found.update(json.dumps([sorted(withheld.dates().items()), withheld.twin_ms]).encode())
        return cls(len(indices), found.hexdigest())


class Statistics(Mapping[str, SourceStatistics]):
    """Normalisation statistics by source, with their provenance.

    Attributes:
        weighting: ``clear`` (observed pixels, weighted by their loss weight) or ``valid`` (every observed pixel), or
            ``identity``.
        date: when they were taken, ISO.
        places: the places behind them.
        skipped: files left out because they break the chip contract.
        taken_over: the chips and dates behind them, None where that is not known.
    """

    def __init__(
        self,
        sources: Mapping[str, SourceStatistics],
        *,
        weighting: str,
        date: str,
        places: Iterable[str] = (),
        skipped: int = 0,
        taken_over: TakenOver | None = None,
    ) -> None:
        self._sources = dict(sources)
        self.weighting, self.date, self.places, self.skipped = weighting, date, tuple(places), skipped
        self.taken_over = taken_over

    def __getitem__(self, name: str) -> SourceStatistics:
        return self._sources[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._sources)

    def __len__(self) -> int:
        return len(self._sources)

    def require(self, source: Source) -> SourceStatistics:
        """The statistics of a source.

        Raises:
            StatisticsError: there are none, they belong to other bands or units, or the source is categorical.
        """
        if source.classes:
            raise StatisticsError(f"source {source.name}: class codes have no mean; they are not standardised")
        if source.name not in self:
            raise StatisticsError(
                f"source {source.name}: no statistics, only of {', '.join(self) or 'nothing'}: "
                "take them again with `aef stats` over chips that hold it"
            )
        found = self[source.name]
        for what, expected, given in (
            ("bands", source.band_names, found.bands),
            ("units", source.units, found.units),
        ):
            if expected != given:
                raise StatisticsError(
                    f"source {source.name}: statistics of another source: expected {what} {', '.join(expected)}, "
                    f"found {', '.join(given)}"
                )
        return found

    @classmethod
    def identity(cls, registry: Registry, names: Iterable[str]) -> Statistics:
        """Mean 0 and deviation 1 after the transform: for tests and for values of known scale."""
        sources = {}
        for source in (registry[name] for name in names):
            if not source.classes:
                count = source.channels
                sources[source.name] = SourceStatistics(
                    source.band_names, source.units, (0.0,) * count, (1.0,) * count, (0,) * count
                )
        return cls(sources, weighting="identity", date=_today())

    @classmethod
    def of_chips(
        cls,
        chips: ChipFolder | Iterable[Chip],
        registry: Registry,
        *,
        weighting: Literal["clear", "valid"] = "clear",
        places: Collection[str] | None = None,
        withheld: WithheldDates | None = None,
        skip_bad: bool = False,
        progress: Callable[[], None] = lambda: None,
    ) -> Statistics:
        """Stream over chips once, in float64, and merge their moments.

        Every value is checked on the way: statistics are where a wrong unit or an undeclared no-data value turns into a
        silently shrunken signal.

        Args:
            chips: a folder, or any chips.
            registry: their sources.
            weighting: ``clear`` weights each observation by its loss weight, ``valid`` counts all observed ones.
            places: only chips of these places; None: all.
            withheld: dates to leave out, as training does.
            skip_bad: count chips that break the contract instead of stopping.
            progress: called after every chip.

        Raises:
            ChipError: a chip breaks the contract.
            StatisticsError: no chip is left.
        """
        moments: dict[str, _Moments] = {}
        seen: set[str] = set()
        skipped = 0
        for read in _readers(chips, registry, places):
            try:
                chip = read()
            except ChipError:
                if not skip_bad:
                    raise
                skipped += 1
                continue
            seen.add(chip.place)
            for name, series in chip.sources.items():
                source = registry[name]
                if not source.classes:
                    moments.setdefault(name, _Moments(source)).add(chip, series, weighting, withheld)
            progress()
        if not seen:
            raise StatisticsError(
                f"no chip to take statistics over: {skipped} were skipped"
                + (f" and none is of the places {', '.join(sorted(places))}" if places is not None else "")
            )
        sources = {name: moments[name].result() for name in registry if name in moments}
        over = TakenOver.of(chips, places, withheld) if isinstance(chips, ChipFolder) else None
        return cls(sources, weighting=weighting, date=_today(), places=sorted(seen), skipped=skipped, taken_over=over)

    def write(self, path: str | os.PathLike) -> Path:
        """Write as JSON, atomically. Raises OSError."""
        content = {
            "format_version": FORMAT_VERSION,
            "date": self.date,
            "weighting": self.weighting,
            "places": list(self.places),
            "skipped": self.skipped,
            "taken_over": None if self.taken_over is None else dataclasses.asdict(self.taken_over),
            "sources": {name: dataclasses.asdict(found) for name, found in self.items()},
        }
        with atomic.writing(path, "w") as stream:
            json.dump(content, stream, indent=1)
        return Path(path)

    @classmethod
    def read(cls, path: str | os.PathLike) -> Statistics:
        """Inverse of :meth:`write`.

        Raises:
            FileNotFoundError: there is no such file.
            StatisticsError: it is damaged or of a newer format.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such file: make it with `aef stats --data {path.parent}`")
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            version = content["format_version"]
            if not isinstance(version, int) or version > FORMAT_VERSION:
                raise StatisticsError(
                    f"format_version: expected up to {FORMAT_VERSION}, found {version}: update the software"
                )
            sources = {name: _read_source(name, fields) for name, fields in content["sources"].items()}
            keys = ("weighting", "date", "places", "skipped")
            over = content.get("taken_over")  # absent in files of earlier versions
            return cls(
                sources,
                **{key: content[key] for key in keys},
                taken_over=None if over is None else TakenOver(over["chips"], over["digest"]),
            )
        except StatisticsError as error:
            raise StatisticsError(f"{path}: {error}") from None
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise StatisticsError(
                f"{path}: is damaged or not a statistics file ({type(error).__name__}: {str(error)[:120]}): "
                "take them again with `aef stats`"
            ) from error


def _today() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%d")


def _read_source(name: str, fields: Mapping[str, Any]) -> SourceStatistics:
    found = SourceStatistics(
        **{field.name: tuple(fields[field.name]) for field in dataclasses.fields(SourceStatistics)}
    )
    widths = {len(getattr(found, key)) for key in ("bands", "units", "mean", "std", "count")}
    if len(widths) != 1:
        raise StatisticsError(f"source {name}: bands, units, mean, std and count differ in length")
    if not all(math.isfinite(m) and math.isfinite(s) and s > 0 for m, s in zip(found.mean, found.std)):
        raise StatisticsError(f"source {name}: expected finite means and positive deviations")
    return found


def _readers(
    chips: ChipFolder | Iterable[Chip], registry: Registry, places: Collection[str] | None
) -> Iterator[Callable[[], Chip]]:
    """One callable per wanted chip, so that a caller can skip those that fail to read."""
    if isinstance(chips, ChipFolder):
        for index in _indices(chips, places):
            yield partial(chips.read, index, check_values=True)
        return
    for chip in chips:
        if places is None or chip.place in places:
            yield partial(_validated, chip, registry)


def _indices(folder: ChipFolder, places: Collection[str] | None) -> list[int]:
    """The chips of some places. One whose header cannot be read is of no known place: reading it says why."""
    if places is None:
        return list(range(len(folder)))
    return [index for index, place in enumerate(folder.places()) if place is None or place in places]


def _validated(chip: Chip, registry: Registry) -> Chip:
    validate(chip, registry, file=chip.id)
    return chip


class _Moments:
    """Weighted count, mean and sum of squared deviations per band, merged chip by chip (Chan et al. 1979), float64."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.weight = np.zeros(source.channels)
        self.mean = np.zeros(source.channels)
        self.square = np.zeros(source.channels)
        self.count = np.zeros(source.channels, np.int64)
        self.collections: set[str] = set()

    def add(self, chip: Chip, series: SourceSeries, weighting: str, withheld: WithheldDates | None) -> None:
        if series.collection:
            self.collections.add(series.collection)
        keep = np.ones(series.frames, np.bool_)
        if withheld is not None and series.time_ms is not None and self.source.time == "instant":
            keep = ~withheld.frames(chip.place, self.source.name, series.time_ms)
        # One frame at a time: a year of a chip in float64 would take eight times its memory.
        takes = [keep] if self.source.grid == "points" else [slice(i, i + 1) for i in np.flatnonzero(keep)]
        for take in takes:
            self._merge(series.values[take], series.valid[take], _weights(series, take, weighting))

    def _merge(self, values: np.ndarray, valid: np.ndarray, weights: np.ndarray | None) -> None:
        last = np.moveaxis(values, 1, -1)  # (..., C)
        y = transform(self.source, torch.from_numpy(np.ascontiguousarray(last))).numpy()
        observed = np.broadcast_to(np.moveaxis(valid, 1, -1), last.shape)
        importance = None if weights is None else np.broadcast_to(np.moveaxis(weights, 1, -1), last.shape)
        for band in range(self.source.channels):
            weight = None if importance is None else importance[..., band]
            self._merge_band(band, y[..., band], observed[..., band], weight)

    def _merge_band(self, band: int, y: np.ndarray, observed: np.ndarray, importance: np.ndarray | None) -> None:
        if importance is not None:
            observed = observed & (importance > 0)
        x = y[observed].astype(np.float64)
        if not x.size:
            return
        w = np.ones(x.size) if importance is None else importance[observed] / 255.0
        total = w.sum()
        mean = float((w * x).sum() / total)
        square = float((w * (x - mean) ** 2).sum())
        joint = self.weight[band] + total
        step = mean - self.mean[band]
        self.square[band] += square + step**2 * self.weight[band] * total / joint
        self.mean[band] += step * total / joint
        self.weight[band] = joint
        self.count[band] += x.size

    def result(self) -> SourceStatistics:
        std = np.sqrt(self.square / np.maximum(self.weight, 1e-300))
        # A constant band (one place of a coarse source) carries no scale: its z-score is 0 whatever the deviation.
        std = np.where(std > 1e-6 * np.maximum(np.abs(self.mean), 1e-6), std, 1.0)
        return SourceStatistics(
            self.source.band_names,
            self.source.units,
            tuple(map(float, self.mean)),
            tuple(map(float, std)),
            tuple(map(int, self.count)),
            tuple(sorted(self.collections)),
        )


def _weights(series: SourceSeries, take: slice | np.ndarray, weighting: str) -> np.ndarray | None:
    return series.weight[take] if weighting == "clear" and series.weight is not None else None
