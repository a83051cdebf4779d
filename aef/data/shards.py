"""Shards: large files that hold many chips each, for folders of millions (docs/data.md, "Many chips").

A shard is an ordinary ZIP archive, `NUMBER.chips.zip`, whose members are whole chips as they lay in their folder, not
compressed again: `unzip` brings the folder back. Its directory stands at its end, so that one read lists its chips and
one more reaches any of them. A packed chip has a path like any other: `CHIPS/00000.chips.zip/NAME.npz`.
"""

from __future__ import annotations

import errno
import io
import os
import struct
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import IO, Any, NamedTuple

SUFFIX = ".chips.zip"

_LOCAL_HEADER = struct.Struct("<4s22xHH")
"""Of a ZIP member: its mark, and the lengths of its name and its extra field, which the data follow."""


class ShardError(ValueError):
    """A shard cannot be read, or chips cannot be packed."""


def split(path: Path) -> tuple[Path, str] | None:
    """The shard that a path leads into and the chip's name there; None for a file of its own."""
    for shard in path.parents:
        if shard.name.endswith(SUFFIX) and shard.is_file():
            return shard, path.relative_to(shard).as_posix()
    return None


def unpacked_name(name: str) -> str:
    """The name that a chip had before it was packed: a relative path without its shard."""
    return "/".join(part for part in name.split("/") if not part.endswith(SUFFIX)) if SUFFIX in name else name


def is_chip(path: Path) -> bool:
    """Whether a path is that of one chip, in a file of its own or in a shard, and not of a folder of them.

    Raises:
        FileNotFoundError: the shard holds no such chip.
        ShardError: the path is that of a whole shard, or of a chip in a damaged one.
    """
    packed = split(path)
    if packed is not None:
        _member(*packed)
    elif path.name.endswith(SUFFIX) and path.is_file():
        raise ShardError(f"{path}: is a shard of many chips: give its folder, or {path}/NAME.npz for one of them")
    return packed is not None or path.is_file()


def exists(path: Path) -> bool:
    """Whether a chip is there, in a file of its own or in a shard. Raises ShardError where that shard is damaged."""
    packed = split(path)
    return path.exists() if packed is None else packed[1] in directory(packed[0])


def size_of(path: Path) -> int:
    """Bytes of a chip, in a file of its own or in a shard. Raises FileNotFoundError, ShardError."""
    packed = split(path)
    return path.stat().st_size if packed is None else _member(*packed).size


def list_chips(shard: Path) -> list[str]:
    """Names of a shard's chips, in its order. Raises ShardError where it is no whole archive."""
    return list(directory(shard))


@contextmanager
def open_chip(path: Path) -> Iterator[IO[bytes]]:
    """A chip's bytes, seekable, from a file of its own or from a shard.

    Raises:
        FileNotFoundError: there is no such file, or no such chip in the shard.
        ShardError: the shard is no whole archive.
    """
    packed = split(path)
    if packed is None:
        with open(path, "rb") as file:
            yield file
        return
    shard, name = packed
    member = _member(shard, name)
    with open(shard, "rb", buffering=0) as file:
        mark, name_bytes, extra_bytes = _LOCAL_HEADER.unpack(os.pread(file.fileno(), _LOCAL_HEADER.size, member.offset))
        if mark != b"PK\3\4":
            raise ShardError(f"{shard}: is damaged (no chip where {name} should be): pack it again")
        start = member.offset + _LOCAL_HEADER.size + name_bytes + extra_bytes
        with io.BufferedReader(_FileSpan(file.fileno(), start, member.size)) as stream:
            yield stream


class _FileSpan(io.RawIOBase):
    """Part of an open file as a file of its own."""

    def __init__(self, descriptor: int, start: int, size: int) -> None:
        self._descriptor, self._start, self._size, self._at = descriptor, start, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        origin = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        if origin + offset < 0:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        self._at = origin + offset
        return self._at

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer)[: max(0, self._size - self._at)]
        count = os.preadv(self._descriptor, [view], self._start + self._at) if len(view) else 0
        self._at += count
        return count


class Member(NamedTuple):
    """Where a chip's member begins in its shard (its local header), its bytes and their CRC-32."""

    offset: int
    size: int
    crc: int


def _member(shard: Path, name: str) -> Member:
    member = directory(shard).get(name)
    if member is None:
        raise FileNotFoundError(errno.ENOENT, "no such chip in this shard", str(shard / name))
    return member


def directory(shard: Path) -> Mapping[str, Member]:
    """A shard's chips by name, in its order. Raises OSError, ShardError."""
    stat = os.stat(shard)
    return _read_directory(shard, stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=16)
def _read_directory(shard: Path, size: int, mtime_ns: int) -> Mapping[str, Member]:
    # The last few are kept: a pass over a folder asks for one chip of a shard after another.
    try:
        with zipfile.ZipFile(shard) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, struct.error, LookupError, ValueError) as error:
        raise ShardError(f"{shard}: is damaged or no archive ({error}): pack or copy it again") from error
    if min((entry.header_offset for entry in entries), default=0) != 0:
        # Cut short inside its directory, it ends with a chip. That is an archive too, and `zipfile` takes its directory.
        raise ShardError(f"{shard}: is damaged (cut short): pack or copy it again")
    for entry in entries:
        if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1:
            raise ShardError(f"{shard}: {entry.filename} is compressed or encrypted: expected a shard of `aef pack`")
    return {e.filename: Member(e.header_offset, e.file_size, e.CRC) for e in entries if e.filename.endswith(".npz")}
