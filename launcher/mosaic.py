"""Put embedding fields together into one map, without seams where they overlap.

    aef mosaic --fields FIELDS --period 2019-01-01/2020-01-01 --out map.tif

Each pixel has the vector of the field in which it lies farthest from the border, of those that have one there; nothing is
averaged, and int8 codes stay as they are. The fields are of one period, model, support and projection and lie on one
grid. The map is an embedding field itself, which every command takes that takes fields. docs/mapping.md tells how chips
are made that overlap.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from aef.launcher.command import numbers, parser, require_folder_of, run, with_western_longitudes
from aef.progress import Progress


def main(argv: list[str] | None = None) -> int:
    given = _options().parse_args(with_western_longitudes(argv, "--bbox"))

    from aef.figure_file import NO_MATPLOTLIB
    from aef.mapping.field_choice import field_files
    from aef.mapping.mosaic import plan_mosaic, write_mosaic
    from aef.mapping.quicklooks import write_quicklooks

    out = Path(given.out)
    if out.suffix.lower() != ".tif":
        raise ValueError(f"--out {out}: expected a name that ends in .tif")
    if out.absolute().parent.resolve() == Path(given.fields).resolve():
        raise ValueError(f"--out {out}: would be taken for one of the fields next time: name another folder")
    require_folder_of("--out", out)
    box = None
    if given.bbox:
        west, south, east, north = numbers(given.bbox, 4, "--bbox WEST,SOUTH,EAST,NORTH")
        box = (west, south, east, north)
    mosaic = plan_mosaic(field_files(given.fields), period=given.period, crs=given.crs, bbox=box)
    _, height, width = mosaic.shape
    with Progress("mosaic", height, "row") as progress:
        write_mosaic(out, mosaic, on_rows=progress.advance)
    if not given.no_quicklook:
        try:
            write_quicklooks([out])
        except ImportError:
            print(f"no quicklook: {NO_MATPLOTLIB}")
    print(f"{len(mosaic.tiles)} fields in one map of {height:,} x {width:,} px: {out}")
    return 0


def _options() -> argparse.ArgumentParser:
    options = parser(__file__, __doc__)
    options.add_argument("--fields", required=True, metavar="DIR", help="folder of embedding fields (`aef embed`)")
    options.add_argument("--period", metavar="START/END", help="fields of this valid period only")
    options.add_argument(
        "--crs", metavar="EPSG:N", help="fields in this projection only: each UTM zone is a map of its own"
    )
    options.add_argument("--bbox", metavar="WEST,SOUTH,EAST,NORTH", help="only this part (degrees)")
    options.add_argument("--out", required=True, metavar="FILE.tif", help="the map, a cloud-optimised GeoTIFF")
    options.add_argument("--no-quicklook", action="store_true", help="write no PNG picture")
    return options


if __name__ == "__main__":
    raise SystemExit(run(main))
