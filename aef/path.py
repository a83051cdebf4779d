"""Paths that a caller names."""

from __future__ import annotations

import os
from pathlib import Path

from aef.one_line import one_line


def as_path(value: str | os.PathLike, name: str) -> Path:
    """The path that an argument ``name`` is.

    Raises:
        TypeError: it is none.
        ValueError: it is empty, which would mean the folder that the caller happens to be in.
    """
    if not isinstance(value, str | os.PathLike):
        raise TypeError(f"{name}: expected a path, found {one_line(repr(value), 60)}")
    if not os.fspath(value):
        raise ValueError(f"{name}: expected a path, found an empty one")
    return Path(value)
