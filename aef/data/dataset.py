"""Chips as a `torch.utils.data.Dataset`, and the one global order in which any number of ranks and workers read them.

A sample is a function of (seed, epoch, chip); which samples make up a step is a function of (seed, step). Neither knows
ranks or workers, so that a run gives the same result on one process and on many, and resumes in the middle of an epoch.
"""

from __future__ import annotations

import errno
import os
import time
import zipfile
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import Dataset

from aef.config import Config, ConfigError, DataConfig
from aef.data import shards
from aef.data.chips import Chip, ChipError, ChipFolder
from aef.data.collate import Collator
from aef.data.sample import Sample
from aef.data.sampling import Sampler, TextVectors
from aef.data.withheld import WithheldDates
from aef.settings_file import registry_of
from aef.sources import Registry

OF_THE_FILE = {
    getattr(errno, name)
    for name in (
        "ENOENT",
        "ENOTDIR",
        "EISDIR",
        "EACCES",
        "EPERM",
        "ELOOP",
        "ENAMETOOLONG",
        "EINVAL",
        "EOVERFLOW",
        "EFBIG",
    )
}
"""Numbers of operating-system errors that say something about a file; all others are about the machine or its storage."""


class StorageError(OSError):
    """A chip could not be read again and again, though nothing says that the chip itself is bad."""


class Draw(NamedTuple):
    """One sample to draw: the chip's index in the dataset, the epoch and the position in the global order of the run."""

    chip: int
    epoch: int
    global_index: int


class GlobalOrder:
    """The samples of a run in one sequence: epoch after epoch, each a permutation of the chips keyed by (seed, epoch).

    Step s of a run takes the positions [s G, (s + 1) G) of it, where G is the global batch, however many ranks share them.

    With ``crops`` above 1 a chip, once read, gives that many samples in a row, those of as many epochs: reading a chip
    costs more than training on a crop of a few pixels.
    """

    def __init__(self, chips: int, *, seed: int, crops: int = 1) -> None:
        self.chips, self.seed, self.crops = chips, seed, crops
        self._known: tuple[int, np.ndarray] | None = None

    def draw(self, position: int) -> Draw:
        """The sample at one position of the run."""
        visit, crop = divmod(position, self.crops)
        turn, at = divmod(visit, self.chips)
        if self._known is None or self._known[0] != turn:
            self._known = (turn, np.random.default_rng([self.seed, turn]).permutation(self.chips))
        return Draw(int(self._known[1][at]), turn * self.crops + crop, position)


class ChipDataset(Dataset[Sample]):
    """Samples drawn from a folder of chips. An index is a `Draw`, or a plain number within the current ``epoch``.

    Every value of a chip is checked when it is first read, unless its folder's index knows that it was before; later
    reads check its structure. Where storage fails, a read is tried again after each of ``WAITS_S``.

    Args:
        folder: the chips.
        config: choices of the sampler; also the places that are held out, the withheld dates, the number of decoded
            chips kept in memory, and whether bad chips are skipped.
        seed: of the run.
        inputs, targets: sources to read; by default all of the registry.
        text: vectors of the frozen text tower.

    Raises:
        ChipError: a held-out place is unknown to the folder, or none is left.
        ConfigError: every place of the withheld list is unknown to the folder.
        WithheldError: the list of withheld dates cannot be read.
    """

    WAITS_S: tuple[float, ...] = (1.0, 4.0, 10.0, 20.0, 25.0)

    def __init__(
        self,
        folder: ChipFolder,
        config: DataConfig,
        *,
        seed: int = 0,
        inputs: Sequence[str] | None = None,
        targets: Sequence[str] | None = None,
        text: TextVectors | None = None,
    ) -> None:
        self.folder, self.config, self.seed, self.epoch = folder, config, seed, 0
        withheld = read_withheld(folder, config)
        self.sampler = Sampler(config, folder.registry, inputs=inputs, targets=targets, withheld=withheld, text=text)
        self.index = folder.without(config.held_out_places)
        self._wanted = tuple(dict.fromkeys((*self.sampler.inputs, *self.sampler.targets)))
        self._cache: OrderedDict[int, Chip] = OrderedDict()
        # Shared with the loader's processes, so that all of them know what one has found.
        self._checked, self._bad = (torch.zeros(len(self.index), dtype=torch.bool).share_memory_() for _ in range(2))
        self._checked |= torch.from_numpy(folder.checked(self.index))
        self._found: list[tuple[str, str]] = []

    def __len__(self) -> int:
        return len(self.index)

    def place(self, chip: int) -> int:
        """A number that chips of one place share, from the folder's index; −1: unknown."""
        return int(self.folder.index.place[self.index[chip]])

    def __getitem__(self, draw: Draw | int) -> Sample:
        """Draw one sample.

        Raises:
            ChipError: the chip breaks the contract or holds no input; with ``skip_bad`` only if all chips do, and the
                next good one stands in.
            StorageError: the storage does not answer, with ``skip_bad`` too: that is no chip's fault.
        """
        if not isinstance(draw, Draw):
            draw = Draw(range(len(self))[draw], self.epoch, range(len(self))[draw])
        error: Exception | None = None
        for step in range(len(self)):
            number = (draw.chip + step) % len(self)
            if self._bad[number]:
                continue
            try:
                chip = self.chip(number)
                return self.sampler.draw(chip, seed=self.seed, epoch=draw.epoch, global_index=draw.global_index)
            except StorageError:
                raise
            except (ChipError, OSError) as found:
                if not self.config.skip_bad:
                    raise
                error, self._bad[number] = found, True
                self._found.append((self._file(self.folder.files[self.index[number]]), str(found)))
        raise ChipError(
            f"no chip is left: all {len(self)} were skipped, the last because {error}", file=self.folder.path
        )

    def chip(self, number: int) -> Chip:
        """A decoded chip, from memory if it was read lately."""
        if number in self._cache:
            self._cache.move_to_end(number)
            return self._cache[number]
        chip = self._read(number)
        self._checked[number] = True
        # Crops of a chip come in a row: one chip is enough to read it once for all of them.
        kept = max(self.config.cache_chips, int(self.config.crops_per_chip > 1))
        if kept:
            self._cache[number] = chip
            if len(self._cache) > kept:
                self._cache.popitem(last=False)
        return chip

    def _read(self, number: int) -> Chip:
        """Read a chip, again where storage fails. Raises StorageError where it fails for all of ``WAITS_S``."""
        path = self.folder.files[self.index[number]]
        waits_s = iter(self.WAITS_S)
        while True:
            try:
                return self.folder.read(self.index[number], self._wanted, check_values=not self._checked[number])
            except (ChipError, OSError) as error:
                fault = storage_fault(error, path)
                if fault is None:
                    raise
                if (wait_s := next(waits_s, None)) is None:
                    raise StorageError(
                        f"{path}: cannot be read, tried {len(self.WAITS_S) + 1} times in {sum(self.WAITS_S):g} s ({fault}): "
                        "the chip may be sound, look after the machine and its storage"
                    ) from error
            time.sleep(wait_s)

    def take_found(self) -> list[tuple[str, str]]:
        """Chips that this process found bad since it was last asked, with what is wrong with each."""
        found, self._found = self._found, []
        return found

    def ban(self, names: Iterable[str]) -> None:
        """Pass over chips that are known to be bad, in every process."""
        files = self.folder.files
        for name in names:
            # Both are sorted, and millions long.
            at = bisect_left(files, name, key=self._file)
            number = bisect_left(self.index, at)
            known = at < len(files) and self._file(files[at]) == name
            if known and number < len(self.index) and self.index[number] == at:
                self._bad[number] = True

    def _file(self, path: Path) -> str:
        return path.relative_to(self.folder.path).as_posix()

    def __getstate__(self) -> dict[str, Any]:
        """For a loader's process, which decodes its own chips."""
        return {**self.__dict__, "_cache": OrderedDict()}

    @property
    def skipped(self) -> list[str]:
        """Names of the chips skipped so far, by any process."""
        return [self.folder.files[self.index[number]].name for number in torch.nonzero(self._bad).flatten().tolist()]


def storage_fault(error: Exception, path: Path) -> str | None:
    """What failed in the machine or its storage when a chip was read, or None where the chip itself is to blame."""
    cause = error if isinstance(error, OSError) else error.__cause__
    if isinstance(cause, MemoryError):
        # Damage, too, can ask for any amount of memory.
        return f"out of memory: {cause}" if _is_whole(path) else None
    if isinstance(cause, OSError) and cause.errno is not None and cause.errno not in OF_THE_FILE:
        return cause.strerror or str(cause)
    return None


def _is_whole(path: Path) -> bool:
    """Whether every array of a chip's archive has the checksum that the archive lists."""
    try:
        with shards.open_chip(path) as stream, zipfile.ZipFile(stream) as archive:
            return archive.testzip() is None
    except Exception:
        return False


def read_withheld(folder: ChipFolder, config: DataConfig) -> WithheldDates | None:
    """The dates that no sample may see, or None. Raises WithheldError, or ConfigError where none is of the folder's places."""
    if config.withheld is None:
        return None
    withheld = WithheldDates.read(config.withheld, twin_ms=config.twin_ms)
    known = folder.known_places()
    if not withheld.places.intersection(known):
        raise ConfigError(
            f"data.withheld: {config.withheld} names no place of {folder.path}: expected some of "
            f"{', '.join(known[:5])}, found {', '.join(sorted(withheld.places)[:5])}"
        )
    if unknown := withheld.sources.difference(folder.registry):
        raise ConfigError(
            f"data.withheld: {config.withheld} names the unknown source {min(unknown)}, of which nothing would be withheld: known are "
            f"{', '.join(folder.registry)}"
        )
    return withheld


class AEFNPZDataset(ChipDataset):
    """A folder of ``.npz`` chips as a plain dataset of samples; the name that users of earlier AEF code know.

    Example::

        dataset = AEFNPZDataset("chips", chip_px=64)
        loader = torch.utils.data.DataLoader(dataset, batch_size=2, collate_fn=dataset.collate)
        for epoch in range(3):
            dataset.epoch = epoch
            for batch in loader:
                ...

    Args:
        folder: path of the chips.
        registry: their sources; by default the built-in ones and those that the folder carries itself (``sources.yaml``). Of
            either only those that some chip holds are encoded and decoded.
        seed: of every draw.
        settings: those of `DataConfig`.
    """

    def __init__(
        self, folder: str | os.PathLike, registry: Registry | None = None, *, seed: int = 0, **settings
    ) -> None:
        try:
            config = DataConfig(**settings)
        except TypeError as error:
            raise ConfigError(f"AEFNPZDataset: {error}") from None
        Config(data=config).validate()
        chips = ChipFolder(folder, registry_of(folder) if registry is None else registry)
        held = set(chips.sources(skip_bad=config.skip_bad))
        targets = [name for name in chips.registry if name in held]
        inputs = [name for name in targets if chips.registry[name].role == "input"]
        super().__init__(chips, config, seed=seed, inputs=inputs or None, targets=targets)
        self.collate = Collator(
            chips.registry, self.sampler.inputs, self.sampler.targets, frame_bucket=config.frame_bucket
        )
