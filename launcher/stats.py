"""Take normalisation statistics over a folder of chips and write them to CHIPS/stats.json.

Mean and standard deviation of every band after its transform, over clear pixels (observed, weighted by their loss
weight) of the training places. Training makes the file itself where it is absent; embedding reads the run's copy only.
With --chips a random sample stands for all of them: a run accepts it as long as the whole training set is the same.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from aef.data.chips import ChipFolder
from aef.data.statistics import FILE_NAME, Statistics
from aef.data.withheld import MINUTE_MS, WithheldDates
from aef.launcher.command import parser, require_folder_of, require_number, run
from aef.progress import Progress
from aef.settings_file import names_of, registry_of


def main(argv: list[str] | None = None) -> int:
    given = _options().parse_args(argv)

    if given.chips is not None:
        require_number("--chips", given.chips, 1)
    require_number("--workers", given.workers, 0)
    require_number("--twin-minutes", given.twin_minutes, 0)
    registry = registry_of(given.data, files=given.sources_file)
    folder, twin_ms = ChipFolder(given.data, registry), round(given.twin_minutes * MINUTE_MS)
    out = Path(given.out or Path(given.data) / FILE_NAME)
    if not given.dry_run:
        require_folder_of("--out", out)
    folder.build_index(lambda text: print(text, file=sys.stderr, flush=True))
    held_out = set(names_of(given.held_out, "--held-out"))
    count = len(folder.without(held_out))
    withheld = WithheldDates.read(given.withheld, twin_ms=twin_ms) if given.withheld else None
    if withheld is not None and (idle := withheld.describe_unmatched(folder)):
        print(f"{given.withheld}: {idle}", file=sys.stderr, flush=True)
    with Progress("stats", total=min(count, given.chips or count), unit="chip") as progress:
        statistics = Statistics.of_chips(
            folder,
            registry,
            weighting=given.weighting,
            places=set(folder.known_places()) - held_out if held_out else None,
            withheld=withheld,
            skip_bad=given.skip_bad,
            sample=given.chips,
            seed=given.seed,
            workers=given.workers,
            progress=progress.advance,
        )
    print(describe(statistics))
    if not given.dry_run:
        print(f"wrote {statistics.write(out)}")
    return 0


def _options() -> argparse.ArgumentParser:
    options = parser(__file__, __doc__)
    options.add_argument("--data", required=True, metavar="CHIPS", help="folder of chips")
    options.add_argument("--out", metavar="FILE", help=f"where to write; otherwise CHIPS/{FILE_NAME}")
    options.add_argument("--weighting", choices=("clear", "valid"), default="clear", help="pixels that count")
    options.add_argument(
        "--chips", type=int, metavar="N", help="read N chips, drawn at random and spread over places; otherwise all"
    )
    options.add_argument("--seed", type=int, default=0, help="of the draw; it is written down")
    options.add_argument(
        "--workers",
        type=int,
        default=0,
        metavar="N",
        help="processes; 0: this one. The result is the same for any number",
    )
    options.add_argument(
        "--held-out", nargs="*", default=[], metavar="PLACE", help="places to leave out; @FILE: one a line of a file"
    )
    options.add_argument("--withheld", metavar="CSV", help="dates (place, time_utc) to leave out, with their twins")
    options.add_argument(
        "--twin-minutes", type=float, default=60.0, metavar="MIN", help="as the run's data.twin_minutes"
    )
    options.add_argument(
        "--sources-file", nargs="*", default=[], metavar="YAML", help="files with further source entries"
    )
    options.add_argument(
        "--skip-bad", action="store_true", help="count chips that break the contract instead of stopping"
    )
    options.add_argument("--dry-run", action="store_true", help="print the statistics without writing them")
    return options


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
