"""A pass over a folder of chips: which it holds, and their index (`aef.data.chip_index`), brought up to date.

The headers are read by threads, once: the index is trusted chip by chip, only where name, size and times of the file
are those of the pass that read it. A chip that was added, removed or written again is read again.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from aef import atomic
from aef.data import shards
from aef.data.chip_file import read_entry
from aef.data.chip_index import FILE_NAME, ChipIndex, IndexBuilder

LEAST_CHIPS = 1000
"""A folder of fewer chips has no file: its headers are read in less than a second."""

THREADS = 16
RACY_NS = 2_000_000_000
"""A file this young may be written again without its times telling: the coarsest clock of a file system."""

SAVE_S, SAY_S = 300.0, 30.0
"""A first pass over millions of chips keeps what it has read, and says how far it is, this often."""

Say = Callable[[str], None]


def list_names(folder: Path) -> list[str]:
    """Names of the chips of a folder, its sub-folders and shards, relative to it with `/`, sorted. Hidden ones are no chips.

    Raises ShardError where a shard is no whole archive.
    """
    names: list[str] = []
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
                    names.append(inside + entry.name)
                elif entry.is_dir():
                    waiting.append(f"{inside}{entry.name}/")
                elif entry.name.endswith(shards.SUFFIX):
                    names += (f"{inside}{entry.name}/{name}" for name in shards.list_chips(Path(entry.path)))
    return sorted(names, key=lambda name: name.split("/"))  # the order of paths


def up_to_date_index(folder: Path, names: Sequence[str], say: Say = lambda text: None) -> ChipIndex:
    """The index of some chips of a folder: from its file as far as that is true, the rest read; the file made anew.

    Safe with several processes: each writes a whole file and renames it. A folder that cannot be written works without.
    """
    path = folder / FILE_NAME
    old = ChipIndex.read(path)
    if old is None and len(names) < LEAST_CHIPS:
        return ChipIndex(_scan(folder, names, np.zeros((len(names), 3), np.int64), None))
    now = _clock_ns(path) if old is None else None
    signature = _signatures(folder, names)
    if old is not None:
        if len(old) == len(names) and bool((old.signature == signature).all()) and list(old.names) == list(names):
            return old
        # Before any chip is read: one that is written after that has later times, unless it was written just now.
        now = _clock_ns(path)
    if now is not None:
        signature[signature[:, 1:].max(axis=1) >= now - RACY_NS] = 0

    def keep(content: bytearray) -> None:
        try:
            with atomic.writing(path) as stream:
                stream.write(content)
        except OSError:
            pass  # a full disk: the pass is kept in memory only

    content = _scan(folder, names, signature, old, keep if now is not None else None, say)
    made = ChipIndex(content)
    if now is not None and _tells_more(old, made):
        keep(content)
    kept = ChipIndex.read(path)
    return kept if kept is not None and kept.token == made.token else ChipIndex.in_memory(content)


def _tells_more(old: ChipIndex | None, made: ChipIndex) -> bool:
    """Whether a new file tells more than the old one: chips that could not be read are read again in any case."""
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
            stat = os.stat(path)
        except OSError:
            return 0, 0, 0
        return stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns

    @lru_cache(maxsize=64)
    def of_shard(path: str) -> tuple[int, int, int] | None:
        return None if os.path.isdir(path) else of_file(path)

    def signature(name: str) -> tuple[int, int, int]:
        shard, packed, _ = name.partition(f"{shards.SUFFIX}/")
        of_its_shard = of_shard(f"{folder}/{shard}{shards.SUFFIX}") if packed else None
        return of_file(f"{folder}/{name}") if of_its_shard is None else of_its_shard

    flat = (number for three in _map_in_order(signature, names) for number in three)
    return np.fromiter(flat, np.int64, 3 * len(names)).reshape(-1, 3)


def _map_in_order(action: Callable[[Any], Any], items: Sequence[Any]) -> Iterator[Any]:
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


def _scan(
    folder: Path,
    names: Sequence[str],
    signature: np.ndarray,
    old: ChipIndex | None,
    keep: Callable[[bytearray], None] | None = None,
    say: Say = lambda text: None,
) -> bytearray:
    """An index's bytes, for which every chip is read that ``old`` does not know as it is now.

    ``keep`` is called now and then with what there is.
    """
    builder = IndexBuilder(names)
    missing = builder.take_over(old, signature) if old is not None else np.arange(len(names))
    saved = said = time.monotonic()
    entries = _map_in_order(lambda row: read_entry(folder / names[row]), missing.tolist())
    for number, (row, entry) in enumerate(zip(missing.tolist(), entries), 1):
        builder.add(row, entry, signature[row])
        if time.monotonic() - said > SAY_S:
            say(f"{folder}: {number:,} of {len(missing):,} headers read; once read, {FILE_NAME} remembers them")
            said = time.monotonic()
        if keep is not None and time.monotonic() - saved > SAVE_S:
            keep(builder.to_bytes())
            saved = time.monotonic()
    return builder.to_bytes()
