"""Whole steps of a run for one rank, made ahead of time by a thread or by worker processes.

What a step holds is a function of (seed, step) alone: `aef.data.dataset` fixes the global order, `share` spreads a global
batch over ranks and micro-batches so that each gets about the same number of frames. No sample's draw depends on it.
"""

from __future__ import annotations

import heapq
import itertools
import queue
import signal
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from aef.data.chips import ChipError, ChipFolder
from aef.data.collate import Batch, Collator
from aef.data.dataset import ChipDataset, GlobalOrder
from aef.run import Run

from .costs import ExpectedFrames
from .distributed import Ranks
from .opening import text_vectors
from .signals import ASKING
from .zero import micro_batches


@dataclass
class Loaded:
    """This rank's micro-batches of one step, or why there are none."""

    batches: list[Batch] = field(default_factory=list)
    error: str | None = None


# --- who gets what ---------------------------------------------------------------------------------------------------


def share(costs: Sequence[float], capacities: Sequence[int]) -> list[list[int]]:
    """Spread items over bins of given capacities so that their costs are about equal: dearest first into the cheapest bin.

    Returns the items of each bin in ascending order. Capacities must sum to the number of items.
    """
    bins: list[list[int]] = [[] for _ in capacities]
    open_bins = [(0.0, number) for number, capacity in enumerate(capacities) if capacity]
    for item in sorted(range(len(costs)), key=lambda i: (-costs[i], i)):
        total, number = heapq.heappop(open_bins)
        bins[number].append(item)
        if len(bins[number]) < capacities[number]:
            heapq.heappush(open_bins, (total + costs[item], number))
    return [sorted(items) for items in bins]


# --- steps -----------------------------------------------------------------------------------------------------------


class StepDataset(Dataset[Loaded]):
    """Step number → this rank's micro-batches. Picklable, so that worker processes can run it.

    Args:
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
        self.order = GlobalOrder(len(self.chips), seed=config.train.seed, crops=config.data.crops_per_chip)
        self.costs: Sequence[float] = ()

    @property
    def needs_balance(self) -> bool:
        return self.ranks * self.count > 1

    def __getitem__(self, step: int) -> Loaded:
        draws = [self.order.draw(step * self.global_batch + place) for place in range(self.global_batch)]
        try:
            return Loaded([self.collate([self.chips[draws[i]] for i in part]) for part in self._parts(draws)])
        except (ChipError, OSError) as error:
            return Loaded(error=str(error))

    def _parts(self, draws: Sequence[Any]) -> list[list[int]]:
        """Places in the global batch of each of this rank's micro-batches."""
        per_rank = self.global_batch // self.ranks
        costs = [self.costs[draw.chip] if self.costs else 1.0 for draw in draws]
        own = share(costs, [per_rank] * self.ranks)[self.rank]
        sizes = [min(self.micro, per_rank - start) for start in range(0, per_rank, self.micro)]
        parts = share([costs[place] for place in own], sizes)
        return [[own[i] for i in part] for part in parts]


# --- ahead of time ---------------------------------------------------------------------------------------------------


class StepLoader:
    """Steps from ``consumed`` samples on, without end; `next` waits for the next one.

    ``data.workers`` processes make them; with 0 a thread of this process does. A worker that is killed is replaced, up to
    ``RESTARTS`` times in a row, without losing or repeating a sample.
    """

    AHEAD = 2
    RESTARTS = 3

    def __init__(self, run: Run, data: Path, ranks: Ranks, consumed: int) -> None:
        self.steps = StepDataset(run, data, ranks.rank, ranks.size)
        if self.steps.needs_balance:
            costs = ExpectedFrames(self.steps.chips, run.config)
            costs.require_same(ranks.on_first(costs.fingerprint))
            self.steps.costs = costs
        self.workers, self._pin = run.config.data.workers, ranks.device.type == "cuda"
        self.restarts = 0
        self._first = consumed // run.config.train.global_batch
        self._made: queue.Queue[Loaded | Exception] = queue.Queue(self.AHEAD)
        self._iterator: Iterator[Loaded] = iter(())
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._work, name="loader", daemon=True)
        self._thread.start()

    def next(self) -> Loaded:
        """The next step. Re-raises whatever was no fault of the data."""
        found = self._made.get()
        if isinstance(found, Exception):
            raise found
        return found

    def processes(self) -> list[int]:
        """Ids of the worker processes at work."""
        return [worker.pid for worker in getattr(self._iterator, "_workers", [])]

    def first_batch(self) -> Batch:
        """The first micro-batch of the run, always the same: what figures show."""
        loaded = self.steps[0]
        if loaded.error is not None:
            raise ChipError(loaded.error)
        return loaded.batches[0]

    def close(self) -> None:
        self._closing.set()
        while self._thread.is_alive():
            # Frees a thread that waits for room.
            try:
                self._made.get_nowait()
            except queue.Empty:
                pass
            self._thread.join(timeout=0.05)

    def _work(self) -> None:
        step, deaths = self._first, 0
        while not self._closing.is_set():
            try:
                self._iterator = self._source(step)
                for loaded in self._iterator:
                    if not self._put(loaded):
                        return
                    step, deaths = step + 1, 0
            except Exception as error:
                if not (self.workers and _worker_died(error)):
                    self._put(error)
                    return
                deaths, self.restarts = deaths + 1, self.restarts + 1
                if deaths > self.RESTARTS:
                    why = str(error).splitlines()[0]
                    self._put(
                        Loaded(error=f"{why}, {deaths} times: out of memory? Lower data.workers or data.cache_chips")
                    )
                    return

    def _source(self, first: int) -> Iterator[Loaded]:
        steps = itertools.count(first)
        if not self.workers:
            return map(self.steps.__getitem__, steps)
        # Not forked: a process with running threads (this one, OpenMP, gloo, CUDA) cannot be forked safely.
        return iter(
            DataLoader(
                self.steps,
                batch_size=None,
                sampler=steps,  # type: ignore[arg-type]
                num_workers=self.workers,
                multiprocessing_context="forkserver",
                worker_init_fn=_ignore_signals,
                generator=torch.Generator(),
            )
        )

    def _put(self, loaded: Loaded | Exception) -> bool:
        if self._pin and isinstance(loaded, Loaded):
            loaded.batches = [batch.pin_memory() for batch in loaded.batches]
        while not self._closing.is_set():
            try:
                self._made.put(loaded, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False


def _worker_died(error: Exception) -> bool:
    """Whether a loader process is gone: torch says so, or its tensors could no longer be fetched from it."""
    return "DataLoader worker" in str(error) or isinstance(error, ConnectionError | EOFError)


def _ignore_signals(worker: int) -> None:
    """A launcher signals whole process trees; workers must outlive that until the checkpoint is written."""
    for number in ASKING:
        signal.signal(number, signal.SIG_IGN)
