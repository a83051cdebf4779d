"""Files that a reader sees whole or not at all: written under a temporary name, synced, then renamed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any


@contextmanager
def writing(path: str | os.PathLike, mode: str = "wb") -> Iterator[IO[Any]]:
    """Open `path` for writing so that it appears only once the block has ended well.

    Whatever fails (a full disk, an exception of the caller) leaves the old file as it was and no temporary one behind.

    Raises:
        OSError: the disk is full or the folder cannot be written.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, mode, encoding=None if "b" in mode else "utf-8") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    except OSError as error:
        # A full disk is reported by the stream, which does not know its name.
        error.filename = str(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)
