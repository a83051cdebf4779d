"""Reading a recipe: what a folder of rasters is and how it becomes chips, as data.

A recipe is read strictly: an unknown field, a wrong type or an impossible combination is a `RecipeError`, one line that
names file and field.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from string import Formatter
from typing import Any, Literal

import numpy as np

from aef.data.ingest.schema import BandRule, Input, MetadataRule, Recipe, RecipeError, Rule, compile_regex
from aef.one_line import meant_by
from aef.settings_file import load_yaml, read_sources
from aef.sources import BUILT_IN, Source, SourceError

__all__ = ["Recipe", "RecipeError", "parse_recipe", "read_recipe"]


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
            raise RecipeError(f"{where}: unknown field {key!r}: {meant_by(key, fields)}")
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
    for at, text in _templates(recipe):
        if not _only_names_the_place(text):
            refuse(at, f"expected no braces but those of {{place}}, found {_short(text)}")
    unknown = [name for name in recipe.place.bounds.input if name not in names]
    if unknown:
        refuse("place: bounds: input", f"unknown input {unknown[0]}: known are {', '.join(names)}")
    for item in recipe.inputs:
        problem = _input_problem(recipe, item, names)
        if problem:
            refuse(f"input {item.name}", problem)
    label_names = [label.name for label in recipe.labels]
    for label in recipe.labels:
        if label_names.count(label.name) > 1:
            refuse("labels", f"the name {label.name} is used twice")
        if bool(label.var) == bool(label.constant):
            refuse(f"label {label.name}", "needs exactly one of var, constant")
        if not 0 <= label.min_purity <= 1:
            refuse(f"label {label.name}", f"min_purity: expected 0 to 1, found {label.min_purity:g}")


def _templates(recipe: Recipe) -> list[tuple[str, str]]:
    """Texts into which a place's name is written, and where they stand."""
    place = recipe.place
    found = [
        ("place: id", place.id),
        ("place: sidecar", place.sidecar),
        ("place: bounds: geojson", place.bounds.geojson),
    ]
    found += [(f"input {item.name}: glob", item.glob) for item in recipe.inputs]
    found += [(f"input {item.name}: time: glob", item.time.glob) for item in recipe.inputs if item.time]
    return found + [(f"label {label.name}: glob", label.glob) for label in recipe.labels]


def _only_names_the_place(text: str) -> bool:
    try:
        return {name for _, name, _, _ in Formatter().parse(text)} <= {None, "place"}
    except ValueError:  # a brace without its partner
        return False


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
    tagged = [item.transform.tags, *(rule.transform.tags for rule in item.band_map.values() if rule.transform)]
    if item.offset_rule and any(tagged):
        return "offset_rule and transform: {tags: true} would both take the offset off: keep one"
    if item.decode == "cf" and any(tagged):
        return "decode: cf applies the file's scale and offset already: leave transform: {tags: true} out"
    if item.cell_m is not None and source.grid != "native":
        return f"cell_m is for sources on their native grid; {source.name} is on the {source.grid} grid"
    return None


def _is_number_type(name: str) -> bool:
    try:
        return np.dtype(name).kind in "iuf"
    except TypeError:
        return False


def _reference_problem(item: Input, names: list[str]) -> str | None:
    rules = [rule for group in (item.valid, item.weight) if isinstance(group, tuple) for rule in group]
    for rule in rules:
        if rule.input and rule.input not in names:
            return f"valid or weight: unknown input {rule.input}: known are {', '.join(names)}"
    if item.axes and not {"y", "x"} <= set(item.axes):
        return f"axes: expected y and x among them, found {', '.join(item.axes)}"
    if item.dtype_view and not _is_number_type(item.dtype_view):
        return f"dtype_view: expected a type of numbers like uint16, found {_short(item.dtype_view)}"
    for name, size in (("cell_m", item.cell_m), ("pixel_m", item.pixel_m)):
        if size is not None and not size > 0:
            return f"{name}: expected more than 0, found {size:g}"
    if item.layout and not item.layout.per_step:
        return "layout: per_step: expected at least one name"
    if item.erode_px < 0:
        return f"erode_px: expected 0 or more, found {item.erode_px}"
    if item.band_regex and "band" not in compile_regex(item.band_regex).groupindex:
        return "band_regex: expected a group named band"
    return None
