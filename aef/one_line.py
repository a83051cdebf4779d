"""Errors of libraries, whose messages run over many lines, as part of ours."""

from __future__ import annotations


def one_line(error: object, most: int | None = 200) -> str:
    """The message of an error in one line of at most so many characters; the name of its type where it has none."""
    return " ".join(str(error).split())[:most] or type(error).__name__
