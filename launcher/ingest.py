"""Turn rasters of any origin into chips, as a recipe says.

A recipe is a YAML file that states, for every kind of file in a folder, which source and band it is, what was observed,
what counts, and when. `docs/ingest.md` explains its fields; recipes that ship with the program are given by name.
Interrupted, the same command goes on after the chips that are there.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from aef.launcher.command import add_compression, parser, require_number, run
from aef.progress import Progress

RECIPES = Path(__file__).resolve().parent / "configs" / "ingest"


def main(argv: list[str] | None = None) -> int:
    given = _options().parse_args(argv)

    from aef.data.ingest.convert import convert
    from aef.data.ingest.places import find_places, unreached
    from aef.data.ingest.recipe import read_recipe

    require_number("--workers", given.workers, 0)
    recipe = read_recipe(find_recipe(given.recipe))
    root = Path(given.input)
    places, unused = find_places(recipe, root, given.only)
    if given.dry_run:
        for place in places:
            print(f"{place.name}: {place.grid.height} x {place.grid.width} px, {place.grid.crs.to_string()}")
            if place.extent_note:
                print(f"  note: {place.extent_note}")
            for rule in recipe.rules:
                files = place.of(rule)
                print(f"  {rule.name}: {len(files)} files" + (f", {place.relative(files[0])}" if files else ""))
        return 0
    with Progress("ingest", total=len(places), unit="chip") as progress:
        chosen = tuple(given.only)
        for report in convert(
            recipe,
            root,
            Path(given.out),
            places=chosen,
            compress=given.compress,
            workers=given.workers,
            overwrite=given.overwrite,
        ):
            print(report.text())
            progress.advance(note=report.place)
    if not given.only:  # a tile that lies on none of some places may lie on the others
        unused += unreached(places)
    for path in unused:
        print(f"unused file: {path.relative_to(root)}")
    return 0


def _options() -> argparse.ArgumentParser:
    names = ", ".join(sorted(path.stem for path in RECIPES.glob("*.yaml")))
    options = parser(__file__, __doc__)
    options.add_argument("--recipe", required=True, metavar="NAME|FILE", help=f"a recipe file, or one of {names}")
    options.add_argument("--input", required=True, metavar="DIR", help="folder with the rasters")
    options.add_argument("--out", required=True, metavar="CHIPS", help="folder for the chips")
    options.add_argument("--only", nargs="*", default=[], metavar="PLACE", help="convert only these")
    options.add_argument(
        "--workers", type=int, default=0, metavar="N", help="processes that convert places; 0: this one"
    )
    add_compression(options, default=True)
    options.add_argument(
        "--overwrite",
        action="store_true",
        help="write chips again that the folder holds, otherwise refused; texts are lost",
    )
    options.add_argument("--dry-run", action="store_true", help="list places and files without reading or writing")
    return options


def find_recipe(name_or_file: str) -> Path:
    """A recipe that ships with the program, by name, or a file. Raises FileNotFoundError naming the known ones."""
    path = RECIPES / f"{name_or_file}.yaml"
    if path.is_file():
        return path
    if Path(name_or_file).suffix in (".yaml", ".yml"):
        return Path(name_or_file)
    known = ", ".join(sorted(p.stem for p in RECIPES.glob("*.yaml")))
    raise FileNotFoundError(f"no recipe {name_or_file!r}: known are {known}; or give a .yaml file")


if __name__ == "__main__":
    raise SystemExit(run(main))
