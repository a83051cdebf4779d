"""Folders of chips: in a fixed order, with what start-up asks of all of them (docs/data.md).

Everything about a single chip's file is in `aef.data.chip_file`, and importable from here.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import operator
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from aef.data import shards
from aef.data.chip_file import (
    FORMAT_VERSION,
    read_chip,
    read_chip_header,
    read_frame_times,
    write_chip,
)
from aef.data.chip_index import ChipIndex, find_duplicate
from aef.data.contract import PIXEL_M, Chip, ChipError, Label, SourceSeries, TextPoint
from aef.data.contract_check import RULES_VERSION, validate
from aef.data.folder_scan import LEAST_CHIPS, list_names, up_to_date_index
from aef.path import as_path
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
    "read_frame_times",
    "require_free",
    "validate",
    "write_chip",
]


class ChipFiles(Sequence[Path]):
    """The files of a folder's chips; paths are made when they are asked for."""

    def __init__(self, folder: Path, names: Sequence[str]) -> None:
        self.folder, self.names = folder, names

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self.folder / name for name in self.names[index]]
        return self.folder / self.names[operator.index(index)]


class Indices(Sequence[int]):
    """Some chips of a folder, in its order, at four bytes a chip."""

    def __init__(self, values: np.ndarray | range) -> None:
        self._values = values

    def __len__(self) -> int:
        return len(self._values)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [int(value) for value in self._values[index]]
        return int(self._values[operator.index(index)])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self._values, dtype)


class ChipFolder:
    """The chips of a folder, its sub-folders and its shards in a fixed (sorted) order.

    What start-up asks of all of them is answered by the folder's index (`aef.data.chip_index`), which is made when it
    is first asked for and is as true as the files are then.

    Raises:
        FileNotFoundError: the folder does not exist.
        NotADirectoryError: it is a file.
        ChipError: it holds no chip, or two of one name in two sub-folders.
        ShardError: a shard is no whole archive.
    """

    def __init__(self, path: str | os.PathLike, registry: Registry) -> None:
        self.path, self.registry = as_path(path, "folder of chips"), registry
        if self.path.is_file() or shards.split(self.path):
            raise NotADirectoryError(
                f"{self.path}: expected a folder of chips, found a file: give the folder it lies in"
            )
        if not self.path.is_dir():
            raise FileNotFoundError(f"{self.path}: no such folder of chips")
        names = list_names(self.path)
        if not names:
            raise ChipError(
                "holds no chip (*.npz, *.chips.zip): make some with `aef synthesize`, `aef ingest` or `aef download`",
                file=self.path,
            )
        _require_unique_names(names, self.path)
        self.files = ChipFiles(self.path, names)
        self._index: ChipIndex | None = None
        self._places: list[str | None] | None = None

    @property
    def index(self) -> ChipIndex:
        """Everything that start-up asks of the chips, mapped."""
        return self.build_index(lambda text: None)

    def build_index(self, say: Callable[[str], None]) -> ChipIndex:
        """The index; where making it takes long, ``say`` hears now and then how far it is."""
        if self._index is None:
            self._index = up_to_date_index(self.path, self.files.names, say)
            self.files = ChipFiles(self.path, self._index.names)
        return self._index

    def __getstate__(self) -> dict[str, Any]:
        """For another process: the index, which it maps, tells everything else."""
        files = self.files if self._index is None else None
        return {**self.__dict__, "files": files, "_places": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if self._index is not None:
            self.files = ChipFiles(self.path, self._index.names)

    def __len__(self) -> int:
        return len(self.files)

    def __iter__(self) -> Iterator[Chip]:
        return (self.read(index) for index in range(len(self)))

    def read(self, index: int, sources: Iterable[str] | None = None, *, check_values: bool = False) -> Chip:
        """Read a chip; one whose every value is found right is remembered where the folder has an index."""
        wanted = None if sources is None else set(sources)
        chip = read_chip(self.files[index], self.registry, sources=wanted, check_values=check_values)
        if check_values and self._index is not None:
            held = {self._index.sources[i] for i in np.flatnonzero(self._index.present[index])}
            if wanted is None or held <= wanted:
                self._index.mark_checked(index, self._rules)
        return chip

    def header(self, index: int) -> dict[str, Any]:
        return read_chip_header(self.files[index])

    def places(self) -> list[str | None]:
        """The place of every chip, in the folder's order; None where a header cannot be read.

        Raises:
            ChipError: two files hold a chip of the same id: a copy would be trained on twice.
        """
        if self._places is None:
            self._require_unique_ids()
            table = [*self.index.places, None]  # −1, an unknown place, is the last
            self._places = [table[number] for number in self.index.place.tolist()]
        return self._places

    def known_places(self) -> list[str]:
        """Every place of the folder once, sorted. Raises ChipError as `places` does."""
        self._require_unique_ids()
        return sorted(filter(None, self.index.places))

    def _require_unique_ids(self) -> None:
        if self.index.duplicate_ids is not None:
            first, second = self.index.duplicate_ids
            names = self.index.names
            raise ChipError(
                f"two files hold the chip {self.index.ids[first]!r}, {names[first]} and {names[second]}: remove one of them",
                field="id",
                file=self.path,
            )

    def require(self, wanted: Iterable[str], words: str) -> list[str]:
        """Places that are asked for, each once. Raises ChipError, with ``words`` before those that the folder does not hold."""
        wanted = list(dict.fromkeys(wanted))
        known = self.known_places()
        unknown = sorted(set(wanted) - set(known))
        if unknown:
            raise ChipError(
                f"{words} {', '.join(unknown)}: known are {', '.join(known[:8])}{', …' * (len(known) > 8)}",
                file=self.path,
            )
        return wanted

    def where(self, places: Iterable[str], *, or_unknown: bool = False) -> np.ndarray:
        """Indices of the chips of some places, (n,) int64 in the folder's order; if asked, those of chips whose header
        cannot be read too: reading one says why."""
        held = self._at(places)
        return np.flatnonzero(held | (self.index.place < 0) if or_unknown else held)

    def _at(self, places: Iterable[str]) -> np.ndarray:
        """Which chips are of some places, (N,) bool."""
        self._require_unique_ids()
        wanted = set(places)
        numbers = [number for number, place in enumerate(self.index.places) if place in wanted]
        return np.isin(self.index.place, numbers)

    def without(self, held_out: Iterable[str]) -> Sequence[int]:
        """Indices of the chips of all other places. Raises ChipError if a held-out place is unknown or no chip is left."""
        held_out = set(held_out)
        if not held_out:
            return Indices(range(len(self)))
        self.require(held_out, "cannot hold out")
        # A chip whose header cannot be read stays: reading it says what is wrong.
        kept = np.flatnonzero(~self._at(held_out)).astype(np.int32)
        if not len(kept):
            raise ChipError("every place is held out: no chip is left", field="place", file=self.path)
        return Indices(kept)

    def sources(self, *, skip_bad: bool = False) -> list[str]:
        """Names of all sources that the chips hold. Raises ChipError where a header cannot be read and that is not skipped."""
        names = dict.fromkeys(self.index.sources[i] for i in np.flatnonzero(self.index.present.any(axis=0)))
        for index in np.flatnonzero(~self.index.sound).tolist():
            try:
                names.update(dict.fromkeys(self.header(index)["sources"]))
            except ChipError:
                if not skip_bad:
                    raise
        return list(names)

    def holding(self, sources: Iterable[str]) -> np.ndarray:
        """Which chips hold any of some sources, (N,) bool; true of one that could not be read: reading it says why."""
        wanted = set(sources)
        columns = [i for i, name in enumerate(self.index.sources) if name in wanted]
        return self.index.present[:, columns].any(axis=1) | ~self.index.sound

    def frames(self, index: int, sources: Iterable[str]) -> dict[str, tuple[int, int]]:
        """Frames of some sources of a chip and the seconds from first to last; without those that it lacks."""
        frames = {}
        for name in sources:
            if name in self.index.sources:
                column = self.index.sources.index(name)
                if count := int(self.index.frames[index, column]):
                    frames[name] = (count, int(self.index.seconds[index, column]))
        return frames

    def checked(self, indices: Sequence[int]) -> np.ndarray:
        """Which chips are known to hold right values only, by the rules of today's registry: (n,) bool."""
        if len(self) < LEAST_CHIPS:
            return np.zeros(len(indices), np.bool_)
        return self.index.checked[np.asarray(indices)] == self._rules

    @cached_property
    def _rules(self) -> int:
        entries = [dataclasses.asdict(source) for source in self.registry.values()]
        text = json.dumps([RULES_VERSION, entries], sort_keys=True, default=str)
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") | 1

    def digest(self, indices: Sequence[int]) -> str:
        """SHA-256 over some chips: their names and what their sources hold, without decoding a pixel.

        An archive lists size and checksum of every array. So a copy has the digest of its original, other compression,
        labels, texts, shards or dates of the files change nothing, and other values do.
        """
        names = self.index.names
        digest = hashlib.sha256(self.index.contents[np.asarray(indices, np.int64)].tobytes())
        for index in indices:
            digest.update(shards.unpacked_name(names[index]).encode("utf-8", "surrogatepass") + b"\0")
        return digest.hexdigest()


def require_free(folder: str | os.PathLike, ids: Iterable[str]) -> None:
    """Raises ChipError where a folder holds some of the chips that are to be written: new ones would mix with old.

    Chips that are written again lose the texts that were attached to them.
    """
    wanted = list(ids)
    there = {name.rpartition("/")[2] for name in list_names(Path(folder))} if Path(folder).is_dir() else set()
    held = [f"{name}.npz" for name in wanted if f"{name}.npz" in there]
    if held:
        raise ChipError(
            f"{len(held)} of {len(wanted)} chips are there already ({', '.join(held[:3])}{' …' * (len(held) > 3)}): choose "
            "another folder, or write them again with --overwrite, which loses attached texts",
            file=folder,
        )


def _require_unique_names(names: Sequence[str], folder: Path) -> None:
    """Raises ChipError where two chips of a tree have one name: what is made of them could not be told apart."""
    if not any("/" in name for name in names):
        return
    # Without the folders and the shard that a chip lies in.
    duplicate = find_duplicate(names, key=lambda name: name.rpartition("/")[2])
    if duplicate is not None:
        one, other = (names[row] for row in duplicate)
        raise ChipError(f"two files have one name, {one} and {other}: rename one of them", file=folder)
