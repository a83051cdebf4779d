"""YAML and dotted overrides over the plain dataclasses of `aef.config`; YAML entries for `aef.sources`.

Whatever reads YAML goes through here (runs, recipes, commands). The model, the objective and the kernels do not: they
import no settings library.
"""

from __future__ import annotations

import dataclasses
import os
import types
import typing
from collections.abc import Iterable, Mapping
from datetime import date
from pathlib import Path
from typing import Any

import yaml

from aef import atomic
from aef import config as presets
from aef.config import Config, ConfigError, hints_of, require_type
from aef.one_line import meant_by
from aef.sources import BUILT_IN, Registry, Source, SourceError

SOURCES_FILE = "sources.yaml"
"""Name under which a folder of chips carries the entries of its own sources."""

# libyaml where PyYAML was built with it: 40,000 held-out places take seconds without, and every rank reads them.
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_DUMPER: Any = getattr(yaml, "CSafeDumper", yaml.SafeDumper)


def load_yaml(path: str | os.PathLike) -> Any:
    """Parse one YAML file with the safe loader. Raises FileNotFoundError, or ConfigError with the parser's first line."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        return yaml.load(path.read_text(encoding="utf-8"), _LOADER)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid YAML: {' '.join(str(error).split())[:200]}") from error


# --- settings --------------------------------------------------------------------------------------------------------


def load_config(name_or_file: str | os.PathLike, overrides: Iterable[str] = ()) -> Config:
    """A preset by name, or a YAML file (which may name its ``preset``), with ``section.key=value`` overrides.

    Raises:
        ConfigError: an unknown preset, section or key, or a value of the wrong type.
        FileNotFoundError: no preset of that name and no such file.
    """
    if not isinstance(name_or_file, str | os.PathLike):
        raise ConfigError(f"expected {', '.join(presets.PRESETS)} or a .yaml file, found {name_or_file!r}")
    name_or_file = os.fspath(name_or_file)
    if isinstance(overrides, str | Mapping):
        raise ConfigError(f"overrides: expected a list like ['train.steps=100'], found {overrides!r}")
    if name_or_file in presets.PRESETS:
        config = presets.PRESETS[name_or_file]
    elif name_or_file.endswith((".yaml", ".yml")):
        entries = _entries(name_or_file)
        base = entries.get("preset", "small")
        if base == presets.CUSTOM:
            config = Config()
        elif isinstance(base, str) and base in presets.PRESETS:
            config = presets.PRESETS[base]
        else:
            raise ConfigError(f"{name_or_file}: unknown preset {base!r}: expected {', '.join(presets.PRESETS)}")
        config = _merge(config, entries, name_or_file)
    else:
        raise ConfigError(f"unknown config {name_or_file!r}: expected {', '.join(presets.PRESETS)} or a .yaml file")
    for override in overrides:
        config = _override(config, override)
    config.validate()
    return config


def read_resolved(path: str | os.PathLike) -> Config:
    """The settings of a run, as `dump_config` wrote them all.

    A setting that is not among them did not exist then: it has its default, which is what was done before, and not what
    today's preset of that name says. Raises as `load_config` does.
    """
    config = _merge(Config(), _entries(path), str(path))
    config.validate()
    return config


def _entries(path: str | os.PathLike) -> Mapping[str, Any]:
    entries = load_yaml(path)
    if not isinstance(entries, Mapping):
        raise ConfigError(f"{path}: expected a mapping of settings, found {type(entries).__name__}")
    return entries


def dump_config(config: Config) -> str:
    """The resolved settings as YAML; `load_config` and `read_resolved` read it back unchanged."""
    return yaml.dump(_plain(config), Dumper=_DUMPER, sort_keys=False)


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return value


def _override(config: Config, text: str) -> Config:
    key, separator, raw = text.partition("=")
    if not separator or "." not in key:
        raise ConfigError(f"expected section.key=value, like train.steps=100; found {text!r}")
    section, _, name = key.strip().partition(".")
    try:
        # YAML reserves the @ of a file of names.
        value = raw.strip() if raw.strip().startswith("@") else yaml.safe_load(raw)
    except yaml.YAMLError:
        raise ConfigError(f"{key}: cannot read the value {raw!r}") from None
    return _merge(config, {section: {name: value}}, "command line")


def _merge(config: Config, entries: Mapping[str, Any], where: str) -> Config:
    changes: dict[str, Any] = {}
    for section, values in entries.items():
        if section == "preset":
            changes["preset"] = values
            continue
        _require_known(section, [f.name for f in dataclasses.fields(config)], where, "section")
        current: Any = getattr(config, section)
        if not isinstance(values, Mapping):
            raise ConfigError(f"{where}: section {section} must be a mapping, found {type(values).__name__}")
        hints = hints_of(current.__class__)
        updates = {}
        for key, value in values.items():
            _require_known(key, list(hints), where, "setting", f"{section}.")
            updates[key] = _convert(value, hints[key], f"{where}: {section}.{key}")
        changes[section] = dataclasses.replace(current, **updates)
    return dataclasses.replace(config, **changes)


def _require_known(name: str, known: list[str], where: str, kind: str, prefix: str = "") -> None:
    if name not in known:
        shown = name if isinstance(name, str) and name.isidentifier() else repr(name)
        raise ConfigError(f"{where}: unknown {kind} {prefix}{shown}: {meant_by(name, known, prefix)}")


def names_of(listed: Iterable[str], where: str) -> tuple[str, ...]:
    """Names as they are listed; ``@FILE`` stands for those in a file, one a line: a command line ends at 128 KB.

    Raises ConfigError where the file cannot be read or holds none.
    """
    names: list[str] = []
    for name in listed:
        if not name.startswith("@"):
            names.append(name)
            continue
        try:
            found = [line.strip() for line in Path(name[1:]).read_text(encoding="utf-8-sig").splitlines()]
        except (OSError, UnicodeDecodeError) as error:
            why = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
            raise ConfigError(
                f"{where}: {name[1:]}: cannot be read ({why}): expected a file of names, one a line"
            ) from None
        if not any(found):
            raise ConfigError(f"{where}: {name[1:]}: holds no name: expected one a line")
        names += filter(None, found)
    return tuple(names)


def _convert(value: Any, hint: Any, where: str) -> Any:
    """A YAML value as a dataclass field's type wants it, int widened to float and list to tuple. Raises ConfigError."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        return _convert(value, next(a for a in arguments if a is not type(None)), where)
    if origin is tuple:
        items = [value] if isinstance(value, str) and arguments[0] is str else value
        if not isinstance(items, list | tuple):
            form = "" if arguments[0] is str else " like [0.5, 1]"
            raise ConfigError(f"{where}: expected a list{form}, found {value!r}")
        converted = tuple(_convert(item, arguments[0], where) for item in items)
        return names_of(converted, where) if arguments[0] is str else converted
    if hint is float and isinstance(value, str):
        # YAML reads 1e-4 (without a dot) as a string.
        try:
            value = float(value)
        except ValueError:
            pass
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if hint is str and isinstance(value, bool | int | float | date):
        raise ConfigError(
            f"{where}: expected str, found {value!r}: a name that reads as a number, a date or yes and no stands in quotes, "
            "like [\"0123\"], and these between '…' in a shell"
        )
    require_type(value, hint, where)
    return value


# --- sources ---------------------------------------------------------------------------------------------------------


def read_sources(path: str | os.PathLike) -> list[Source]:
    """Source entries of a YAML file: a list, or a mapping with the list under ``sources``.

    Raises:
        SourceError: an entry is wrong; the message names file, source and field.
        ConfigError: not YAML.
    """
    entries = load_yaml(path)
    entries = entries.get("sources") if isinstance(entries, Mapping) else entries
    if not isinstance(entries, list):
        raise SourceError(f"{path}: expected a list of source entries")
    try:
        return [Source.from_dict(entry) for entry in entries]
    except SourceError as error:
        raise SourceError(f"{path}: {error}") from None


def write_sources(path: str | os.PathLike, sources: Iterable[Source]) -> None:
    """Write entries so that `read_sources` gives them back. Atomic."""
    entries = [_plain(source) for source in sources]
    with atomic.writing(path, "w") as stream:
        yaml.safe_dump({"sources": entries}, stream, sort_keys=False)


def registry_of(*folders: str | os.PathLike, files: Iterable[str | os.PathLike] = ()) -> Registry:
    """The built-in sources, those that the folders of chips carry in ``sources.yaml``, and those of further files."""
    registry = BUILT_IN
    carried = [Path(folder) / SOURCES_FILE for folder in folders]
    for path in [*(p for p in carried if p.is_file()), *map(Path, files)]:
        try:
            registry = registry.extended(read_sources(path))
        except SourceError as error:
            raise error if str(error).startswith(str(path)) else SourceError(f"{path}: {error}") from None
    return registry
