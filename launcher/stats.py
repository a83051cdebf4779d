"""Take normalisation statistics over a folder of chips and write them to CHIPS/stats.json.

Mean and standard deviation of every band after its transform, over clear pixels (observed, weighted by their loss
weight) of the training places. Training makes the file itself where it is absent; embedding reads the run's copy only.
With --chips a random sample stands for all of them: a run accepts it as long as the whole training set is the same.
"""

from __future__ import annotations

import sys
from pathlib import Path

from aef.data.chips import ChipFolder
from aef.data.statistics import FILE_NAME, Statistics
from aef.data.withheld import MINUTE_MS, WithheldDates
from aef.launcher.command import parser, require_number, run
from aef.progress import Progress
from aef.settings_file import names_of, registry_of


def main(argv: list[str] | None = None) -> int:
    p = parser(__file__, __doc__)
    p.add_argument("--data", required=True, metavar="CHIPS", help="folder of chips")
    p.add_argument("--out", metavar="FILE", help=f"where to write; otherwise CHIPS/{FILE_NAME}")
    p.add_argument("--weighting", choices=("clear", "valid"), default="clear", help="pixels that count")
    p.add_argument(
        "--chips", type=int, metavar="N", help="read N chips, drawn at random and spread over places; otherwise all"
    )
    p.add_argument("--seed", type=int, default=0, help="of the draw; it is written down")
    p.add_argument(
        "--workers", type=int, default=1, metavar="W", help="processes; the result is the same for any number"
    )
    p.add_argument(
        "--held-out", nargs="*", default=[], metavar="PLACE", help="places to leave out; @FILE: one a line of a file"
    )
    p.add_argument("--withheld", metavar="CSV", help="dates (place, time_utc) to leave out, with their twins")
    p.add_argument("--twin-minutes", type=float, default=60.0, metavar="MIN", help="as the run's data.twin_minutes")
    p.add_argument("--sources-file", nargs="*", default=[], metavar="YAML", help="files with further source entries")
    p.add_argument("--skip-bad", action="store_true", help="count chips that break the contract instead of stopping")
    p.add_argument("--dry-run", action="store_true", help="print the statistics without writing them")
    options = p.parse_args(argv)

    for name in ("chips", "workers"):
        if getattr(options, name) is not None:
            require_number(f"--{name}", getattr(options, name), 1)
    registry = registry_of(options.data, files=options.sources_file)
    folder, twin_ms = ChipFolder(options.data, registry), round(options.twin_minutes * MINUTE_MS)
    folder.build_index(lambda text: print(text, file=sys.stderr, flush=True))
    held_out = set(names_of(options.held_out, "--held-out"))
    count = len(folder.without(held_out))
    with Progress("stats", total=min(count, options.chips or count), unit="chip") as progress:
        statistics = Statistics.of_chips(
            folder,
            registry,
            weighting=options.weighting,
            places=set(folder.known_places()) - held_out if held_out else None,
            withheld=WithheldDates.read(options.withheld, twin_ms=twin_ms) if options.withheld else None,
            skip_bad=options.skip_bad,
            sample=options.chips,
            seed=options.seed,
            workers=options.workers,
            progress=progress.advance,
        )
    print(describe(statistics))
    if not options.dry_run:
        print(f"wrote {statistics.write(options.out or Path(options.data) / FILE_NAME)}")
    return 0


def describe(statistics: Statistics) -> str:
    """One line per band, and one for each that no chip observed."""
    over = statistics.taken_over
    drawn = f", {over.sampled} of {over.chips} chips" if over is not None and over.sampled is not None else ""
    lines = [
        f"{len(statistics.places)} places{drawn}, {statistics.weighting} pixels, {statistics.skipped} chips skipped"
    ]
    for name, found in statistics.items():
        lines.append(f"{name} ({', '.join(found.collections) or 'collection not stated'})")
        for band, mean, std, count in zip(found.bands, found.mean, found.std, found.count):
            value = f"mean {mean:.5g}, s.d. {std:.5g}, {count} values" if count else "never observed: left unscaled"
            lines.append(f"  {band}: {value}")
    return "\n".join(lines)


if __name__ == "__main__":
    raise SystemExit(run(main))
