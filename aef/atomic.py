"""Files that a reader sees whole or not at all: written under a temporary name, synced, then renamed."""

from __future__ import annotations

import os
from collections.abc import Container, Iterator
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


def remove_unfinished(folder: str | os.PathLike, names: Container[str]) -> None:
    """Remove what killed processes of this machine left of files of some names; hidden, it would never be noticed."""
    for path in Path(folder).glob(".*.tmp"):
        name, _, process = path.name.removesuffix(".tmp").rpartition(".")
        if name[1:] not in names or not process.isdigit():
            continue
        try:
            os.kill(int(process), 0)  # only asks whether it is there
        except ProcessLookupError:
            path.unlink(missing_ok=True)
        except OSError:
            pass


def require_writable(path: str | os.PathLike, name: str = "") -> None:
    """Try whether a file can be written, before minutes of work go into its content; makes its folder where there is none.

    Args:
        path: the file to come; one that exists is left as it is.
        name: the option that named it, for the message.

    Raises:
        ValueError: it is a folder, or its folder cannot be made or written into.
    """
    path = Path(path)
    where = f"{name} {path}".lstrip()
    if path.is_dir():
        raise ValueError(f"{where}: expected a file to write, found a folder")
    trial = path.with_name(f".{path.name}.{os.getpid()}.try")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        trial.touch()
    except OSError as error:
        why = "a file stands where its folder should be" if not path.parent.is_dir() else error.strerror
        raise ValueError(f"{where}: cannot be written ({why}): choose another path") from None
    trial.unlink()
