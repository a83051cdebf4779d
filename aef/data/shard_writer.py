"""Writes shards (`aef.data.shards`): the chips of a folder of millions, packed into a few thousand files."""

from __future__ import annotations

import shutil
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from aef import atomic
from aef.data import shards
from aef.data.chips import ChipError, ChipFolder
from aef.data.shards import SUFFIX, ShardError
from aef.data.statistics import FILE_NAME as STATISTICS_FILE
from aef.data.statistics import PlacesFile
from aef.settings_file import SOURCES_FILE

BESIDE = (STATISTICS_FILE, PlacesFile.beside(STATISTICS_FILE).path.name, SOURCES_FILE)
"""Files of a folder that say something of its chips, and go with them."""

_BLOCK = 1 << 20


class PlannedShard(NamedTuple):
    """A shard to come: its file, and the chips that it will hold by their names in their folder."""

    path: Path
    folder: Path
    names: Sequence[str]

    def chips(self) -> Iterator[tuple[str, Path]]:
        """The name that each chip keeps, and its file."""
        return ((shards.unpacked_name(name), self.folder / name) for name in self.names)


def plan_shards(folder: ChipFolder, out: Path, shard_bytes: int) -> list[PlannedShard]:
    """Deal the chips of a folder, in its order, to shards of at most so many bytes (of one chip, where that is larger).

    Raises:
        ShardError: one of the two folders lies in the other.
    """
    inside, outside = folder.path.resolve(), out.resolve()
    if inside == outside or inside in outside.parents or outside in inside.parents:
        raise ShardError(
            f"{out}: is {folder.path}, or one lies in the other: chips would be found twice: choose another"
        )
    names, starts, filled = folder.files.names, [0], 0
    for number, name in enumerate(names):
        size = shards.size_of(folder.path / name)
        if filled and filled + size > shard_bytes:
            starts.append(number)
            filled = 0
        filled += size
    digits = max(5, len(str(len(starts) - 1)))
    parts = zip(starts, [*starts[1:], len(names)])
    return [PlannedShard(out / f"{i:0{digits}d}{SUFFIX}", folder.path, names[a:b]) for i, (a, b) in enumerate(parts)]


def pack(
    folder: ChipFolder,
    out: Path,
    shard_bytes: int,
    *,
    overwrite: bool = False,
    on_chip: Callable[[], None] = lambda: None,
) -> list[Path]:
    """Copy the chips of a folder into shards, with its statistics and its own sources; the folder is left as it is.

    Order, names and bytes of the chips stay, so that a run may go on with the packed copy. Each shard is written
    atomically, and one that is there with the same bytes is kept: called again after anything, it goes on.

    Returns:
        The shards that were written now.

    Raises:
        ShardError: one folder lies in the other; ``out`` holds chips of their own or, unless ``overwrite``, other
            shards; the disk has no room.
        ChipError: a chip's header cannot be read.
        OSError: the disk is full.
    """
    _require_sound(folder)
    wanted = plan_shards(folder, out, shard_bytes)
    out.mkdir(parents=True, exist_ok=True)
    _require_only_shards(out)
    atomic.remove_unfinished(out, {shard.path.name for shard in wanted})
    leftover = sorted(set(out.glob(f"*{SUFFIX}")) - {shard.path for shard in wanted})
    missing = [shard for shard in wanted if not _holds(shard)]
    other = [*leftover, *(shard.path for shard in missing if _is_whole(shard.path))]
    if other and not overwrite:
        raise ShardError(f"{other[0]}: holds other chips than it would now: choose another folder, or --overwrite")
    _require_room(missing, out)
    for path in leftover:
        path.unlink()
    for _ in range(len(folder) - sum(len(shard.names) for shard in missing)):
        on_chip()  # chips of the shards that are kept
    for shard in missing:
        _write(shard, on_chip)
    for path in filter(Path.is_file, (folder.path / name for name in BESIDE)):
        with atomic.writing(out / path.name) as stream:
            stream.write(path.read_bytes())
    _require_same(folder, out)
    return [shard.path for shard in missing]


def _write(shard: PlannedShard, on_chip: Callable[[], None]) -> None:
    with atomic.writing(shard.path) as stream, zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as archive:
        for name, path in shard.chips():
            entry = zipfile.ZipInfo(name)  # no dates: the same chips give the same shard
            entry.file_size = shards.size_of(path)
            with shards.open_chip(path) as source, archive.open(entry, "w") as member:
                shutil.copyfileobj(source, member, _BLOCK)
            on_chip()


def _holds(shard: PlannedShard) -> bool:
    """Whether a shard is there with just these chips, byte for byte."""
    if not _is_whole(shard.path):
        return False
    entries = shards.directory(shard.path)
    return list(entries) == [name for name, _ in shard.chips()] and all(
        (entries[name].size, entries[name].crc) == (shards.size_of(path), _crc(path)) for name, path in shard.chips()
    )


def _is_whole(shard: Path) -> bool:
    """Whether a shard is there and can be listed: one that cannot is written again without asking."""
    try:
        shards.directory(shard)
    except (FileNotFoundError, ShardError):
        return False
    return True


def _crc(path: Path) -> int:
    crc = 0
    with shards.open_chip(path) as stream:
        while block := stream.read(_BLOCK):
            crc = zlib.crc32(block, crc)
    return crc


def _require_sound(folder: ChipFolder) -> None:
    bad = np.flatnonzero(~folder.index.sound).tolist()
    if bad:
        folder.header(bad[0])  # says what is wrong with it, where it still is
        raise ChipError(f"cannot be read, nor can {len(bad) - 1} others: look at them", file=folder.files[bad[0]])


def _require_only_shards(out: Path) -> None:
    own = next(out.rglob("*.npz"), None)
    if own is not None:
        raise ShardError(f"{out}: holds chips that are not packed ({own.name}): choose another folder")


def _require_room(missing: Sequence[PlannedShard], out: Path) -> None:
    needed = sum(shards.size_of(path) for shard in missing for _, path in shard.chips())
    free = shutil.disk_usage(out).free
    if needed > free:
        raise ShardError(f"{out}: {needed / 1e9:.1f} GB are to be written, {free / 1e9:.1f} GB are free: make room")


def _require_same(folder: ChipFolder, out: Path) -> None:
    packed = ChipFolder(out, folder.registry)
    if packed.digest(range(len(packed))) != folder.digest(range(len(folder))):
        raise ShardError(f"{out}: what was packed is not what {folder.path} holds: did it change meanwhile? pack again")
