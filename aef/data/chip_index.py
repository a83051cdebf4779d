"""The index of a folder of chips, `CHIPS/chips.index`: what start-up asks of all of them, in one file beside them.

Names, ids, places, sources, frame counts, a digest of the arrays, and whether every value has been checked. Processes map
it, so that a node holds one copy. `aef.data.folder_scan` makes it.

The file, byte by byte::

    magic     22    "AEF index of chips, 2" and a line feed: the version
    crc        4    uint32, CRC-32 of every byte from here to the column `checked`
    length     8    uint64, bytes of the head
    head  length    JSON: token (of this file), sources (names), duplicate_ids (two rows, or null), columns {name: [offset
                    from the end of the head, shape, dtype of NumPy]}; padded with blanks to a multiple of 4096 bytes
    columns         one after another, each aligned to 8 bytes; `checked` last and on pages of its own, since processes
                    write its marks in place

Columns are the attributes of `ChipIndex`. Each of its three columns of texts is two: `names` holds the texts in UTF-8 with
a 0 after each, `name_ends` (N,) int64 where these zeros stand; likewise `ids` and `id_ends`, `places` and `place_ends`.
Numbers are little-endian.
"""

from __future__ import annotations

import json
import mmap
import os
import struct
import tempfile
import uuid
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from multiprocessing import context, reduction
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

FILE_NAME = "chips.index"

_MAGIC = b"AEF index of chips, 2\n"
_SIZES = struct.Struct("<IQ")
"""Behind the magic: the checksum, and the bytes of the head."""

_PAGE = 4096
_ENCODING = ("utf-8", "surrogatepass")  # names of files may be anything


class ChipEntry(NamedTuple):
    """What an index holds of one chip. ``frames``: per source with times, their number and the seconds from first to last.

    Only what is ``sound`` is kept: of a chip that could not be read, the file system may have been to blame.
    """

    id: str | None
    place: str | None
    sources: tuple[str, ...]
    frames: Mapping[str, tuple[int, int]]
    contents: bytes
    sound: bool


def find_duplicate(texts: Sequence[str], key: Callable[[str], str] = str) -> tuple[int, int] | None:
    """Two rows of one text (or of one ``key`` of it), the first before the second, or None; empty texts do not count."""
    # By eight bytes a text: a set of millions of them would be the largest thing in memory.
    hashes = np.fromiter((hash(key(text)) for text in texts), np.int64, len(texts))
    order = np.argsort(hashes, kind="stable")
    for at in np.flatnonzero(hashes[order[1:]] == hashes[order[:-1]]):
        first, second = int(order[at]), int(order[at + 1])
        if key(texts[first]) and key(texts[first]) == key(texts[second]):
            return first, second
    return None


class TextColumn(Sequence[str]):
    """Texts laid end to end with a 0 after each: one block of memory instead of an object a text."""

    def __init__(self, text: np.ndarray, ends: np.ndarray) -> None:
        self.text, self.ends = text, ends

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        index = range(len(self))[index]
        start = int(self.ends[index - 1]) + 1 if index else 0
        return self.text[start : int(self.ends[index])].tobytes().decode(*_ENCODING)

    def __iter__(self) -> Iterator[str]:
        text, start = self.text.tobytes(), 0
        for end in self.ends.tolist():
            yield text[start:end].decode(*_ENCODING)
            start = end + 1


class ChipIndex:
    """The columns of an index; row i is chip i in sorted order.

    Attributes:
        names, ids, places: texts; an id that could not be read is empty; ``places`` holds each place once.
        place: (N,) int32 into ``places``; −1: the header could not be read.
        sources: names of all sources; ``present`` (N, S) says which a chip holds.
        frames, seconds: (N, S) uint32, of the sources with times.
        contents: (N, 16) digest of the arrays. sound: (N,) whether the chip could be read.
        signature: (N, 3) size, mtime, ctime of the file or shard; zeros: not to be trusted later.
        checked: (N,) uint64, the rules by which every value of the chip was found right; 0: not checked yet.
        duplicate_ids: two chips of one id, or None.
    """

    def __init__(self, buffer: Any, file: IO[bytes] | None = None, path: Path | None = None) -> None:
        """Raises ValueError where the bytes are no whole index of this version."""
        self._buffer, self._file, self._path = buffer, file, path
        view = memoryview(buffer)
        start = len(_MAGIC)
        if bytes(view[:start]) != _MAGIC:
            raise ValueError("no index of this version")
        self._crc, length = _SIZES.unpack_from(view, start)
        start += _SIZES.size
        head = json.loads(bytes(view[start : start + length]))
        self.token: str = head["token"]
        self.sources: list[str] = head["sources"]
        self.duplicate_ids: tuple[int, int] | None = tuple(head["duplicate_ids"]) if head["duplicate_ids"] else None
        columns = {}
        for name, (offset, shape, dtype) in head["columns"].items():
            count = int(np.prod(shape))
            columns[name] = np.frombuffer(buffer, dtype, count, start + length + offset).reshape(shape)
        self.names = TextColumn(columns["names"], columns["name_ends"])
        self.ids = TextColumn(columns["ids"], columns["id_ends"])
        self.places = TextColumn(columns["places"], columns["place_ends"])
        self.place, self.present = columns["place"], columns["present"].view(np.bool_)
        self.frames, self.seconds = columns["frames"], columns["seconds"]
        self.contents, self.sound = columns["contents"], columns["sound"].view(np.bool_)
        self.signature, self.checked = columns["signature"], columns["checked"]
        self._fixed = slice(len(_MAGIC) + 4, start + length + head["columns"]["checked"][0])

    def __len__(self) -> int:
        return len(self.names)

    def mark_checked(self, index: int, rules: int) -> None:
        """Remember that every value of a chip is right by these rules. Processes may mark at the same time."""
        if self.checked.flags.writeable:
            self.checked[index] = rules

    # --- files -------------------------------------------------------------------------------------------------------

    @classmethod
    def read(cls, path: Path) -> ChipIndex | None:
        """Map an index; None where there is none, or a damaged one, or one of another version."""
        try:
            index = cls._mapped(_open(path), path)
            whole = zlib.crc32(memoryview(index._buffer)[index._fixed]) == index._crc
        except (OSError, ValueError, KeyError, TypeError, struct.error):
            return None
        return index if whole else None

    @classmethod
    def _mapped(cls, file: IO[bytes], path: Path | None) -> ChipIndex:
        access = mmap.ACCESS_WRITE if file.writable() else mmap.ACCESS_READ
        return cls(mmap.mmap(file.fileno(), 0, access=access), file, path)

    @classmethod
    def in_memory(cls, content: bytearray) -> ChipIndex:
        """For a folder that cannot be written: a file without a name, which processes share all the same."""
        file = tempfile.TemporaryFile()  # noqa: SIM115 (open as long as the index is)
        file.write(content)
        file.flush()
        return cls._mapped(file, None)

    def __reduce__(self) -> tuple[Any, ...]:
        """A process that is being started gets the open file: the very same index, even if another has replaced it."""
        if self._file is not None and context.get_spawning_popen() is not None:
            return _from_descriptor, (reduction.DupFd(self._file.fileno()), self._file.mode, self._path)
        return ChipIndex, (bytearray(self._buffer),)


def _open(path: Path) -> IO[bytes]:
    try:
        return open(path, "r+b")
    except OSError:
        return open(path, "rb")


def _from_descriptor(descriptor: Any, mode: str, path: Path | None) -> ChipIndex:
    return ChipIndex._mapped(os.fdopen(descriptor.detach(), "r+b" if "+" in mode else "rb"), path)


class IndexBuilder:
    """The columns of an index in the making. Rows without an entry yet are of no file."""

    def __init__(self, names: Sequence[str]) -> None:
        count = len(names)
        self.names, self.ids = names, [""] * count
        self.sources: dict[str, int] = {}
        self.places: dict[str, int] = {}
        self.place = np.full(count, -1, np.int32)
        self.present = np.zeros((count, 0), np.uint8)
        self.frames, self.seconds = (np.zeros((count, 0), np.uint32) for _ in range(2))
        self.contents = np.zeros((count, 16), np.uint8)
        self.sound = np.zeros(count, np.uint8)
        self.signature = np.zeros((count, 3), np.int64)
        self.checked = np.zeros(count, np.uint64)

    def take_over(self, old: ChipIndex, signature: np.ndarray) -> np.ndarray:
        """Take over what an index knows of chips that are what they were; returns the rows of the others."""
        rows = {name: row for row, name in enumerate(old.names)}
        origin = np.fromiter((rows.get(name, -1) for name in self.names), np.int64, len(self.names))
        known = np.flatnonzero(origin >= 0)
        known = known[(old.signature[origin[known]] == signature[known]).all(axis=1) & signature[known].any(axis=1)]
        known = known[old.sound[origin[known]]]
        at = origin[known]
        for column in ("contents", "sound", "signature", "checked"):
            getattr(self, column)[known] = getattr(old, column)[at]
        columns = [self._source(name) for name in old.sources]
        for column in ("present", "frames", "seconds"):
            getattr(self, column)[np.ix_(known, columns)] = getattr(old, column)[at]
        ids, places = list(old.ids), list(old.places)
        for row, source, place in zip(known.tolist(), at.tolist(), old.place[at].tolist()):
            self.ids[row] = ids[source]
            self._set_place(row, places[place] if place >= 0 else None)
        return np.setdiff1d(np.arange(len(self.names)), known, assume_unique=True)

    def add(self, row: int, entry: ChipEntry, signature: np.ndarray) -> None:
        self.ids[row] = entry.id or ""
        self._set_place(row, entry.place)
        for column in [self._source(name) for name in entry.sources]:
            self.present[row, column] = 1
        for name, (frames, seconds) in entry.frames.items():
            column = self._source(name)
            self.frames[row, column], self.seconds[row, column] = frames, seconds
        self.contents[row] = np.frombuffer(entry.contents, np.uint8)
        self.sound[row] = entry.sound
        self.signature[row] = signature if entry.sound else 0

    def _set_place(self, row: int, place: str | None) -> None:
        self.place[row] = -1 if place is None else self.places.setdefault(place, len(self.places))

    def _source(self, name: str) -> int:
        if name not in self.sources:
            self.sources[name] = len(self.sources)
            for column in ("present", "frames", "seconds"):
                setattr(self, column, np.pad(getattr(self, column), ((0, 0), (0, 1))))
        return self.sources[name]

    def to_bytes(self) -> bytearray:
        """The bytes of an index file."""
        columns: dict[str, np.ndarray] = {}
        for one, values in (("name", self.names), ("id", self.ids), ("place", list(self.places))):
            parts = [value.encode(*_ENCODING) for value in values]
            columns[f"{one}_ends"] = np.cumsum([len(part) + 1 for part in parts], dtype=np.int64) - 1
            columns[f"{one}s"] = np.frombuffer(b"".join(part + b"\0" for part in parts), np.uint8)
        for name in ("place", "present", "frames", "seconds", "contents", "sound", "signature", "checked"):
            columns[name] = getattr(self, name)
        head: dict[str, Any] = {
            "token": uuid.uuid4().hex,
            "sources": list(self.sources),
            "duplicate_ids": find_duplicate(self.ids),
            "columns": {},
        }
        offset = 0
        for name, column in columns.items():
            # Marks of `checked` are written in place: no other column shares their pages.
            offset += -offset % (_PAGE if name == "checked" else 8)
            head["columns"][name] = (offset, column.shape, column.dtype.str)
            offset += column.nbytes
        text = json.dumps(head).encode()
        before = len(_MAGIC) + _SIZES.size
        text += b" " * (-(before + len(text)) % _PAGE)
        body = bytearray(before + len(text) + offset)
        body[: before + len(text)] = _MAGIC + _SIZES.pack(0, len(text)) + text
        for name, column in columns.items():
            start = before + len(text) + head["columns"][name][0]
            body[start : start + column.nbytes] = np.ascontiguousarray(column).tobytes()
        fixed = memoryview(body)[len(_MAGIC) + 4 : before + len(text) + head["columns"]["checked"][0]]
        struct.pack_into("<I", body, len(_MAGIC), zlib.crc32(fixed))
        return body
