"""Which Wikipedia articles have a place or a taxon: a local extract of Wikidata (P625 coordinates, P846 GBIF taxon id).

Two forms are read, plain, .gz or .bz2:

* the JSON entity dump (``latest-all.json``: one entity a line), or any part of it;
* a table (.csv, .tsv) with a header: ``title`` (of the English article), ``article`` (its address) or ``page_id``; and
  ``coord`` (``Point(lon lat)``, elsewhere than on Earth after ``<globe>``) or ``lon`` and ``lat``; optionally ``globe``,
  ``precision`` (degrees) and ``taxon``. It is what the query in docs/text.md returns. An article may have several rows.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO
from urllib.parse import unquote

import numpy as np

from aef.data.contract import METRES_PER_DEGREE
from aef.text.coordinates import coordinate_fault
from aef.text.files import open_stream
from aef.text.points import Counts, TextError

EARTH = "Q2"
ARTICLE_PREFIX = "en.wikipedia.org/wiki/"


@dataclass(frozen=True)
class Entry:
    """What Wikidata knows of an article: position (NaN: none), its precision in metres, GBIF taxon id (0: none)."""

    lon: float
    lat: float
    uncertainty_m: float
    taxon: int

    @property
    def located(self) -> bool:
        """Whether it has a position."""
        return not np.isnan(self.lon)


class Articles:
    """Entries by article, in a few tens of bytes each: sorted hashes of titles and page ids."""

    def __init__(self) -> None:
        self._key, self._taxon = array("Q"), array("q")
        self._position = array("d")  # three an entry: longitude, latitude, uncertainty
        self._sorted: tuple[np.ndarray, np.ndarray] | None = None  # keys in order, and the entries that they belong to

    def __len__(self) -> int:
        return len(self._key)

    def add(self, key: str | int, entry: Entry) -> None:
        """``key`` is a page id or a title; titles compare as MediaWiki does."""
        self._key.append(_hash(key))
        self._taxon.append(entry.taxon)
        self._position.extend((entry.lon, entry.lat, entry.uncertainty_m))
        self._sorted = None

    def digest(self) -> str:
        """Of all entries in their order: that of another extract differs."""
        digest = hashlib.blake2b(digest_size=8)
        for column in (self._key, self._taxon, self._position):
            digest.update(column)
        return digest.hexdigest()

    def find(self, page_id: int, title: str) -> Entry | None:
        """The entry of a page, by id or by title: its first position and its first taxon, which may stand on two rows."""
        if self._sorted is None:
            unsorted = np.frombuffer(self._key, np.uint64) if self._key else np.zeros(0, np.uint64)
            order = np.argsort(unsorted, kind="stable")
            self._sorted = unsorted[order], order
        keys, rows = self._sorted
        found: list[int] = []
        for key in (page_id, title):
            wanted = np.uint64(_hash(key))
            found += rows[keys.searchsorted(wanted) : keys.searchsorted(wanted, side="right")].tolist()
        if not found:
            return None
        located = next((row for row in found if not np.isnan(self._position[3 * row])), found[0])
        lon, lat, uncertainty_m = self._position[3 * located : 3 * located + 3]
        return Entry(lon, lat, uncertainty_m, next((self._taxon[row] for row in found if self._taxon[row]), 0))


def _hash(key: str | int) -> int:
    text = f"#{key}" if isinstance(key, int) else _canonical(key)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def _canonical(title: str) -> str:
    title = title.replace("_", " ").strip()
    return title[:1].upper() + title[1:]


def read_wikidata(path: Path, counts: Counts | None = None) -> Articles:
    """Read an extract.

    Args:
        counts: receives how many entities were read, kept and dropped, by reason.

    Raises:
        TextError: damaged, or not an extract of Wikidata.
    """
    counts = Counter() if counts is None else counts
    articles = Articles()
    table = any(suffix in (".csv", ".tsv") for suffix in path.suffixes)
    with open_stream(path) as stream:
        entries = _from_table(path, stream) if table else _from_entities(path, stream, counts)
        for key, entry, globe in entries:
            counts["items"] += 1
            fault = _fault(entry, globe)
            if fault:
                counts[fault] += 1
                # A taxon stays useful without a place.
                entry = Entry(np.nan, np.nan, 0.0, entry.taxon)
            if entry.located or entry.taxon:
                articles.add(key, entry)
                counts["kept"] += 1
    if not counts["items"]:
        raise TextError(
            f"{path}: holds no item with P625 or P846 and an English article: is it an extract of Wikidata?"
        )
    return articles


def _fault(entry: Entry, globe: str) -> str | None:
    if not entry.located:
        return None
    if globe and globe.rpartition("/")[2] != EARTH:
        return "not_on_earth"
    return coordinate_fault(entry.lon, entry.lat)


# --- entity dump -----------------------------------------------------------------------------------------------------


def _from_entities(path: Path, stream: Iterable[bytes], counts: Counts) -> Iterator[tuple[str, Entry, str]]:
    for number, line in enumerate(stream, 1):
        line = line.strip().rstrip(b",")
        # Nearly all entities have neither; looking at bytes spares parsing them.
        if line in (b"[", b"]", b"") or not (b'"P625"' in line or b'"P846"' in line):
            continue
        try:
            entity = json.loads(line)
            title = (entity.get("sitelinks") or {}).get("enwiki", {}).get("title")
            position, globe = _coordinates(entity["claims"])
            taxon = _taxon(entity["claims"])
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise TextError(
                f"{path}: line {number} is not a Wikidata entity ({type(error).__name__}): expected the JSON dump, one "
                "entity a line, or a .csv or .tsv table"
            ) from error
        if title is None:
            counts["no_english_article"] += 1
        else:
            yield title, Entry(*position, taxon), globe


def _best(claims: Mapping, prop: str) -> Mapping | None:
    """The value of a property's first statement of the best rank."""
    statements = [s for s in claims.get(prop, ()) if s.get("rank") != "deprecated"]
    statements.sort(key=lambda statement: statement.get("rank") != "preferred")
    values = (s["mainsnak"]["datavalue"]["value"] for s in statements if s["mainsnak"].get("snaktype") == "value")
    return next(values, None)


def _coordinates(claims: Mapping) -> tuple[tuple[float, float, float], str]:
    value = _best(claims, "P625")
    if value is None:
        return (np.nan, np.nan, 0.0), ""
    return (float(value["longitude"]), float(value["latitude"]), _metres(value.get("precision"))), value.get(
        "globe", ""
    )


def _metres(precision: str | float | None) -> float:
    """Degrees → metres; 0, the pixel alone, where none is stated, or one that can be none."""
    degrees = float(precision or 0)
    return degrees * METRES_PER_DEGREE if 0 < degrees < math.inf else 0.0


def _taxon(claims: Mapping) -> int:
    value = _best(claims, "P846")
    return int(value) if isinstance(value, str) and value.isdigit() else 0


# --- table -----------------------------------------------------------------------------------------------------------


def _from_table(path: Path, stream: IO[bytes]) -> Iterator[tuple[str | int, Entry, str]]:
    lines = io.TextIOWrapper(stream, encoding="utf-8-sig", newline="")
    rows = csv.DictReader(lines, delimiter="\t" if ".tsv" in path.suffixes else ",")
    try:
        names = rows.fieldnames or []
    except (csv.Error, UnicodeDecodeError) as error:
        raise TextError(f"{path}: line {rows.line_num}: {error}") from error
    if not set(names) & {"title", "article", "page_id"}:
        raise TextError(f"{path}: expected a column title, article or page_id, found {', '.join(names) or 'nothing'}")
    if "coord" not in names and not {"lon", "lat"} <= set(names):
        raise TextError(f"{path}: expected a column coord, or lon and lat, found {', '.join(names)}")
    try:
        for row in rows:
            key = _table_key(row)
            if key:
                entry, globe = _table_entry(row)
                yield key, entry, row.get("globe") or globe
    except (ValueError, TypeError, csv.Error, UnicodeDecodeError) as error:
        raise TextError(f"{path}: line {rows.line_num}: {error}") from error


def _table_key(row: Mapping[str, str]) -> str | int | None:
    if row.get("page_id"):
        return int(row["page_id"])
    if row.get("title"):
        return row["title"]
    _, found, title = (row.get("article") or "").partition(ARTICLE_PREFIX)
    return unquote(title) if found else None


def _table_entry(row: Mapping[str, str]) -> tuple[Entry, str]:
    """The entry of a row, and the globe that its coordinates name: ``<http://www.wikidata.org/entity/Q405> Point(1 2)``."""
    lon, lat, globe = row.get("lon") or "", row.get("lat") or "", ""
    if row.get("coord"):
        globe, _, point = row["coord"].strip().rpartition(">")
        inside = point.strip().upper().removeprefix("POINT").strip(" ()").split()
        if len(inside) != 2:
            raise ValueError(f"expected coordinates like Point(4.35 50.85), found {row['coord']!r}")
        lon, lat = inside
    position = (float(lon), float(lat)) if lon and lat else (np.nan, np.nan)
    taxon = (row.get("taxon") or "").strip()
    return Entry(*position, _metres(row.get("precision")), int(taxon) if taxon.isdigit() else 0), globe
