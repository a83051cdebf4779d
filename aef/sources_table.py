"""The registry as a Markdown table: `aef sources` prints it, docs/data.md holds it, a test keeps both equal."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import groupby

from aef.sources import Band, Source, Transform

COLUMNS = ("source", "bands [unit] (valid range), transform", "role, grid, time", "loss", "licence; attribution")


def sources_table(sources: Iterable[Source]) -> str:
    """One row per source: what it is, its bands and their transforms, its role, its loss rule, and what to cite."""
    rows = [COLUMNS, ("---",) * len(COLUMNS), *map(_row, sources)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _row(source: Source) -> tuple[str, ...]:
    return (
        f"`{source.name}` {source.title} ({', '.join(source.collections) or 'no collection'})",
        "; ".join(_bands(list(group)) for _, group in groupby(source.bands, key=_kind)),
        _role(source),
        _loss(source),
        "; ".join(filter(None, (source.licence, source.attribution))),
    )


def _kind(band: Band) -> tuple:
    return band.unit, band.valid_min, band.valid_max, band.transform


def _bands(group: list[Band]) -> str:
    names = [band.name for band in group]
    if len(names) > 12:
        names = [names[0], names[1], "…", names[-1]]
    band = group[0]
    kept = f"[{band.unit}] ({band.valid_min:g} to {band.valid_max:g})"
    return f"{', '.join(names)} {kept}{_formula(band.transform)}"


def _formula(transform: Transform) -> str:
    scaled = "x" if transform.scale == 1 else f"{transform.scale:.6g} x"
    shift = f" {'+' if transform.offset > 0 else '−'} {abs(transform.offset):.6g}" if transform.offset else ""
    if transform.kind == "log":
        return f", ln({scaled} + 1) / 10"
    if transform.kind == "db":
        return f", {transform.scale:.6g} log10(x){shift}"
    return "" if (transform.scale, transform.offset) == (1, 0) else f", {scaled}{shift}"


def _role(source: Source) -> str:
    metres = f"{source.native_resolution_m:g} m"
    grid = {"chip": "10 m grid", "native": "own grid", "points": "footprints"}[source.grid]
    parts = [source.role, f"{metres} on the {grid}" if source.grid == "chip" else f"{metres}, {grid}", source.time]
    if source.role == "input":
        parts.append(f"{source.frame_budget} frames")
    if source.metadata:
        parts.append(f"metadata {', '.join(item.name for item in source.metadata)}")
    return ", ".join(parts)


def _loss(source: Source) -> str:
    kind = f"cross-entropy over {len(source.classes)} classes" if source.classes else "L1"
    shift = f", shifts to {source.shift_m:g} m" if source.shift_m else ""
    regrid = f", averaged to {source.regrid_m:g} m" if source.regrid_m else ""
    return f"{kind}{shift}{regrid}, weight {source.weight:g}"
