"""Whole steps of a run for one rank, made ahead of time by a thread or by worker processes.

What a step holds is a function of (seed, step) alone: `aef.data.dataset` fixes the global order, `aef.training.sharing`
spreads a global batch over ranks and micro-batches. No sample's draw depends on it.

Workers make a step in units: a micro-batch each, or as many as the crops of one chip fill. So a rank's first step is
made by all of its workers, and little memory waits between them and the rank.
"""

from __future__ import annotations

import itertools
import queue
import resource
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch.utils.data import DataLoader, Dataset

from aef.data.batch import Batch
from aef.data.chips import ChipError, ChipFolder
from aef.data.collate import Collator
from aef.data.dataset import ChipDataset, Draw, GlobalOrder
from aef.objective.uniformity import rings
from aef.run import Run

from .costs import ExpectedFrames
from .deepspeed_config import micro_batches, row_of_a_pass
from .distributed import Ranks
from .new_run import text_vectors
from .sharing import share
from .transport import Packed
from .workers import STEPS_AHEAD, UNITS_AHEAD, fits_open_files, prepare, worker_died

GUARD = 'a script with data.workers must train below `if __name__ == "__main__":`'
"""Python runs the script from its top in every process that a loader starts."""


@dataclass
class Loaded:
    """This rank's micro-batches of one step (or of a unit of it), or why there are none; and the chips that were passed
    over meanwhile, each with what is wrong with it."""

    batches: list[Batch] = field(default_factory=list)
    error: str | None = None
    skipped: list[tuple[str, str]] = field(default_factory=list)
    packed: Packed | None = None

    @classmethod
    def joined(cls, units: Sequence[Loaded]) -> Loaded:
        """A step of its units; the first error of them is the step's."""
        skipped = [chip for unit in units for chip in unit.skipped]
        for unit in units:
            if unit.error is not None:
                return cls(error=unit.error, skipped=skipped)
        return cls([batch for unit in units for batch in unit.batches], skipped=skipped)

    def pack(self) -> Loaded:
        """For the way out of a worker: batches as one block of shared memory."""
        if not self.batches:
            return self
        return Loaded(error=self.error, skipped=self.skipped, packed=Packed.of(self.batches))

    def unpack(self, *, pin: bool) -> Loaded:
        """What `pack` packed, with its batches in page-locked memory if asked for."""
        if self.packed is not None:
            return Loaded(self.packed.batches(pin=pin), self.error, self.skipped)
        if pin:
            return Loaded([batch.pin_memory() for batch in self.batches], self.error, self.skipped)
        return self


# --- steps -----------------------------------------------------------------------------------------------------------


class StepDataset(Dataset[Loaded]):
    """A rank's share of every step, in units: number ``step * units + k`` is unit k of a step. Picklable, so that
    worker processes can run it.

    Attributes:
        units: units of a step.
        costs: expected frames of every training chip; empty where nothing is to be balanced.
    """

    def __init__(self, run: Run, data: Path, rank: int, ranks: int) -> None:
        config = run.config
        self.chips = ChipDataset(
            ChipFolder(data, run.registry),
            config.data,
            seed=config.train.seed,
            inputs=run.inputs,
            targets=run.targets,
            text=text_vectors(run, data),
        )
        self.collate = Collator(
            run.registry,
            run.inputs,
            run.targets,
            text_dim=config.model.text_dim,
            key=(config.train.seed, 0),
            frame_bucket=config.data.frame_bucket,
        )
        self.rank, self.ranks, self.global_batch = rank, ranks, config.train.global_batch
        self.micro, self.count = micro_batches(config, ranks)
        self.crops = config.data.crops_per_chip
        self.row = row_of_a_pass(config, ranks)
        self.rings = config.objective.partner_chips > 0
        self.order = GlobalOrder(len(self.chips), seed=config.train.seed, crops=self.crops)
        self.costs: Sequence[float] = ()
        per_rank = self.global_batch // ranks
        self._sizes = [min(self.micro, per_rank - start) for start in range(0, per_rank, self.micro)]
        self._per_unit = -(-self.crops // self.micro)
        self.units = -(-len(self._sizes) // self._per_unit)

    @property
    def needs_balance(self) -> bool:
        return self.ranks * self.count > 1

    def __getitem__(self, number: int) -> Loaded:
        step, unit = divmod(number, self.units)
        draws = [self.order.draw(step * self.global_batch + position) for position in range(self.global_batch)]
        parts = self.plan(draws)[unit]
        try:
            # In the global order, so that a chip is read once for all of its crops.
            samples = {position: self.chips[draws[position]] for position in sorted(itertools.chain(*parts))}
            batches = [self.collate([samples.pop(position) for position in part]) for part in parts]
        except (ChipError, OSError) as error:
            return Loaded(error=str(error), skipped=self.chips.take_found())
        return Loaded(batches, skipped=self.chips.take_found())

    def step(self, step: int) -> Loaded:
        """All units of a step, made here."""
        return Loaded.joined([self[step * self.units + unit] for unit in range(self.units)])

    def plan(self, draws: Sequence[Draw]) -> list[list[list[int]]]:
        """Positions in the global batch of each micro-batch of each unit of this rank.

        The crops of a chip stay on one rank and in one unit where that is possible; rings of partners that fit into a
        micro-batch stay in one, or as many samples in a row.
        """
        costs = [self.costs[draw.chip] if self.costs else 1.0 for draw in draws]
        groups = self._rings(draws) if self.row else [draw.global_index // self.crops for draw in draws]
        own = share(costs, [self.global_batch // self.ranks] * self.ranks, groups)[self.rank]
        sizes = [self._sizes[first : first + self._per_unit] for first in range(0, len(self._sizes), self._per_unit)]
        units = self._divide(own, [sum(unit) for unit in sizes], costs, groups)
        within = groups if self.row else None
        return [self._divide(unit, parts, costs, within) for unit, parts in zip(units, sizes, strict=True)]

    def _rings(self, draws: Sequence[Draw]) -> list[int]:
        """The ring of uniformity partners of each position, or its row of samples."""
        if not self.rings:
            return [position // self.row for position in range(len(draws))]
        places = [self.chips.place(draw.chip) for draw in draws]
        found = [0] * len(draws)
        for number, ring in enumerate(rings([draw.global_index for draw in draws], places, self.row)):
            for position in ring:
                found[position] = number
        return found

    @staticmethod
    def _divide(
        positions: Sequence[int], sizes: Sequence[int], costs: Sequence[float], groups: Sequence[int] | None = None
    ) -> list[list[int]]:
        together = None if groups is None else [groups[position] for position in positions]
        return [
            [positions[i] for i in part] for part in share([costs[position] for position in positions], sizes, together)
        ]


# --- ahead of time ---------------------------------------------------------------------------------------------------


class StepLoader:
    """Steps from ``consumed`` samples on, without end; `next` waits for the next one.

    ``data.workers`` processes make them; with 0 a thread of this process does. A worker that is killed is replaced, up
    to ``RESTARTS`` times in a row, without losing or repeating a sample.
    """

    RESTARTS = 3
    CHECK_S = 5.0
    """How often a wait for workers looks whether they live, and whether the loader is to close."""

    def __init__(
        self, run: Run, data: Path, ranks: Ranks, consumed: int, say: Callable[[str], None] = lambda text: None
    ) -> None:
        self.steps = StepDataset(run, data, ranks.rank, ranks.size)
        if self.steps.needs_balance:
            costs = ExpectedFrames(self.steps.chips, run.config)
            costs.require_same(ranks.on_first(costs.fingerprint, "comparing the chips of all ranks", say))
            self.steps.costs = costs
        self.workers, self._pin = run.config.data.workers, ranks.device.type == "cuda"
        # The other ranks wait for this one's error in a collective, which must not end first.
        self.patience_s = ranks.timeout_s / 2
        self.restarts = 0
        self._first = consumed // run.config.train.global_batch
        self._made: queue.Queue[Loaded | Exception] = queue.Queue(STEPS_AHEAD)
        self._iterator: Iterator[Loaded] = iter(())
        self._first_batch: Batch | None = None
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._work, name="loader", daemon=True)
        self._thread.start()

    def next(self) -> Loaded:
        """The next step; an error where none comes in half of ``train.timeout_s``. Re-raises whatever was no fault of
        the data."""
        try:
            made = self._made.get(timeout=self.patience_s)
        except queue.Empty:
            limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
            return Loaded(
                error=f"no samples came within {self.patience_s:g} s, half of train.timeout_s: the file system does not "
                f"answer, or a loader process has lost them (a process may have {limit} files open, `ulimit -n`)"
            )
        if isinstance(made, Exception):
            raise made
        return made

    def processes(self) -> list[int]:
        """Ids of the worker processes at work."""
        return [worker.pid for worker in getattr(self._iterator, "_workers", [])]

    def first_batch(self) -> Batch:
        """The first micro-batch of the run, always the same: what figures show."""
        if self._first_batch is None:
            loaded = self.steps[0]
            if loaded.error is not None:
                raise ChipError(loaded.error)
            self._first_batch = loaded.batches[0]
        return self._first_batch

    def close(self) -> None:
        """Stop making steps and end the workers. A thread that is caught in a read is left to it."""
        self._closing.set()
        ends = time.monotonic() + 4 * self.CHECK_S
        while self._thread.is_alive() and time.monotonic() < ends:
            # Frees a thread that waits for room.
            try:
                self._made.get_nowait()
            except queue.Empty:
                pass
            self._thread.join(timeout=0.05)
        for worker in getattr(self._iterator, "_workers", []):
            # They hold nothing that is needed, and may be caught in a read themselves.
            worker.kill()

    def _work(self) -> None:
        number = first = self._first * self.steps.units
        deaths, units = 0, []
        if self.workers and (why := fits_open_files(self._open_files())):
            self._put(Loaded(error=why))
            return
        while not self._closing.is_set():
            try:
                self._iterator = self._source(number)
                for unit in self._received():
                    number += 1
                    units.append(unit)
                    if len(units) == self.steps.units:
                        if not self._put(Loaded.joined(units)):
                            return
                        units, deaths = [], 0
            except Exception as error:
                if not (self.workers and worker_died(error)):
                    self._put(error)
                    return
                deaths, self.restarts = deaths + 1, self.restarts + 1
                if deaths > self.RESTARTS:
                    why = str(error).splitlines()[0]
                    self._put(
                        Loaded(
                            error=f"{why}, {deaths} times: out of memory, or of shared memory (/dev/shm)? Lower data.workers "
                            "or data.cache_chips" + ("" if number > first else f"; {GUARD}")
                        )
                    )
                    return

    def _open_files(self) -> int:
        """Blocks of shared memory that this process holds at most: a step at work, those ahead, and units on their way."""
        return (STEPS_AHEAD + 2) * self.steps.units + UNITS_AHEAD * self.workers

    def _source(self, first: int) -> Iterator[Loaded]:
        numbers = itertools.count(first)
        if not self.workers:
            return map(self.steps.__getitem__, numbers)
        # Not forked: a process with running threads (this one, OpenMP, gloo, CUDA) cannot be forked safely.
        return iter(
            DataLoader(
                self.steps,
                batch_size=None,
                sampler=numbers,  # type: ignore[arg-type]
                num_workers=self.workers,
                prefetch_factor=UNITS_AHEAD,
                collate_fn=Loaded.pack,  # type: ignore[arg-type]  # of one unit, not of a list
                multiprocessing_context="forkserver",
                worker_init_fn=prepare,
                timeout=self.CHECK_S,
                generator=torch.Generator(),
            )
        )

    def _received(self) -> Iterator[Loaded]:
        """Units as they come, until the loader closes."""
        while not self._closing.is_set():
            try:
                unit = next(self._iterator)
            except RuntimeError as error:
                # Not there yet; `next` of the loader knows how long is too long.
                if "DataLoader timed out" in str(error):
                    continue
                raise
            yield unit.unpack(pin=self._pin)

    def _put(self, loaded: Loaded | Exception) -> bool:
        while not self._closing.is_set():
            try:
                self._made.put(loaded, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False
