"""From stored planes to measurements: no-data, validity and weight rules, offsets, transforms, and the watch over
extremes that nobody declared."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from aef.data.ingest.readers import Raster
from aef.data.ingest.schema import Accept, BandRule, Input, NoData, OffsetRule, Rule, Transform

FREQUENT = 0.01
"""An exact extreme that makes up more than this share of a band looks like a fill value."""
REPEATED = 10
"""... and is repeated at least this often: in a handful of values every one is frequent."""
DN_DB_OFFSET = -83.0

QaPlane = Callable[[str, str], np.ndarray | None]
"""(input, variable) → the stored plane of another input at the same time, on the grid of the one being read."""


@dataclass
class Tally:
    """Extremes of one band over all planes of a place, of what the rules left as observed and nothing declared."""

    dtype: np.dtype
    count: int = 0
    lowest: float = np.inf
    highest: float = -np.inf
    at_lowest: int = 0
    at_highest: int = 0

    def add(self, values: np.ndarray) -> None:
        self.count += values.size
        if not values.size:
            return
        low, high = values.min().item(), values.max().item()
        if low <= self.lowest:
            self.at_lowest = int((values == low).sum()) + (self.at_lowest if low == self.lowest else 0)
            self.lowest = low
        if high >= self.highest:
            self.at_highest = int((values == high).sum()) + (self.at_highest if high == self.highest else 0)
            self.highest = high

    def suspicion(self, accept: Accept) -> str | None:
        """Why an extreme looks like no-data, or None."""
        for value, repeats, name in (
            (self.lowest, self.at_lowest, "lowest"),
            (self.highest, self.at_highest, "highest"),
        ):
            if not self.count or declared(np.asarray([value]), accept)[0]:
                continue
            share = repeats / self.count
            if self.dtype.kind in "iu":
                limits = np.iinfo(self.dtype)
                if value <= limits.min + 1 or value >= limits.max - 1:
                    return f"its {name} value {value} lies within one step of the limit of {self.dtype}"
            if share > FREQUENT and repeats >= REPEATED and self.lowest < self.highest:
                return f"its {name} value {value:.6g} makes up {share:.1%} of the band"
            if self.lowest == self.highest and repeats >= REPEATED:
                return f"it holds the one value {value:.6g}"
        return None


def declared(values: np.ndarray, rule: Accept | NoData) -> np.ndarray:
    """Which values a list of values and ranges names."""
    found = np.zeros(values.shape, np.bool_)
    for value in rule.values:
        found |= values == value
    for low, high in rule.ranges:
        found |= (values >= low) & (values <= high)
    return found


def holds(rule: Rule, values: np.ndarray) -> np.ndarray:
    """Where a rule's conditions hold: all of those that it names."""
    met = np.ones(values.shape, np.bool_)
    if rule.within:
        met &= np.isin(values, rule.within)
    if rule.not_in:
        met &= ~np.isin(values, rule.not_in)
    if rule.range:
        met &= (values >= rule.range[0]) & (values <= rule.range[1])
    if rule.bits:
        if values.dtype.kind == "f":
            values = np.where(np.isfinite(values) & (values >= 0), values, 0)
        flags = values.astype(np.int64)
        for bit in rule.bits.set:
            met &= (flags >> bit) & 1 == 1
        for bit in rule.bits.clear:
            met &= (flags >> bit) & 1 == 0
    return met


def convert(values: np.ndarray, rule: Transform, stated: tuple[float, float] = (1.0, 0.0)) -> np.ndarray:
    """Apply a transform, with the file's ``stated`` scale and offset where it asks for them; float32, unless it changes
    nothing. The logarithm of what is not positive is NaN."""
    if rule.plain:
        return values.astype(np.float32) if values.dtype == np.float64 else values
    x = values.astype(np.float64)
    if rule.tags:
        x = x * stated[0] + stated[1]
    x = x * rule.scale + rule.offset
    if rule.function in ("db_from_dn", "db_from_linear"):
        factor, offset = (20.0, DN_DB_OFFSET) if rule.function == "db_from_dn" else (10.0, 0.0)
        with np.errstate(divide="ignore", invalid="ignore"):
            x = np.where(x > 0, factor * np.log10(x) + offset, np.nan)
    elif rule.function == "sin":
        x = np.sin(np.radians(x))
    elif rule.function == "cos":
        x = np.cos(np.radians(x))
    return x.astype(np.float32)


@dataclass
class Decoder:
    """Reads the bands of one input from an opened raster, step by step.

    ``tallies`` keeps each band's extremes by the type of the files, whose limits are suspicious; ``used`` the variables
    that were read.
    """

    item: Input
    tallies: dict[tuple[str, np.dtype], Tally] = field(default_factory=dict)
    used: set[str] = field(default_factory=set)

    def planes(
        self, raster: Raster, step: int, bands: Mapping[str, BandRule], offset: float, other: QaPlane
    ) -> tuple[list[np.ndarray], list[np.ndarray], np.ndarray | None]:
        """Measurements (h, w) of each band, where each was observed, and the loss weight (0/1) or None."""
        values, observed = [], []
        for (band, rule), (stored, seen) in zip(bands.items(), self._observed(raster, step, bands, other)):
            self._refuse_nan(raster, rule.var, step, stored, seen)
            # A value that is repeated over space is one value.
            found = np.unique(stored[seen]) if "space" in self.item.collapse else stored[seen]
            self.tallies.setdefault((band, stored.dtype), Tally(stored.dtype)).add(found)
            if offset and stored.dtype.kind in "iu" and not offset.is_integer():
                raise raster.refuse(f"{rule.var} holds whole numbers: offset_rule takes {offset:g} off, which is none")
            stored = subtract(stored, offset) if offset else stored
            transform = self.item.transform if rule.transform is None else rule.transform
            plane = convert(stored, transform, raster.scaling(rule.var, step))
            if plane.dtype.kind == "f":
                lost = seen & ~np.isfinite(plane)
                if lost.any():
                    raise raster.refuse(
                        f"{rule.var} (band {band}), step {step}: {int(lost.sum())} values such as "
                        f"{stored[lost][0]:g} have no finite {self._function(rule) or 'value'}: "
                        "declare them no-data, or check dtype_view"
                    )
            values.append(plane)
            observed.append(seen)
        return values, observed, self._weight(raster, step, other)

    def lowest(self, raster: Raster, step: int, bands: Mapping[str, BandRule], other: QaPlane) -> float:
        """The lowest stored value of all bands that was observed; infinite where nothing was."""
        planes = self._observed(raster, step, bands, other)
        return min((float(stored[seen].min()) for stored, seen in planes if seen.any()), default=np.inf)

    def _observed(
        self, raster: Raster, step: int, bands: Mapping[str, BandRule], other: QaPlane
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """Stored values (h, w) of each band, and where each was observed."""
        raw = {rule.var: self._read(raster, rule.var, step) for rule in bands.values()}
        inside = ~self._outside(raw) & self._shared_rules(raster, step, other)
        found = []
        for rule in bands.values():
            stored = raw[rule.var]
            seen = self._meets_rules(stored, rule, other, raster, step) & inside
            found.append((stored, self._held_by_file(stored, rule, raster, step, seen)))
        return found

    def _function(self, rule: BandRule) -> str:
        return (rule.transform or self.item.transform).function

    def _read(self, raster: Raster, variable: str, step: int) -> np.ndarray:
        self.used.add(variable)
        return read_real(raster, variable, step)

    def _outside(self, raw: Mapping[str, np.ndarray]) -> np.ndarray:
        """Outside the exported area and in the blended rim."""
        planes = list(raw.values())
        outside = np.zeros(planes[0].shape, np.bool_)
        if self.item.nodata.all_zero:
            outside |= np.logical_and.reduce([plane == 0 for plane in planes])
        if self.item.erode_px:
            inner = np.zeros_like(outside)
            n = self.item.erode_px
            inner[n:-n, n:-n] = True
            outside |= ~inner
        return outside

    def _meets_rules(self, stored: np.ndarray, rule: BandRule, other: QaPlane, raster: Raster, step: int) -> np.ndarray:
        nodata = self.item.nodata if rule.nodata is None else rule.nodata
        seen = ~declared(stored, nodata)
        if nodata.nan and stored.dtype.kind == "f":
            seen &= ~np.isnan(stored)
        own = rule.valid if rule.valid is not None else self.item.valid if isinstance(self.item.valid, tuple) else ()
        for condition in own:
            if not condition.var or rule.valid is not None:
                seen &= holds(condition, self._condition(condition, stored, raster, step, other))
        return seen

    def _held_by_file(
        self, stored: np.ndarray, rule: BandRule, raster: Raster, step: int, seen: np.ndarray
    ) -> np.ndarray:
        """``seen`` without what the file itself says it does not hold, where the recipe follows it.

        Raises:
            RasterError: the recipe counts such pixels as seen, and says neither that they are no data nor that they
                are measurements.
        """
        follow = rule.nodata.file if rule.nodata and rule.nodata.file is not None else self.item.nodata.file
        if follow is False:
            return seen
        values, mask = raster.nodata(rule.var, step), raster.mask(rule.var, step)
        empty = np.zeros(stored.shape, np.bool_)
        for value in values:
            empty |= np.isnan(stored) if np.isnan(value) else stored == value
        accepted = declared(stored, self.item.accept if rule.accept is None else rule.accept)
        without = np.zeros(stored.shape, np.bool_) if mask is None else ~mask
        if follow:
            return seen & ~empty & ~without
        for found, what in (
            (empty & seen & ~accepted, f"no-data tag ({', '.join(f'{value:g}' for value in values)})"),
            (without & seen, "mask"),
        ):
            # NaN has a refusal of its own, which names what to declare.
            if (found & ~np.isnan(stored)).any():
                raise raster.refuse(
                    f"{rule.var}, step {step}: its own {what} says that {int(found.sum())} pixels hold no data, which the recipe "
                    "takes as observed: nodata: {file: true} follows the file, {file: false} does not"
                )
        return seen

    def _shared_rules(self, raster: Raster, step: int, other: QaPlane) -> np.ndarray | bool:
        rules = self.item.valid if isinstance(self.item.valid, tuple) else ()
        met: np.ndarray | bool = True
        for rule in rules:
            if rule.var:
                met = met & holds(rule, self._condition(rule, None, raster, step, other))
        return met

    def _weight(self, raster: Raster, step: int, other: QaPlane) -> np.ndarray | None:
        if not isinstance(self.item.weight, tuple):
            return None
        met: np.ndarray | bool = True
        for rule in self.item.weight:
            met = met & holds(rule, self._condition(rule, None, raster, step, other))
        return np.asarray(met)

    def _condition(
        self, rule: Rule, stored: np.ndarray | None, raster: Raster, step: int, other: QaPlane
    ) -> np.ndarray:
        """The plane that a rule looks at."""
        if not rule.var:
            if stored is None:
                raise raster.refuse("a weight rule must name the variable that it looks at (var)")
            return stored
        if not rule.input:
            return self._read(raster, rule.var, step)
        plane = other(rule.input, rule.var)
        if plane is None:
            raise raster.refuse(
                f"step {step}: input {rule.input} has no {rule.var} of the same time that covers all of it"
            )
        return plane

    def _refuse_nan(self, raster: Raster, variable: str, step: int, stored: np.ndarray, seen: np.ndarray) -> None:
        if stored.dtype.kind == "f" and (missing := np.isnan(stored) & seen).any():
            raise raster.refuse(
                f"{variable}, step {step}: {int(missing.sum())} values are NaN: "
                "declare nodata: {nan: true}, or a valid rule that says where it was observed"
            )


def read_real(raster: Raster, variable: str, step: int) -> np.ndarray:
    """One stored plane. Raises RasterError where it holds complex values or objects."""
    values = raster.read(variable, step)
    if values.dtype.kind not in "biuf":
        raise raster.refuse(
            f"{variable} holds {values.dtype}: expected whole or real numbers; of complex values write the amplitude or power "
            "into a raster first"
        )
    return values


def subtract(stored: np.ndarray, offset: float) -> np.ndarray:
    """Take a radiometric offset off; whole numbers stop at the limits of their type instead of wrapping around."""
    if stored.dtype.kind not in "iu":
        return stored - stored.dtype.type(offset)
    limits = np.iinfo(stored.dtype)
    return (stored.astype(np.int64) - int(offset)).clip(limits.min, limits.max).astype(stored.dtype)


def radiometric_offset(rule: OffsetRule | None, lowest: Callable[[], float], place: str) -> float:
    """What to subtract from every band of a file: by map, or when its ``lowest`` observed value says that the offset is
    in."""
    if rule is None:
        return 0.0
    if rule.map:
        return rule.map.get(place, 0.0)
    assert rule.when_minimum_at_least is not None
    return rule.subtract if rule.when_minimum_at_least <= lowest() < np.inf else 0.0
