"""The chip: one place on one 10 m UTM grid over any span of time, every source with its own times and masks.

This module is the one data contract of the project (docs/data.md): it reads, writes and validates chips and nothing
else. Values are raw, masks are explicit, times are int64 milliseconds. A chip that breaks the contract is refused with
file, source, field and reason; it is never silently repaired.

On disk a chip is one ``.npz`` (a zip of ``.npy`` members named ``SOURCE/FIELD``, plus a JSON ``header``), written to a
temporary name and renamed. Readers outside this module see `Chip` and `ChipFolder` only, never the file format.
"""

from __future__ import annotations

import dataclasses
import json
import os
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from aef import atomic
from aef.sources import Registry, Source

FORMAT_VERSION = 1
PIXEL_M = 10.0

_ARRAYS = ("values", "valid", "weight", "time_ms", "time_end_ms", "metadata", "row", "col")
_DTYPES = {
    "valid": np.bool_,
    "weight": np.uint8,
    "time_ms": np.int64,
    "time_end_ms": np.int64,
    "metadata": np.float32,
    "row": np.int32,
    "col": np.int32,
}


class ChipError(ValueError):
    """A chip breaks the contract; one line naming file, source, field and reason."""

    def __init__(
        self, reason: str, *, source: str | None = None, field: str | None = None, file: object = None
    ) -> None:
        self.reason, self.source, self.field, self.file = reason, source, field, file
        where = [str(file)] if file is not None else []
        where += [f"source {source}"] if source else []
        where += [f"field {field}"] if field else []
        super().__init__(": ".join([*where, reason]))


@dataclass
class SourceSeries:
    """Everything a chip holds of one source. T frames, C bands, M metadata fields.

    ==============  ==========================  =====================================================================
    field           shape, type                 meaning
    ==============  ==========================  =====================================================================
    ``values``      (T, C, H, W), own type      raw physical or digital values; (N, C) for a ``points`` source
    ``valid``       (T, C or 1, H, W), bool     this value was observed; (N, C or 1) for points
    ``weight``      (T, 1, H, W), uint8         loss weight / 255; None means 255 everywhere
    ``time_ms``     (T,), int64                 acquisition or interval start, strictly increasing (points: not
                                                decreasing); None for a static source
    ``time_end_ms`` (T,), int64                 interval end; None for instants
    ``metadata``    (T, M), float32             sensor geometry in the registry's order, NaN where missing
    ``row, col``    (N,), int32                 chip pixel that holds a footprint's centre (points only)
    ``transform``   6 floats                    affine of a ``native`` grid, x = a col + b row + c, y = d col + e row + f
    ==============  ==========================  =====================================================================
    """

    values: np.ndarray
    valid: np.ndarray
    time_ms: np.ndarray | None = None
    weight: np.ndarray | None = None
    time_end_ms: np.ndarray | None = None
    metadata: np.ndarray | None = None
    row: np.ndarray | None = None
    col: np.ndarray | None = None
    transform: tuple[float, ...] | None = None
    crs: str | None = None
    bands: tuple[str, ...] = ()
    units: tuple[str, ...] = ()
    collection: str = ""
    native_resolution_m: float = 0.0
    applied_scale: float = 1.0
    applied_offset: float = 0.0
    licence: str = ""
    note: str = ""

    @property
    def frames(self) -> int:
        return self.values.shape[0]

    @property
    def moment_ms(self) -> np.ndarray | None:
        """The one time that stands for each frame, (T,) int64: acquisitions, and the middle of intervals."""
        if self.time_ms is None or self.time_end_ms is None:
            return self.time_ms
        return self.time_ms + (self.time_end_ms - self.time_ms) // 2

    def header(self) -> dict[str, Any]:
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name not in _ARRAYS}


@dataclass
class Label:
    """A class raster that travels with a chip for evaluation. Training never reads it.

    ``values`` is (H, W) of integers, ``fields`` (H, W) int32 field ids (0: none) where known.
    """

    values: np.ndarray
    legend: dict[int, str] = field(default_factory=dict)
    ignore: tuple[int, ...] = ()
    valid_start_ms: int | None = None
    valid_end_ms: int | None = None
    fields: np.ndarray | None = None
    licence: str = ""


@dataclass(frozen=True)
class TextPoint:
    """A geolocated text: ``x``, ``y`` in metres of the chip's CRS, uncertainty in metres, validity in epoch ms."""

    x: float
    y: float
    uncertainty_m: float
    time_ms: int
    time_end_ms: int
    text: str
    source: str
    licence: str


@dataclass
class Chip:
    """One place. ``transform`` is the affine of its 10 m grid (rasterio's order: a, b, c, d, e, f).

    ``place`` names the location: chips of one place share it, whatever their time span; the uniformity loss pairs
    samples of different places and validation holds places out.
    """

    id: str
    crs: str
    transform: tuple[float, ...]
    height: int
    width: int
    lon: float
    lat: float
    sources: dict[str, SourceSeries]
    place: str = ""
    labels: dict[str, Label] = field(default_factory=dict)
    texts: list[TextPoint] = field(default_factory=list)
    synthetic: bool = False
    attributes: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.place = self.place or self.id

    @property
    def span_ms(self) -> tuple[int, int]:
        """First and last time of any source, (0, 0) if all are static."""
        times = [s.time_ms for s in self.sources.values() if s.time_ms is not None and len(s.time_ms)]
        return (int(min(t[0] for t in times)), int(max(t[-1] for t in times))) if times else (0, 0)


# --- validation ------------------------------------------------------------------------------------------------------


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
    _check_place(chip, file)
    if not chip.sources:
        raise ChipError("holds no source: expected at least one", field="sources", file=file)
    for name, series in chip.sources.items():
        if name not in registry:
            raise ChipError(
                f"unknown source: known are {', '.join(registry)}; add an entry to a sources YAML file",
                source=name,
                file=file,
            )
        try:
            _check_structure(chip, registry[name], series)
            if values:
                _check_values(registry[name], series)
        except ChipError as error:
            raise ChipError(error.reason, source=name, field=error.field, file=file) from None
    _check_common_support(chip, registry, file)
    for name, label in chip.labels.items():
        if label.values.shape != (chip.height, chip.width) or label.values.dtype.kind not in "iu":
            raise ChipError(
                f"expected integers of shape {(chip.height, chip.width)}, found {label.values.dtype} {label.values.shape}",
                field=f"labels/{name}",
                file=file,
            )


def _check_place(chip: Chip, file: object) -> None:
    if not chip.id or any(c in chip.id for c in "/\\\0"):
        raise ChipError(f"expected a name without slashes, found {chip.id!r}", field="id", file=file)
    if chip.height < 1 or chip.width < 1:
        raise ChipError(
            f"expected a side of at least 1 px, found {chip.height} x {chip.width}", field="height", file=file
        )
    if len(chip.transform) != 6 or not np.isfinite(chip.transform).all():
        raise ChipError("expected six finite affine coefficients", field="transform", file=file)
    if not np.allclose((abs(chip.transform[0]), abs(chip.transform[4])), PIXEL_M, atol=1e-6):
        raise ChipError(
            f"expected 10 m pixels, found {chip.transform[0]} x {chip.transform[4]}", field="transform", file=file
        )
    if not (-180 <= chip.lon <= 180 and -90 <= chip.lat <= 90):
        raise ChipError(f"expected degrees, found lon {chip.lon}, lat {chip.lat}", field="lon", file=file)


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


def _check_common_support(chip: Chip, registry: Registry, file: object) -> None:
    from aef.timecode import SUPPORT_MS, format_time

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
            file=file,
        )


# --- files -----------------------------------------------------------------------------------------------------------


def write_chip(path: str | os.PathLike, chip: Chip, registry: Registry, *, compress: bool = True) -> Path:
    """Validate and write a chip, atomically: a reader sees the old file or the whole new one.

    Raises:
        ChipError: the chip breaks the contract; nothing is written.
        OSError: the disk is full or the folder cannot be written; nothing is left behind.
    """
    path = Path(path)
    validate(chip, registry, file=path.name)
    arrays: dict[str, np.ndarray] = {"header": np.frombuffer(json.dumps(_header(chip)).encode(), np.uint8)}
    for name, series in chip.sources.items():
        for key in _ARRAYS:
            if getattr(series, key) is not None:
                arrays[f"{name}/{key}"] = getattr(series, key)
    for name, label in chip.labels.items():
        arrays[f"labels/{name}/values"] = label.values
        if label.fields is not None:
            arrays[f"labels/{name}/fields"] = label.fields
    with atomic.writing(path) as stream:
        (np.savez_compressed if compress else np.savez)(stream, **arrays)
    return path


def _header(chip: Chip) -> dict[str, Any]:
    return {
        "format_version": FORMAT_VERSION,
        **{
            key: getattr(chip, key)
            for key in ("id", "place", "crs", "height", "width", "lon", "lat", "synthetic", "attributes")
        },
        "transform": list(chip.transform),
        "sources": {name: series.header() for name, series in chip.sources.items()},
        "labels": {
            name: {
                "legend": {str(code): text for code, text in label.legend.items()},
                "ignore": list(label.ignore),
                "valid_start_ms": label.valid_start_ms,
                "valid_end_ms": label.valid_end_ms,
                "licence": label.licence,
            }
            for name, label in chip.labels.items()
        },
        "texts": [dataclasses.asdict(point) for point in chip.texts],
    }


_DAMAGE = (
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    KeyError,
    ValueError,
    TypeError,
    AttributeError,
    OverflowError,
    OSError,
)
_DAMAGE += (NotImplementedError, RuntimeError, MemoryError)


def read_chip(
    path: str | os.PathLike,
    registry: Registry,
    *,
    sources: Iterable[str] | None = None,
    check_values: bool = False,
) -> Chip:
    """Read a chip and check its structure (with ``check_values`` every value too).

    Args:
        sources: read only these; those that the chip lacks are left out.

    Raises:
        FileNotFoundError: there is no such file.
        ChipError: the file is damaged, of a newer format or breaks the contract.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such chip")
    wanted = None if sources is None else set(sources)
    try:
        with np.load(path, allow_pickle=False) as archive:
            header = _read_header(archive)
            series = {
                name: _read_series(archive, name, fields)
                for name, fields in header["sources"].items()
                if wanted is None or name in wanted
            }
            chip = Chip(
                **{key: header[key] for key in ("id", "place", "crs", "height", "width", "lon", "lat", "synthetic")},
                attributes=header["attributes"],
                transform=tuple(header["transform"]),
                sources=series,
                labels={name: _read_label(archive, name, fields) for name, fields in header["labels"].items()},
                texts=[TextPoint(**point) for point in header["texts"]],
            )
    except ChipError as error:
        raise ChipError(error.reason, source=error.source, field=error.field, file=path) from None
    except _DAMAGE as error:
        raise ChipError(
            f"is damaged or not a chip ({type(error).__name__}: {str(error)[:120]}): make it again", file=path
        ) from error
    if wanted is None or series:
        validate(chip, registry, file=path, values=check_values)
    return chip


def read_chip_header(path: str | os.PathLike) -> dict[str, Any]:
    """The JSON header of a chip (place, sources, bands, units, legends) without its arrays. Raises ChipError."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            return _read_header(archive)
    except ChipError as error:
        raise ChipError(error.reason, field=error.field, file=path) from None
    except _DAMAGE as error:
        raise ChipError(
            f"is damaged or not a chip ({type(error).__name__}: {str(error)[:120]}): make it again", file=path
        ) from error


def read_frame_times(path: str | os.PathLike, sources: Iterable[str]) -> dict[str, np.ndarray]:
    """Start times (T,) of some sources of a chip, without its pixels; those that it lacks are left out. Raises ChipError."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[f"{name}/time_ms"] for name in sources if f"{name}/time_ms" in archive}
    except _DAMAGE as error:
        raise ChipError(
            f"is damaged or not a chip ({type(error).__name__}: {str(error)[:120]}): make it again", file=path
        ) from error


def _read_header(archive: Any) -> dict[str, Any]:
    if "header" not in archive:
        raise ChipError("has no header: not a chip of this software", field="header")
    header = json.loads(bytes(archive["header"]).decode())
    version = header.get("format_version")
    if not isinstance(version, int) or version > FORMAT_VERSION:
        raise ChipError(
            f"expected a version up to {FORMAT_VERSION}, found {version}: update the software", field="format_version"
        )
    return header


def _read_series(archive: Any, name: str, fields: Mapping[str, Any]) -> SourceSeries:
    arrays = {key: archive[f"{name}/{key}"] for key in _ARRAYS if f"{name}/{key}" in archive}
    for key in ("values", "valid"):
        if key not in arrays:
            raise ChipError("is missing", source=name, field=key)
    known = {key: tuple(value) if isinstance(value, list) else value for key, value in fields.items()}
    return SourceSeries(**arrays, **known)


def _read_label(archive: Any, name: str, fields: Mapping[str, Any]) -> Label:
    return Label(
        values=archive[f"labels/{name}/values"],
        fields=archive.get(f"labels/{name}/fields"),
        legend={int(code): text for code, text in fields["legend"].items()},
        ignore=tuple(fields["ignore"]),
        valid_start_ms=fields["valid_start_ms"],
        valid_end_ms=fields["valid_end_ms"],
        licence=fields["licence"],
    )


class ChipFolder:
    """A folder of chips in a fixed (sorted) order.

    Raises:
        FileNotFoundError: the folder does not exist.
        ChipError: it holds no chip.
    """

    def __init__(self, path: str | os.PathLike, registry: Registry) -> None:
        self.path, self.registry = Path(path), registry
        if not self.path.is_dir():
            raise FileNotFoundError(f"{self.path}: no such folder of chips")
        self.files = sorted(p for p in self.path.glob("*.npz") if not p.name.startswith("."))
        if not self.files:
            raise ChipError(
                "holds no chip (*.npz): make some with `aef synthesize`, `aef ingest` or `aef download`", file=self.path
            )
        self._places: list[str | None] | None = None

    def __len__(self) -> int:
        return len(self.files)

    def __iter__(self) -> Iterator[Chip]:
        return (self.read(index) for index in range(len(self)))

    def read(self, index: int, sources: Iterable[str] | None = None, *, check_values: bool = False) -> Chip:
        return read_chip(self.files[index], self.registry, sources=sources, check_values=check_values)

    def header(self, index: int) -> dict[str, Any]:
        return read_chip_header(self.files[index])

    def places(self) -> list[str | None]:
        """The place of every chip, in the folder's order; None where a header cannot be read."""
        if self._places is None:
            self._places = [_place(path) for path in self.files]
        return self._places


def _place(path: Path) -> str | None:
    try:
        return read_chip_header(path)["place"]
    except (ChipError, KeyError):
        return None
