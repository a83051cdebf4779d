"""What start-up asks of a folder of chips, kept in one file beside them: `CHIPS/chips.index`.

Names, ids, places, sources, frame counts, a digest of the arrays, and whether every value has been checked. One threaded
pass over the headers makes it; processes map it, so that a node holds one copy. It is trusted chip by chip, only where
name, size and times of the file are those of the pass: a chip that was added, removed or written again is read again.
"""

from __future__ import annotations

import json
import mmap
import os
import struct
import tempfile
import time
import uuid
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from multiprocessing import context, reduction
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from aef import atomic
from aef.data import shards

FILE_NAME = "chips.index"

LEAST_CHIPS = 1000
"""A folder of fewer chips has no file: its headers are read in less than a second."""

THREADS = 16
RACY_NS = 2_000_000_000
"""A file this young may be written again without its times telling: the coarsest clock of a file system."""

SAVE_S, SAY_S = 300.0, 30.0
"""A first pass over millions of chips keeps what it has read, and says how far it is, this often."""

_MAGIC = b"AEF index of chips, 2\n"
_PAGE = 4096
_ENCODING = ("utf-8", "surrogatepass")  # names of files may be anything


class Look(NamedTuple):
    """One chip without its pixels. ``frames``: per source with times, their number and the seconds from first to last.

    Only what is ``sound`` is kept: of a chip that could not be read, the file system may have been to blame.
    """

    id: str | None
    place: str | None
    sources: tuple[str, ...]
    frames: Mapping[str, tuple[int, int]]
    contents: bytes
    sound: bool


LookAt = Callable[[Path], Look]
Say = Callable[[str], None]


def list_names(folder: Path) -> list[str]:
    """Names of the chips of a folder, its sub-folders and shards, relative to it with `/`, sorted. Hidden ones are no chips.

    Raises ShardError where a shard is no whole archive.
    """
    found: list[str] = []
    waiting, visited = [""], set()
    while waiting:
        inside = waiting.pop()
        real = os.path.realpath(folder / inside)
        if real in visited:  # a link that leads back
            continue
        visited.add(real)
        with os.scandir(folder / inside) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if entry.name.endswith(".npz"):
                    found.append(inside + entry.name)
                elif entry.is_dir():
                    waiting.append(f"{inside}{entry.name}/")
                elif entry.name.endswith(shards.SUFFIX):
                    found += (f"{inside}{entry.name}/{name}" for name in shards.names_in(Path(entry.path)))
    return sorted(found, key=lambda name: name.split("/"))  # the order of paths


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


class Names(Sequence[str]):
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


class Index:
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
        self._crc, length = struct.unpack_from("<IQ", view, start)
        start += struct.calcsize("<IQ")
        head = json.loads(bytes(view[start : start + length]))
        self.token: str = head["token"]
        self.sources: list[str] = head["sources"]
        self.duplicate_ids: tuple[int, int] | None = tuple(head["duplicate_ids"]) if head["duplicate_ids"] else None
        columns = {}
        for name, (offset, shape, dtype) in head["columns"].items():
            count = int(np.prod(shape))
            columns[name] = np.frombuffer(buffer, dtype, count, start + length + offset).reshape(shape)
        self.names = Names(columns["names"], columns["name_ends"])
        self.ids = Names(columns["ids"], columns["id_ends"])
        self.places = Names(columns["places"], columns["place_ends"])
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
    def read(cls, path: Path) -> Index | None:
        """Map an index; None where there is none, or a damaged one, or one of another version."""
        try:
            found = cls._mapped(_open(path), path)
            whole = zlib.crc32(memoryview(found._buffer)[found._fixed]) == found._crc
        except (OSError, ValueError, KeyError, TypeError, struct.error):
            return None
        return found if whole else None

    @classmethod
    def _mapped(cls, file: IO[bytes], path: Path | None) -> Index:
        access = mmap.ACCESS_WRITE if file.writable() else mmap.ACCESS_READ
        return cls(mmap.mmap(file.fileno(), 0, access=access), file, path)

    @classmethod
    def _anonymous(cls, content: bytearray) -> Index:
        """For a folder that cannot be written: a file without a name, which processes share all the same."""
        file = tempfile.TemporaryFile()  # noqa: SIM115 (open as long as the index is)
        file.write(content)
        file.flush()
        return cls._mapped(file, None)

    def __reduce__(self) -> tuple[Any, ...]:
        """A process that is being started gets the open file: the very same index, even if another has replaced it."""
        if self._file is not None and context.get_spawning_popen() is not None:
            return _from_descriptor, (reduction.DupFd(self._file.fileno()), self._file.mode, self._path)
        return Index, (bytearray(self._buffer),)


def _open(path: Path) -> IO[bytes]:
    try:
        return open(path, "r+b")
    except OSError:
        return open(path, "rb")


def _from_descriptor(descriptor: Any, mode: str, path: Path | None) -> Index:
    return Index._mapped(os.fdopen(descriptor.detach(), "r+b" if "+" in mode else "rb"), path)


# --- the pass --------------------------------------------------------------------------------------------------------


def index_of(folder: Path, names: Sequence[str], look_at: LookAt, say: Say = lambda text: None) -> Index:
    """The index of some chips of a folder: from its file as far as that is true, the rest read; the file made anew.

    Safe with several processes: each writes a whole file and renames it. A folder that cannot be written works without.
    """
    path = folder / FILE_NAME
    old = Index.read(path)
    if old is None and len(names) < LEAST_CHIPS:
        return Index(_take(folder, names, np.zeros((len(names), 3), np.int64), None, look_at))
    now = _clock_ns(path) if old is None else None
    signature = _signatures(folder, names)
    if old is not None:
        if len(old) == len(names) and bool((old.signature == signature).all()) and list(old.names) == list(names):
            return old
        # Before any chip is looked at: one that is written after that has later times, unless it was written just now.
        now = _clock_ns(path)
    if now is not None:
        signature[signature[:, 1:].max(axis=1) >= now - RACY_NS] = 0

    def keep(content: bytearray) -> None:
        try:
            with atomic.writing(path) as stream:
                stream.write(content)
        except OSError:
            pass  # a full disk: the pass is kept in memory only

    content = _take(folder, names, signature, old, look_at, keep if now is not None else None, say)
    made = Index(content)
    if now is not None and _differs(old, made):
        keep(content)
    kept = Index.read(path)
    return kept if kept is not None and kept.token == made.token else Index._anonymous(content)


def _differs(old: Index | None, made: Index) -> bool:
    """Whether a new file tells more than the old one: chips that could not be read are looked at again in any case."""
    if old is None or len(old) != len(made) or list(old.names) != list(made.names):
        return True
    return bool(((old.signature != made.signature).any(axis=1) & made.sound).any())


def _clock_ns(path: Path) -> int | None:
    """The time of the file system that holds the folder; None where the folder cannot be written."""
    try:
        with tempfile.NamedTemporaryFile(prefix=f".{path.name}.", dir=path.parent) as file:
            return os.fstat(file.fileno()).st_mtime_ns
    except OSError:
        return None


def _signatures(folder: Path, names: Sequence[str]) -> np.ndarray:
    """Size, mtime and ctime of every chip's file or shard, (N, 3) int64; zeros of one that is gone."""

    def of_file(path: str) -> tuple[int, int, int]:
        try:
            found = os.stat(path)
        except OSError:
            return 0, 0, 0
        return found.st_size, found.st_mtime_ns, found.st_ctime_ns

    @lru_cache(maxsize=64)
    def of_shard(path: str) -> tuple[int, int, int] | None:
        return None if os.path.isdir(path) else of_file(path)

    def signature(name: str) -> tuple[int, int, int]:
        shard, packed, _ = name.partition(f"{shards.SUFFIX}/")
        found = of_shard(f"{folder}/{shard}{shards.SUFFIX}") if packed else None
        return of_file(f"{folder}/{name}") if found is None else found

    flat = (number for three in _spread(signature, names) for number in three)
    return np.fromiter(flat, np.int64, 3 * len(names)).reshape(-1, 3)


def _spread(action: Callable[[Any], Any], items: Sequence[Any]) -> Iterator[Any]:
    """Results in order; by threads where the first ones waited for the disk longer than they worked."""
    waited = worked = 0.0
    for item in items[:64]:
        wall, work = time.perf_counter(), time.thread_time()
        result = action(item)
        worked += time.thread_time() - work
        waited += time.perf_counter() - wall - (time.thread_time() - work)
        yield result
    if waited <= worked:
        yield from map(action, items[64:])
        return
    with ThreadPoolExecutor(THREADS) as pool:
        # By blocks: a future for each of millions of chips would take more memory than the index.
        for start in range(64, len(items), 64 * THREADS):
            block = items[start : start + 64 * THREADS]
            parts = [block[i::THREADS] for i in range(THREADS)]
            done = list(pool.map(lambda part: [action(item) for item in part], parts))
            yield from (done[i % THREADS][i // THREADS] for i in range(len(block)))


def _take(
    folder: Path,
    names: Sequence[str],
    signature: np.ndarray,
    old: Index | None,
    look_at: LookAt,
    keep: Callable[[bytearray], None] | None = None,
    say: Say = lambda text: None,
) -> bytearray:
    """Look at every chip that ``old`` does not know as it is now. ``keep`` is called now and then with what there is."""
    table = _Table(names)
    missing = table.copy(old, signature) if old is not None else np.arange(len(names))
    saved = said = time.monotonic()
    looks = _spread(lambda row: look_at(folder / names[row]), missing.tolist())
    for number, (row, look) in enumerate(zip(missing.tolist(), looks), 1):
        table.add(row, look, signature[row])
        if time.monotonic() - said > SAY_S:
            say(f"{folder}: {number:,} of {len(missing):,} headers read; once read, {FILE_NAME} remembers them")
            said = time.monotonic()
        if keep is not None and time.monotonic() - saved > SAVE_S:
            keep(table.content())
            saved = time.monotonic()
    return table.content()


class _Table:
    """The columns of an index in the making. Rows that were not looked at yet are of no file."""

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

    def copy(self, old: Index, signature: np.ndarray) -> np.ndarray:
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

    def add(self, row: int, look: Look, signature: np.ndarray) -> None:
        self.ids[row] = look.id or ""
        self._set_place(row, look.place)
        for column in [self._source(name) for name in look.sources]:
            self.present[row, column] = 1
        for name, (frames, seconds) in look.frames.items():
            column = self._source(name)
            self.frames[row, column], self.seconds[row, column] = frames, seconds
        self.contents[row] = np.frombuffer(look.contents, np.uint8)
        self.sound[row] = look.sound
        self.signature[row] = signature if look.sound else 0

    def _set_place(self, row: int, place: str | None) -> None:
        self.place[row] = -1 if place is None else self.places.setdefault(place, len(self.places))

    def _source(self, name: str) -> int:
        if name not in self.sources:
            self.sources[name] = len(self.sources)
            for column in ("present", "frames", "seconds"):
                setattr(self, column, np.pad(getattr(self, column), ((0, 0), (0, 1))))
        return self.sources[name]

    def content(self) -> bytearray:
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
        before = len(_MAGIC) + struct.calcsize("<IQ")
        text += b" " * (-(before + len(text)) % _PAGE)
        body = bytearray(before + len(text) + offset)
        body[: before + len(text)] = _MAGIC + struct.pack("<IQ", 0, len(text)) + text
        for name, column in columns.items():
            start = before + len(text) + head["columns"][name][0]
            body[start : start + column.nbytes] = np.ascontiguousarray(column).tobytes()
        fixed = memoryview(body)[len(_MAGIC) + 4 : before + len(text) + head["columns"]["checked"][0]]
        struct.pack_into("<I", body, len(_MAGIC), zlib.crc32(fixed))
        return body
