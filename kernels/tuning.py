"""The shipped choices: which backend and which tile settings, per GPU, operator, dtype and size.

`configs/NAME.json` belongs to the GPUs whose name starts with NAME (lower case, other characters as "-": `nvidia-h` is
the H100, H200, …, `nvidia-h200` one of them and asked first); a name that ends in a number is whole, so that an A10's
table is no A100's and no A10G's. `configs/default.json` belongs to all. An entry holds

    {"operator": …, "dtypes": […], "sizes": {"max_frames": [1, 64]}, "backend": "triton",
     "basis": "predicted" | "measured", "why": …, "config": {…}}

Entries are ordered by preference. "measured" names a GPU run that decided (`why` says which); "predicted" a reasoned
guess that no GPU has confirmed. There is no tuning while training runs: ranks could disagree, and runs could not
repeat.
"""

import functools
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).with_name("configs")
BASES = ("measured", "predicted")


@dataclass(frozen=True)
class Entry:
    """One line of a table: sizes are closed intervals; a size that an entry does not name is unrestricted."""

    operator: str
    backend: str
    basis: str
    why: str
    dtypes: tuple[str, ...] = ("bfloat16", "float16", "float32")
    sizes: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)

    def matches(self, operator: str, dtype: str, sizes: Mapping[str, int]) -> bool:
        """Whether this entry speaks of the operator at these sizes."""
        if self.operator != operator or dtype not in self.dtypes:
            return False
        return all(low <= sizes[name] <= high for name, (low, high) in self.sizes.items())


def slug(gpu: str) -> str:
    """A GPU's name as a file name: "NVIDIA H200" → "nvidia-h200"."""
    return re.sub(r"[^a-z0-9]+", "-", gpu.lower()).strip("-")


@functools.cache
def table(gpu: str) -> tuple[Entry, ...]:
    """The entries for a GPU's name, those of the longest matching file name first, the default's last."""
    names = [path.stem for path in FOLDER.glob("*.json") if path.stem != "default" and _begins(slug(gpu), path.stem)]
    names = [*sorted(names, key=len, reverse=True), "default"]
    return tuple(entry for name in names for entry in read(FOLDER / f"{name}.json"))


def _begins(name: str, start: str) -> bool:
    rest = name.removeprefix(start)
    return name.startswith(start) and not (start[-1].isdigit() and rest[:1].isalnum())


def read(path: Path) -> list[Entry]:
    """The entries of one file. Raises `ValueError` for a basis that is neither "measured" nor "predicted"."""
    entries = [Entry(**one) for one in json.loads(path.read_text(encoding="utf-8"))["entries"]]
    for entry in entries:
        if entry.basis not in BASES:
            raise ValueError(f"{path.name}: {entry.operator}: expected a basis of {BASES}, found {entry.basis!r}")
    return entries
