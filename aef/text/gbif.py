"""GBIF occurrences from a Darwin Core archive or a table, as texts about taxa (paper section 1.3).

Kept are plants, animals and fungi under CC BY 4.0 or CC0, observed by people or machines, located to 240 m or better,
with coordinates, date and taxon that GBIF does not doubt, at most 1,000 per (family, genus, species). The text names
class, genus and species, followed by the taxon's Wikipedia article where Wikidata (P846) joins one.
"""

from __future__ import annotations

import calendar
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from datetime import date, timedelta
from pathlib import Path
from typing import Protocol

import pyarrow as pa

from aef.clock import DAY_MS, Period
from aef.text.coordinates import coordinate_fault
from aef.text.darwin_core import Table, open_table
from aef.text.points import Counts, GeoText, TextError

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

    def get(self, taxon: int) -> str | None:
        """The article about a taxon; None where there is none."""


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
        """As `Corpus.files`."""
        return [self.path]

    def settings(self) -> dict[str, str]:
        """As `Corpus.settings`."""
        return {"observed": str(self.observed), "articles": str(self.articles is not None)}

    def read(self, start: int, counts: Counts, earlier: Iterator[pa.Table]) -> Iterator[tuple[int, GeoText | None]]:
        """Positions are rows. Raises TextError: damaged, not a table of occurrences, or a column is missing."""
        taken: Counter[str] = Counter()
        for texts in earlier:
            taken.update(texts.column("taxon").to_pylist())
        with open_table(self.path) as table:
            columns = _columns(self.path, table)
            for number, row in enumerate(table.rows, 1):
                if number <= start:
                    continue
                counts["occurrences"] += 1
                found = self._read_row(row, columns, table.constants, taken)
                if isinstance(found, str):
                    counts[found] += 1
                else:
                    counts["kept"] += 1
                    yield number, found
                if number % POSITION_EVERY == 0:
                    yield number, None

    def _read_row(
        self, row: Sequence[str], columns: Mapping[str, int], constants: Mapping[str, str], taken: Counter[str]
    ) -> GeoText | str:
        """The text of an occurrence, or the reason why it is dropped."""
        if len(row) <= max(columns.values()):
            return "damaged_row"
        value = {**constants, **{name: row[index].strip() for name, index in columns.items()}}
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
    """Why an occurrence is dropped, or None; the reasons of paper section 1.3, in this order."""
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
    if uncertainty is None or not uncertainty > 0:  # nor may it be NaN
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
    except (ValueError, OverflowError):  # a number too long for any calendar
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


def _columns(path: Path, table: Table) -> dict[str, int]:
    """Where the columns stand that are read. Raises TextError where a required one is missing."""
    missing = [name for name in REQUIRED if name not in table.columns and name not in table.constants]
    if missing:
        raise TextError(f"{path}: lacks the column {missing[0]}: is it a GBIF occurrence download?")
    return {name: table.columns[name] for name in (*REQUIRED, *OPTIONAL) if name in table.columns}
