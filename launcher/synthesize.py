"""Make chips of a synthetic Earth, with labels, for those without data and for measuring what is learned.

Nine sources are rendered from one landscape per place; the same seed gives the same chips, whatever the number of
workers. docs/synthetic.md says what is in them. Interrupted, the same command goes on after the chips that are there.
"""

from __future__ import annotations

import os

from aef.launcher.command import Progress, add_compression, parser, run


def main(argv: list[str] | None = None) -> int:
    # Read when NumPy is first imported: places are rendered in parallel, so a matrix product needs one thread only.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    from aef.data.synthetic import FIRST_YEAR, SOURCES, Earth, write_earth

    p = parser(__file__, __doc__)
    p.add_argument("--out", required=True, metavar="CHIPS", help="folder for the chips")
    p.add_argument("--places", required=True, type=int, metavar="N", help="number of places, one chip each")
    p.add_argument("--chip-px", type=int, default=64, metavar="PX", help="side of a chip in pixels of 10 m")
    p.add_argument("--years", type=int, default=1, metavar="Y", help="calendar years of observations")
    p.add_argument("--first-year", type=int, default=FIRST_YEAR, metavar="Y", help="the first of them")
    p.add_argument("--seed", type=int, default=0, metavar="N", help="another seed is another Earth")
    p.add_argument(
        "--sources", nargs="+", default=list(SOURCES), metavar="NAME", help="sources to render; otherwise all"
    )
    p.add_argument("--workers", type=int, default=0, metavar="N", help="processes; 0: this one")
    add_compression(p, default=False)
    p.add_argument("--overwrite", action="store_true", help="write chips again that the folder holds; texts are lost")
    p.add_argument("--dry-run", action="store_true", help="say what would be made, write nothing")
    options = p.parse_args(argv)

    earth = Earth(options.seed, options.chip_px, options.years, tuple(options.sources), options.first_year)
    if options.dry_run:
        print(f"{options.places} chips of {options.chip_px} px and {options.years} years: {', '.join(options.sources)}")
        return 0
    with Progress("synthesize", total=options.places, unit="chip") as progress:
        for path in write_earth(
            earth,
            options.out,
            options.places,
            workers=options.workers,
            compress=options.compress,
            overwrite=options.overwrite,
        ):
            progress.advance(note=path.name)
    return 0


if __name__ == "__main__":
    raise SystemExit(run(main))
