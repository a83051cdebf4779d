"""Make chips of a synthetic Earth, with labels, for those without data and for measuring what is learned.

Nine sources are rendered from one landscape per place; the same seed gives the same chips, whatever the number of
workers. docs/synthetic.md says what is in them. Interrupted, the same command goes on after the chips that are there.
"""

from __future__ import annotations

import argparse
import os

from aef.launcher.command import add_compression, parser, run
from aef.progress import Progress


def main(argv: list[str] | None = None) -> int:
    # Read when NumPy is first imported: places are rendered in parallel, so a matrix product needs one thread only.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    from aef.data.synthetic import Earth, require_counts, write_earth

    given = _options().parse_args(argv)
    earth = Earth(given.seed, given.chip_px, given.years, tuple(given.sources), given.first_year)
    require_counts(given.places, given.workers)
    if given.dry_run:
        print(f"{given.places} chips of {given.chip_px} px and {given.years} years: {', '.join(given.sources)}")
        return 0
    with Progress("synthesize", total=given.places, unit="chip") as progress:
        for path in write_earth(
            earth,
            given.out,
            given.places,
            workers=given.workers,
            compress=given.compress,
            overwrite=given.overwrite,
        ):
            progress.advance(note=path.name)
    return 0


def _options() -> argparse.ArgumentParser:
    from aef.data.synthetic import FIRST_YEAR, SOURCES

    options = parser(__file__, __doc__)
    options.add_argument("--out", required=True, metavar="CHIPS", help="folder for the chips")
    options.add_argument("--places", required=True, type=int, metavar="N", help="number of places, one chip each")
    options.add_argument("--chip-px", type=int, default=64, metavar="PX", help="side of a chip in pixels of 10 m")
    options.add_argument("--years", type=int, default=1, metavar="Y", help="calendar years of observations")
    options.add_argument("--first-year", type=int, default=FIRST_YEAR, metavar="Y", help="the first of them")
    options.add_argument("--seed", type=int, default=0, metavar="N", help="another seed is another Earth")
    options.add_argument(
        "--sources", nargs="+", default=list(SOURCES), metavar="NAME", help="sources to render; otherwise all"
    )
    options.add_argument("--workers", type=int, default=0, metavar="N", help="processes; 0: this one")
    add_compression(options, default=False)
    options.add_argument(
        "--overwrite", action="store_true", help="write chips again that the folder holds; texts are lost"
    )
    options.add_argument("--dry-run", action="store_true", help="say what would be made, write nothing")
    return options


if __name__ == "__main__":
    raise SystemExit(run(main))
