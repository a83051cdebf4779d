"""One training at a time in a run folder: a lock that dies with the process that holds it."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import time
from pathlib import Path
from typing import IO

from aef.run import RunError

from .log import Say

FILE_NAME = ".lock"

OTHER_HOST_S = 120.0
"""How long a file server may take to notice that another machine is gone: its lock is waited for, of this machine's not."""


class RunLock:
    """``RUN/.lock``, held from before anything is read or written until `release`, by rank 0 for all ranks.

    The kernel lets go of it with the process, however that ends, and a file system that nodes share keeps it for all of
    them (NFS, Lustre with ``-o flock``). The file names the holder; it goes with `release`, and so does a folder that
    was made for it alone. Where the file system knows no locks, that is said and nothing is held.

    Raises:
        RunError: another training holds it; says which process, on which machine, since when.
        OSError: the folder cannot be made or written to.
    """

    def __init__(self, run: Path, say: Say, *, wait_s: float = OTHER_HOST_S) -> None:
        self.path = run / FILE_NAME
        self._made = [folder for folder in (run, *run.parents) if not folder.exists()]
        self._file: IO[str] | None = None  # an object: a trainer that is dropped without `close` lets go too
        try:
            self._acquire(say, time.monotonic() + wait_s)
        except BaseException:
            self.release()
            raise

    def _acquire(self, say: Say, ends: float) -> None:
        said = False
        while not self._try(say):
            here, words = _holder(self.path)
            if here or time.monotonic() >= ends:
                raise RunError(
                    f"{self.path.parent}: is being trained by {words}: wait until it has ended, or choose another --out"
                )
            if not said:
                say(f"{self.path.parent}: waiting for {words}, which may have gone")
            said = True
            time.sleep(1.0)

    def _try(self, say: Say) -> bool:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            file = open(self.path, "a", encoding="utf-8")  # noqa: SIM115 (held until `release`)
        except FileNotFoundError:
            return False  # its last holder has just removed the folder that it made
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            return False
        except OSError as error:
            file.close()
            self.path.unlink(missing_ok=True)
            say(
                f"{self.path.parent}: no lock on this file system ({error.strerror}): nothing keeps a second training out"
            )
            return True
        if not _is_same_file(file, self.path):
            file.close()  # its last holder has just removed it: whoever comes next makes another
            return False
        self._file = file
        about = {"host": socket.gethostname(), "pid": os.getpid(), "since": _now()}
        file.truncate(0)
        file.write(json.dumps(about))
        file.flush()
        return True

    def release(self) -> None:
        """Let the next training in; again is harmless."""
        if self._file is not None:
            self.path.unlink(missing_ok=True)
            self._file.close()
            self._file = None
        for folder in self._made:
            try:
                folder.rmdir()
            except OSError:  # it holds the run, or another's lock
                break


def _is_same_file(file: IO[str], path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _holder(path: Path) -> tuple[bool, str]:
    """Whether who holds the lock is on this machine, as far as the file says, and who it is in words."""
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
        here = about["host"] == socket.gethostname()
        own = ", this one, by a Trainer that is not closed" if here and about["pid"] == os.getpid() else ""
        return here, f"process {about['pid']} on {about['host']} since {about['since']}{own}"
    except (OSError, ValueError, KeyError, TypeError):
        return False, "another process"  # it has not written its name yet, or is just leaving


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
