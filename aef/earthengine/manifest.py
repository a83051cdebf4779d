"""What is planned and what is done: a SQLite file beside the chips, so that a run can be killed at any moment.

Two tables. A *chip* is a site and one support period; an *item* is a chip and a source. An item without a row is
pending, so that planning five million sites writes five million rows and not forty-five. States change in one
transaction each, in write-ahead mode: what was recorded survives a kill, and what was not recorded was not done.

Nothing here is ever scanned as a whole to go on: pending chips are found through a partial index, whatever the number
of finished ones.
"""

from __future__ import annotations

import errno
import json
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aef.atomic import writing
from aef.clock import Period
from aef.earthengine.grid import ChipGrid

FORMAT_VERSION = 1
NAME = "manifest.sqlite"

PENDING, DONE, EMPTY, FAILED = "pending", "done", "empty", "failed"
WRITTEN, DROPPED, INCOMPLETE = "written", "dropped", "incomplete"

_SCHEMA = """
CREATE TABLE IF NOT EXISTS settings (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS chips (
    number INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, site TEXT NOT NULL, lon REAL NOT NULL, lat REAL NOT NULL,
    crs TEXT NOT NULL, left INTEGER NOT NULL, top INTEGER NOT NULL, start_ms INTEGER NOT NULL, end_ms INTEGER NOT NULL,
    state TEXT NOT NULL DEFAULT 'pending', reason TEXT, bytes INTEGER, sha256 TEXT
);
CREATE INDEX IF NOT EXISTS pending_chips ON chips (number) WHERE state = 'pending';
CREATE INDEX IF NOT EXISTS incomplete_chips ON chips (number) WHERE state = 'incomplete';
CREATE TABLE IF NOT EXISTS items (
    chip INTEGER NOT NULL, source TEXT NOT NULL, state TEXT NOT NULL, reason TEXT, frames INTEGER, requests INTEGER,
    bytes INTEGER, sha256 TEXT, PRIMARY KEY (chip, source)
) WITHOUT ROWID;
"""
_PLANNED = ("id", "site", "lon", "lat", "crs", "left", "top", "start_ms", "end_ms")


class ManifestError(ValueError):
    """The manifest belongs to another run, is damaged or of a newer format; one line with what to do."""


@dataclass(frozen=True)
class PlannedChip:
    """A chip as it is planned: its number in the manifest (0 before it has one), id, site, grid and support period, and
    whether a row of the list of sites stated that period."""

    id: str
    site: str
    lon: float
    lat: float
    grid: ChipGrid
    period: Period
    number: int = 0
    stated: bool = False


@dataclass(frozen=True)
class Outcome:
    """What became of one item. ``sha256`` is the checksum of its part file while it waits for the others."""

    state: str
    reason: str = ""
    frames: int = 0
    requests: int = 0
    bytes: int = 0
    sha256: str = ""


class Manifest:
    """The manifest of one output folder (or of one part of it). One process writes; its threads share the object.

    Args:
        path: the file; its folder must exist.
        settings: what must not change between runs into one folder (sources, collections, chip size, periods rule).
        read_only: open an existing manifest to look at it.

    Raises:
        ManifestError: it was made with other settings, by newer software, is damaged or in use by another process.
        OSError: the disk is full or fails; so says leaving the block, too, in which that happened.
        FileNotFoundError: ``read_only`` and there is none.
    """

    def __init__(self, path: str | Path, settings: Mapping[str, Any] | None = None, *, read_only: bool = False) -> None:
        self.path, self._lock = Path(path), threading.RLock()
        if read_only and not self.path.exists():
            raise FileNotFoundError(f"{self.path}: no manifest here: nothing was downloaded into this folder yet")
        try:
            self._db = sqlite3.connect(self.path, check_same_thread=False, isolation_level=None, timeout=5)
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = NORMAL")
            self._db.execute("PRAGMA cache_size = -16000")
            self._db.executescript(_SCHEMA)
            self._claim(read_only)
            self._check_settings(settings, read_only)
        except sqlite3.DatabaseError as error:
            if failure := storage_failure(error, self.path):
                raise failure from None
            raise ManifestError(
                f"{self.path}: is damaged or no manifest ({error}): move it away and start again"
            ) from None

    def _claim(self, read_only: bool) -> None:
        """Keep a second download out of the folder: two writers would fetch everything twice."""
        self._owner = self.path.with_suffix(".lock")
        self._owner_file = None
        if read_only:
            return
        import fcntl

        self._owner_file = open(self._owner, "w")  # noqa: SIM115 (held until close)
        try:
            fcntl.flock(self._owner_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ManifestError(
                f"{self.path.parent}: another download is writing here: wait for it, or give each host its --part K/N"
            ) from None

    def _check_settings(self, settings: Mapping[str, Any] | None, read_only: bool) -> None:
        stored = dict(self._db.execute("SELECT name, value FROM settings"))
        version = int(stored.get("format_version", FORMAT_VERSION))
        if version > FORMAT_VERSION:
            raise ManifestError(
                f"{self.path}: expected format up to {FORMAT_VERSION}, found {version}: update the software"
            )
        if read_only or settings is None:
            return
        wanted = {"format_version": FORMAT_VERSION, **settings}
        for name, value in wanted.items():
            text = json.dumps(value, sort_keys=True)
            if name in stored and stored[name] != text:
                raise ManifestError(
                    f"{self.path.parent}: was made with {name} = {stored[name]}, now {text}: keep to it, or choose another --out"
                )
            self._db.execute("INSERT OR REPLACE INTO settings VALUES (?, ?)", (name, text))

    def close(self) -> None:
        """Let go of the database and of the folder's lock."""
        with self._lock:
            self._db.close()
            if self._owner_file:
                self._owner_file.close()

    def __enter__(self) -> Manifest:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self.close()
        if failure := storage_failure(error, self.path):
            raise failure from error

    # --- planning ----------------------------------------------------------------------------------------------------

    def setting(self, name: str) -> Any:
        """A value that was stored under a name; None where none was."""
        row = self._db.execute("SELECT value FROM settings WHERE name = ?", (name,)).fetchone()
        return json.loads(row[0]) if row else None

    def remember(self, name: str, value: Any) -> None:
        """Store a value (plain JSON) under a name."""
        with self._lock:
            self._db.execute("INSERT OR REPLACE INTO settings VALUES (?, ?)", (name, json.dumps(value, sort_keys=True)))

    def plan(self, chips: Iterable[PlannedChip], *, batch: int = 5000) -> int:
        """Add chips that are not there yet; returns how many were new. Constant memory: chips stream through.

        Raises:
            ManifestError: two chips of one id differ in place or period, or chips of one site lie apart or share days;
                then none is added.
        """
        rows: list[tuple] = []
        with self._lock:
            before, stated = self._db.total_changes, False
            last = self._db.execute("SELECT COALESCE(MAX(number), 0) FROM chips").fetchone()[0]
            self._db.execute("BEGIN")
            try:
                for chip in chips:
                    g, p, stated = chip.grid, chip.period, stated or chip.stated
                    rows.append((chip.id, chip.site, chip.lon, chip.lat, g.crs, g.left, g.top, p.start_ms, p.end_ms))
                    if len(rows) >= batch:
                        self._insert(rows)
                        rows.clear()
                self._insert(rows)
                if stated:
                    self._refuse_torn_sites(last)
                self._refuse_moved_sites(last)
                added = self._db.total_changes - before
                self._db.execute("COMMIT")
                return added
            except BaseException:
                if self._db.in_transaction:  # a full disk has ended it already
                    self._db.execute("ROLLBACK")
                raise

    def _insert(self, rows: Sequence[tuple]) -> None:
        columns, marks = ", ".join(_PLANNED), ", ".join("?" * len(_PLANNED))
        try:
            # A row that is there already stays; where it differs, the update runs into the constraint and says so.
            self._db.executemany(
                f"INSERT INTO chips ({columns}) VALUES ({marks}) ON CONFLICT (id) DO UPDATE SET site = NULL WHERE "
                "(crs, left, top, start_ms, end_ms) != (excluded.crs, excluded.left, excluded.top, excluded.start_ms, excluded.end_ms)",
                rows,
            )
        except sqlite3.IntegrityError:
            for row in rows:
                there = self._db.execute(f"SELECT {columns} FROM chips WHERE id = ?", row[:1]).fetchone()
                if there and there[4:] != row[4:]:
                    raise ManifestError(
                        f"chip {row[0]} is asked for twice: {_where_and_when(there)}, and {_where_and_when(row)}: give each site an "
                        "id of its own (in ids all but letters, digits and + - . _ counts as _)"
                    ) from None
            raise

    def _refuse_torn_sites(self, after: int) -> None:
        """Among the chips numbered higher than ``after``: those of a site are neighbours in the order of ids."""
        earlier = ", ".join(f"LAG({name}) OVER (ORDER BY id) AS earlier_{name}" for name in _PLANNED)
        found = self._db.execute(
            f"SELECT * FROM (SELECT {', '.join(_PLANNED)}, {earlier} FROM chips WHERE number > ?) WHERE site = earlier_site AND "
            "(start_ms < earlier_end_ms OR (crs, left, top) != (earlier_crs, earlier_left, earlier_top)) LIMIT 1",
            (after,),
        ).fetchone()
        self._refuse_site(found)

    def _refuse_moved_sites(self, after: int) -> None:
        """Of the chips numbered higher than ``after``, against the earlier ones, which an earlier list asked for."""
        names = ", ".join(f"{table}.{name}" for table in ("new", "old") for name in _PLANNED)
        found = self._db.execute(
            f"SELECT {names} FROM chips new JOIN chips old ON old.site = new.site WHERE new.number > ? AND old.number <= ? AND "
            "(new.crs, new.left, new.top) != (old.crs, old.left, old.top) LIMIT 1",
            (after, after),
        ).fetchone()
        self._refuse_site(found)

    def _refuse_site(self, found: tuple | None) -> None:
        """Raises ManifestError that names two chips, the later one first, where there are such."""
        if found:
            two, one = found[: len(_PLANNED)], found[len(_PLANNED) :]
            why = "their periods share days" if one[4:7] == two[4:7] else "they lie apart"
            raise ManifestError(
                f"site {two[1]} is asked for twice, and {why}: {_where_and_when(one)}, and {_where_and_when(two)}: rows of one id "
                "are periods of one place, without common days"
            )

    # --- going on ----------------------------------------------------------------------------------------------------

    def pending(self, px: int, *, batch: int = 64) -> Iterator[PlannedChip]:
        """Pending chips in order, read in small batches; chips finished meanwhile are not offered again."""
        last = 0
        while True:
            with self._lock:
                rows = self._db.execute(
                    "SELECT number, id, site, lon, lat, crs, left, top, start_ms, end_ms FROM chips "
                    "WHERE state = 'pending' AND number > ? ORDER BY number LIMIT ?",
                    (last, batch),
                ).fetchall()
            for number, name, site, lon, lat, crs, left, top, start_ms, end_ms in rows:
                last = number
                yield PlannedChip(name, site, lon, lat, ChipGrid(crs, left, top, px), Period(start_ms, end_ms), number)
            if len(rows) < batch:
                return

    def items(self, chip: PlannedChip) -> dict[str, Outcome]:
        """What is recorded of a chip's sources."""
        with self._lock:
            rows = self._db.execute(
                "SELECT source, state, reason, frames, requests, bytes, sha256 FROM items WHERE chip = ?",
                (chip.number,),
            ).fetchall()
        return {row[0]: Outcome(row[1], row[2] or "", row[3], row[4], row[5], row[6] or "") for row in rows}

    def record(self, chip: PlannedChip, source: str, outcome: Outcome) -> None:
        """One item's outcome, in one transaction."""
        o = outcome
        with self._lock:
            self._db.execute(
                "INSERT OR REPLACE INTO items VALUES (?,?,?,?,?,?,?,?)",
                (chip.number, source, o.state, o.reason or None, o.frames, o.requests, o.bytes, o.sha256 or None),
            )

    def finish(self, chip: PlannedChip, state: str, *, reason: str = "", size: int = 0, sha256: str = "") -> None:
        """The chip itself: written with its size and checksum, dropped or incomplete with the reason."""
        with self._lock:
            self._db.execute(
                "UPDATE chips SET state = ?, reason = ?, bytes = ?, sha256 = ? WHERE number = ?",
                (state, reason or None, size or None, sha256 or None, chip.number),
            )

    def reopen(self, *, failed: bool = False) -> int:
        """Take up incomplete chips again: those that only lack an answer, with ``failed`` those that were refused too.
        Items of chips that were under way when the last run ended count likewise.

        Returns how many chips became pending.
        """
        states = "('pending', 'failed')" if failed else "('pending')"
        # Chips beyond the last one that has an item were never under way: millions of pending ones are not visited.
        under_way = "state = 'pending' AND number <= (SELECT MAX(chip) FROM items)"
        with self._lock:
            self._db.execute("BEGIN")
            self._db.execute(
                f"DELETE FROM items WHERE state IN {states} AND chip IN (SELECT number FROM chips WHERE "
                f"state = 'incomplete' UNION ALL SELECT number FROM chips WHERE {under_way})"
            )
            count = self._db.execute(
                "UPDATE chips SET state = 'pending', reason = NULL WHERE state = 'incomplete' AND NOT EXISTS "
                "(SELECT 1 FROM items WHERE chip = number AND items.state = 'failed')"
            ).rowcount
            self._db.execute("COMMIT")
            return count

    def state(self, chip: str) -> str | None:
        """State of a chip by its id; None where it is not planned."""
        with self._lock:
            row = self._db.execute("SELECT state FROM chips WHERE id = ?", (chip,)).fetchone()
        return row[0] if row else None

    def left(self) -> int:
        """How many chips are pending."""
        with self._lock:
            return self._db.execute("SELECT COUNT(*) FROM chips WHERE state = 'pending'").fetchone()[0]

    # --- looking at it -----------------------------------------------------------------------------------------------

    def chip_counts(self) -> dict[str, int]:
        """Chips per state (one pass over the chips)."""
        with self._lock:
            return dict(self._db.execute("SELECT state, COUNT(*) FROM chips GROUP BY state"))

    def item_counts(self) -> dict[tuple[str, str], int]:
        """Recorded items per source and state (one pass over the items)."""
        with self._lock:
            rows = self._db.execute("SELECT source, state, COUNT(*) FROM items GROUP BY source, state").fetchall()
        return {(source, state): count for source, state, count in rows}

    def failures(self) -> list[tuple[str, str, str]]:
        """(chip, source, reason) of the first ten items that were refused."""
        return self._reasons(FAILED)

    def unanswered(self) -> list[tuple[str, str, str]]:
        """(chip, source, reason) of the first ten items that only lack an answer."""
        return self._reasons(PENDING)

    def _reasons(self, state: str) -> list[tuple[str, str, str]]:
        with self._lock:
            return self._db.execute(
                "SELECT chips.id, items.source, items.reason FROM chips JOIN items ON items.chip = chips.number "
                "WHERE chips.state = 'incomplete' AND items.state = ? LIMIT 10",
                (state,),
            ).fetchall()

    def checksums(self) -> Iterator[tuple[str, str]]:
        """(chip id, sha256) of every written chip."""
        with self._lock:
            rows = self._db.execute("SELECT id, sha256 FROM chips WHERE state = 'written' ORDER BY number").fetchall()
        yield from rows

    def export(self, path: str | Path, sources: Sequence[str], *, batch: int = 20_000) -> int:
        """Write every (chip, source) with its state as Parquet, pending ones included; returns the number of rows."""
        import pyarrow
        import pyarrow.parquet

        kinds = {"lon": pyarrow.float64(), "lat": pyarrow.float64()}
        kinds |= dict.fromkeys(("start_ms", "end_ms", "frames", "requests", "bytes"), pyarrow.int64())
        names = ["chip", "site", "lon", "lat", "crs", "start_ms", "end_ms", "chip_state", "source", "state", "reason"]
        names += ["frames", "requests", "bytes", "sha256", "chip_sha256"]
        schema = pyarrow.schema([(name, kinds.get(name, pyarrow.string())) for name in names])
        count = 0
        with writing(path) as stream, pyarrow.parquet.ParquetWriter(stream, schema, compression="zstd") as writer:
            for rows in self._rows(sources, batch):
                columns = [pyarrow.array(column, field.type) for column, field in zip(zip(*rows), schema)]
                writer.write_table(pyarrow.Table.from_arrays(columns, schema=schema))
                count += len(rows)
        return count

    def _rows(self, sources: Sequence[str], batch: int) -> Iterator[list[tuple]]:
        listed = ", ".join("(?)" for _ in sources)
        query = (
            f"WITH wanted(source) AS (VALUES {listed}) SELECT c.id, c.site, c.lon, c.lat, c.crs, c.start_ms, c.end_ms, "
            "c.state, w.source, COALESCE(i.state, 'pending'), i.reason, i.frames, i.requests, i.bytes, i.sha256, c.sha256 "
            "FROM chips c CROSS JOIN wanted w LEFT JOIN items i ON i.chip = c.number AND i.source = w.source "
            "WHERE c.number > ? AND c.number <= ? ORDER BY c.number"
        )
        last = self._db.execute("SELECT COALESCE(MAX(number), 0) FROM chips").fetchone()[0]
        for first in range(0, last, batch):
            with self._lock:
                rows = self._db.execute(query, (*sources, first, first + batch)).fetchall()
            if rows:
                yield rows


def storage_failure(error: BaseException | None, path: Path) -> OSError | None:
    """The error of the system behind one of SQLite: a full disk, or one that fails. None where the file is to blame."""
    name = str(getattr(error, "sqlite_errorname", ""))
    if name == "SQLITE_FULL":
        return OSError(
            errno.ENOSPC, "no space left on the disk: free some, then run the same command again", str(path.parent)
        )
    if name.startswith(("SQLITE_IOERR", "SQLITE_CANTOPEN", "SQLITE_READONLY", "SQLITE_BUSY", "SQLITE_PERM")):
        return OSError(
            errno.EIO,
            f"cannot be read or written now ({error}): is the disk full, or the folder not to be written? What is recorded stays; "
            "the same command goes on",
            str(path),
        )
    return None


def _where_and_when(row: Sequence[Any]) -> str:
    """A row of the chips in words."""
    return f"{row[2]:.5f},{row[3]:.5f} in {Period(row[7], row[8])}"


def manifest_path(out: str | Path, part: tuple[int, int] | None = None) -> Path:
    """Where the manifest of a folder lies; hosts that share a folder have one each."""
    name = NAME if part is None else f"manifest-{part[0]}-of-{part[1]}.sqlite"
    return Path(out) / name
