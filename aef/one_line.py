"""Parts of messages: an error of a library, whose message runs over many lines, in one; what an unknown name may mean."""

from __future__ import annotations

import difflib
from collections.abc import Collection


def one_line(error: object, most: int | None = 200) -> str:
    """The message of an error in one line of at most so many characters; the name of its type where it has none."""
    return " ".join(str(error).split())[:most] or type(error).__name__


def meant_by(name: object, known: Collection[str], prefix: str = "") -> str:
    """The end of a message about an unknown name: the known one that is most like it, or all of them."""
    close = difflib.get_close_matches(str(name), known, n=1)
    return f"did you mean {prefix}{close[0]}?" if close else f"known are {', '.join(known)}"
