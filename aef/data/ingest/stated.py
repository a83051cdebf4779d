"""Scale and offset that files state of themselves: never applied unasked, never ignored where they contradict."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from aef.data.ingest.readers import Raster
from aef.data.ingest.schema import BandRule, Input

Scaling = tuple[float, float]


class StatedScales:
    """What the files of one input state, for the bands of which the recipe says neither to follow it nor to leave it.

    A constant scale changes nothing: the recipe says how stored values become the unit. Two scales in one series cannot
    both be that, and an offset that is taken off nowhere leaves every ratio wrong.
    """

    def __init__(self, item: Input) -> None:
        self._item = item
        self._files: dict[str, dict[Scaling, list[Path]]] = {}

    def add(self, path: Path, raster: Raster, bands: Mapping[str, BandRule]) -> None:
        """Look at a file's bands."""
        for band, rule in bands.items():
            transform = rule.transform or self._item.transform
            if transform.tags is None and rule.var in raster.variables:
                for scaling in {raster.scaling(rule.var, step) for step in range(raster.steps)}:
                    self._files.setdefault(band, {}).setdefault(self._asked(scaling), []).append(path)

    def _asked(self, scaling: Scaling) -> Scaling:
        """To nine digits; an offset that ``offset_rule`` looks after is no question."""
        scale, offset = (float(f"{value:.9g}") for value in scaling)
        return scale, 0.0 if self._item.offset_rule else offset

    def disagreement(self) -> str | None:
        """Why one transform cannot be right for all files; None where it can."""
        for band, files in self._files.items():
            if len(files) < 2:
                continue
            total = len({path for paths in files.values() for path in paths})
            stated = ", ".join(
                f"{_words(scaling)} in {len(paths)} (first {min(paths).name})" for scaling, paths in files.items()
            )
            return (
                f"input {self._item.name}: band {band}: of {total} files that state their scale, {stated}: one transform cannot "
                f"fit them all; {_remedy(next(iter(files)))}"
            )
        return None

    def suspicion(self) -> str | None:
        """An offset that every file states and nothing takes off; None where there is none."""
        bands: dict[Scaling, list[str]] = {}
        for band, files in self._files.items():
            transform = self._item.band_map[band].transform or self._item.transform
            for scaling in files:
                if scaling[1] and transform.plain:
                    bands.setdefault(scaling, []).append(band)
        for scaling, names in bands.items():
            return (
                f"{self._item.source} {', '.join(names)}: the files state {_words(scaling)}, and the recipe takes no offset off: "
                f"{_remedy(scaling)}"
            )
        return None


def _words(scaling: Scaling) -> str:
    return f"scale {scaling[0]:g} and offset {scaling[1]:g}"


def _remedy(scaling: Scaling) -> str:
    back = f"{1 / scaling[0]:g}" if scaling[0] else "…"
    return (
        f"transform: {{tags: true, scale: {back}}} applies what each file states and goes back to stored steps, {{tags: false}} "
        "takes the numbers as they are stored"
    )
