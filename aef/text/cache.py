"""Vectors of texts, computed once and kept on disk, keyed by (tower, weights hash, text hash).

A cache is one folder per tower, ``ROOT/NAME-HASH/``, with ``tower.json`` and numbered pairs of files: ``vectors-N.npy``
(n, D) float32, and ``texts-N.npy`` (n, 2) uint64 with a 128-bit hash of each text. The second is written last, so a
pair is there whole or not at all; N ends in letters that no other process draws, so two may encode at once. Vectors are mapped from disk: memory holds 24 bytes per text.
"""

from __future__ import annotations

import hashlib
import os
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from aef.atomic import writing
from aef.text.tower import TextTower, TowerError, TowerIdentity

FOLDER = "text_vectors"
"""Where a folder of chips keeps the vectors of its texts."""

IDENTITY = "tower.json"
PART_TEXTS = 256
"""Texts that are encoded before their vectors are written."""


def text_key(text: str) -> tuple[int, int]:
    """A 128-bit hash of a text, as two words."""
    digest = hashlib.blake2b(text.encode(), digest_size=16).digest()
    return int.from_bytes(digest[:8], "little"), int.from_bytes(digest[8:], "little")


class VectorCache:
    """Vectors by text; call it with a text to get its vector (D,) or None. Picklable, for loader workers.

    Raises:
        TowerError: the folder is damaged or of a newer format.
    """

    def __init__(self, folder: str | os.PathLike) -> None:
        self.folder = Path(folder)
        self.identity = TowerIdentity.read(self.folder / IDENTITY)
        self.reopen()

    @classmethod
    def of(cls, root: str | os.PathLike, identity: TowerIdentity) -> VectorCache:
        """The cache of a tower under ``root``, made if there is none yet."""
        folder = Path(root) / identity.key
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / IDENTITY).exists():
            with writing(folder / IDENTITY, "w") as stream:
                stream.write(identity.to_json())
        cache = cls(folder)
        identity.require(cache.identity, str(folder))
        return cache

    @property
    def dim(self) -> int:
        """Length of a vector."""
        return self.identity.dim

    def __len__(self) -> int:
        return len(self._first)

    def __contains__(self, text: str) -> bool:
        return self.holds(text_key(text))

    def holds(self, key: tuple[int, int]) -> bool:
        """Whether it has the vector of the text with this `text_key`."""
        return self._row(key) is not None

    def __call__(self, text: str) -> np.ndarray | None:
        row = self._row(text_key(text))
        if row is None:
            return None
        part = int(np.searchsorted(self._starts, row, side="right")) - 1
        return np.array(self._vectors[part][row - self._starts[part]])

    def __reduce__(self) -> tuple[type[VectorCache], tuple[Path]]:
        return type(self), (self.folder,)

    def add(self, texts: Sequence[str], vectors: np.ndarray) -> None:
        """`write`, and find them from now on."""
        self.write(texts, vectors)
        self.reopen()

    def write(self, texts: Sequence[str], vectors: np.ndarray) -> None:
        """Keep vectors (n, D) float32, to be found after `reopen`, which takes longer the more there are.

        Raises:
            ValueError: shapes do not fit, or a vector is not finite. OSError: the disk is full.
        """
        if vectors.shape != (len(texts), self.dim):
            raise ValueError(f"{self.folder}: expected vectors {(len(texts), self.dim)}, found {vectors.shape}")
        if not np.isfinite(vectors).all():
            raise ValueError(f"{self.folder}: the tower gives vectors that are not finite: its weights are damaged")
        number = f"{len(list(self.folder.glob('vectors-*.npy'))):06d}-{uuid.uuid4().hex[:8]}"
        for name, array in (
            (f"vectors-{number}.npy", vectors.astype(np.float32)),
            (f"texts-{number}.npy", np.array([text_key(text) for text in texts], np.uint64).reshape(-1, 2)),
        ):
            with writing(self.folder / name) as stream:
                np.save(stream, array, allow_pickle=False)

    def reopen(self) -> None:
        """Find what was written since, by any process. Raises TowerError: a file is damaged."""
        self._vectors, keys = [], []
        for path in sorted(self.folder.glob("texts-*.npy")):
            try:
                keys.append(np.load(path, allow_pickle=False))
                beside = path.with_name(path.name.replace("texts", "vectors"))
                self._vectors.append(np.load(beside, mmap_mode="r", allow_pickle=False))
                whole = self._vectors[-1].shape == (len(keys[-1]), self.dim) and keys[-1].shape[1:] == (2,)
            except (OSError, ValueError, EOFError) as error:
                raise TowerError(f"{path}: damaged ({error}): delete the folder and encode the texts again") from error
            if not whole:
                raise TowerError(f"{path}: does not fit the vectors beside it: delete the folder and encode again")
        joined = np.concatenate(keys) if keys else np.zeros((0, 2), np.uint64)
        self._starts = np.cumsum([0, *(len(one) for one in keys)])[:-1] if keys else np.zeros(1, np.int64)
        self._order = np.lexsort((joined[:, 1], joined[:, 0]))
        self._first, self._second = joined[self._order, 0], joined[self._order, 1]

    def _row(self, key: tuple[int, int]) -> int | None:
        first, second = key
        at = int(np.searchsorted(self._first, np.uint64(first)))
        while at < len(self._first) and self._first[at] == first:
            if self._second[at] == second:
                return int(self._order[at])
            at += 1
        return None


def encode_missing(
    cache: VectorCache, tower: TextTower, texts: Iterable[str], *, on_texts: Callable[[int], None] | None = None
) -> int:
    """Encode the texts that the cache lacks, each once, and return how many they were. What is done stays done.

    Memory holds the texts of one part, and a key of each that was met.

    Raises:
        TowerError: the cache belongs to another tower.
    """
    tower.identity.require(cache.identity, str(cache.folder))
    done = 0
    try:
        for group in _groups(_lacking(cache, texts), PART_TEXTS):
            cache.write(group, tower.encode(group))
            done += len(group)
            if on_texts:
                on_texts(len(group))
    finally:
        if done:
            cache.reopen()
    return done


def _lacking(cache: VectorCache, texts: Iterable[str]) -> Iterator[str]:
    met: set[tuple[int, int]] = set()
    for text in texts:
        key = text_key(text)
        if key not in met and not cache.holds(key):
            met.add(key)
            yield text


def _groups(items: Iterator[str], size: int) -> Iterator[list[str]]:
    group: list[str] = []
    for item in items:
        group.append(item)
        if len(group) == size:
            yield group
            group = []
    if group:
        yield group


def find_vectors(chips: str | os.PathLike, identity: TowerIdentity | None = None) -> VectorCache | None:
    """The text vectors of a folder of chips; None where its texts were never encoded.

    Args:
        chips: the folder.
        identity: which tower's; None: the only one's.

    Raises:
        TowerError: there are vectors of several towers, or none of the wanted one.
    """
    root = Path(chips) / FOLDER
    folders = sorted(path.parent for path in root.glob(f"*/{IDENTITY}"))
    if identity is not None and folders:
        folders = [folder for folder in folders if folder.name == identity.key]
        if not folders:
            raise TowerError(
                f"{root}: holds no text vectors of {identity.name} with weights {identity.weights}: encode the texts "
                "with this tower"
            )
    if len(folders) > 1:
        names = ", ".join(folder.name for folder in folders)
        raise TowerError(f"{root}: holds text vectors of several towers ({names}): keep one")
    return VectorCache(folders[0]) if folders else None
