"""Chips as a `torch.utils.data.Dataset`, and the one global order in which any number of ranks and workers read them.

A sample is a function of (seed, epoch, chip); which samples make up a step is a function of (seed, step). Neither knows
ranks or workers, so that a run gives the same result on one process and on many, and resumes in the middle of an epoch.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from aef.config import ConfigError, DataConfig
from aef.data.chips import Chip, ChipError, ChipFolder
from aef.data.collate import Batch, Collator, Sample
from aef.data.sampling import Sampler, TextVectors
from aef.data.withheld import MINUTE_MS, WithheldDates
from aef.sources import BUILT_IN, Registry


class LoaderError(ValueError):
    """A loader process died; one line."""


class Draw(NamedTuple):
    """One sample to draw: the chip's index in the dataset, the epoch and the place in the global order of the run."""

    chip: int
    epoch: int
    global_index: int


class GlobalOrder(torch.utils.data.Sampler[list[Draw]]):
    """The run as a sequence of micro-batches, one list of draws each.

    Every epoch is a permutation keyed by (seed, epoch). Epochs follow each other without a gap; step s takes the samples
    [s G, (s + 1) G) of that sequence, rank r its r-th part of them, in order, in parts of ``micro_batch``.

    Args:
        chips: number of chips.
        seed: of the run.
        global_batch: G, samples per optimiser step over all ranks.
        micro_batch: samples per forward pass.
        rank, ranks: this process and how many there are.
        first_step, steps: which steps to give; a resumed run starts at the step that it saved.

    Raises:
        ConfigError: G is no multiple of ranks x micro_batch.
    """

    def __init__(
        self,
        chips: int,
        *,
        seed: int,
        global_batch: int,
        micro_batch: int,
        rank: int = 0,
        ranks: int = 1,
        first_step: int = 0,
        steps: int,
    ) -> None:
        if global_batch % (ranks * micro_batch):
            raise ConfigError(
                f"train.global_batch: expected a multiple of {ranks} ranks x train.micro_batch {micro_batch}, "
                f"found {global_batch}"
            )
        self.chips, self.seed, self.global_batch, self.micro_batch = chips, seed, global_batch, micro_batch
        self.rank, self.ranks, self.first_step, self.steps = rank, ranks, first_step, steps

    def __len__(self) -> int:
        return max(0, self.steps - self.first_step) * (self.global_batch // (self.ranks * self.micro_batch))

    def __iter__(self) -> Iterator[list[Draw]]:
        share = self.global_batch // self.ranks
        for step in range(self.first_step, self.steps):
            first = step * self.global_batch + self.rank * share
            for start in range(first, first + share, self.micro_batch):
                yield [self.draw(position) for position in range(start, start + self.micro_batch)]

    def draw(self, position: int) -> Draw:
        """The sample at one position of the run."""
        epoch, place = divmod(position, self.chips)
        return Draw(int(self._permutation(epoch)[place]), epoch, position)

    def _permutation(self, epoch: int) -> np.ndarray:
        known = self.__dict__.get("_known")
        if known is None or known[0] != epoch:
            known = self._known = (epoch, np.random.default_rng([self.seed, epoch]).permutation(self.chips))
        return known[1]


class ChipDataset(Dataset[Sample]):
    """Samples drawn from a folder of chips. An index is a `Draw`, or a plain number within the current ``epoch``.

    Every value of a chip is checked when it is first read; later reads check its structure.

    Args:
        folder: the chips.
        config: choices of the sampler; also the places that are held out, the withheld dates, the number of decoded
            chips kept in memory, and whether bad chips are skipped.
        seed: of the run.
        inputs, targets: sources to read; by default all of the registry.
        text: vectors of the frozen text tower.

    Raises:
        ConfigError: a held-out place or every place of the withheld list is unknown to the folder, or none is left.
        WithheldError: the list of withheld dates cannot be read.
    """

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
        withheld = _read_withheld(folder, config)
        self.sampler = Sampler(config, folder.registry, inputs=inputs, targets=targets, withheld=withheld, text=text)
        self.index = _training_chips(folder, config.held_out_places)
        self._wanted = tuple(dict.fromkeys((*self.sampler.inputs, *self.sampler.targets)))
        self._cache: OrderedDict[int, Chip] = OrderedDict()
        # Shared with the loader's processes, so that all of them know what one has found.
        self._checked, self._bad = (torch.zeros(len(self.index), dtype=torch.bool).share_memory_() for _ in range(2))

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, draw: Draw | int) -> Sample:
        """Draw one sample.

        Raises:
            ChipError: the chip breaks the contract or holds no input; with ``skip_bad`` only if all chips do, and the
                next good one stands in.
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
            except (ChipError, OSError) as found:
                if not self.config.skip_bad:
                    raise
                error, self._bad[number] = found, True
        raise ChipError(
            f"no chip is left: all {len(self)} were skipped, the last because {error}", file=self.folder.path
        )

    def chip(self, number: int) -> Chip:
        """A decoded chip, from memory if it was read lately."""
        if number in self._cache:
            self._cache.move_to_end(number)
            return self._cache[number]
        chip = self.folder.read(self.index[number], self._wanted, check_values=not self._checked[number])
        self._checked[number] = True
        if self.config.cache_chips > 0:
            self._cache[number] = chip
            if len(self._cache) > self.config.cache_chips:
                self._cache.popitem(last=False)
        return chip

    @property
    def skipped(self) -> list[str]:
        """Names of the chips skipped so far, by any process."""
        return [self.folder.files[self.index[number]].name for number in torch.nonzero(self._bad).flatten().tolist()]


def _read_withheld(folder: ChipFolder, config: DataConfig) -> WithheldDates | None:
    if config.withheld is None:
        return None
    withheld = WithheldDates.read(config.withheld, twin_ms=round(config.twin_minutes * MINUTE_MS))
    if not withheld.places & set(folder.places()):
        raise ConfigError(
            f"data.withheld: {config.withheld} names no place of {folder.path}: expected some of "
            f"{', '.join(sorted(filter(None, folder.places()))[:5])}, found {', '.join(sorted(withheld.places)[:5])}"
        )
    return withheld


def _training_chips(folder: ChipFolder, held_out: Sequence[str]) -> list[int]:
    """Indices of the chips whose place is not held out."""
    if not held_out:
        return list(range(len(folder)))
    places = folder.places()
    unknown = sorted(set(held_out) - set(places))
    if unknown:
        raise ConfigError(f"data.held_out_places: {folder.path} holds no place {', '.join(unknown)}")
    # A chip whose header cannot be read stays: reading it says what is wrong.
    kept = [index for index, place in enumerate(places) if place not in held_out]
    if not kept:
        raise ConfigError(f"data.held_out_places: no chip of {folder.path} is left to train on")
    return kept


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
        registry: their sources; ``aef.settings_file.registry_of(folder)`` adds those that the folder carries itself.
        seed: of every draw.
        settings: those of `DataConfig`.
    """

    def __init__(self, folder: str | os.PathLike, registry: Registry = BUILT_IN, *, seed: int = 0, **settings) -> None:
        try:
            config = DataConfig(**settings)
        except TypeError as error:
            raise ConfigError(f"AEFNPZDataset: unknown setting ({error})") from None
        super().__init__(ChipFolder(folder, registry), config, seed=seed)
        self.collate = Collator(registry, self.sampler.inputs, self.sampler.targets, frame_bucket=config.frame_bucket)


# --- loading ---------------------------------------------------------------------------------------------------------


class ChipLoader:
    """Iterates over the micro-batches of a rank, made in ``workers`` processes or, with 0, in this one.

    Raises:
        ChipError: a chip breaks the contract (one line, also where a worker found it).
        LoaderError: a worker died.
    """

    def __init__(
        self,
        dataset: Dataset[Sample],
        order: torch.utils.data.Sampler[list[Draw]],
        collate: Callable[[Sequence[Sample]], Batch],
        *,
        workers: int = 0,
        pin_memory: bool = False,
    ) -> None:
        self._loader = DataLoader(
            dataset,
            batch_sampler=order,
            collate_fn=collate,
            num_workers=workers,
            pin_memory=pin_memory,
            persistent_workers=False,
        )

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[Batch]:
        # Raised outside the except block and cut off from its traceback, which would keep the loader's processes alive.
        failure: Exception
        try:
            yield from self._loader
            return
        except ChipError as error:
            failure = _shortened(error.with_traceback(None))
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
            failure = LoaderError(
                f"{str(error).splitlines()[0]}: out of memory? Lower data.workers or data.cache_chips"
            )
        raise failure


def _shortened(error: ChipError) -> ChipError:
    """The error of a worker without the traceback that the loader puts before it."""
    last = str(error).strip().splitlines()[-1]
    if last == str(error).strip():
        return error
    return ChipError(last.partition(f"{ChipError.__name__}: ")[2] or last)
