"""Mean and deviation of every band over the training set, with where they come from; `CHIPS/stats.json`.

Statistics are taken over *clear* pixels by default: with clouds in, the deviation of a visible band is two to three
times the clear one and the signal shrinks to a third (docs/data.md). They are bound to the bands of their source.
"""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import json
import math
import os
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Literal

from aef import atomic
from aef.data.chip_subset import Part, draw_chips
from aef.data.chips import Chip, ChipFolder, validate
from aef.data.moments import SourceStatistics
from aef.data.statistics_pass import PartialStatistics, StatisticsReader, read_in_blocks
from aef.data.withheld import WithheldDates
from aef.sources import Registry, Source

FORMAT_VERSION = 2
FILE_NAME = "stats.json"

SAMPLE = 20_000
"""Chips that a run draws for statistics of its own where it has more: a mean over so many places is known to far less
than a hundredth of a deviation, and reading millions takes days."""

MOST_PLACES = 10_000
"""Names of more places lie in a file of their own beside the statistics, which is read when somebody asks."""

_FORM = "2:"


class StatisticsError(ValueError):
    """Statistics are missing, foreign, damaged or applied twice; one line naming file and source."""


@dataclass(frozen=True)
class TakenOver:
    """What statistics were taken over: how many chips, and a digest of these and of the dates left out.

    Statistics of other values than a model sees shrink or blow up its signal, and nothing else would tell. ``sampled``
    of the chips were read, drawn with ``seed``; None: all.
    """

    chips: int
    digest: str
    sampled: int | None = None
    seed: int | None = None

    @classmethod
    def of(cls, folder: ChipFolder, places: Collection[str] | None, withheld: WithheldDates | None) -> TakenOver:
        """Of the chips of some places (None: all) without the withheld dates. Reads no pixels."""
        indices = _indices(folder, places)
        digest = hashlib.sha256(folder.digest(indices).encode())
        if withheld is not None:
            digest.update(json.dumps([sorted(withheld.dates().items()), withheld.twin_ms]).encode())
        return cls(len(indices), _FORM + digest.hexdigest())

    @property
    def is_of_this_form(self) -> bool:
        """Whether the digest can be compared: earlier versions took another."""
        return self.digest.startswith(_FORM)

    def fits(self, other: TakenOver) -> bool:
        """Whether both are of the same chips and dates, however many of them were read."""
        return (self.chips, self.digest) == (other.chips, other.digest)


class Statistics(Mapping[str, SourceStatistics]):
    """Normalisation statistics by source, with their provenance.

    Attributes:
        weighting: ``clear`` (observed pixels, weighted by their loss weight) or ``valid`` (every observed pixel), or
            ``identity``.
        date: when they were taken, ISO.
        places: the training places behind them, the chips that were not drawn included; in a run that was given others'
            statistics, its own training places too, so that they are known to have been seen.
        skipped: files left out because they break the chip contract.
        taken_over: the chips and dates behind them, None where that is not known.
    """

    def __init__(
        self,
        sources: Mapping[str, SourceStatistics],
        *,
        weighting: str,
        date: str,
        places: Iterable[str] | PlacesFile = (),
        skipped: int = 0,
        taken_over: TakenOver | None = None,
    ) -> None:
        self._sources = dict(sources)
        self.weighting, self.date, self.skipped = weighting, date, skipped
        self._places = places if isinstance(places, PlacesFile) else tuple(places)
        self.taken_over = taken_over

    @property
    def places(self) -> tuple[str, ...]:
        """Raises StatisticsError where the names lie in a file that is gone or another's."""
        if isinstance(self._places, PlacesFile):
            self._places = self._places.read()
        return self._places

    def also_of(self, places: Collection[str]) -> Statistics:
        """The same statistics, of a run that learns from these places whatever they were taken over."""
        return Statistics(
            self._sources,
            weighting=self.weighting,
            date=self.date,
            places=sorted({*self.places, *places}),
            skipped=self.skipped,
            taken_over=self.taken_over,
        )

    def lacks(self, source: Source) -> bool:
        """Whether some band of a source was never observed. Classes have no statistics to lack."""
        return not source.classes and (source.name not in self or not all(self[source.name].count))

    def completed_by(self, other: Statistics, sources: Iterable[Source]) -> Statistics:
        """These, and others' of bands of some sources that were never observed here; what both are taken over is then no
        one set of chips, and not remembered.

        Raises:
            StatisticsError: the others have none of such a source, or of other bands.
        """
        completed = dict(self._sources)
        for source in filter(self.lacks, sources):
            others = other.require(source)
            completed[source.name] = self[source.name].completed_by(others) if source.name in self else others
        return Statistics(
            completed,
            weighting=other.weighting,
            date=other.date,
            places=sorted({*self.places, *other.places}),
            skipped=other.skipped,
        )

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
        statistics = self[source.name]
        for what, expected, given in (
            ("bands", source.band_names, statistics.bands),
            ("units", source.units, statistics.units),
        ):
            if expected != given:
                raise StatisticsError(
                    f"source {source.name}: statistics of another source: expected {what} {', '.join(expected)}, "
                    f"found {', '.join(given)}"
                )
        return statistics

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
        sample: int | None = None,
        seed: int = 0,
        workers: int = 1,
        progress: Callable[[], None] = lambda: None,
    ) -> Statistics:
        """Stream over chips once, in float64, and merge their moments; the result knows nothing of ``workers``.

        Every value is checked on the way: statistics are where a wrong unit or an undeclared no-data value turns into a
        silently shrunken signal.

        Args:
            chips: a folder, or any chips.
            registry: their sources.
            weighting: ``clear`` weights each observation by its loss weight, ``valid`` counts all observed ones.
            places: only chips of these places; None: all.
            withheld: dates to leave out, as training does.
            skip_bad: count chips that break the contract instead of stopping.
            sample: read about so many chips of a folder, drawn with ``seed`` (`aef.data.chip_subset`); None: all.
            workers: processes that read a folder.
            progress: called for every chip.

        Raises:
            ChipError: a chip breaks the contract.
            StatisticsError: no chip is left.
        """
        reader = StatisticsReader(registry, weighting, withheld, skip_bad)
        if not isinstance(chips, ChipFolder):
            wanted = (chip for chip in chips if places is None or chip.place in places)
            read = reader.read((partial(_validated, chip, registry) for chip in wanted), progress)
            return cls._of_partial(read, registry, weighting, places)
        indices = _indices(chips, places)
        over = TakenOver.of(chips, places, withheld)
        parts: list[Part] = [(index, None) for index in indices]
        if sample is not None and sample < len(indices):
            parts = draw_chips(chips, indices, sample, seed)
            over = dataclasses.replace(over, sampled=sample, seed=seed)
        read = PartialStatistics()
        for size, block in read_in_blocks(chips, reader, parts, workers):
            read.join(block)
            for _ in range(size):
                progress()
        if over.sampled is not None and read.places:
            known = chips.places()
            read.places = {place for index in indices if (place := known[index]) is not None}
        return cls._of_partial(read, registry, weighting, places, over)

    @classmethod
    def _of_partial(
        cls,
        read: PartialStatistics,
        registry: Registry,
        weighting: str,
        places: Collection[str] | None,
        over: TakenOver | None = None,
    ) -> Statistics:
        if not read.places:
            raise StatisticsError(
                f"no chip to take statistics over: {read.skipped} were skipped"
                + (f" and none is of the places {', '.join(sorted(places)[:8])}" if places is not None else "")
            )
        return cls(
            read.of_sources(registry),
            weighting=weighting,
            date=_today(),
            places=sorted(read.places),
            skipped=read.skipped,
            taken_over=over,
        )

    def write(self, path: str | os.PathLike) -> Path:
        """Write as JSON, atomically; names of very many places into a file beside it. Raises OSError."""
        own = PlacesFile.beside(path)
        many = len(self.places) > MOST_PLACES
        content = {
            "format_version": FORMAT_VERSION if many else 1,
            "date": self.date,
            "weighting": self.weighting,
            "places": own.write(self.places) if many else list(self.places),
            "skipped": self.skipped,
            "taken_over": None if self.taken_over is None else dataclasses.asdict(self.taken_over),
            "sources": {name: dataclasses.asdict(statistics) for name, statistics in self.items()},
        }
        with atomic.writing(path, "w") as stream:
            json.dump(content, stream, indent=1)
        if not many:
            own.path.unlink(missing_ok=True)
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
            keys = ("weighting", "date", "skipped")
            places, over = content["places"], content.get("taken_over")  # absent in files of earlier versions
            return cls(
                sources,
                **{key: content[key] for key in keys},
                places=PlacesFile.beside(path, places["sha256"]) if isinstance(places, dict) else places,
                taken_over=None if over is None else TakenOver(**over),
            )
        except StatisticsError as error:
            raise StatisticsError(f"{path}: {error}") from None
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise StatisticsError(
                f"{path}: is damaged or not a statistics file ({type(error).__name__}: {str(error)[:120]}): "
                "take them again with `aef stats`"
            ) from error


@dataclass(frozen=True)
class PlacesFile:
    """Names of places in a file of their own, compressed, and the SHA-256 of the names that belong to the statistics."""

    path: Path
    sha256: str = ""

    @classmethod
    def beside(cls, statistics: str | os.PathLike, sha256: str = "") -> PlacesFile:
        return cls(Path(statistics).with_suffix(".places.gz"), sha256)

    def write(self, places: Sequence[str]) -> dict[str, Any]:
        """What the statistics remember of it. Raises OSError."""
        content = json.dumps(list(places)).encode()
        with atomic.writing(self.path) as stream:
            stream.write(gzip.compress(content, mtime=0))
        return {"count": len(places), "sha256": hashlib.sha256(content).hexdigest()}

    def read(self) -> tuple[str, ...]:
        """Raises StatisticsError where the file is gone, damaged or of other statistics."""
        try:
            content = gzip.decompress(self.path.read_bytes())
        except (OSError, EOFError, zlib.error) as error:
            raise StatisticsError(
                f"{self.path}: cannot be read ({error}): copy it beside its statistics, which name their training places in it"
            ) from None
        if hashlib.sha256(content).hexdigest() != self.sha256:
            raise StatisticsError(
                f"{self.path}: holds the places of other statistics: copy the one that belongs to these"
            )
        return tuple(json.loads(content))


def _today() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%d")


def _read_source(name: str, fields: Mapping[str, Any]) -> SourceStatistics:
    statistics = SourceStatistics(
        **{field.name: tuple(fields[field.name]) for field in dataclasses.fields(SourceStatistics)}
    )
    widths = {len(getattr(statistics, key)) for key in ("bands", "units", "mean", "std", "count")}
    if len(widths) != 1:
        raise StatisticsError(f"source {name}: bands, units, mean, std and count differ in length")
    if not all(math.isfinite(m) and math.isfinite(s) and s > 0 for m, s in zip(statistics.mean, statistics.std)):
        raise StatisticsError(f"source {name}: expected finite means and positive deviations")
    return statistics


def _indices(folder: ChipFolder, places: Collection[str] | None) -> list[int]:
    """The chips of some places. One whose header cannot be read is of no known place: reading it says why."""
    if places is None:
        return list(range(len(folder)))
    return folder.where(places, or_unknown=True).tolist()


def _validated(chip: Chip, registry: Registry) -> Chip:
    validate(chip, registry, file=chip.id)
    return chip
