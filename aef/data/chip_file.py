"""One chip on disk: the one data contract of the project, read, written and checked (docs/data.md).

A chip is one ``.npz`` (a zip of ``.npy`` members named ``SOURCE/FIELD``, plus a JSON ``header``), written to a
temporary name and renamed, or packed with others into a shard (`aef.data.shards`). Readers outside this module see
`Chip` only, never the file format. A chip that breaks the contract is refused with file, source, field and reason; it
is never silently repaired.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import lzma
import os
import re
import struct
import textwrap
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from aef import atomic
from aef.data import shards
from aef.data.chip_index import ChipEntry
from aef.data.contract import ARRAYS, Chip, ChipError, Label, SourceSeries, TextPoint
from aef.data.contract_check import validate
from aef.path import as_path
from aef.sources import Registry

FORMAT_VERSION = 1


def write_chip(path: str | os.PathLike, chip: Chip, registry: Registry, *, compress: bool = True) -> Path:
    """Validate and write a chip, atomically: a reader sees the old file or the whole new one.

    Raises:
        ChipError: the chip breaks the contract, or lies in a shard; nothing is written.
        OSError: the disk is full or the folder cannot be written; nothing is left behind.
    """
    path = Path(path)
    validate(chip, registry, file=path.name)
    if shards.split(path):
        raise ChipError("lies in a shard, which is only read: write it before packing", file=path)
    try:
        header = json.dumps(_header(chip)).encode()
    except (TypeError, ValueError) as error:
        raise ChipError(f"cannot be written as JSON: {error}", field="attributes", file=path.name) from error
    arrays: dict[str, Any] = {"header": np.frombuffer(header, np.uint8)}
    for name, series in chip.sources.items():
        for key in ARRAYS:
            if getattr(series, key) is not None:
                arrays[f"{name}/{key}"] = getattr(series, key)
    for name, label in chip.labels.items():
        arrays[f"labels/{name}/values"] = label.values
        if label.fields is not None:
            arrays[f"labels/{name}/fields"] = label.fields
    with atomic.writing(path) as stream:
        (np.savez_compressed if compress else np.savez)(stream, **arrays)
    return path


def _header(chip: Chip) -> dict[str, Any]:
    return {
        "format_version": FORMAT_VERSION,
        **{
            key: getattr(chip, key)
            for key in ("id", "place", "crs", "height", "width", "lon", "lat", "synthetic", "attributes")
        },
        "transform": list(chip.transform),
        "sources": {name: series.header() for name, series in chip.sources.items()},
        "labels": {
            name: {
                "legend": {str(code): text for code, text in label.legend.items()},
                "ignore": list(label.ignore),
                "valid_start_ms": label.valid_start_ms,
                "valid_end_ms": label.valid_end_ms,
                "licence": label.licence,
            }
            for name, label in chip.labels.items()
        },
        "texts": [dataclasses.asdict(point) for point in chip.texts],
    }


_DAMAGE = (
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    struct.error,
    EOFError,
    LookupError,
    ValueError,
    TypeError,
    AttributeError,
    OverflowError,
    OSError,
    RuntimeError,
    MemoryError,
)
"""Everything that a cut or flipped file makes NumPy, zipfile, their decoders and JSON raise."""


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """The archive of a chip; whatever goes wrong inside becomes a `ChipError` that names the file."""
    if not shards.exists(path):
        raise FileNotFoundError(f"{path}: no such chip")
    try:
        with shards.open_chip(path) as stream, np.load(stream, allow_pickle=False) as archive:
            yield archive
    except ChipError as error:
        raise ChipError(error.reason, source=error.source, field=error.field, file=path) from None
    except _DAMAGE as error:
        raise ChipError(f"is damaged or not a chip ({_why(path, error)}): make it again", file=path) from error


def _why(path: Path, error: BaseException) -> str:
    """What is wrong with a file, in our words where NumPy's would advise to unpickle it."""
    if isinstance(error, shards.ShardError):
        return str(error)
    if path.is_dir():
        return "a folder, not one file"
    with shards.open_chip(path) as stream:
        if not zipfile.is_zipfile(stream):
            return "not a whole .npz archive"
    return textwrap.shorten(f"{type(error).__name__}: {error}", 140, placeholder=" …")


def read_chip(
    path: str | os.PathLike,
    registry: Registry,
    *,
    sources: Iterable[str] | None = None,
    check_values: bool = False,
) -> Chip:
    """Read a chip and check its structure (with ``check_values`` every value too).

    Args:
        sources: read only these; those that the chip lacks are left out.

    Raises:
        FileNotFoundError: there is no such file.
        ChipError: the file is damaged, of a newer format or breaks the contract.
    """
    wanted = None if sources is None else set(sources)
    with _opened(as_path(path, "chip")) as archive:
        header = _read_header(archive)
        series = {
            name: _read_series(archive, name, fields)
            for name, fields in header["sources"].items()
            if wanted is None or name in wanted
        }
        chip = Chip(
            **{key: header[key] for key in ("id", "place", "crs", "height", "width", "lon", "lat", "synthetic")},
            attributes=header["attributes"],
            transform=tuple(header["transform"]),
            sources=series,
            labels={name: _read_label(archive, name, fields) for name, fields in header["labels"].items()},
            texts=[TextPoint(**point) for point in header["texts"]],
        )
        if wanted is None or series:
            validate(chip, registry, values=check_values)
    return chip


def read_chip_header(path: str | os.PathLike) -> dict[str, Any]:
    """The JSON header of a chip (place, sources, bands, units, legends) without its arrays. Raises ChipError."""
    with _opened(Path(path)) as archive:
        return _read_header(archive)


def read_frame_times(path: str | os.PathLike, sources: Iterable[str]) -> dict[str, np.ndarray]:
    """Start times (T,) of some sources of a chip, without its pixels; those that it lacks are left out. Raises ChipError."""
    with _opened(Path(path)) as archive:
        return {name: archive[f"{name}/time_ms"] for name in sources if f"{name}/time_ms" in archive}


def _read_header(archive: Any) -> dict[str, Any]:
    if "header" not in archive:
        raise ChipError("has no header: not a chip of this software", field="header")
    header = json.loads(bytes(archive["header"]).decode())
    version = header.get("format_version")
    if not isinstance(version, int) or not 1 <= version <= FORMAT_VERSION:
        raise ChipError(
            f"expected a version up to {FORMAT_VERSION}, found {version!r}: update the software", field="format_version"
        )
    return header


def _read_series(archive: Any, name: str, fields: Mapping[str, Any]) -> SourceSeries:
    arrays: dict[str, Any] = {key: archive[f"{name}/{key}"] for key in ARRAYS if f"{name}/{key}" in archive}
    for key in ("values", "valid"):
        if key not in arrays:
            raise ChipError("is missing", source=name, field=key)
    known = {key: tuple(value) if isinstance(value, list) else value for key, value in fields.items()}
    return SourceSeries(**{**known, **arrays})


def _read_label(archive: Any, name: str, fields: Mapping[str, Any]) -> Label:
    return Label(
        values=archive[f"labels/{name}/values"],
        fields=archive.get(f"labels/{name}/fields"),
        legend={int(code): text for code, text in fields["legend"].items()},
        ignore=tuple(fields["ignore"]),
        valid_start_ms=fields["valid_start_ms"],
        valid_end_ms=fields["valid_end_ms"],
        licence=fields["licence"],
    )


def read_entry(path: Path) -> ChipEntry:
    """What an index holds of a chip, by one opening and without decoding a pixel."""
    try:
        with _opened(path) as archive:
            header = _read_header(archive)
            sources = tuple(header["sources"])
            times = [name for name in sources if f"{name}/time_ms" in archive]
            frames = {name: _frames(archive.zip.read(f"{name}/time_ms.npy")) for name in times}
            return ChipEntry(*_id_and_place(header), sources, frames, _contents(archive.zip), True)
    except (ChipError, OSError):
        pass
    try:
        header = read_chip_header(path)
    except (ChipError, OSError):
        header = {}
    return ChipEntry(*_id_and_place(header), (), {}, _contents_of(path), False)


_TIMES = re.compile(rb"\x93NUMPY\x01\x00..{'descr': '<i8', 'fortran_order': False, 'shape': \((\d+),\), } *\n", re.S)


def _frames(member: bytes) -> tuple[int, int]:
    """Number of frames and seconds from the first to the last, from the bytes of a `.npy`. Raises ValueError."""
    if (plain := _TIMES.match(member)) is not None:  # as we write it; NumPy's own reader takes most of an index's time
        times = np.frombuffer(member, "<i8", int(plain[1]), plain.end())
    else:
        times = np.load(io.BytesIO(member), allow_pickle=False)
    return len(times), max(0, int(times[-1]) - int(times[0])) // 1000 if len(times) else 0


def _contents(archive: zipfile.ZipFile) -> bytes:
    """Digest of name, size and CRC-32 of every array of a chip's sources, 16 bytes."""
    members = sorted((entry.filename, entry.file_size, entry.CRC) for entry in archive.infolist())
    kept = [member for member in members if member[0] != "header.npy" and not member[0].startswith("labels/")]
    return hashlib.sha256(json.dumps(kept).encode()).digest()[:16]


def _contents_of(path: Path) -> bytes:
    """Likewise of a file that may be damaged: of its size where it is no archive."""
    try:
        with shards.open_chip(path) as stream, zipfile.ZipFile(stream) as archive:
            return _contents(archive)
    except (zipfile.BadZipFile, ValueError, LookupError, struct.error, RuntimeError, OSError):
        size = shards.size_of(path) if shards.exists(path) else 0
        return hashlib.sha256(str(size).encode()).digest()[:16]


def _id_and_place(header: Mapping[str, Any]) -> tuple[str | None, str | None]:
    name, place = header.get("id"), header.get("place")
    return name if isinstance(name, str) else None, place if isinstance(place, str) else None
