"""Chips in the making: a call that was interrupted is known again, and goes on after the chips that it wrote."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from aef import __version__, atomic
from aef.data.chips import require_free
from aef.data.contract import ChipError
from aef.data.folder_scan import list_names

RECORD = "unfinished.json"
"""Beside the chips from before a call writes its first until it has written its last: what it makes them of."""


@contextmanager
def making(
    folder: str | os.PathLike, chips: Mapping[str, str], made_of: Mapping[str, Any], *, overwrite: bool
) -> Iterator[frozenset[str]]:
    """Around the writing of chips: gives the ids of those that are kept, as an interrupted call wrote the same.

    A chip is kept where the record that such a call left names it, made of the same by this version of the program. No
    other chip of that id was there when the record was written, so what is there now is that call's. A call that makes some
    of those chips (`--only`) leaves the record to the rest of them.

    Args:
        folder: of the chips; it must exist.
        chips: the id of every chip that the block writes, and a digest of what only this one is made of.
        made_of: everything else that decides what is in them, as JSON.
        overwrite: keep none, whatever made them, and leave no record: interrupted, the call begins anew.

    Raises:
        ChipError: the folder holds other chips of these ids.
    """
    folder = Path(folder)
    atomic.remove_unfinished(folder, {f"{name}.npz" for name in chips})
    record = {"made_of": json.loads(json.dumps({"version": __version__, **made_of})), "chips": dict(chips)}
    if overwrite:
        (folder / RECORD).unlink(missing_ok=True)
        yield frozenset()
        return
    earlier = _read(folder / RECORD)
    same = {name for name, digest in chips.items() if earlier["chips"].get(name) == digest}
    different = _difference(earlier["made_of"], record["made_of"])
    if different:
        same.clear()
    else:
        record["chips"] = {**earlier["chips"], **chips}
    try:
        require_free(folder, (name for name in chips if name not in same))
    except ChipError as error:
        if not earlier["made_of"]:
            raise
        why = "; ".join(different) or "it did not make these, or what they are made of changed"
        raise ChipError(f"{error}. {RECORD} is of an interrupted call, and of another: {why}") from None
    there = _ids(folder)
    with atomic.writing(folder / RECORD, "w") as stream:
        json.dump(record, stream)
    yield frozenset(same & there)
    if _read(folder / RECORD)["chips"].keys() <= _ids(folder):
        (folder / RECORD).unlink(missing_ok=True)


def digest_of(lines: Iterable[str]) -> str:
    """A short digest of some lines, in their order."""
    digest = hashlib.sha256()
    for line in lines:
        digest.update(line.encode("utf-8", "surrogateescape") + b"\n")
    return digest.hexdigest()[:32]


def _ids(folder: Path) -> set[str]:
    """Ids of the chips that are there."""
    return {name.rpartition("/")[2].removesuffix(".npz") for name in list_names(folder)}


def _read(path: Path) -> dict[str, dict]:
    """A record; an empty one where there is none, or a damaged one."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        return {"made_of": dict(record["made_of"]), "chips": dict(record["chips"])}
    except (FileNotFoundError, ValueError, TypeError, LookupError):
        return {"made_of": {}, "chips": {}}


def _difference(earlier: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Where two calls differ."""
    names = [name for name in dict.fromkeys((*now, *earlier)) if earlier.get(name) != now.get(name)]
    return [f"{name} {earlier.get(name)}, now {now.get(name)}" for name in names]
