"""Which room may import which: the map of CONTRIBUTING.md, held by reading every import statement, lazy ones too."""

import ast
from collections import defaultdict
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

MAY_IMPORT = {
    "kernels": set(),
    "data": set(),
    "model": {"data", "kernels"},
    "objective": {"data", "kernels"},
    "text": {"data"},
    "earthengine": {"data"},
    "stac": {"data", "earthengine"},
    "run": {"data", "model"},
    "mapping": {"data", "model", "run"},
    "evaluation": {"data", "objective", "run", "mapping"},
    "training": {"data", "model", "objective", "kernels", "text", "run"},
    "search": {"data", "text", "run", "mapping"},
    "classify": {"data", "mapping", "evaluation"},
}
"""Rooms, and modules of `aef` that stand for one, with the rooms that each may import. All may import the common
modules: those beside the rooms (`aef.sources`, `aef.config`, …), which themselves import nothing else."""

EXCEPTIONS = {
    ("aef", "mapping"): "`aef.load` gives a trained model, imported when it is called",
    ("training", "evaluation"): "validation in the loop judges as `aef evaluate` does, imported when it is switched on",
    ("training", "mapping"): "validation in the loop embeds held-out chips as `aef embed` does",
}

WITHOUT_SETTINGS = {"model", "objective", "kernels"}
"""They take values: whoever reads YAML stands further out."""


def files(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def module_of(path: Path) -> str:
    """`aef/kernels` and `aef/launcher` are links to folders beside `aef`."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    parts = parts if parts[0] in ("aef", "benchmarks") else ("aef", *parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def imports() -> dict[str, set[str]]:
    """What every module of `aef` and of the benchmarks imports of `aef`; names that are no module are their module's."""
    paths = files("aef", "kernels", "launcher", "benchmarks")
    modules = {module_of(path) for path in paths}
    found: dict[str, set[str]] = defaultdict(set)
    for path in paths:
        module = module_of(path)
        package = module if path.stem == "__init__" else module.rpartition(".")[0]
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
                base = ".".join(filter(None, (*above, node.module)))
                names = [f"{base}.{alias.name}" for alias in node.names]
                names = [name if name in modules else base for name in names]
            else:
                continue
            found[module] |= {name for name in names if name.partition(".")[0] == "aef"}
    return found


def room_of(module: str) -> str:
    """The room of a module of `aef`, or "" where it is a common one."""
    first = module.split(".")[1] if "." in module else "aef"
    if first == "aef" or first in MAY_IMPORT or first in ("launcher", "__main__"):
        return first
    assert not (ROOT / "aef" / first).is_dir(), f"aef.{first}: a new room? Say in MAY_IMPORT what it may import"
    return ""


def arrows() -> dict[tuple[str, str], list[str]]:
    """Imports from one room into another, the launcher's left out."""
    found = defaultdict(list)
    for module, names in imports().items():
        here = room_of(module) if module.startswith("aef") else "launcher"
        for name in names if here not in ("launcher", "__main__") else ():
            there = room_of(name)
            if there not in (here, "", "aef"):  # of `aef` itself there is its version
                found[here, there].append(f"{module} imports {name}")
    return found


def test_every_import_is_read():
    assert {"aef.data.batch", "aef.kernels"} <= set().union(*imports().values())
    assert "aef.data.sampling" in imports()["aef.data.dataset"] and len(imports()) > 200
    assert ("launcher", "data") not in arrows() and ("model", "data") in arrows()


def test_a_room_imports_only_what_stands_before_it():
    wrong = [
        line
        for (here, there), lines in arrows().items()
        if there not in MAY_IMPORT.get(here, ()) and (here, there) not in EXCEPTIONS
        for line in lines
    ]
    assert not wrong, "\n".join(["against the one-way rule:", *wrong])


def test_no_exception_outlives_its_reason():
    gone = [
        f"{here} imports nothing of {there} any more" for here, there in EXCEPTIONS if (here, there) not in arrows()
    ]
    assert not gone, "\n".join(["strike these from EXCEPTIONS:", *gone])


def test_kernels_import_nothing_of_aef():
    for module, names in imports().items():
        if module.startswith("aef.kernels"):
            assert all(name.startswith("aef.kernels") for name in names), f"{module} imports {', '.join(names)}"


def test_the_launcher_is_imported_by_the_command_alone():
    known = {"aef.__main__", "benchmarks.data"}  # the latter measures recipes as `aef ingest` finds them
    found = {
        module
        for module, names in imports().items()
        if not module.startswith("aef.launcher") and any(name.startswith("aef.launcher") for name in names)
    }
    assert found == known


@pytest.mark.parametrize("room", sorted(WITHOUT_SETTINGS))
def test_what_computes_reads_no_settings_file(room):
    readers = [m for m, names in imports().items() if room_of(m) == room and "aef.settings_file" in names]
    assert not readers
