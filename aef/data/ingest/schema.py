"""The fields of a recipe, one dataclass per block of YAML. `docs/ingest.md` explains each with examples.

``problem()`` of a block says what is wrong with it on its own; what no single block can tell is checked in
`aef.data.ingest.recipe`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from aef.sources import BUILT_IN, Registry, Source


class RecipeError(ValueError):
    """A recipe is wrong: one line naming the file and the field."""


def compile_regex(regex: str) -> re.Pattern:
    """A pattern, or a `RecipeError` that says what is wrong with it."""
    try:
        return re.compile(regex)
    except re.error as error:
        raise RecipeError(f"not a regular expression ({error}): {regex!r}") from None


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
    """Stored values that say "not observed"; checked before anything else is done to a value.

    ``file``: whether the no-data tag and the mask of the file itself say so too. A recipe that leaves it out is refused
    where they contradict it.
    """

    values: tuple[float, ...] = ()
    ranges: tuple[tuple[float, ...], ...] = ()
    nan: bool = False
    all_zero: bool = False
    file: bool | None = None

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
    """From stored values to the registry's unit: the file's own scale and offset if ``tags`` is true, then scale and
    offset, then at most one function.

    ``db_from_dn``: 20 log10(DN) - 83. ``db_from_linear``: 10 log10(x). ``sin``, ``cos``: of degrees. ``tags`` that are
    left out are never applied; where the files of an input disagree in theirs, the recipe must say (true or false).
    """

    scale: float = 1.0
    offset: float = 0.0
    function: Literal["", "db_from_dn", "db_from_linear", "sin", "cos"] = ""
    tags: bool | None = None

    @property
    def plain(self) -> bool:
        """Whether values stay as they are stored."""
        return (self.scale, self.offset, self.function) == (1.0, 0.0, "") and not self.tags


@dataclass(frozen=True)
class OffsetRule:
    """A radiometric offset that files carry or not: ``subtract`` it where the minimum of what was observed reaches
    ``when_minimum_at_least`` in every band, or in the places that ``map`` names (place: amount)."""

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
    ``var``. ``map``: place → time. Where a file of several steps has one time, it is that of the first or, with
    ``anchor`` ``end``, of the last step; a time is always that at which its step starts. Texts are ISO 8601, basic or extended; a regex has a group ``time`` (or ``start``).
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
            groups = compile_regex(self.regex).groupindex
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

    def other_inputs(self) -> list[Rule]:
        """Its rules that look at another input."""
        return [rule for group in (self.valid, self.weight) if isinstance(group, tuple) for rule in group if rule.input]


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
    """The place's outline: the extent of the files of the first of these inputs that has any (of all of them, or of the
    first one only), of a GeoJSON sidecar, or numbers (left, bottom, right, top) per place in ``place.crs``."""

    input: tuple[str, ...] = ()
    extent: Literal["union", "first"] = "union"
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

    def id_of(self, place: str) -> str:
        """The id of a place's chip."""
        return self.id.format(place=place)

    def problem(self) -> str | None:
        if bool(self.group_by) == bool(self.map):
            return "needs exactly one of group_by, map"
        if self.group_by and "place" not in compile_regex(self.group_by).groupindex:
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

    @property
    def rules(self) -> tuple[Input | LabelRule, ...]:
        """All that name files: inputs, then labels."""
        return *self.inputs, *self.labels

    def input(self, name: str) -> Input:
        return next(item for item in self.inputs if item.name == name)
