"""Sample folders converted once per session, and recipes with a field taken out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from aef.data.chips import Chip, read_chip, validate
from aef.data.ingest.convert import convert, convert_place
from aef.data.ingest.places import find_places
from aef.data.ingest.recipe import Recipe, parse_recipe, read_recipe
from aef.data.ingest.report import Report
from aef.settings_file import registry_of
from tests.data.ingest.own_rasters import write_folder

CHECKOUT = Path(__file__).parents[3]
RECIPES = CHECKOUT / "launcher" / "configs" / "ingest"
DATA = CHECKOUT.parent / "shared" / "data"


def _require(name: str) -> Path:
    if not (DATA / name).is_dir():
        pytest.skip(f"the sample data is not beside the checkout (../shared/data/{name})")
    return DATA / name


@pytest.fixture(scope="session")
def sample_data() -> Callable[[str], Path]:
    """Folder of the sample data by name; the test is skipped where it is absent."""
    return _require


class Converted(Mapping[str, Chip]):
    """Chips of a sample folder by place, each written and read back the first time that it is asked for."""

    def __init__(self, name: str, out: Path) -> None:
        self.root, self.out = _require(name), out
        self.recipe = read_recipe(RECIPES / f"{name}.yaml")
        self.reports: dict[str, Report] = {}
        self._chips: dict[str, Chip] = {}

    def __getitem__(self, place: str) -> Chip:
        if place not in self._chips:
            (report,) = convert(self.recipe, self.root, self.out, places=(place,), compress=False)
            self.reports[place] = report
            self._chips[place] = read_chip(self.out / report.file, registry_of(self.out))
        return self._chips[place]

    def __iter__(self) -> Iterator[str]:
        return iter(place.name for place in find_places(self.recipe, self.root)[0])

    def __len__(self) -> int:
        return len(list(iter(self)))


@pytest.fixture(scope="session")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Converted]:
    """Sample folders, converted once per session, place by place."""
    done: dict[str, Converted] = {}

    def chips(name: str) -> Converted:
        if name not in done:
            done[name] = Converted(name, tmp_path_factory.mktemp(name))
        return done[name]

    return chips


def _plain(value: Any) -> Any:
    """A copy in which YAML anchors no longer share their values."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list) else value


@lru_cache
def _shipped(name: str) -> dict[str, Any]:
    """A shipped recipe with the entries of its sources file written into it: reading that file is slow."""
    entries = yaml.safe_load((RECIPES / f"{name}.yaml").read_text())
    used = {item.get("source") for item in entries["inputs"]}
    (further,) = entries["sources"]
    return entries | {"sources": [source for source in _sources(RECIPES / further) if source["name"] in used]}


@lru_cache
def _sources(path: Path) -> list[dict[str, Any]]:
    return yaml.safe_load(path.read_text())["sources"]


class Altered:
    """A shipped recipe reduced to some inputs, with fields taken out or replaced."""

    def __init__(self, name: str, inputs: Iterable[str] = (), labels: Iterable[str] = ()) -> None:
        self.name = name
        self.entries = _plain(_shipped(name))
        keep, kept_labels = set(inputs), set(labels)
        if keep:
            self.entries["inputs"] = [item for item in self.entries["inputs"] if item["name"] in keep]
        self.entries["labels"] = [item for item in self.entries.get("labels", []) if item["name"] in kept_labels]

    def input(self, name: str) -> dict[str, Any]:
        return next(item for item in self.entries["inputs"] if item["name"] == name)

    def drop(self, name: str, *path: str) -> Altered:
        """Take the field ``path`` out of an input; a missing one is an error of the test."""
        block = self.input(name)
        for key in path[:-1]:
            block = block[key]
        del block[path[-1]]
        return self

    def put(self, name: str, value: Any, *path: str) -> Altered:
        block = self.input(name)
        for key in path[:-1]:
            block = block[key]
        block[path[-1]] = value
        return self

    def recipe(self) -> Recipe:
        return parse_recipe(self.entries, RECIPES / f"{self.name}.yaml")

    def chip(self, place: str, root: Path | None = None) -> Chip:
        """Convert one place of ``root``, or of the sample data, as `convert` does, up to writing it."""
        recipe = self.recipe()
        places, _ = find_places(recipe, root or _require(self.name), [place])
        chip, _ = convert_place(recipe, places[0])
        validate(chip, recipe.registry, file=chip.id)
        return chip


@pytest.fixture(scope="session")
def altered() -> type[Altered]:
    return Altered


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A user's own rasters (`own_rasters`)."""
    return write_folder(tmp_path / "in")
