"""The download: items side by side, parts on disk, whole chips at the end; kill it at any moment and start it again.

    pending chips ──► items (chip × source) ──► parts (one source each) ──► chip, when its last item is in
                       many at once, within          checked, renamed            checked, checksummed,
                       the gate and a memory budget  into place                  renamed into place

An item is done when its part is in place and the manifest says so. A part that is in place but not recorded (the run
was killed in between) is adopted; a chip that was written but not recorded is written again from its parts, with the
same bytes. So nothing done is fetched twice and nothing half-written is ever seen.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from aef.data.chips import Chip, ChipError, SourceSeries, read_chip, write_chip
from aef.earthengine.errors import EarthEngineError, RequestError, UnavailableError
from aef.earthengine.manifest import (
    DONE,
    DROPPED,
    EMPTY,
    FAILED,
    INCOMPLETE,
    NAME,
    PENDING,
    WRITTEN,
    Manifest,
    Outcome,
    PlannedChip,
    storage_failure,
)
from aef.earthengine.npy import PARSING
from aef.sources import Registry, Source

PARTS = ".parts"
ASSEMBLED_BYTES = 48 * 2**20
"""Parts of the chips that are put together at one time; a larger chip waits until it is alone."""

REFUSED_AT_FIRST = 25
"""A source whose first items are all refused ends the run: its collection is gone, closed or wrongly described."""


@dataclass(frozen=True)
class ChipRules:
    """What every chip of a folder has in common: sources, side, which sources it may not lack, whether it may lack
    refused ones, compression."""

    sources: Registry
    chip_px: int = 128
    required: tuple[str, ...] = ()
    accept_failed: bool = False
    compress: bool = True


class Budget:
    """Holds shares of a number of bytes; waits while there is not enough left, but never for an item on its own."""

    def __init__(self, limit: int) -> None:
        self._limit, self._used, self._condition = limit, 0, threading.Condition()

    @contextmanager
    def held(self, size: int) -> Iterator[None]:
        """A share of so many bytes, for the length of a block."""
        with self._condition:
            self._condition.wait_for(lambda: self._used == 0 or self._used + size <= self._limit)
            self._used += size
        try:
            yield
        finally:
            with self._condition:
                self._used -= size
                self._condition.notify_all()


@dataclass
class Fetched:
    """A source of a chip as it came: its series (None, and why: nothing to be had), the products that each frame was
    made of, the cost."""

    series: SourceSeries | None
    products: list[list[str]] = field(default_factory=list)
    requests: int = 0
    bytes: int = 0
    reason: str = ""


class Fetcher(Protocol):
    """Where items come from. ``width`` items are asked for at once."""

    width: int

    def fetching(self, chip: PlannedChip, source: Source) -> AbstractContextManager[Fetched]:
        """The item, for the length of a block, so that a fetcher can bound how many are in memory.

        Raises RequestError and ChipError for this item alone, EarthEngineError and OSError to end the run.
        """

    def stop(self) -> None:
        """Wake whoever waits: the run ends."""


@dataclass
class _Chip:
    """A chip under way: how many of its items are still out."""

    planned: PlannedChip
    left: int
    lock: threading.Lock = field(default_factory=threading.Lock)


class Downloader:
    """Fetches every pending chip of a manifest into a folder.

    Args:
        fetcher: where items come from.
        manifest: what is planned; already filled.
        out: folder for chips; parts wait in a hidden folder inside.
        rules: sources, and when a chip is whole.
        provider: written into every chip.
        on_item: called after each item with (chip id, source, state); from worker threads.
    """

    def __init__(
        self,
        fetcher: Fetcher,
        manifest: Manifest,
        out: str | Path,
        rules: ChipRules,
        *,
        provider: str,
        on_item: Callable[[str, str, str], None] = lambda chip, source, state: None,
    ) -> None:
        self.fetcher, self.manifest, self.out, self.rules = fetcher, manifest, Path(out), rules
        self._provider, self._on_item = provider, on_item
        # Hosts that share a folder have a manifest and parts of their own.
        self._parts = self.out / f"{PARTS}{manifest.path.stem.removeprefix(Path(NAME).stem)}"
        self._assembling, self._feeding = Budget(ASSEMBLED_BYTES), threading.Lock()
        self._refused: dict[str, int] = {}
        self._failure: BaseException | None = None

    def run(self) -> None:
        """Fetch all that is pending. Returns when every pending chip is written, dropped or incomplete.

        Raises:
            EarthEngineError: access, quota or network; the run can be started again.
            OSError: the disk is full or the folder cannot be written.
            KeyboardInterrupt: passed on, after the threads have stopped.
        """
        self._parts.mkdir(parents=True, exist_ok=True)
        self._sweep()
        feed = self._items()
        workers = [
            threading.Thread(target=self._work, args=(feed,), name=f"item-{n}", daemon=True)
            for n in range(self.fetcher.width)
        ]
        for worker in workers:
            worker.start()
        try:
            for worker in workers:
                while worker.is_alive():
                    worker.join(timeout=0.5)
        except BaseException as error:
            self._stop(error)
            for worker in workers:
                worker.join()
            raise
        if self._failure:
            raise self._failure
        with contextlib.suppress(OSError):  # parts of incomplete chips stay
            self._parts.rmdir()

    def _sweep(self) -> None:
        """Remove what a killed run left behind: half-written files, and parts of chips that are settled. Whole parts of
        other chips stay and are adopted."""
        for leftover in self._parts.glob(".*.tmp"):
            leftover.unlink(missing_ok=True)
        for leftover in self.out.glob(".*.npz.*.tmp"):
            if self.manifest.state(leftover.name[1:].split(".npz.")[0]):  # and no other host's
                leftover.unlink(missing_ok=True)
        for part in self._parts.glob("*.npz"):
            if self.manifest.state(part.name.rsplit(".", 2)[0]) in (WRITTEN, DROPPED):
                part.unlink(missing_ok=True)

    # --- items -------------------------------------------------------------------------------------------------------

    def _items(self) -> Iterator[tuple[_Chip, Source | None]]:
        """Items that are out, chip by chip; a chip whose items are all known is offered once, without a source."""
        for planned in self.manifest.pending(self.rules.chip_px):
            known = self.manifest.items(planned)
            settled = {name for name, outcome in known.items() if self._settled(planned, name, outcome)}
            missing = [source for name, source in self.rules.sources.items() if name not in settled]
            chip = _Chip(planned, max(len(missing), 1))
            if not missing:
                yield chip, None
            for source in missing:
                yield chip, source

    def _settled(self, chip: PlannedChip, source: str, outcome: Outcome) -> bool:
        """Whether nothing needs to be asked: refused, empty, or done with its part in place. An item that only lacks an
        answer is out, also where the last run ended before it could finish the chip as incomplete."""
        return outcome.state in (EMPTY, FAILED) or (outcome.state == DONE and self._part(chip, source).exists())

    def _work(self, feed: Iterator[tuple[_Chip, Source | None]]) -> None:
        while self._failure is None:
            try:
                with self._feeding:
                    chip, source = next(feed)
            except StopIteration:
                return
            except BaseException as error:
                self._stop(error)
                return
            try:
                if source is not None:
                    outcome = self._item(chip.planned, source)
                    if self._failure is not None and outcome.state == PENDING:
                        return
                    self.manifest.record(chip.planned, source.name, outcome)
                    self._watch(source.name, outcome)
                    self._on_item(chip.planned.id, source.name, outcome.state)
                with chip.lock:
                    chip.left -= 1
                    last = chip.left == 0
                if last:
                    self._finish(chip.planned)
            except BaseException as error:
                self._stop(error)
                return

    def _watch(self, source: str, outcome: Outcome) -> None:
        """End the run where a source has only ever been refused: asking millions of times more would help nobody."""
        with self._feeding:
            if outcome.state != FAILED:
                self._refused[source] = -1
            elif self._refused.get(source, 0) >= 0:
                self._refused[source] = self._refused.get(source, 0) + 1
            if self._refused.get(source, 0) >= REFUSED_AT_FIRST:
                raise EarthEngineError(
                    f"source {source}: the first {REFUSED_AT_FIRST} items were all refused ({outcome.reason}): leave it out of "
                    "--sources, or see docs/download.md"
                )

    def _stop(self, error: BaseException) -> None:
        error = storage_failure(error, self.manifest.path) or error
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            error = OSError(
                errno.ENOSPC, "no space left on the disk: free some, then run the same command again", str(self.out)
            )
        if self._failure is None:
            self._failure = error
        self.fetcher.stop()

    def _item(self, chip: PlannedChip, source: Source) -> Outcome:
        """One item, to its part on disk. Refusals are outcomes; what ends the run is raised."""
        adopted = self._adopt(chip, source)
        if adopted:
            return adopted
        try:
            with self.fetcher.fetching(chip, source) as fetched:
                if fetched.series is None:
                    return Outcome(EMPTY, fetched.reason, requests=fetched.requests)
                part = self._chip(chip, {source.name: fetched.series}, {source.name: fetched.products})
                path = write_chip(self._part(chip, source.name), part, self.rules.sources, compress=False)
                frames, requests, size = fetched.series.frames, fetched.requests, fetched.bytes
        except UnavailableError as error:
            return Outcome(PENDING, str(error))
        except (RequestError, ChipError) as error:
            return Outcome(FAILED, str(error))
        return Outcome(DONE, "", frames, requests, size, _sha256(path))

    def _adopt(self, chip: PlannedChip, source: Source) -> Outcome | None:
        path = self._part(chip, source.name)
        if not path.exists():
            return None
        try:
            with PARSING:
                series = read_chip(path, self.rules.sources).sources[source.name]
        except (ChipError, KeyError):
            path.unlink()
            return None
        return Outcome(DONE, "", series.frames, 0, 0, _sha256(path))

    def _part(self, chip: PlannedChip, source: str) -> Path:
        return self._parts / f"{chip.id}.{source}.npz"

    # --- chips -------------------------------------------------------------------------------------------------------

    def _finish(self, chip: PlannedChip) -> None:
        """All items are known: write the chip, or say why not."""
        items = self.manifest.items(chip)
        states = {name: items[name].state for name in self.rules.sources if name in items}
        failed = sorted(name for name, state in states.items() if state == FAILED)
        waiting = sorted(name for name, state in states.items() if state == PENDING)
        if waiting or (failed and not self.rules.accept_failed):
            reason = "; ".join(f"{name}: {items[name].reason}" for name in (*failed, *waiting))
            self.manifest.finish(chip, INCOMPLETE, reason=reason)
            return
        done = [name for name in self.rules.sources if states.get(name) == DONE]
        absent = [name for name in self.rules.required if name not in done]
        if not absent and done:
            self._write(chip, done)
            return
        self.manifest.finish(chip, DROPPED, reason=f"no {', '.join(absent) if absent else 'image of any source'}")
        for name in done:
            self._part(chip, name).unlink(missing_ok=True)

    def _write(self, chip: PlannedChip, done: list[str]) -> None:
        size = sum(self._part(chip, name).stat().st_size for name in done)
        with self._assembling.held(size):
            series, products = {}, {}
            for name in done:
                path = self._part(chip, name)
                try:
                    with PARSING:
                        part = read_chip(
                            path, self.rules.sources
                        )  # the file's own checksums are compared as it is read
                except (ChipError, FileNotFoundError):
                    path.unlink(missing_ok=True)
                    self.manifest.record(chip, name, Outcome(PENDING, "its part was damaged on disk"))
                    self.manifest.finish(chip, INCOMPLETE, reason=f"{name}: its part was damaged on disk")
                    return
                series[name], products[name] = part.sources[name], part.attributes["products"][name]
            try:
                target = self.out / f"{chip.id}.npz"
                path = write_chip(
                    target, self._chip(chip, series, products), self.rules.sources, compress=self.rules.compress
                )
            except ChipError as error:
                self.manifest.finish(chip, INCOMPLETE, reason=str(error))
                return
            size, digest = path.stat().st_size, _sha256(path)
        self.manifest.finish(chip, WRITTEN, size=size, sha256=digest)
        for name in done:
            self._part(chip, name).unlink(missing_ok=True)

    def _chip(self, chip: PlannedChip, series: dict[str, SourceSeries], products: dict[str, list[list[str]]]) -> Chip:
        lon, lat = chip.grid.centre_degrees
        return Chip(
            id=chip.id,
            place=chip.site,
            crs=chip.grid.crs,
            transform=chip.grid.affine,
            height=chip.grid.px,
            width=chip.grid.px,
            lon=float(lon),
            lat=float(lat),
            sources=series,
            attributes={
                "provider": self._provider,
                "period": [chip.period.start_ms, chip.period.end_ms],
                "products": products,
            },
        )


def verify(out: str | Path, manifest: Manifest) -> list[str]:
    """Ids of written chips whose file is missing or does not have the recorded checksum."""
    folder = Path(out)
    return [
        name
        for name, digest in manifest.checksums()
        if not (folder / f"{name}.npz").exists() or _sha256(folder / f"{name}.npz") != digest
    ]


def _sha256(path: Path) -> str:
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
