"""Choose dates to keep from training, so that a run can be judged on them, and write them as the list that data.withheld names.

    aef withhold --data CHIPS --out dates.csv
    aef train --data CHIPS --out RUN data.withheld=dates.csv

Of each place, every fifth frame of its first input source, in the order of `aef sources`, that is more than half clear;
`--source` names other ones: your own optical source beside Sentinel-1. A date is withheld from every chip of its place,
with all frames of the source within an hour; other sources' frames of the same minute are listed with it. The list is an ordinary CSV: add, change or delete rows.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from aef.data.chips import Chip, ChipFolder
from aef.launcher.command import parser, require_folder_of, require_number, run
from aef.progress import Progress
from aef.settings_file import names_of, registry_of


def main(argv: list[str] | None = None) -> int:
    given = _options().parse_args(argv)
    require_number("--every", given.every, 2)
    if given.most_places is not None:
        require_number("--most-places", given.most_places, 1)

    from aef.evaluation.reconstruction import choose_dates, write_dates

    out = Path(given.out)
    if out.exists():
        raise ValueError(f"--out {out}: is there already, and runs may depend on it: choose another name")
    require_folder_of("--out", out)
    registry = registry_of(given.data, files=given.sources_file)
    for name in given.source:
        if registry[name].role != "input":
            raise ValueError(f"--source {name}: expected an input source, found a target")
    folder = ChipFolder(given.data, registry)
    first: dict[str, int] = {}
    for index in folder.without(names_of(given.held_out, "--held-out")):
        first.setdefault(folder.places()[index] or "", index)
    indices = list(first.values())
    if given.most_places is not None:
        count = min(given.most_places, len(indices))
        indices = [indices[number * len(indices) // count] for number in range(count)]
    with Progress("withhold", total=len(indices), unit="place") as progress:

        def chips() -> Iterator[Chip]:
            for index in indices:
                yield folder.read(index)
                progress.advance()

        rows = choose_dates(chips(), registry, every=given.every, sources=given.source)
    if not rows:
        raise ValueError(
            f"{given.data}: no frame of {', '.join(given.source) or 'an input source'} is more than half clear: nothing to withhold"
        )
    write_dates(out, rows)
    counts = Counter(source for _, source, _ in rows)
    of = ", ".join(f"{name} {count}" for name, count in counts.items())
    print(f"{len(rows)} frames of {len({place for place, *_ in rows})} places: {out} ({of})")
    return 0


def _options() -> argparse.ArgumentParser:
    options = parser(__file__, __doc__)
    options.add_argument("--data", required=True, metavar="CHIPS", help="folder of chips")
    options.add_argument("--out", required=True, metavar="CSV", help="the list; an existing one is kept, and refused")
    options.add_argument(
        "--source",
        nargs="+",
        default=[],
        metavar="NAME",
        help="input sources whose frames are chosen; else a place's first",
    )
    options.add_argument("--every", type=int, default=5, metavar="N", help="one of N clear frames of a place")
    options.add_argument("--most-places", type=int, metavar="N", help="choose at most N, spread over the folder")
    options.add_argument(
        "--held-out",
        nargs="*",
        default=[],
        metavar="PLACE",
        help="places that are not trained on; @FILE: one a line of a file",
    )
    options.add_argument(
        "--sources-file", nargs="*", default=[], metavar="YAML", help="files with further source entries"
    )
    return options


if __name__ == "__main__":
    raise SystemExit(run(main))
