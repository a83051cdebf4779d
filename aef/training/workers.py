"""The processes of a loader: what they may open, whom they obey, and when they end."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import resource
import signal
import threading

from .signals import ASKING

STEPS_AHEAD = 1
"""Whole steps that wait in a rank, beside the one that is being put together."""

UNITS_AHEAD = 2
"""Units of a step that wait for each worker to be fetched or made."""

MOST_OPEN = 65536
OWN_FILES = 64
"""Open files of a rank beside its loader's: libraries, sockets, logs."""


def prepare(worker: int) -> None:
    """Make a worker deaf to signals, which a launcher sends to whole process trees (it must work on until the
    checkpoint is written), and end it with its rank."""
    for number in ASKING:
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_rank, name="rank", daemon=True).start()


def _end_with_rank() -> None:
    # torch looks at the parent's id, which here is the fork server's, and that lives as long as its workers.
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def fits_open_files(blocks: int) -> str | None:
    """Let this process and its workers open as many files as they may; why these do not suffice for ``blocks`` of
    shared memory, or None."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = MOST_OPEN if hard == resource.RLIM_INFINITY else min(hard, MOST_OPEN)
    if soft != resource.RLIM_INFINITY and soft < most:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
            soft = most
    if soft == resource.RLIM_INFINITY or soft >= blocks + OWN_FILES:
        return None
    return (
        f"the loader's processes need about {blocks + OWN_FILES} open files, {soft} are allowed: raise `ulimit -n`, or raise "
        "train.micro_batch so that a step has fewer parts"
    )


def worker_died(error: Exception) -> bool:
    """Whether a loader process is gone: torch says so, or its tensors could no longer be fetched from it."""
    return "DataLoader worker" in str(error) or isinstance(error, ConnectionError | EOFError)
