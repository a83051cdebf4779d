"""Local corpus files, plain or compressed, as byte streams that say clearly when they are broken."""

from __future__ import annotations

import bz2
import gzip
import lzma
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from aef.text.points import TextError

DAMAGE = (EOFError, OSError, zlib.error, lzma.LZMAError, zipfile.BadZipFile)
"""What the readers of compressed files raise where one is cut short or altered."""

_OPENERS: dict[str, Any] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}


@contextmanager
def open_stream(path: Path) -> Iterator[IO[bytes]]:
    """Open a file, decompressed by its suffix (.gz, .bz2, .xz).

    Raises:
        FileNotFoundError: there is no such file.
        TextError: it is empty, or, while it is read, truncated or damaged.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    if path.stat().st_size == 0:
        raise TextError(f"{path}: is empty")
    try:
        with _OPENERS.get(path.suffix, open)(path, "rb") as stream:
            yield stream
    except DAMAGE as error:
        raise TextError(
            f"{path}: truncated or damaged ({error}): download it again, what was read so far is kept"
        ) from error
