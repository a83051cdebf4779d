"""Occurrences as streams of rows: Darwin Core archives, and the tables of GBIF's simple downloads."""

from __future__ import annotations

import csv
import io
import sys
import xml.etree.ElementTree as ET
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from aef.text.files import DAMAGE, open_stream
from aef.text.points import TextError


@dataclass
class Table:
    """Columns by their short Darwin Core term (``decimalLatitude``), values that all rows share, and the rows."""

    columns: dict[str, int]
    rows: Iterator[list[str]]
    constants: dict[str, str] = field(default_factory=dict)


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
    except (ET.ParseError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise TextError(f"{path}: meta.xml does not describe a Darwin Core archive ({error})") from error
    if core.file_location not in names:
        raise TextError(f"{path}: its meta.xml names {core.file_location}, which the archive lacks")
    try:
        lines = io.TextIOWrapper(
            archive.open(core.file_location), encoding=core.file_encoding, newline=core.lines_terminated_by
        )
    except ValueError as error:
        raise TextError(f"{path}: its meta.xml ends lines in a way that cannot be read ({error})") from error
    quote, between = core.fields_enclosed_by, core.fields_terminated_by
    rows = csv.reader(lines, delimiter=between, quotechar=quote) if quote else _split(lines, between)
    for _ in range(core.lines_to_ignore):
        next(rows, None)
    return Table(columns, rows, constants)


def _with_header(path: Path, stream: IO[bytes], *, tabs: bool) -> Table:
    """GBIF's tables are tab-separated whatever their suffix; a comma in the header and no tab says otherwise."""
    lines = io.TextIOWrapper(stream, encoding="utf-8", newline="\n")
    header = lines.readline().rstrip("\r\n")
    tabs = "\t" in header or (tabs and "," not in header)
    names = header.split("\t") if tabs else next(csv.reader([header]))
    rows = _split(lines, "\t") if tabs else csv.reader(lines)
    return Table({name.strip().lstrip("\ufeff").rpartition(":")[2]: index for index, name in enumerate(names)}, rows)


def _split(lines: Iterable[str], between: str) -> Iterator[list[str]]:
    """Rows without quotes. A lone carriage return within a field ends no row, as it would for the csv module."""
    return (line.rstrip("\r\n").split(between) for line in lines)
