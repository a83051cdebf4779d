"""Chips on disk: the one data contract of the project, read, written and checked (docs/data.md).

A chip is one ``.npz`` (a zip of ``.npy`` members named ``SOURCE/FIELD``, plus a JSON ``header``), written to a temporary
name and renamed. Readers outside this module see `Chip` and `ChipFolder` only, never the file format. A chip that
breaks the contract is refused with file, source, field and reason; it is never silently repaired.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import lzma
import os
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
from aef.data.contract import ARRAYS, PIXEL_M, Chip, ChipError, Label, SourceSeries, TextPoint
from aef.data.validation import validate
from aef.sources import Registry

__all__ = [
    "FORMAT_VERSION",
    "PIXEL_M",
    "Chip",
    "ChipError",
    "ChipFolder",
    "Label",
    "SourceSeries",
    "TextPoint",
    "read_chip",
    "read_chip_header",
    "require_free",
    "validate",
    "write_chip",
]

FORMAT_VERSION = 1


def write_chip(path: str | os.PathLike, chip: Chip, registry: Registry, *, compress: bool = True) -> Path:
    """Validate and write a chip, atomically: a reader sees the old file or the whole new one.

    Raises:
        ChipError: the chip breaks the contract; nothing is written.
        OSError: the disk is full or the folder cannot be written; nothing is left behind.
    """
    path = Path(path)
    validate(chip, registry, file=path.name)
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


def require_free(folder: str | os.PathLike, ids: Iterable[str]) -> None:
    """Raises ChipError where a folder holds some of the chips that are to be written: new ones would mix with old.

    Chips that are written again lose the texts that were attached to them.
    """
    wanted = list(ids)
    held = [f"{name}.npz" for name in wanted if (Path(folder) / f"{name}.npz").exists()]
    if held:
        raise ChipError(
            f"{len(held)} of {len(wanted)} chips are there already ({', '.join(held[:3])}{' …' * (len(held) > 3)}): choose "
            "another folder, or write them again with --overwrite, which loses attached texts",
            file=folder,
        )


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
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such chip")
    try:
        with np.load(path, allow_pickle=False) as archive:
            yield archive
    except ChipError as error:
        raise ChipError(error.reason, source=error.source, field=error.field, file=path) from None
    except _DAMAGE as error:
        raise ChipError(f"is damaged or not a chip ({_why(path, error)}): make it again", file=path) from error


def _why(path: Path, error: BaseException) -> str:
    """What is wrong with a file, in our words where NumPy's would advise to unpickle it."""
    if not zipfile.is_zipfile(path):
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
    with _opened(Path(path)) as archive:
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


class ChipFolder:
    """A folder of chips in a fixed (sorted) order.

    Raises:
        FileNotFoundError: the folder does not exist.
        NotADirectoryError: it is a file.
        ChipError: it holds no chip.
    """

    def __init__(self, path: str | os.PathLike, registry: Registry) -> None:
        self.path, self.registry = Path(path), registry
        if self.path.is_file():
            raise NotADirectoryError(
                f"{self.path}: expected a folder of chips, found a file: give the folder it lies in"
            )
        if not self.path.is_dir():
            raise FileNotFoundError(f"{self.path}: no such folder of chips")
        self.files = sorted(p for p in self.path.glob("*.npz") if not p.name.startswith("."))
        if not self.files:
            raise ChipError(
                "holds no chip (*.npz): make some with `aef synthesize`, `aef ingest` or `aef download`", file=self.path
            )
        self._places: list[str | None] | None = None

    def __len__(self) -> int:
        return len(self.files)

    def __iter__(self) -> Iterator[Chip]:
        return (self.read(index) for index in range(len(self)))

    def read(self, index: int, sources: Iterable[str] | None = None, *, check_values: bool = False) -> Chip:
        return read_chip(self.files[index], self.registry, sources=sources, check_values=check_values)

    def header(self, index: int) -> dict[str, Any]:
        return read_chip_header(self.files[index])

    def places(self) -> list[str | None]:
        """The place of every chip, in the folder's order; None where a header cannot be read.

        Raises:
            ChipError: two files hold a chip of the same id: a copy would be trained on twice.
        """
        if self._places is None:
            known: dict[str, Path] = {}
            places: list[str | None] = []
            for path in self.files:
                name, place = _id_and_place(path)
                if name is not None and known.setdefault(name, path) is not path:
                    raise ChipError(
                        f"two files hold the chip {name!r}, {known[name].name} and {path.name}: remove one of them",
                        field="id",
                        file=self.path,
                    )
                places.append(place)
            self._places = places
        return self._places

    def require(self, wanted: Iterable[str], words: str) -> list[str]:
        """Places that are asked for, each once. Raises ChipError, with ``words`` before those that the folder does not hold."""
        wanted = list(dict.fromkeys(wanted))
        known = sorted({place for place in self.places() if place})
        unknown = sorted(set(wanted) - set(known))
        if unknown:
            raise ChipError(
                f"{words} {', '.join(unknown)}: known are {', '.join(known[:8])}{', …' * (len(known) > 8)}",
                file=self.path,
            )
        return wanted

    def without(self, held_out: Iterable[str]) -> list[int]:
        """Indices of the chips of all other places. Raises ChipError if a held-out place is unknown or no chip is left."""
        held_out = set(held_out)
        if not held_out:
            return list(range(len(self)))
        self.require(held_out, "cannot hold out")
        # A chip whose header cannot be read stays: reading it says what is wrong.
        kept = [index for index, place in enumerate(self.places()) if place not in held_out]
        if not kept:
            raise ChipError("every place is held out: no chip is left", field="place", file=self.path)
        return kept

    def digest(self, indices: Iterable[int]) -> str:
        """SHA-256 over some chips: their names and what their sources hold, without decoding a pixel.

        An archive lists size and checksum of every array. So a copy has the digest of its original, other compression,
        labels, texts or dates of the files change nothing, and other values do.
        """
        found = hashlib.sha256()
        for index in indices:
            found.update(json.dumps([self.files[index].name, _contents(self.files[index])]).encode())
        return found.hexdigest()


def _contents(path: Path) -> list[Any]:
    """Name, size and CRC-32 of every array of a chip's sources; the size of a file that is no archive."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = sorted((entry.filename, entry.file_size, entry.CRC) for entry in archive.infolist())
    except (zipfile.BadZipFile, ValueError, LookupError, struct.error, RuntimeError, NotImplementedError):
        return [path.stat().st_size]
    return [member for member in members if member[0] != "header.npy" and not member[0].startswith("labels/")]


def _id_and_place(path: Path) -> tuple[str | None, str | None]:
    try:
        header = read_chip_header(path)
    except (ChipError, OSError):
        return None, None
    name, place = header.get("id"), header.get("place")
    return name if isinstance(name, str) else None, place if isinstance(place, str) else None
