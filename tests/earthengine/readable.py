"""Graphs as text that a person can read and compare, and the golden copies: ``python tests/earthengine/readable.py`` writes them anew."""

from __future__ import annotations

import json
from pathlib import Path

GOLDEN = Path(__file__).with_name("golden")


def readable(graph) -> str:
    """One function per line, indented by depth, arguments by name."""
    import ee

    expression = ee.serializer.encode(graph, for_cloud_api=True)
    values = expression["values"]

    def text(node: dict, depth: int) -> str:
        (kind, content), *_ = node.items()
        pad = "  " * (depth + 1)
        if kind == "valueReference":
            return text(values[content], depth)
        if kind == "argumentReference":
            return "image" if content.startswith("_MAPPING_VAR") else content
        if kind == "constantValue":
            return json.dumps(content)
        if kind == "arrayValue":
            return "[" + "".join(f"\n{pad}{text(item, depth + 1)}," for item in content["values"]) + "]"
        if kind == "dictionaryValue":
            return "{" + "".join(f"\n{pad}{k}: {text(v, depth + 1)}," for k, v in content["values"].items()) + "}"
        if kind == "functionDefinitionValue":
            return f"image -> {text(values[content['body']], depth)}"
        arguments = sorted(content["arguments"].items())
        if all("constantValue" in value or "argumentReference" in value for _, value in arguments):
            return f"{content['functionName']}({', '.join(f'{k}={text(v, depth)}' for k, v in arguments)})"
        lines = "".join(f"\n{pad}{name}={text(value, depth + 1)}," for name, value in arguments)
        return f"{content['functionName']}({lines})"

    return text(values[expression["result"]], 0)


def graphs(name: str) -> str:
    """Listing and pixel graphs of one source, for a fixed chip and two invented scenes."""
    from aef.earthengine import expressions, recipes
    from aef.earthengine.grid import ChipGrid
    from aef.sources import BUILT_IN, VERSION_2_1
    from aef.timecode import parse_period

    source = recipes.in_use(BUILT_IN.extended(VERSION_2_1.values())[name])
    recipe, grid = recipes.recipe_of(source), ChipGrid.around(8.5, 47.1, 128)
    window = None if recipe.listed is None else parse_period("2018-01-01/2019-01-01")
    scenes = [recipes.Scene(source.collections[0], f"scene{n}", 0) for n in (1, 2, 3)]
    # One frame of one scene, and one of two that are merged.
    frames = [
        recipes.Frame((scenes[0],), 0, 1, source.band_names),
        recipes.Frame((scenes[1], scenes[2]), 2, 3, source.band_names),
    ]
    if source.grid == "points":
        shown = [f.__class__(f.scenes, 0, 1, ("rh0", "rh100")) for f in frames]
        answer = readable(expressions.footprints(source, recipe, shown, grid))
    else:
        answer = readable(expressions.pixels(source, recipe, frames))
    return f"# listing\n{readable(expressions.listing(source, recipe, grid, window))}\n\n# pixels\n{answer}\n"


if __name__ == "__main__":
    from ee import apitestcase

    from aef.earthengine.recipes import RECIPES

    apitestcase.ApiTestCase().InitializeApi()
    GOLDEN.mkdir(exist_ok=True)
    for source_name in RECIPES:
        (GOLDEN / f"{source_name}.txt").write_text(graphs(source_name))
