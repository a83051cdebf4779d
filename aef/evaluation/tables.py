"""Tables as people and programs read them: Markdown beside JSON, both written whole."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from aef.atomic import require_writable, writing


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Head and rows as a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def signed(difference: float, interval: tuple[float, float]) -> str:
    """A difference with its interval: ``+0.061 [+0.020, +0.103]``."""
    low, high = interval
    return f"{difference:+.3f} [{low:+.3f}, {high:+.3f}]"


def result_paths(stem: Path) -> tuple[Path, Path]:
    """The files that `write_results` writes: ``STEM.md`` and ``STEM.json``."""
    return stem.with_name(stem.name + ".md"), stem.with_name(stem.name + ".json")


def require_results(stem: Path, name: str) -> None:
    """Raises ValueError naming the option `name` where `write_results` could not write: asked before the work."""
    for path in result_paths(stem):
        require_writable(path, name)


def write_results(stem: Path, text: str, figures: Mapping[str, Any]) -> tuple[Path, Path]:
    """Write ``STEM.md`` and ``STEM.json``. Raises ValueError for a figure that JSON does not know (NaN), OSError."""
    content = json.dumps(figures, indent=1, allow_nan=False)
    stem.parent.mkdir(parents=True, exist_ok=True)
    paths = result_paths(stem)
    for path, words in zip(paths, (text.rstrip() + "\n", content + "\n")):
        with writing(path, "w") as stream:
            stream.write(words)
    return paths
