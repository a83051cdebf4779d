"""Whether a chip keeps its contract: refused with file, source, field and reason, never silently repaired."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from aef.clock import SUPPORT_MS, format_time
from aef.data.contract import PIXEL_M, Chip, ChipError, SourceSeries
from aef.sources import Registry, Source

RULES_VERSION = 1
"""To be raised when values are refused that were let pass before: chips that were found right are then looked at again."""

_DTYPES = {
    "valid": np.bool_,
    "weight": np.uint8,
    "time_ms": np.int64,
    "time_end_ms": np.int64,
    "metadata": np.float32,
    "row": np.int32,
    "col": np.int32,
}


def validate(chip: Chip, registry: Registry, *, file: object = None, values: bool = True) -> None:
    """Refuse a chip that breaks the contract.

    Args:
        chip: what to check.
        registry: sources that the chip may hold.
        file: named in the message.
        values: also look at every value (NaN, range, masks written as zeros); structure alone is much cheaper.

    Raises:
        ChipError: one line naming file, source, field and reason.
    """
    with _named(file):
        _check_place(chip)
        if not isinstance(chip.sources, dict) or not chip.sources:
            raise ChipError("holds no source: expected at least one", field="sources")
    for name, series in chip.sources.items():
        with _named(file, name):
            if name not in registry:
                raise ChipError(f"unknown source: known are {', '.join(registry)}; add an entry to a sources YAML file")
            _check_structure(chip, registry[name], series)
            if values:
                _check_values(registry[name], series)
    with _named(file):
        _check_common_support(chip, registry)
        _check_labels(chip)
        _check_texts(chip)


@contextmanager
def _named(file: object, source: str | None = None) -> Iterator[None]:
    """Errors inside name the file and source; what a field of another type makes Python raise becomes one of them."""
    try:
        yield
    except ChipError as error:
        raise ChipError(error.reason, source=source, field=error.field, file=file) from None
    except (TypeError, AttributeError, ValueError, LookupError, OverflowError) as error:
        why = " ".join(str(error).split())[:120]
        raise ChipError(
            f"a field is not of its type ({type(error).__name__}: {why})", source=source, file=file
        ) from error


def _check_place(chip: Chip) -> None:
    for name in ("id", "place", "crs"):
        if not isinstance(getattr(chip, name), str) or not getattr(chip, name):
            raise ChipError(f"expected a text, found {getattr(chip, name)!r}", field=name)
    if any(c in chip.id for c in "/\\\0"):
        raise ChipError(f"expected a name without slashes, found {chip.id!r}", field="id")
    if chip.height < 1 or chip.width < 1:
        raise ChipError(f"expected a side of at least 1 px, found {chip.height} x {chip.width}", field="height")
    if len(chip.transform) != 6 or not np.isfinite(chip.transform).all():
        raise ChipError("expected six finite affine coefficients", field="transform")
    if not np.allclose((abs(chip.transform[0]), abs(chip.transform[4])), PIXEL_M, atol=1e-6):
        raise ChipError(f"expected 10 m pixels, found {chip.transform[0]} x {chip.transform[4]}", field="transform")
    if not (-180 <= chip.lon <= 180 and -90 <= chip.lat <= 90):
        raise ChipError(f"expected degrees, found lon {chip.lon}, lat {chip.lat}", field="lon")


def _check_texts(chip: Chip) -> None:
    for number, point in enumerate(chip.texts):
        what = None
        if not isinstance(point.text, str) or not point.text:
            what = f"a text, found {point.text!r}"
        elif not (math.isfinite(point.x) and math.isfinite(point.y)):
            what = f"a finite position, found x {point.x}, y {point.y}"
        elif not (math.isfinite(point.uncertainty_m) and point.uncertainty_m >= 0):
            what = f"an uncertainty of 0 m or more, found {point.uncertainty_m}"
        elif not point.time_ms < point.time_end_ms:
            what = f"a period that ends after it starts, found {point.time_ms} to {point.time_end_ms}"
        if what:
            raise ChipError(f"text {number} ({point.source}): expected {what}", field="texts")


def _expect_shape(name: str, array: np.ndarray | None, *shapes: tuple[int, ...]) -> None:
    if array is None:
        raise ChipError("is missing", field=name)
    if array.shape not in shapes:
        wanted = " or ".join(str(shape) for shape in shapes)
        raise ChipError(f"expected shape {wanted}, found {array.shape}", field=name)


def _check_structure(chip: Chip, source: Source, series: SourceSeries) -> None:
    for name, dtype in _DTYPES.items():
        array = getattr(series, name)
        if array is not None and array.dtype != dtype:
            raise ChipError(f"expected {np.dtype(dtype).name}, found {array.dtype}", field=name)
    if series.values.dtype.kind not in "iuf" or not series.values.dtype.isnative:
        raise ChipError(f"expected a native integer or float type, found {series.values.dtype.str}", field="values")
    if series.bands and tuple(series.bands) != source.band_names:
        raise ChipError(
            f"expected {', '.join(source.band_names)} in this order, found {', '.join(series.bands)}", field="bands"
        )
    if series.units and tuple(series.units) != source.units:
        raise ChipError(
            f"expected {', '.join(source.units)}, found {', '.join(series.units)}: chips hold the registry's units",
            field="units",
        )
    _check_layout(chip, source, series)
    _check_times(source, series)
    if series.metadata is not None:
        _expect_shape("metadata", series.metadata, (series.frames, len(source.metadata)))


def _check_layout(chip: Chip, source: Source, series: SourceSeries) -> None:
    frames, bands = series.frames, source.channels
    if source.grid == "points":
        _expect_shape("values", series.values, (frames, bands))
        _expect_shape("valid", series.valid, (frames, bands), (frames, 1))
        for name, limit in (("row", chip.height), ("col", chip.width)):
            index = getattr(series, name)
            _expect_shape(name, index, (frames,))
            if frames and not (index.min() >= 0 and index.max() < limit):
                raise ChipError(f"expected 0 to {limit - 1}, found {index.min()} to {index.max()}", field=name)
        return
    if series.values.ndim != 4 or series.values.shape[1] != bands:
        raise ChipError(f"expected (T, {bands}, H, W), found {series.values.shape}", field="values")
    if source.grid == "chip":
        _expect_shape("values", series.values, (frames, bands, chip.height, chip.width))
    elif series.transform is None or len(series.transform) != 6 or not np.isfinite(series.transform).all():
        raise ChipError("a native grid needs six finite affine coefficients of its own", field="transform")
    side = series.values.shape[2:]
    _expect_shape("valid", series.valid, (frames, bands, *side), (frames, 1, *side))
    if series.weight is not None:
        _expect_shape("weight", series.weight, (frames, 1, *side))


def _check_times(source: Source, series: SourceSeries) -> None:
    if source.time == "static":
        if series.time_ms is not None or series.frames != 1:
            raise ChipError(f"a static source has one frame and no time, found {series.frames} frames", field="time_ms")
        return
    _expect_shape("time_ms", series.time_ms, (series.frames,))
    assert series.time_ms is not None
    steps = np.diff(series.time_ms)
    if (steps < 0).any() or (source.grid != "points" and (steps == 0).any()):
        at = int(np.argmax(steps < 0 if source.grid == "points" else steps <= 0))
        raise ChipError(
            f"expected strictly increasing times, found a step of {steps[at]} ms after frame {at}", field="time_ms"
        )
    if source.time == "interval":
        _expect_shape("time_end_ms", series.time_end_ms, (series.frames,))
        assert series.time_end_ms is not None
        if (series.time_end_ms <= series.time_ms).any():
            raise ChipError("every interval must end after it starts", field="time_end_ms")


def _check_values(source: Source, series: SourceSeries) -> None:
    shape = series.values.shape
    valid = np.broadcast_to(series.valid, shape)
    if series.values.dtype.kind == "f":
        bad = valid & ~np.isfinite(series.values)
        if bad.any():
            at = int(np.argwhere(bad)[0][0])
            raise ChipError(
                f"{int(bad.sum())} values marked valid are not finite (first in frame {at}): set valid to False there",
                field="values",
            )
    for channel, band in enumerate(source.bands):
        observed = series.values[:, channel][valid[:, channel]]
        if observed.size and (observed.min() < band.valid_min or observed.max() > band.valid_max):
            outside = float(np.mean((observed < band.valid_min) | (observed > band.valid_max)))
            raise ChipError(
                f"band {band.name}: expected {band.valid_min:g} to {band.valid_max:g} {band.unit}, found "
                f"{observed.min():g} to {observed.max():g} ({outside:.1%} outside): wrong unit, band order or no-data value?",
                field="values",
            )
    _check_zeros(source, series, valid)


def _check_zeros(source: Source, series: SourceSeries, valid: np.ndarray) -> None:
    """Masks written as zeros: several bands that are all exactly 0 while valid cannot be an observation."""
    if source.channels < 2 or source.loss != "l1":
        return
    several = valid.sum(axis=1) >= 2
    zero = several & ((series.values == 0) | ~valid).all(axis=1)
    share = zero.sum() / max(int(several.sum()), 1)
    if share > 0.01:
        raise ChipError(
            f"{share:.1%} of the valid pixels are exactly 0 in all bands: no-data belongs into valid = False, never into a zero",
            field="valid",
        )


def _check_common_support(chip: Chip, registry: Registry) -> None:
    # Here, so that reading chips does not load torch.
    spans = {
        name: (int(series.time_ms[0]), int(series.time_ms[-1]))
        for name, series in chip.sources.items()
        if registry[name].role == "input" and series.time_ms is not None and len(series.time_ms)
    }
    if len(spans) < 2:
        return
    late = max(spans, key=lambda name: spans[name][0])
    early = min(spans, key=lambda name: spans[name][1])
    if spans[late][0] - spans[early][1] > SUPPORT_MS:
        raise ChipError(
            f"no common support: {early} ends {format_time(spans[early][1])}, {late} starts {format_time(spans[late][0])}; "
            "one support period of 365 days must reach both",
            field="time_ms",
        )


def _check_labels(chip: Chip) -> None:
    side = (chip.height, chip.width)
    for name, label in chip.labels.items():
        for key, array in (("values", label.values), ("fields", label.fields)):
            if array is not None and (array.shape != side or array.dtype.kind not in "iu"):
                raise ChipError(
                    f"expected integers of shape {side}, found {array.dtype} {array.shape}",
                    field=f"labels/{name}/{key}",
                )
