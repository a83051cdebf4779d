"""GBIF occurrences from a Darwin Core archive or a table, as texts about taxa (paper section 1.3).

Kept are plants, animals and fungi under CC BY 4.0 or CC0, observed by people or machines, located to 240 m or better,
with coordinates, date and taxon that GBIF does not doubt, at most 1,000 per (family, genus, species). The text names
class, genus and species, followed by the taxon's Wikipedia article where Wikidata (P846) joins one.
"""

from __future__ import annotations

import calendar
import csv
import io
import sys
import xml.etree.ElementTree as ET
import zipfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import date, timedelta
from pathlib import Path
from typing import Protocol

import pyarrow as pa

from aef.text.files import DAMAGE, open_stream
from aef.text.places import coordinate_fault
from aef.text.points import Counts, GeoText, TextError
from aef.timecode import DAY_MS, Period

KINGDOMS = {"plantae", "animalia", "fungi"}
LICENCES = {
    "CC_BY_4_0": "CC BY 4.0",
    "CC0_1_0": "CC0 1.0",
    "creativecommons.org/licenses/by/4.0": "CC BY 4.0",
    "creativecommons.org/publicdomain/zero/1.0": "CC0 1.0",
}
OBSERVATIONS = {"HUMAN_OBSERVATION", "MACHINE_OBSERVATION"}
MAX_UNCERTAINTY_M = 240.0
MAX_PER_TAXON = 1000
LONGEST_DATE_DAYS = 366

SUSPICIOUS = {
    "coordinates_suspicious": {
        "ZERO_COORDINATE",
        "COORDINATE_OUT_OF_RANGE",
        "COORDINATE_INVALID",
        "COORDINATE_REPROJECTION_FAILED",
        "COORDINATE_REPROJECTION_SUSPICIOUS",
        "COUNTRY_COORDINATE_MISMATCH",
        "CONTINENT_COORDINATE_MISMATCH",
        "PRESUMED_SWAPPED_COORDINATE",
        "PRESUMED_NEGATED_LATITUDE",
        "PRESUMED_NEGATED_LONGITUDE",
        "COORDINATE_UNCERTAINTY_METERS_INVALID",
    },
    "date_suspicious": {"RECORDED_DATE_INVALID", "RECORDED_DATE_MISMATCH", "RECORDED_DATE_UNLIKELY"},
    "taxon_suspicious": {"TAXON_MATCH_NONE", "TAXON_MATCH_FUZZY", "TAXON_MATCH_HIGHERRANK", "TAXON_MATCH_AGGREGATE"},
}
"""GBIF's own flags that make an occurrence doubtful, by the reason under which it is counted."""

REQUIRED = (
    "kingdom",
    "class",
    "family",
    "genus",
    "species",
    "decimalLatitude",
    "decimalLongitude",
    "coordinateUncertaintyInMeters",
    "eventDate",
    "basisOfRecord",
    "license",
)
OPTIONAL = ("gbifID", "speciesKey", "taxonKey", "occurrenceStatus", "issue", "hasGeospatialIssues")

POSITION_EVERY = 20_000
"""Rows after which the position is reported even where none was kept."""


class ArticleTexts(Protocol):
    """Texts of articles by GBIF taxon id."""

    def get(self, taxon: int) -> str | None: ...


class Occurrences:
    """A corpus: the occurrences of a file.

    Args:
        path: a Darwin Core archive or a GBIF download (.zip), or a table (.csv, .tsv, .txt; also .gz).
        observed: occurrences outside this period are dropped.
        articles: texts to append to taxa that have an article.
    """

    name = "gbif"

    def __init__(self, path: Path, observed: Period, articles: ArticleTexts | None = None) -> None:
        self.path, self.observed, self.articles = path, observed, articles

    def files(self) -> list[Path]:
        return [self.path]

    def settings(self) -> dict[str, str]:
        return {"observed": str(self.observed), "articles": str(self.articles is not None)}

    def read(self, start: int, counts: Counts, earlier: Iterator[pa.Table]) -> Iterator[tuple[int, GeoText | None]]:
        """Positions are rows. Raises TextError: damaged, not a table of occurrences, or a column is missing."""
        taken: Counter[str] = Counter()
        for table in earlier:
            taken.update(table.column("taxon").to_pylist())
        with open_table(self.path) as table:
            at = _columns(self.path, table)
            for number, row in enumerate(table.rows, 1):
                if number <= start:
                    continue
                counts["occurrences"] += 1
                found = self._read_row(row, at, table.constants, taken)
                if isinstance(found, str):
                    counts[found] += 1
                else:
                    counts["kept"] += 1
                    yield number, found
                if number % POSITION_EVERY == 0:
                    yield number, None

    def _read_row(
        self, row: Sequence[str], at: Mapping[str, int], constants: Mapping[str, str], taken: Counter[str]
    ) -> GeoText | str:
        """The text of an occurrence, or the reason why it is dropped."""
        if len(row) <= max(at.values()):
            return "damaged_row"
        value = {**constants, **{name: row[index].strip() for name, index in at.items()}}
        fault = _fault(value)
        if fault:
            return fault
        when = observation_period(value["eventDate"])
        if when is None:
            return "date_missing"
        if when.end_ms > self.observed.end_ms or when.start_ms < self.observed.start_ms:
            return "outside_the_years"
        names = [value[rank] for rank in ("class", "family", "genus", "species")]
        taxon = "|".join(names[1:])
        if taken[taxon] >= MAX_PER_TAXON:
            return "over_the_limit_per_taxon"
        taken[taxon] += 1
        return GeoText(
            lon=float(value["decimalLongitude"]),
            lat=float(value["decimalLatitude"]),
            uncertainty_m=float(value["coordinateUncertaintyInMeters"]),
            time_ms=when.start_ms,
            time_end_ms=when.end_ms,
            text=self._text(value),
            source=f"gbif:{value.get('gbifID') or '?'}",
            licence=licence_of(value["license"]) or "",
            title=value["species"],
            taxon=taxon,
        )

    def _text(self, value: Mapping[str, str]) -> str:
        names = f"{value['species']}, genus {value['genus']}, class {value['class']}."
        if self.articles is not None:
            for key in ("speciesKey", "taxonKey"):
                number = value.get(key, "")
                article = self.articles.get(int(number)) if number.isdigit() else None
                if article:
                    return f"{names}\n{article}"
        return names


def _fault(value: Mapping[str, str]) -> str | None:
    """Why an occurrence is dropped, or None; the reasons of paper section 1.3, in the order in which they are counted."""
    if value["kingdom"].lower() not in KINGDOMS:
        return "other_kingdom"
    if licence_of(value["license"]) is None:
        return "other_licence"
    if value["basisOfRecord"].upper() not in OBSERVATIONS:
        return "not_an_observation"
    if value.get("occurrenceStatus", "").upper() == "ABSENT":
        return "absence"
    return _place_fault(value) or _flag_fault(value) or _taxon_fault(value)


def licence_of(text: str) -> str | None:
    """The licence if it is one of the two accepted ones, in either of GBIF's spellings."""
    plain = text.strip().removeprefix("https://").removeprefix("http://").removeprefix("www.")
    return next((name for known, name in LICENCES.items() if plain == known or plain.startswith(f"{known}/")), None)


def _place_fault(value: Mapping[str, str]) -> str | None:
    lon, lat = _number(value["decimalLongitude"]), _number(value["decimalLatitude"])
    if lon is None or lat is None:
        return "coordinates_missing"
    uncertainty = _number(value["coordinateUncertaintyInMeters"])
    fault = coordinate_fault(lon, lat)
    if fault:
        return fault
    if uncertainty is None or uncertainty <= 0:
        return "uncertainty_missing"
    return "too_uncertain" if uncertainty > MAX_UNCERTAINTY_M else None


def _flag_fault(value: Mapping[str, str]) -> str | None:
    flags = {flag.strip().upper() for flag in value.get("issue", "").replace(";", ",").split(",")}
    if value.get("hasGeospatialIssues", "").lower() == "true":
        return "coordinates_suspicious"
    return next((reason for reason, doubts in SUSPICIOUS.items() if doubts & flags), None)


def _taxon_fault(value: Mapping[str, str]) -> str | None:
    return None if all(value[rank] for rank in ("class", "family", "genus", "species")) else "taxon_incomplete"


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def observation_period(text: str) -> Period | None:
    """GBIF's ISO date, date-time or range → the days it covers; None if there is none or it covers more than a year."""
    first, _, last = text.partition("/")
    try:
        start, end = _days(first)[0], _days(last or first)[1]
    except ValueError:
        return None
    if not timedelta() < end - start <= timedelta(days=LONGEST_DATE_DAYS):
        return None
    epoch = date(1970, 1, 1)
    return Period((start - epoch).days * DAY_MS, (end - epoch).days * DAY_MS)


def _days(text: str) -> tuple[date, date]:
    """A year, month or day, with or without a time → its first day, and the day after its last."""
    numbers = [int(part) for part in text.strip().partition("T")[0].split("-")]
    year, month, day = [*numbers, 0, 0][:3]
    if not month:
        return date(year, 1, 1), date(year + 1, 1, 1)
    first = date(year, month, day or 1)
    length = 1 if day else calendar.monthrange(year, month)[1]
    return first, first + timedelta(days=length)


# --- tables and archives ---------------------------------------------------------------------------------------------


@dataclass
class Table:
    """Columns by their short Darwin Core term (``decimalLatitude``), values that all rows share, and rows of strings."""

    columns: dict[str, int]
    rows: Iterator[list[str]]
    constants: dict[str, str] = field(default_factory=dict)


def _columns(path: Path, table: Table) -> dict[str, int]:
    missing = [name for name in REQUIRED if name not in table.columns and name not in table.constants]
    if missing:
        raise TextError(f"{path}: lacks the column {missing[0]}: is it a GBIF occurrence download?")
    return {name: table.columns[name] for name in (*REQUIRED, *OPTIONAL) if name in table.columns}


@contextmanager
def open_table(path: Path) -> Iterator[Table]:
    """Open an archive or a table as a stream of rows; nothing is unpacked to disk.

    Raises:
        FileNotFoundError: there is no such file.
        TextError: damaged, not an archive with occurrences, or no header.
    """
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    try:
        if path.suffix == ".zip":
            if not path.is_file():
                raise FileNotFoundError(f"{path}: no such file")
            with zipfile.ZipFile(path) as archive:
                yield _from_archive(path, archive)
        else:
            with open_stream(path) as stream:
                yield _with_header(path, stream, tabs=".csv" not in path.suffixes)
    except FileNotFoundError:
        raise
    except (*DAMAGE, csv.Error, UnicodeDecodeError) as error:
        raise TextError(
            f"{path}: truncated or damaged ({error}): download it again, what was read so far is kept"
        ) from error


def _from_archive(path: Path, archive: zipfile.ZipFile) -> Table:
    names = archive.namelist()
    if "meta.xml" not in names:
        # GBIF's "simple" download: one table without a description.
        tables = [name for name in names if name.endswith((".csv", ".tsv", ".txt"))]
        if len(tables) != 1:
            raise TextError(
                f"{path}: neither a Darwin Core archive (no meta.xml) nor a single table; it holds {names[:5]}"
            )
        return _with_header(path, archive.open(tables[0]), tabs=True)
    from dwca.descriptors import ArchiveDescriptor

    try:
        core = ArchiveDescriptor(archive.read("meta.xml").decode()).core
        fields = {item["term"].rpartition("/")[2]: item for item in core.fields}
        columns = {name: item["index"] for name, item in fields.items() if item["index"] is not None}
        constants = {name: item["default"] for name, item in fields.items() if item["index"] is None}
        if core.id_index is not None:
            columns.setdefault("gbifID", core.id_index)
    except (ET.ParseError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise TextError(f"{path}: meta.xml does not describe a Darwin Core archive ({error})") from error
    if core.file_location not in names:
        raise TextError(f"{path}: its meta.xml names {core.file_location}, which the archive lacks")
    lines = io.TextIOWrapper(
        archive.open(core.file_location), encoding=core.file_encoding, newline=core.lines_terminated_by
    )
    quote = core.fields_enclosed_by
    rows = csv.reader(
        lines,
        delimiter=core.fields_terminated_by,
        quotechar=quote or None,
        quoting=csv.QUOTE_MINIMAL if quote else csv.QUOTE_NONE,
    )
    for _ in range(core.lines_to_ignore):
        next(rows, None)
    return Table(columns, rows, constants)


def _with_header(path: Path, stream, *, tabs: bool) -> Table:
    """GBIF's tables are tab-separated whatever their suffix; a comma in the header and no tab says otherwise."""
    lines = io.TextIOWrapper(stream, encoding="utf-8", newline="")
    header = lines.readline().rstrip("\r\n")
    tabs = "\t" in header or (tabs and "," not in header)
    names = header.split("\t") if tabs else next(csv.reader([header]))
    rows = csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE) if tabs else csv.reader(lines)
    return Table({name.strip().lstrip("\ufeff").rpartition(":")[2]: index for index, name in enumerate(names)}, rows)
