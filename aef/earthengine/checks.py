"""The closing table: what the values on disk look like, band by band, and whether that is what the product should hold.

A chip that breaks the contract never reaches the disk. What passes it can still be wrong (an offset that was not
removed, two bands swapped): those show in the distribution over many chips, and the table names them. A verdict is a
suspicion for a person to look at, with its usual innocent cause beside it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from aef.data.chips import read_chip
from aef.sources import Registry, Source

SURVEYED_CHIPS = 64
VALUES_PER_BAND = 4096
UNSEEN = "nothing observed"
FEW_CHIPS = 8
"""From so many chips on, a distribution says something about the product and not only about the place."""


@dataclass(frozen=True)
class BandSurvey:
    """One row: how many chips and values, the quantiles of what was observed, and a suspicion or nothing."""

    source: str
    band: str
    unit: str
    chips: int
    observed: float
    minimum: float
    p1: float
    median: float
    p99: float
    maximum: float
    expected: tuple[float, float]
    suspicion: str = ""


@dataclass(frozen=True)
class _Rule:
    """``holds`` of the quantiles by band; ``bands`` must all have been observed for it to be asked."""

    source: str
    bands: tuple[str, ...]
    holds: Callable[[dict[str, BandSurvey]], bool]
    suspicion: str
    few_chips_suffice: bool = True


def _within(source: str, band: str, low: float, high: float, unit: str) -> _Rule:
    return _Rule(
        source,
        (band,),
        lambda s: low <= s[band].median <= high,
        f"median expected within {low:g} to {high:g} {unit}: wrong unit or scale?",
    )


def _above(source: str, upper: str, lower: str) -> _Rule:
    return _Rule(
        source,
        (upper, lower),
        lambda s: s[upper].median > s[lower].median,
        f"expected {upper} above {lower}: bands swapped?",
    )


def _darkest(source: str, shorter: str, longer: str) -> _Rule:
    # Air scatters short waves: at the top of the atmosphere the darkest blue is brighter than the darkest red.
    return _Rule(
        source,
        (shorter, longer),
        lambda s: s[shorter].p1 > s[longer].p1,
        f"darkest {shorter} expected brighter than darkest {longer}: bands swapped? (bare desert and snow look like this too)",
        few_chips_suffice=False,
    )


_S2 = ("B2", "B3", "B4", "B8", "B11")
RULES: tuple[_Rule, ...] = (
    *(_within("sentinel2", band, 100, 12000, "reflectance x 10000") for band in _S2),
    _Rule(
        "sentinel2",
        _S2,
        lambda s: min(s[band].p1 for band in _S2) < 1000,
        "no band is ever below 1000: was the offset of processing baseline 04.00 left in? (bright desert looks like this too)",
        few_chips_suffice=False,
    ),
    _darkest("sentinel2", "B2", "B4"),
    _darkest("sentinel2", "B2", "B11"),
    *(_within("landsat", band, 0.005, 1.2, "reflectance") for band in ("B2", "B3", "B4", "B5", "B6", "B8")),
    _darkest("landsat", "B2", "B4"),
    _darkest("landsat", "B2", "B6"),
    _within("landsat", "B10", 220, 335, "K"),
    _within("sentinel1", "VV", -25, 0, "dB"),
    _within("sentinel1", "HH", -25, 0, "dB"),
    _above("sentinel1", "VV", "VH"),
    _above("sentinel1", "HH", "HV"),
    _within("sentinel1", "angle", 20, 55, "degree"),
    _within("palsar2", "HH", 200, 25000, "DN"),
    _above("palsar2", "HH", "HV"),
    _within("palsar2", "LIN", 1000, 7500, "0.01 degree"),
    _within("glo30", "elevation", -450, 6500, "m"),
    _within("era5_land", "temperature_2m", 210, 315, "K"),
    _within("era5_land", "surface_pressure", 48000, 106000, "Pa"),
    _above("era5_land", "temperature_2m", "temperature_2m_min"),
    _above("era5_land", "temperature_2m_max", "temperature_2m"),
    _above("era5_land", "temperature_2m", "dewpoint_temperature_2m"),
    _within("era5_land", "total_precipitation_sum", 0, 1.5, "m"),
    _above("gedi", "rh100", "rh50"),
    _above("gedi", "rh50", "rh0"),
    _within("grace", "lwe_thickness", -400, 400, "cm"),
)


def survey(folder: str | Path, registry: Registry, *, most: int = SURVEYED_CHIPS) -> list[BandSurvey]:
    """Look at up to ``most`` chips of a folder, evenly spread over it; at most a few thousand values per band and chip.

    Raises:
        ChipError: a chip on disk is damaged or breaks the contract.
    """
    files = sorted(path for path in Path(folder).glob("*.npz") if not path.name.startswith("."))
    if len(files) > most:
        files = [files[index] for index in np.linspace(0, len(files) - 1, most).round().astype(int)]
    values: dict[tuple[str, str], list[np.ndarray]] = {}
    seen: dict[tuple[str, str], list[float]] = {}
    for file in files:
        chip = read_chip(file, registry)
        for name, series in chip.sources.items():
            valid = np.broadcast_to(series.valid, series.values.shape)
            for channel, band in enumerate(registry[name].bands):
                observed = series.values[:, channel][valid[:, channel]]
                seen.setdefault((name, band.name), []).append(float(valid[:, channel].mean()))
                if observed.size:
                    step = max(1, observed.size // VALUES_PER_BAND)
                    # Extremes are kept whatever the step.
                    thinned = np.concatenate((observed[::step], [observed.min(), observed.max()])).astype(np.float64)
                    values.setdefault((name, band.name), []).append(thinned)
    rows = [
        _row(registry[name], band.name, values.get((name, band.name), []), seen[name, band.name])
        for name in registry
        for band in registry[name].bands
        if (name, band.name) in seen
    ]
    return _judged(rows)


def _row(source: Source, band: str, parts: Sequence[np.ndarray], seen: Sequence[float]) -> BandSurvey:
    entry = source.bands[source.band_names.index(band)]
    pooled = np.concatenate(parts) if parts else np.array([np.nan])
    minimum, p1, median, p99, maximum = (float(q) for q in np.quantile(pooled, (0, 0.01, 0.5, 0.99, 1)))
    return BandSurvey(
        source.name,
        band,
        entry.unit,
        len(seen),
        float(np.mean(seen)),
        minimum,
        p1,
        median,
        p99,
        maximum,
        (entry.valid_min, entry.valid_max),
        "" if parts else UNSEEN,
    )


def _judged(rows: list[BandSurvey]) -> list[BandSurvey]:
    by_source: dict[str, dict[str, BandSurvey]] = {}
    for row in rows:
        by_source.setdefault(row.source, {})[row.band] = row
    suspicions: dict[tuple[str, str], list[str]] = {}
    for rule in RULES:
        bands = by_source.get(rule.source, {})
        asked = [bands[b] for b in rule.bands if b in bands and not np.isnan(bands[b].median)]
        if len(asked) < len(rule.bands) or (not rule.few_chips_suffice and asked[0].chips < FEW_CHIPS):
            continue
        if not rule.holds(bands):
            suspicions.setdefault((rule.source, rule.bands[0]), []).append(rule.suspicion)
    return [
        dataclasses.replace(row, suspicion="; ".join(suspicions.get((row.source, row.band), [row.suspicion])))
        for row in rows
    ]


def table(rows: Sequence[BandSurvey]) -> list[str]:
    """Lines of the closing table; bands of a long family (rh0 … rh100) are shown at its ends and middle."""
    width = max((len(row.source) for row in rows), default=6) + 2
    header = "".join(f"{name:>11}" for name in ("min", "1 %", "median", "99 %", "max"))
    lines = [f"{'source':<{width}}{'band':<28}{'seen':>6}{header}  unit, verdict"]
    shown = _shown([row.source for row in rows])
    for row, show in zip(rows, shown):
        suspicious = row.suspicion not in ("", UNSEEN)
        if show or suspicious:
            quantiles = (row.minimum, row.p1, row.median, row.p99, row.maximum)
            numbers = "".join(f"{'-' if np.isnan(value) else format(value, '.5g'):>11}" for value in quantiles)
            verdict = f"SUSPICIOUS: {row.suspicion}" if suspicious else row.suspicion or "ok"
            lines.append(f"{row.source:<{width}}{row.band:<28}{row.observed:>6.0%}{numbers}  {row.unit}, {verdict}")
    return lines


def _shown(sources: Sequence[str]) -> list[bool]:
    shown = []
    for index, source in enumerate(sources):
        first, count = sources.index(source), sources.count(source)
        place = index - first
        shown.append(count <= 16 or place in (0, count // 4, count // 2, 3 * count // 4, count - 1))
    return shown
