"""Which files of a folder are embedding fields, and which of them may be used together."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from aef.mapping.files import SUFFIX, open_field, read_tags
from aef.mapping.made_by import MadeBy
from aef.timecode import Period, parse_period

if TYPE_CHECKING:
    import xarray


class FieldChoiceError(ValueError):
    """Fields that are not there or do not compare; one line."""


def field_files(folder: str | os.PathLike) -> list[Path]:
    """The files of embedding fields in a folder. Raises FieldChoiceError if there are none."""
    suffixes = set(SUFFIX.values())
    paths = sorted(path for path in Path(folder).glob("*") if path.suffix in suffixes and not path.name.startswith("."))
    if not paths:
        raise FieldChoiceError(f"{folder}: holds no embedding fields: `aef embed --out {folder}` makes some")
    return paths


def choose_fields(
    paths: Iterable[Path], *, period: str | Period | None = None, made_by: MadeBy | None = None
) -> list[Path]:
    """The fields of one period (None: of all), once it is known that they compare: one maker, and no field twice.

    Args:
        made_by: the model that must have made them, as a text's direction is its own; None: that of the first field.

    Raises:
        FieldChoiceError: another model made a field or left other sources out, two files hold one field, or none is of the
            period.
    """
    wanted = parse_period(period) if isinstance(period, str) else period
    tags = {path: read_tags(path)[1] for path in paths}
    chosen = [path for path, told in tags.items() if wanted is None or told.get("period") == str(wanted)]
    if not chosen:
        known = ", ".join(sorted({told.get("period", "none stated") for told in tags.values()}))
        raise FieldChoiceError(f"no field of the period {wanted}: there are fields of {known}")
    first = tags[chosen[0]]
    seen: dict[tuple[str, str], Path] = {}
    for path in chosen:
        difference = made_by.other_model(tags[path]) if made_by else None
        if difference:
            raise FieldChoiceError(
                f"{path}: {difference}: give the run that made the fields, or embed them with this one"
            )
        for name in ("model_version", "model_weights", "left_out", "unobserved"):
            if tags[path].get(name) != first.get(name):
                raise FieldChoiceError(
                    f"{path}: its {name} is {tags[path].get(name, 'none')}, that of {chosen[0].name} is "
                    f"{first.get(name, 'none')}: their vectors do not compare, search them one by one"
                )
        key = (tags[path].get("chip", path.stem), tags[path].get("period", ""))
        if seen.setdefault(key, path) is not path:
            raise FieldChoiceError(
                f"{path}: holds the field of {key[0]} over {key[1]} as {seen[key].name} does: remove one"
            )
    return chosen


def open_fields(paths: Iterable[Path]) -> Iterator[xarray.DataArray]:
    """Embedding fields of files, one at a time, each named by its chip or else its file. Raises as `open_field` does."""
    for path in paths:
        field = open_field(path)
        field.attrs.setdefault("chip", path.stem)
        yield field
