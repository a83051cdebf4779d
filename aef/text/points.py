"""Text points: one Parquet file of geolocated texts, written in parts so that an interrupted run goes on.

The fields are those of the chip's `TextPoint`, with longitude and latitude in place of a chip's coordinates, and what
attribution and joins need: an id, a title and a taxon.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from aef.atomic import writing

FORMAT_VERSION = 1
PART_POINTS = 2000
PART_S = 30.0
"""A part is written after this many points or seconds, whichever comes first."""

METADATA = b"aef_text"

SCHEMA = pa.schema(
    [
        pa.field("lon", pa.float64(), nullable=False),
        pa.field("lat", pa.float64(), nullable=False),
        pa.field("uncertainty_m", pa.float32(), nullable=False),
        pa.field("time_ms", pa.int64(), nullable=False),
        pa.field("time_end_ms", pa.int64(), nullable=False),
        pa.field("text", pa.string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("licence", pa.string(), nullable=False),
        pa.field("title", pa.string(), nullable=False),
        pa.field("taxon", pa.string(), nullable=False),
    ]
)


class TextError(ValueError):
    """A corpus cannot be read or does not hold what it should; one line naming the file and what to do."""


@dataclass(frozen=True)
class GeoText:
    """A text and where and when it holds.

    ``source`` is corpus:id (``wikipedia:12@345``: page 12, revision 345; ``gbif:678``), enough to attribute it;
    ``taxon`` is family|genus|species of an occurrence.
    """

    lon: float
    lat: float
    uncertainty_m: float
    time_ms: int
    time_end_ms: int
    text: str
    source: str
    licence: str
    title: str = ""
    taxon: str = ""


Counts = Counter[str]
"""How many items a corpus held, kept and dropped, by reason."""


class Corpus(Protocol):
    """A stream of texts that can be taken up again in the middle."""

    name: str

    def files(self) -> Sequence[Path]:
        """What it reads."""

    def settings(self) -> Mapping[str, str]:
        """What it was asked for: a run goes on only with the same files and settings."""

    def read(self, start: int, counts: Counts, earlier: Iterator[pa.Table]) -> Iterator[tuple[int, GeoText | None]]:
        """Yield, now and then even without a text, where to start next time.

        Args:
            start: 0, or a position that was yielded before.
            counts: what was met before ``start``; updated.
            earlier: tables of the texts before ``start``.
        """


def write_points(
    out: str | os.PathLike, corpora: Sequence[Corpus], *, on_progress: Callable[[str, Counts], None] | None = None
) -> dict[str, dict[str, int]]:
    """Read corpora one after the other into one Parquet file; returns what each held, kept and dropped.

    Work in progress lies in ``OUT.partial/``; a run that finds it there goes on where the last part ended.

    Raises:
        TextError: a corpus is damaged or not what it should be, or the work in progress belongs to other files or to a
            process that is at it.
        OSError: the disk is full; parts that are complete are kept.
    """
    out = Path(out)
    work = out.with_name(f"{out.name}.partial")
    inputs = {corpus.name: _fingerprint(corpus) for corpus in corpora}
    with _alone(work):
        state = _State.open(work, inputs)
        for corpus in corpora:
            _read_corpus(corpus, state, on_progress)
        counts = {corpus.name: dict(state.of(corpus.name).counts) for corpus in corpora}
        about = {"format_version": FORMAT_VERSION, "inputs": state.inputs, "counts": counts}
        _join(out, state.parts([corpus.name for corpus in corpora]), about)
        shutil.rmtree(work)
    return counts


@contextmanager
def _alone(work: Path) -> Iterator[None]:
    """Keep a second process out of work in progress: their parts, cut at other places, would replace each other.

    Raises:
        TextError: another process is at it.
    """
    import fcntl

    work.mkdir(parents=True, exist_ok=True)
    with open(work / "lock", "a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise TextError(f"{work}: another process is writing it: wait until it has ended") from None
        except OSError:
            pass  # no locks on this file system
        yield


def _read_corpus(corpus: Corpus, state: _State, on_progress: Callable[[str, Counts], None] | None) -> None:
    """Read a corpus from where it stands to its end, part by part. What comes before damage is kept."""
    before = state.of(corpus.name)
    if before.done:
        return
    counts: Counts = Counter(before.counts)
    earlier = (pq.read_table(path) for path in state.parts([corpus.name]))
    waiting: list[GeoText] = []
    position, counted = before.position, dict(counts)
    written = time.monotonic()
    try:
        for position, text in corpus.read(before.position, counts, earlier):
            counted = dict(counts)
            if text is not None:
                waiting.append(text)
            if len(waiting) >= PART_POINTS or time.monotonic() - written >= PART_S:
                state.advance(corpus.name, position, counted, waiting)
                waiting, written = [], time.monotonic()
            if on_progress:
                on_progress(corpus.name, counts)
    except TextError:
        state.advance(corpus.name, position, counted, waiting)
        raise
    state.advance(corpus.name, position, counts, waiting, done=True)


# --- work in progress ------------------------------------------------------------------------------------------------


@dataclass
class _Progress:
    """Where a corpus stands: position and counts after `parts` complete parts."""

    position: int = 0
    parts: int = 0
    done: bool = False
    counts: dict[str, int] = field(default_factory=dict)


class _State:
    """The folder of work in progress: ``state.json`` and parts, each written whole, the state last."""

    def __init__(self, folder: Path, inputs: Mapping[str, Any], progress: dict[str, _Progress]) -> None:
        self.folder, self.inputs, self._progress = folder, inputs, progress

    @classmethod
    def open(cls, folder: Path, inputs: Mapping[str, Any]) -> _State:
        path = folder / "state.json"
        if not path.exists():
            return cls(folder, inputs, {})
        try:
            entries = json.loads(path.read_text(encoding="utf-8"))
            known = entries["inputs"]
            progress = {name: _Progress(**where) for name, where in entries["places"].items()}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise TextError(f"{path}: damaged ({type(error).__name__}): delete the folder to start anew") from error
        if known != json.loads(json.dumps(inputs)):
            raise TextError(
                f"{folder}: was begun with other files or settings: give the same, or delete it to start anew"
            )
        return cls(folder, inputs, progress)

    def of(self, name: str) -> _Progress:
        return self._progress.setdefault(name, _Progress())

    def parts(self, names: Sequence[str]) -> list[Path]:
        return [self._part(name, number) for name in names for number in range(self.of(name).parts)]

    def _part(self, name: str, number: int) -> Path:
        return self.folder / f"{name}-{number:06d}.parquet"

    def advance(
        self, name: str, position: int, counts: Mapping[str, int], texts: Sequence[GeoText], *, done: bool = False
    ) -> None:
        before = self.of(name)
        if texts:
            with writing(self._part(name, before.parts)) as stream:
                pq.write_table(pa.Table.from_pylist([asdict(text) for text in texts], SCHEMA), stream)
        self._progress[name] = _Progress(position, before.parts + bool(texts), done, dict(counts))
        with writing(self.folder / "state.json", "w") as stream:
            json.dump({"inputs": self.inputs, "places": {n: asdict(p) for n, p in self._progress.items()}}, stream)


def _fingerprint(corpus: Corpus) -> dict[str, Any]:
    """Settings, and each file's name and a hash of its beginning: a truncated file may be replaced by the whole one."""
    beginnings = {}
    for path in corpus.files():
        with open(path, "rb") as stream:
            beginnings[path.name] = hashlib.blake2b(stream.read(1 << 16), digest_size=8).hexdigest()
    return {"files": beginnings, "settings": dict(corpus.settings())}


def _join(out: Path, parts: Sequence[Path], about: Mapping[str, Any]) -> None:
    schema = SCHEMA.with_metadata({METADATA: json.dumps(about).encode()})
    with writing(out) as stream, pq.ParquetWriter(stream, schema, compression="zstd") as writer:
        for part in parts:
            writer.write_table(pq.read_table(part).replace_schema_metadata(schema.metadata))


# --- reading ---------------------------------------------------------------------------------------------------------


def open_points(path: str | os.PathLike) -> pq.ParquetFile:
    """A Parquet file of text points.

    Raises:
        FileNotFoundError: there is no such file.
        TextError: it is damaged, lacks a column or is of a newer format.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file of text points")
    try:
        file = pq.ParquetFile(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise TextError(f"{path}: not a Parquet file, or a damaged one ({error})") from error
    missing = [name for name in SCHEMA.names if name not in file.schema_arrow.names]
    if missing:
        raise TextError(f"{path}: not text points: lacks the column {missing[0]}")
    about = json.loads((file.schema_arrow.metadata or {}).get(METADATA, b"{}"))
    if about.get("format_version", FORMAT_VERSION) > FORMAT_VERSION:
        raise TextError(f"{path}: of a newer format: update the software")
    return file
