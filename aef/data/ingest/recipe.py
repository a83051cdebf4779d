"""The recipe: what a folder of rasters is and how it becomes chips, as data. `docs/ingest.md` explains every field.

A recipe is read strictly: an unknown field, a wrong type or an impossible combination is a `RecipeError`, one line that
names file and field.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from aef.settings_file import load_yaml, read_sources
from aef.sources import BUILT_IN, Registry, Source, SourceError


class RecipeError(ValueError):
    """A recipe is wrong: one line naming the file and the field."""


def _key(name: str, default: Any) -> Any:
    """A dataclass field whose YAML key is a Python keyword or would read badly as an attribute."""
    if isinstance(default, dict):
        return field(default_factory=dict, metadata={"key": name})
    return field(default=default, metadata={"key": name})


@dataclass(frozen=True)
class Bits:
    """Flag bits (0 is the lowest) that must be set, or must be clear."""

    set: tuple[int, ...] = ()
    clear: tuple[int, ...] = ()


@dataclass(frozen=True)
class Rule:
    """A condition on a variable's stored values: of the band itself (no ``var``), of a variable of the same file, or of
    another input's (``input``) at the same time. All conditions that are given must hold."""

    var: str = ""
    input: str = ""
    within: tuple[float, ...] = _key("in", ())
    not_in: tuple[float, ...] = ()
    range: tuple[float, ...] = ()
    bits: Bits | None = None

    def problem(self) -> str | None:
        if not (self.within or self.not_in or self.range or self.bits):
            return "needs one of in, not_in, range, bits"
        if self.range and not (len(self.range) == 2 and self.range[0] <= self.range[1]):
            return f"range: expected [lowest, highest], found {list(self.range)}"
        if self.input and not self.var:
            return "input needs var"
        if self.bits and not all(0 <= bit < 64 for bit in (*self.bits.set, *self.bits.clear)):
            return "bits: expected bit numbers from 0 to 63"
        return None


@dataclass(frozen=True)
class NoData:
    """Stored values that say "not observed"; checked before anything else is done to a value."""

    values: tuple[float, ...] = ()
    ranges: tuple[tuple[float, ...], ...] = ()
    nan: bool = False
    all_zero: bool = False

    def problem(self) -> str | None:
        bad = [pair for pair in self.ranges if len(pair) != 2 or pair[0] > pair[1]]
        return f"ranges: expected pairs [lowest, highest], found {list(bad[0])}" if bad else None


@dataclass(frozen=True)
class Accept:
    """Stored values that look like no-data (a type's limit, a frequent extreme) and are measurements."""

    values: tuple[float, ...] = ()
    ranges: tuple[tuple[float, ...], ...] = ()

    problem = NoData.problem


@dataclass(frozen=True)
class Transform:
    """From stored values to the registry's unit: scale and offset, then at most one function.

    ``db_from_dn``: 20 log10(DN) - 83. ``db_from_linear``: 10 log10(x). ``sin``, ``cos``: of degrees.
    """

    scale: float = 1.0
    offset: float = 0.0
    function: Literal["", "db_from_dn", "db_from_linear", "sin", "cos"] = ""


@dataclass(frozen=True)
class OffsetRule:
    """A radiometric offset that files carry or not: ``subtract`` it where every band's minimum reaches
    ``when_minimum_at_least``, or in the places that ``map`` names (place: amount)."""

    subtract: float = 0.0
    when_minimum_at_least: float | None = None
    map: Mapping[str, float] = field(default_factory=dict)

    def problem(self) -> str | None:
        if (self.when_minimum_at_least is None) == (not self.map):
            return "needs when_minimum_at_least (with subtract) or map"
        return None


@dataclass(frozen=True)
class BandRule:
    """Where a source's band comes from; fields that are given here replace those of the input."""

    var: str
    transform: Transform | None = None
    nodata: NoData | None = None
    accept: Accept | None = None
    valid: tuple[Rule, ...] | None = None


@dataclass(frozen=True)
class Layout:
    """Bands of a stack without a time axis: ``per_step`` names repeat for ``n_time`` steps, then ``static_tail``."""

    per_step: tuple[str, ...]
    order: Literal["time_major", "band_major"] = "time_major"
    n_time: int | Literal["infer"] = "infer"
    static_tail: tuple[str, ...] = ()


@dataclass(frozen=True)
class TimeRule:
    """Where a frame's time comes from.

    ``coord``: variable ``var`` of the file. ``tag``: dataset tag ``tag``. ``sibling``: tag, variable or JSON list of the
    file that ``glob`` names. ``file_name``: ``regex`` on the path. ``product_id``: ``regex`` on the text variable
    ``var``. ``map``: place → time. Texts are ISO 8601, basic or extended; a regex has a group ``time`` (or ``start``).
    """

    source: Literal["coord", "tag", "sibling", "file_name", "product_id", "map"] = _key("from", "coord")
    var: str = ""
    tag: str = ""
    glob: str = ""
    index: tuple[int, ...] = ()
    regex: str = ""
    map: Mapping[str, str] = field(default_factory=dict)
    anchor: Literal["start", "end"] = "start"
    step: str | Mapping[str, str] = ""
    precision: Literal["ms", "day", "month"] = "ms"

    def problem(self) -> str | None:
        needs = {
            "coord": ["var"],
            "tag": ["tag"],
            "sibling": ["glob"],
            "file_name": ["regex"],
            "product_id": ["var", "regex"],
            "map": ["map"],
        }
        missing = [name for name in needs[self.source] if not getattr(self, name)]
        if missing:
            return f"from {self.source} needs {missing[0]}"
        if self.regex:
            groups = _compile(self.regex).groupindex
            if "time" not in groups and "start" not in groups:
                return "regex: expected a group named time or start, like (?P<time>\\d{8})"
        for step in [self.step] if isinstance(self.step, str) else self.step.values():
            if step and not DURATION.fullmatch(step):
                return f"step: expected an ISO 8601 duration like P8D or P1M, found {step!r}"
        return None


DURATION = re.compile(
    r"P(?:(?P<years>\d+)Y)?(?:(?P<months>\d+)M)?(?:(?P<days>\d+)D)?(?:T(?:(?P<hours>\d+)H))?(?<![PT])"
)


@dataclass(frozen=True)
class Dedupe:
    """Frames of one source within ``within_s`` seconds: keep them ``all`` (twins, known to the sampler), the
    ``most_valid`` or the ``first``, or fill one from the other (``mosaic``)."""

    within_s: float
    keep: Literal["all", "most_valid", "first", "mosaic"]


@dataclass(frozen=True)
class MetadataRule:
    """Sensor geometry of a frame: a variable along time, a constant, or known to be missing."""

    var: str = ""
    constant: float | None = None
    missing: bool = False

    def problem(self) -> str | None:
        given = bool(self.var) + (self.constant is not None) + self.missing
        return None if given == 1 else "needs exactly one of var, constant, missing"


@dataclass(frozen=True)
class Input:
    """One kind of file of the folder and what it gives to one source."""

    name: str
    glob: str
    role: Literal["dynamic", "static", "qa"] = "dynamic"
    match: Literal["group", "overlap"] = "group"
    source: str = ""
    band_map: Mapping[str, BandRule] = field(default_factory=dict)
    band_regex: str = ""
    bands: tuple[str, ...] = ()
    layout: Layout | None = None
    array: str = ""
    axes: tuple[str, ...] = ()
    select: Mapping[str, str] = field(default_factory=dict)
    crs: str = ""
    pixel_m: float | None = None
    coordinates: Literal["centre", "corner"] = "centre"
    dtype_view: str = ""
    decode: Literal["raw", "cf"] = "raw"
    transform: Transform = Transform()
    offset_rule: OffsetRule | None = None
    nodata: NoData = NoData()
    accept: Accept = Accept()
    valid: tuple[Rule, ...] | Literal["all"] | None = None
    weight: tuple[Rule, ...] | Literal["none"] | None = None
    time: TimeRule | None = None
    dedupe: Dedupe | None = None
    collapse: tuple[Literal["time", "space"], ...] = ()
    resample: Literal["nearest", "bilinear", "area"] = "nearest"
    erode_px: int = 0
    cell_m: float | None = None
    metadata: Mapping[str, MetadataRule] = field(default_factory=dict)
    collection: str = ""
    licence: str = ""
    note: str = ""


@dataclass(frozen=True)
class FieldRule:
    """Field ids: connected regions (of 4 neighbours) of one code, of at least ``min_px`` pixels; numbered from 1."""

    min_px: int = 1
    codes: tuple[int, ...] = ()


@dataclass(frozen=True)
class LabelRule:
    """A class raster (or one code for the whole chip) that travels with a chip for evaluation."""

    name: str
    glob: str
    var: str = ""
    constant: Mapping[str, int] = field(default_factory=dict)
    codes: Mapping[int, str] = field(default_factory=dict)
    ignore: tuple[int, ...] = ()
    valid_period: str | Mapping[str, str] = ""
    min_purity: float = 0.0
    fields: FieldRule | None = None
    match: Literal["group", "overlap"] = "group"
    bands: tuple[str, ...] = ()
    layout: Layout | None = None
    array: str = ""
    axes: tuple[str, ...] = ()
    select: Mapping[str, str] = field(default_factory=dict)
    crs: str = ""
    nodata: NoData = NoData()
    licence: str = ""
    note: str = ""


@dataclass(frozen=True)
class Bounds:
    """The place's outline: the extent of a file of the first of these inputs that has one, of a GeoJSON sidecar, or
    numbers (left, bottom, right, top) per place in ``place.crs``."""

    input: tuple[str, ...] = ()
    geojson: str = ""
    map: Mapping[str, tuple[float, ...]] = field(default_factory=dict)

    def problem(self) -> str | None:
        if bool(self.input) + bool(self.geojson) + bool(self.map) != 1:
            return "needs exactly one of input, geojson, map"
        bad = [name for name, box in self.map.items() if len(box) != 4]
        return f"map.{bad[0]}: expected left, bottom, right, top" if bad else None


@dataclass(frozen=True)
class GridRule:
    """The chip's grid: always 10 m; its origin on multiples of 10 m (``ten``) or where the bounding file begins
    (``file``); ``crop_px`` keeps a central square."""

    res_m: float = 10.0
    align: Literal["ten", "file"] = "ten"
    crop_px: int | None = None

    def problem(self) -> str | None:
        if self.res_m != 10.0:
            return f"res_m: a chip's grid is 10 m, found {self.res_m:g}"
        return (
            f"crop_px: expected at least 1, found {self.crop_px}"
            if self.crop_px is not None and self.crop_px < 1
            else None
        )


@dataclass(frozen=True)
class Place:
    """How files belong to places, and each place's grid."""

    bounds: Bounds
    group_by: str = ""
    map: Mapping[str, str] = field(default_factory=dict)
    id: str = "{place}"
    crs: str = "file"
    grid: GridRule = GridRule()
    attributes: Mapping[str, str] = field(default_factory=dict)
    sidecar: str = ""

    def problem(self) -> str | None:
        if bool(self.group_by) == bool(self.map):
            return "needs exactly one of group_by, map"
        if self.group_by and "place" not in _compile(self.group_by).groupindex:
            return "group_by: expected a group named place, like (?P<place>[^/]+)/"
        if self.crs != "file" and not re.fullmatch(r"EPSG:\d+", self.crs):
            return f"crs: expected file or EPSG:NUMBER, found {self.crs!r}"
        if bool(self.attributes) != bool(self.sidecar):
            return "attributes and sidecar go together"
        return None


@dataclass(frozen=True)
class Recipe:
    """A whole recipe. ``sources`` holds the registry entries that are not built in."""

    name: str
    place: Place
    inputs: tuple[Input, ...]
    title: str = ""
    licence: str = ""
    attribution: str = ""
    note: str = ""
    labels: tuple[LabelRule, ...] = ()
    sources: tuple[Source, ...] = ()
    registry: Registry = field(default_factory=lambda: BUILT_IN)

    def input(self, name: str) -> Input:
        return next(item for item in self.inputs if item.name == name)


# --- reading ---------------------------------------------------------------------------------------------------------


def read_recipe(path: str | Path) -> Recipe:
    """Read and check a recipe.

    Raises:
        RecipeError: one line naming the file and the field.
        FileNotFoundError: there is no such file.
    """
    path = Path(path)
    try:
        entries = load_yaml(path)
    except ValueError as error:
        raise RecipeError(str(error)) from None
    return parse_recipe(entries, path)


def parse_recipe(entries: Any, path: str | Path = "recipe") -> Recipe:
    """Check the parsed YAML of a recipe; ``path`` is named in errors and is where ``sources`` files are looked for."""
    path = Path(path)
    if not isinstance(entries, Mapping):
        raise RecipeError(f"{path}: expected a mapping of fields, found {type(entries).__name__}")
    entries = {key: value for key, value in entries.items() if not str(key).startswith("x-")}
    try:
        sources = _read_entries(entries.pop("sources", ()), path)
        registry = BUILT_IN.extended(sources)
    except (SourceError, ValueError, OSError) as error:
        raise RecipeError(f"{path}: sources: {' '.join(str(error).split())}") from None
    if "registry" in entries:
        raise RecipeError(f"{path}: unknown field registry")
    recipe = _build(Recipe, entries, str(path))
    recipe = dataclasses.replace(recipe, sources=tuple(sources), registry=registry)
    _check(recipe, path)
    return recipe


def _read_entries(items: Any, path: Path) -> list[Source]:
    """Source entries written in the recipe, or the names of sources files, relative to it."""
    if isinstance(items, str | Mapping):
        items = [items]
    if not isinstance(items, list | tuple):
        raise SourceError(f"expected a list, found {type(items).__name__}")
    found: list[Source] = []
    for item in items:
        found += read_sources(path.parent / item) if isinstance(item, str) else [Source.from_dict(item)]
    return found


def _compile(regex: str) -> re.Pattern:
    try:
        return re.compile(regex)
    except re.error as error:
        raise RecipeError(f"not a regular expression ({error}): {regex!r}") from None


def _build(kind: type, entries: Any, where: str) -> Any:
    """A dataclass from a mapping, every field checked against its annotation."""
    if not isinstance(entries, Mapping):
        raise RecipeError(f"{where}: expected a mapping, found {_short(entries)}")
    hints = typing.get_type_hints(kind)
    fields = {f.metadata.get("key", f.name): f for f in dataclasses.fields(kind)}
    fields = {key: f for key, f in fields.items() if f.name != "registry"}
    values = {}
    for key, value in entries.items():
        if key not in fields:
            close = difflib.get_close_matches(str(key), list(fields), n=1)
            hint = f"did you mean {close[0]}?" if close else f"known are {', '.join(fields)}"
            raise RecipeError(f"{where}: unknown field {key!r}: {hint}")
        values[fields[key].name] = _convert(value, hints[fields[key].name], f"{where}: {key}")
    for key, f in fields.items():
        required = f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
        if required and f.name not in values:
            raise RecipeError(f"{where}: the field {key} is missing")
    built = kind(**values)
    try:
        problem = built.problem() if hasattr(built, "problem") else None
    except RecipeError as error:
        problem = str(error)
    if problem:
        raise RecipeError(f"{where}: {problem}")
    return built


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _convert(value: Any, hint: Any, where: str) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return _convert_union(value, arguments, where)
    if origin is Literal:
        if value not in arguments or isinstance(value, bool) != isinstance(arguments[0], bool):
            raise RecipeError(f"{where}: expected {' or '.join(map(str, arguments))}, found {_short(value)}")
        return value
    if origin is tuple:
        single = isinstance(value, str | int | float | Mapping) and arguments[0] in (str, int, float, Rule, Input)
        items = [value] if single else value
        if not isinstance(items, list | tuple):
            raise RecipeError(f"{where}: expected a list, found {_short(value)}")
        return tuple(_convert(item, arguments[0], f"{where}[{at}]") for at, item in enumerate(items))
    if origin is not None and issubclass(origin, Mapping):
        if not isinstance(value, Mapping):
            raise RecipeError(f"{where}: expected a mapping, found {_short(value)}")
        return {_convert(k, arguments[0], where): _convert(v, arguments[1], f"{where}.{k}") for k, v in value.items()}
    if hint is BandRule and isinstance(value, str | int) and not isinstance(value, bool):
        return BandRule(str(value))
    if hint is MetadataRule and value == "missing":
        return MetadataRule(missing=True)
    if dataclasses.is_dataclass(hint):
        return _build(typing.cast(type, hint), value, where)
    return _convert_scalar(value, hint, where)


def _convert_union(value: Any, arguments: tuple, where: str) -> Any:
    if value is None and type(None) in arguments:
        return None
    for argument in arguments:
        if typing.get_origin(argument) is Literal and value in typing.get_args(argument):
            return value
    # A text or number keeps its plain reading; a mapping or list goes to the member that is built from one.
    plain = [a for a in arguments if a in (str, int, float)]
    if plain and not isinstance(value, list | Mapping):
        return _convert(value, plain[0], where)
    rest = [a for a in arguments if a is not type(None) and a not in plain and typing.get_origin(a) is not Literal]
    literals = [x for a in arguments if typing.get_origin(a) is Literal for x in typing.get_args(a)]
    if not rest or (literals and isinstance(value, str)):
        raise RecipeError(f"{where}: expected {' or '.join(map(str, literals))} or its rules, found {_short(value)}")
    return _convert(value, rest[0], where)


def _convert_scalar(value: Any, hint: Any, where: str) -> Any:
    if hint is str and isinstance(value, int | float) and not isinstance(value, bool):
        value = str(value)
    if hint is float and isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            pass
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        raise RecipeError(f"{where}: expected {hint.__name__}, found {_short(value)}")
    return value


# --- checking what no single field can tell --------------------------------------------------------------------------


def _check(recipe: Recipe, path: Path) -> None:
    def refuse(at: str, why: str) -> None:
        raise RecipeError(f"{path}: {at}: {why}")

    names = [item.name for item in recipe.inputs]
    repeated = {name for name in names if names.count(name) > 1}
    if not names:
        refuse("inputs", "expected at least one")
    if repeated:
        refuse("inputs", f"the name {sorted(repeated)[0]} is used twice")
    unknown = [name for name in recipe.place.bounds.input if name not in names]
    if unknown:
        refuse("place: bounds: input", f"unknown input {unknown[0]}: known are {', '.join(names)}")
    for item in recipe.inputs:
        problem = _input_problem(recipe, item, names)
        if problem:
            refuse(f"input {item.name}", problem)
    for label in recipe.labels:
        if bool(label.var) == bool(label.constant):
            refuse(f"label {label.name}", "needs exactly one of var, constant")
        if not 0 <= label.min_purity <= 1:
            refuse(f"label {label.name}", f"min_purity: expected 0 to 1, found {label.min_purity:g}")


def _input_problem(recipe: Recipe, item: Input, names: list[str]) -> str | None:
    problem = _reference_problem(item, names)
    if problem or item.role == "qa":
        return problem
    if not item.source:
        return "source is missing: name a registry source, or set role to qa"
    if item.source not in recipe.registry:
        return f"source: unknown source {item.source!r}: add an entry under sources"
    source = recipe.registry[item.source]
    if not item.band_map:
        return "band_map is missing: which variable is which band of the source?"
    unknown = [band for band in item.band_map if band not in source.band_names]
    if unknown:
        return f"band_map: {source.name} has no band {unknown[0]}: known are {', '.join(source.band_names)}"
    if item.valid is None:
        return "valid is missing: say which values were observed (all: whatever nodata leaves)"
    if item.weight is None:
        return "weight is missing: say which pixels count in the loss (none: there is no cloud rule, 1 everywhere)"
    if (item.role == "static") != (source.time == "static"):
        return f"role {item.role} does not fit source {source.name}, whose time is {source.time}"
    if item.role == "dynamic" and item.time is None:
        return "time is missing: a dynamic input says where its times come from"
    if item.role == "dynamic" and source.time == "instant" and item.time and item.time.precision == "month":
        return f"time: precision month does not fit source {source.name}, which has instants"
    missing = [m.name for m in source.metadata if m.name not in item.metadata]
    if missing:
        return f"metadata: {missing[0]} of source {source.name} is not declared (var, constant or missing)"
    foreign = [name for name in item.metadata if name not in {m.name for m in source.metadata}]
    if foreign:
        return f"metadata: source {source.name} has no field {foreign[0]}"
    if source.classes and item.resample != "nearest":
        return f"resample: {source.name} is categorical and takes nearest, found {item.resample}"
    if item.cell_m is not None and source.grid != "native":
        return f"cell_m is for sources on their native grid; {source.name} is on the {source.grid} grid"
    return None


def _reference_problem(item: Input, names: list[str]) -> str | None:
    rules = [rule for group in (item.valid, item.weight) if isinstance(group, tuple) for rule in group]
    for rule in rules:
        if rule.input and rule.input not in names:
            return f"valid or weight: unknown input {rule.input}: known are {', '.join(names)}"
    if item.axes and not {"y", "x"} <= set(item.axes):
        return f"axes: expected y and x among them, found {', '.join(item.axes)}"
    if item.erode_px < 0:
        return f"erode_px: expected 0 or more, found {item.erode_px}"
    if item.band_regex and "band" not in _compile(item.band_regex).groupindex:
        return "band_regex: expected a group named band"
    return None
