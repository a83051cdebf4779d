"""How much memory the machine has, and giving back what is not needed."""

import ctypes
import os
from collections.abc import Callable
from functools import cache


def memory_bytes() -> int | None:
    """The machine's physical memory; None where the system does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None


def return_free_memory() -> None:
    """Give memory that was freed back to the system; nothing where the C library has no `malloc_trim`.

    glibc keeps whatever lies below a block in use. One chip after another that leaves each a little makes a process grow by
    100 MB a chip, of which it uses nothing.
    """
    trim = _malloc_trim()
    if trim is not None:
        trim(0)


@cache
def _malloc_trim() -> Callable[[int], int] | None:
    try:
        return ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):
        return None
