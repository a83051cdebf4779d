"""What a source is: bands, units, transform, valid range, sensor metadata, loss rule, augmentation, licence; and a
registry of them. `aef.sources` holds the entries.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NoReturn, get_args

from aef.one_line import meant_by

Role = Literal["input", "target"]
Grid = Literal["chip", "native", "points"]
TimeKind = Literal["instant", "interval", "static"]
TransformKind = Literal["linear", "log", "db"]
Loss = Literal["l1", "cross_entropy"]
Resampling = Literal["bilinear", "nearest", "area"]
MetadataKind = Literal["angle_deg", "flag", "value"]


class SourceError(ValueError):
    """A source entry is wrong or a source is unknown; the message names the source and the field."""


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


@dataclass(frozen=True)
class Transform:
    """From stored values x to the scale on which the model learns, before the z-score.

    ==========  ======================================  ==========================
    kind        forward                                 inverse
    ==========  ======================================  ==========================
    ``linear``  scale * x + offset                      (y - offset) / scale
    ``log``     ln(max(scale * x, 0) + 1) / 10          (exp(10 y) - 1) / scale
    ``db``      scale * log10(max(x, floor)) + offset   10 ** ((y - offset) / scale)
    ==========  ======================================  ==========================

    ``log`` is the paper's s(x) = log(x + 1) / 10 for optical bands (supplement S1; the factor 10 is restored from
    secondary sources). ``db`` with scale 20 and offset -83 is PALSAR-2's gamma-nought 10 log10(DN^2) - 83.
    """

    kind: TransformKind = "linear"
    scale: float = 1.0
    offset: float = 0.0

    def __post_init__(self) -> None:
        if self.kind not in ("linear", "log", "db"):
            raise SourceError(f"transform kind {self.kind!r} is unknown: expected linear, log or db")
        if not (_is_number(self.scale) and _is_number(self.offset)) or self.scale == 0:
            raise SourceError(
                f"transform scale must be finite and not 0, offset finite; found {self.scale}, {self.offset}"
            )
        if self.kind == "log" and self.offset != 0:
            raise SourceError("transform log takes a scale only; found an offset")


@dataclass(frozen=True)
class Band:
    """One band as it is stored in a chip. ``valid_min`` and ``valid_max`` bound what is physically possible."""

    name: str
    unit: str
    valid_min: float
    valid_max: float
    transform: Transform = Transform()

    def __post_init__(self) -> None:
        if not (isinstance(self.name, str) and self.name and isinstance(self.unit, str)):
            raise SourceError(f"band {self.name!r}: name and unit must be texts (quote them), found unit {self.unit!r}")
        if not (_is_number(self.valid_min) and _is_number(self.valid_max) and self.valid_min < self.valid_max):
            raise SourceError(
                f"band {self.name}: valid_min must be a number below valid_max, found {self.valid_min}, {self.valid_max}"
            )


@dataclass(frozen=True)
class MetadataField:
    """Sensor geometry that the decoder is told: an angle enters as sine and cosine, a flag or value as itself.

    A field that is missing in a frame is NaN in the chip; the decoder gets 0 and a "missing" indicator of 1.
    """

    name: str
    kind: MetadataKind

    def __post_init__(self) -> None:
        if self.kind not in ("angle_deg", "flag", "value"):
            raise SourceError(
                f"metadata {self.name!r}: kind {self.kind!r} is unknown: expected angle_deg, flag or value"
            )

    @property
    def encoded_width(self) -> int:
        return (2 if self.kind == "angle_deg" else 1) + 1


@dataclass(frozen=True)
class Source:
    """One entry of the registry.

    Attributes:
        name: identifier used in chips, settings and logs.
        title: human name.
        collections: product or Earth Engine collection ids, newest accepted last.
        bands: in the order of the chip's channel axis.
        role: ``input`` sources are encoded and decoded, ``target`` sources are only decoded (paper S2: M_E, M_D).
        native_resolution_m: ground sampling of the product.
        grid: ``chip`` lies on the chip's 10 m grid; ``native`` keeps its own grid and affine; ``points`` are footprints.
        time: ``instant`` (acquisitions), ``interval`` (months, years; carries an end) or ``static``.
        resampling: how the product is brought to the chip's grid.
        metadata: sensor geometry per frame, in order.
        classes: stored codes of a categorical source, in order of the logits; empty for continuous ones.
        loss: L1, or cross-entropy for categorical sources (paper Table S2).
        weight: w_i of Table S2.
        shift_m: largest planar shift of the shift-invariant loss (None: no shift search).
        regrid_m: spacing to which prediction and target are averaged before the error (None: no re-gridding).
        frame_budget: how many frames of it a training sample encodes (paper: 65, 17 and 21).
        source_drop: probability that the student loses the whole source (paper S2.3, stage 1).
        frame_drop: probability that the student loses a single frame (paper S2.3, stage 2a).
        line_gap: mask one line of random width through all input frames of a sample (paper S1, Sentinel-1).
        min_overlap: least share of an interval target that its summary period must cover.
        enabled: part of the default set (v2.1 additions are off).
        licence, attribution: what to cite.
        note: anything a user must know, such as a deprecated collection and its successor.
    """

    name: str
    title: str
    collections: tuple[str, ...]
    bands: tuple[Band, ...]
    role: Role
    native_resolution_m: float
    grid: Grid = "chip"
    time: TimeKind = "instant"
    resampling: Resampling = "bilinear"
    metadata: tuple[MetadataField, ...] = ()
    classes: tuple[int, ...] = ()
    loss: Loss = "l1"
    weight: float = 1.0
    shift_m: float | None = None
    regrid_m: float | None = None
    frame_budget: int = 0
    source_drop: float = 0.0
    frame_drop: float = 0.0
    line_gap: bool = False
    min_overlap: float = 0.5
    enabled: bool = True
    licence: str = ""
    attribution: str = ""
    note: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        self._check_names()
        self._check_numbers()
        self._check_rules()

    def _refuse(self, why: str) -> NoReturn:
        raise SourceError(f"source {self.name!r}: {why}")

    def _check_names(self) -> None:
        name = self.name
        if (
            not isinstance(name, str)
            or not name.replace("_", "").isalnum()
            or not name.isascii()
            or name != name.lower()
        ):
            self._refuse("name must be lower-case letters, digits and underscores")
        for key in ("title", "licence", "attribution", "note"):
            if not isinstance(getattr(self, key), str):
                self._refuse(f"{key} must be a text, found {getattr(self, key)!r}")
        if not self.bands:
            self._refuse("needs at least one band")
        if len(set(self.band_names)) != len(self.bands):
            self._refuse(f"band names repeat: {', '.join(self.band_names)}")
        choices = {"role": Role, "grid": Grid, "time": TimeKind, "loss": Loss, "resampling": Resampling}
        for key, choice in choices.items():
            if getattr(self, key) not in get_args(choice):
                self._refuse(f"{key} must be one of {', '.join(get_args(choice))}, found {getattr(self, key)!r}")

    def _check_numbers(self) -> None:
        for key in ("source_drop", "frame_drop", "min_overlap", "weight", "native_resolution_m", "frame_budget"):
            if not _is_number(getattr(self, key)):
                self._refuse(f"{key} must be a number, found {getattr(self, key)!r}")
        for key in ("source_drop", "frame_drop", "min_overlap"):
            if not 0 <= getattr(self, key) <= 1:
                self._refuse(f"{key} must lie in [0, 1], found {getattr(self, key)}")
        for key in ("shift_m", "regrid_m"):
            distance = getattr(self, key)
            if distance is not None and not (_is_number(distance) and distance > 0):
                self._refuse(f"{key} must be a positive number of metres, found {distance!r}")
        if self.weight < 0 or self.native_resolution_m <= 0:
            self._refuse("weight must not be negative and native_resolution_m must be positive")
        if not all(isinstance(code, int) for code in self.classes) or len(set(self.classes)) != len(self.classes):
            self._refuse(f"classes must be different integers, found {self.classes}")

    def _check_rules(self) -> None:
        if self.role == "input" and (self.grid != "chip" or self.time == "static" or self.frame_budget < 1):
            self._refuse("an input source lies on the chip grid, has times and a frame_budget of at least 1")
        if self.grid == "points" and self.time == "static":
            self._refuse("points are observed at a time each: expected time: instant or interval")
        if (self.loss == "cross_entropy") != bool(self.classes):
            self._refuse("classes go with loss cross_entropy, and only with it")
        if self.classes and len(self.bands) != 1:
            self._refuse("a categorical source has exactly one band of codes")
        if self.shift_m is not None and self.regrid_m is not None:
            self._refuse("takes shift_m or regrid_m, not both")

    @property
    def band_names(self) -> tuple[str, ...]:
        return tuple(band.name for band in self.bands)

    @property
    def units(self) -> tuple[str, ...]:
        return tuple(band.unit for band in self.bands)

    @property
    def channels(self) -> int:
        """Channels as stored and encoded."""
        return len(self.bands)

    @property
    def decoded_channels(self) -> int:
        """Channels that its decoder predicts: logits for a categorical source, bands otherwise."""
        return len(self.classes) or len(self.bands)

    @property
    def metadata_width(self) -> int:
        """Width of the encoded sensor metadata that the decoder is fed, "missing" indicators included."""
        return sum(item.encoded_width for item in self.metadata)

    def scored(self, unscored: Collection[str]) -> tuple[bool, ...]:
        """Which bands its error counts: all but those that `unscored` (``objective.unscored_bands``) names, SOURCE.BAND."""
        return tuple(f"{self.name}.{band.name}" not in unscored for band in self.bands)

    @classmethod
    def from_dict(cls, entry: Mapping[str, Any]) -> Source:
        """A source from the mapping of a YAML entry. Raises `SourceError` naming source and field."""
        if not isinstance(entry, Mapping):
            raise SourceError(f"a source entry must be a mapping, found {type(entry).__name__}")
        try:
            values = dict(entry)
            values["bands"] = tuple(_band(band) for band in _list(entry, "bands"))
            values["metadata"] = tuple(_build(MetadataField, item, "metadata") for item in _list(entry, "metadata"))
            for key in ("collections", "classes"):
                values[key] = tuple(_list(entry, key))
            return _build(cls, values, "entry")
        except SourceError as error:
            raise error if str(error).startswith("source ") else _named(entry, str(error)) from error
        except (TypeError, AttributeError, ValueError) as error:
            raise _named(entry, " ".join(str(error).split())) from error


def _named(entry: Mapping[str, Any], why: str) -> SourceError:
    return SourceError(f"source {entry.get('name', '?')!r}: {why}")


def _list(entry: Mapping[str, Any], key: str) -> list | tuple:
    found = entry.get(key) or ()
    if not isinstance(found, list | tuple):
        raise SourceError(f"{key} must be a list, found {found!r}")
    return found


def _band(entry: Any) -> Band:
    if not isinstance(entry, Mapping):
        raise SourceError(f"a band must be a mapping, found {entry!r}")
    return _build(Band, {**entry, "transform": _build(Transform, entry.get("transform") or {}, "transform")}, "band")


def _build(cls: type[Any], values: Any, what: str) -> Any:
    """A dataclass from a mapping; unknown and missing fields are named."""
    if not isinstance(values, Mapping):
        raise SourceError(f"{what} must be a mapping, found {values!r}")
    known = {item.name: item for item in dataclasses.fields(cls)}
    for key in values:
        if key not in known:
            raise SourceError(f"{what} has an unknown field {key!r}: {meant_by(key, known)}")
    for name, item in known.items():
        if name not in values and item.default is dataclasses.MISSING:
            raise SourceError(f"{what}: the field {name!r} is missing")
    return cls(**values)


class Registry(Mapping[str, Source]):
    """Sources by name, in a fixed order. Unknown names raise `SourceError` with the known ones."""

    def __init__(self, sources: Iterable[Source] = ()) -> None:
        self._sources: dict[str, Source] = {}
        for source in sources:
            if source.name in self._sources and self._sources[source.name] != source:
                raise SourceError(f"source {source.name!r} is defined twice, differently: rename one of the entries")
            self._sources[source.name] = source

    def __getitem__(self, name: str) -> Source:
        try:
            return self._sources[name]
        except KeyError:
            raise SourceError(
                f"unknown source {name!r}: known are {', '.join(self._sources)}; add an entry to a sources YAML file"
            ) from None

    def __contains__(self, name: object) -> bool:
        return name in self._sources

    def __iter__(self):
        return iter(self._sources)

    def __len__(self) -> int:
        return len(self._sources)

    def extended(self, sources: Iterable[Source]) -> Registry:
        """This registry plus more entries. Redefining a source differently raises `SourceError`."""
        return Registry([*self.values(), *sources])

    def select(self, names: Iterable[str]) -> Registry:
        return Registry(self[name] for name in names)
