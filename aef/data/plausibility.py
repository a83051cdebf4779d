"""What values look like, band by band, and whether that is what the product should hold: asked by download and ingest.

A chip that breaks the contract never reaches the disk. What passes it can still be wrong (an offset that was not
removed, two bands swapped): those show in the distribution, and the table names them. A verdict is a suspicion for a
person to look at, with its usual innocent cause beside it. Only a source whose bands all lie outside their scale is
certain to be wrong (`wrong_scale`): 0.3 is within the valid range of reflectance x 10000, and no reflectance.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from aef.clock import format_date
from aef.data.chips import Chip, SourceSeries, read_chip
from aef.sources import Registry, Source

SURVEYED_CHIPS = 64
VALUES_PER_BAND = 4096
UNSEEN = "nothing observed"
DIGITAL = "reflectance x 10000"
SCALES = {DIGITAL: (100.0, 12000.0), "reflectance": (0.005, 1.2), "dB": (-35.0, 0.0)}
"""Where the median of a band lies, by unit. Water is darker than this in the infrared, but not in all bands."""
OFFSET = 1000
"""Digital numbers of Sentinel-2 are this much higher from processing baseline 04.00 on."""
LEAST_BANDS = 3
"""So many bands hold something darker than the offset, wherever it was removed."""
FEWEST_FRAMES = 3
"""So many frames before and after a date make a step; fewer may be clouds that nobody masked."""
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


def _of_units(source: str, rows: Sequence[BandSurvey]) -> Iterator[_Rule]:
    """The rules that the units of a source's bands bring along, whatever the source."""
    for row in rows:
        if row.unit in SCALES:
            yield _within(source, row.band, *SCALES[row.unit], row.unit)
    digital = tuple(row.band for row in rows if row.unit == DIGITAL and row.suspicion != UNSEEN)
    if len(digital) >= LEAST_BANDS:
        yield _Rule(
            source,
            digital,
            lambda s: min(s[band].p1 for band in digital) < OFFSET,
            f"no band is ever below {OFFSET}: was the offset of processing baseline 04.00 left in? (bright desert looks like "
            "this too)",
        )


RULES: tuple[_Rule, ...] = (
    _darkest("sentinel2", "B2", "B4"),
    _darkest("sentinel2", "B2", "B11"),
    _darkest("landsat", "B2", "B4"),
    _darkest("landsat", "B2", "B6"),
    _within("landsat", "B10", 220, 335, "K"),
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


def survey(folder: str | Path, registry: Registry) -> list[BandSurvey]:
    """Look at up to `SURVEYED_CHIPS` chips of a folder, evenly spread over it; at most a few thousand values per band and
    chip.

    Raises:
        ChipError: a chip on disk is damaged or breaks the contract.
    """
    files = sorted(path for path in Path(folder).glob("*.npz") if not path.name.startswith("."))
    if len(files) > SURVEYED_CHIPS:
        files = [files[index] for index in np.linspace(0, len(files) - 1, SURVEYED_CHIPS).round().astype(int)]
    return survey_chips((read_chip(file, registry) for file in files), registry)


def survey_chips(chips: Iterable[Chip], registry: Registry) -> list[BandSurvey]:
    """A row per band of what chips hold, at most a few thousand values per band and chip."""
    values: dict[tuple[str, str], list[np.ndarray]] = {}
    seen: dict[tuple[str, str], list[float]] = {}
    steps: dict[str, list[str]] = {}
    for chip in chips:
        for name, series in chip.sources.items():
            if step := _step_of_offset(series, registry[name]):
                steps.setdefault(name, []).append(f"{chip.id}: {step}")
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
    return [_with_step(row, registry[row.source], steps.get(row.source, [])) for row in _judged(rows)]


def _step_of_offset(series: SourceSeries, source: Source) -> str | None:
    """The date from which on no clear pixel of any digital band is below the offset, where it was before; None without
    such a step. A frame alone may be a cloud or a desert: a step in time is neither."""
    digital = [at for at, band in enumerate(source.bands) if band.unit == DIGITAL]
    if len(digital) < LEAST_BANDS or series.time_ms is None or series.frames < 2 * FEWEST_FRAMES:
        return None
    bright, times = [], []
    for frame, time in enumerate(series.time_ms):
        valid = np.broadcast_to(series.valid[frame], series.values[frame].shape)
        clear = True if series.weight is None else series.weight[frame, 0] > 0
        bands = [series.values[frame, at][valid[at] & clear] for at in digital]
        bands = [values for values in bands if values.size]
        if len(bands) >= LEAST_BANDS:
            bright.append(min(float(np.quantile(values, 0.01)) for values in bands) >= OFFSET)
            times.append(int(time))
    order = np.argsort(times, kind="stable")
    late = np.array(bright, np.bool_)[order]
    count = int(late.sum())
    if count < FEWEST_FRAMES or late.size - count < FEWEST_FRAMES or not late[-count:].all():
        return None
    first = format_date(times[order[-count]])
    return f"{count} of {late.size} frames, all from {first} on, are never below {OFFSET}"


def _with_step(row: BandSurvey, source: Source, steps: Sequence[str]) -> BandSurvey:
    """The first digital band of a source carries the suspicion of a step, the others nothing."""
    first = next((band.name for band in source.bands if band.unit == DIGITAL), "")
    if not steps or row.band != first:
        return row
    more = f" (and {len(steps) - 1} chips more)" if len(steps) > 1 else ""
    text = f"{steps[0]}{more}: was the offset of processing baseline 04.00 left in there?"
    return dataclasses.replace(row, suspicion="; ".join(filter(None, (row.suspicion, text))))


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
    of_units = [rule for source, bands in by_source.items() for rule in _of_units(source, list(bands.values()))]
    for rule in (*of_units, *RULES):
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


def wrong_scale(rows: Sequence[BandSurvey]) -> str | None:
    """Why a source cannot be in its unit: the medians of all its bands of that unit lie outside; None where none is so."""
    for source, unit in dict.fromkeys((row.source, row.unit) for row in rows if row.unit in SCALES):
        low, high = SCALES[unit]
        medians = [r.median for r in rows if (r.source, r.unit) == (source, unit) and not np.isnan(r.median)]
        if medians and (max(medians) < low or min(medians) > high):
            return (
                f"{source}: expected band medians of {low:g} to {high:g} {unit}, found {min(medians):.4g} to "
                f"{max(medians):.4g} in all bands: wrong unit or scale"
            )
    return None


def suspicious(row: BandSurvey) -> bool:
    """Whether a band was observed and looks wrong."""
    return row.suspicion not in ("", UNSEEN)


def table(rows: Sequence[BandSurvey]) -> list[str]:
    """Lines of the closing table; bands of a long family (rh0 … rh100) are shown at its ends and middle."""
    width = max((len(row.source) for row in rows), default=6) + 2
    header = "".join(f"{name:>11}" for name in ("min", "1 %", "median", "99 %", "max"))
    lines = [f"{'source':<{width}}{'band':<28}{'seen':>6}{header}  unit, verdict"]
    shown = _shown([row.source for row in rows])
    for row, show in zip(rows, shown):
        if show or suspicious(row):
            quantiles = (row.minimum, row.p1, row.median, row.p99, row.maximum)
            numbers = "".join(f"{'-' if np.isnan(value) else format(value, '.5g'):>11}" for value in quantiles)
            verdict = f"SUSPICIOUS: {row.suspicion}" if suspicious(row) else row.suspicion or "ok"
            lines.append(f"{row.source:<{width}}{row.band:<28}{row.observed:>6.0%}{numbers}  {row.unit}, {verdict}")
    return lines


def _shown(sources: Sequence[str]) -> list[bool]:
    shown = []
    for index, source in enumerate(sources):
        first, count = sources.index(source), sources.count(source)
        place = index - first
        shown.append(count <= 16 or place in (0, count // 4, count // 2, 3 * count // 4, count - 1))
    return shown
