"""Pack a folder of chips into shards, large ZIP archives of many chips each: a folder of millions becomes thousands of files.

    aef pack --data CHIPS --out PACKED
    aef train --data PACKED …                # every command that reads chips reads shards
    unzip 'PACKED/*.chips.zip' -d CHIPS      # and back

The chips are copied byte for byte, in their order, with CHIPS/stats.json and CHIPS/sources.yaml; CHIPS is left as it is.
A run may go on with the packed copy. Shards are only read: attach texts (`aef text`) before packing.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from aef.data.chips import ChipFolder
from aef.launcher.command import parser, require_number, run
from aef.progress import Progress
from aef.settings_file import registry_of


def main(argv: list[str] | None = None) -> int:
    given = _options().parse_args(argv)
    require_number("--shard-mb", given.shard_mb, 1)

    from aef.data.shard_writer import pack, plan_shards

    folder, out = ChipFolder(given.data, registry_of(given.data)), Path(given.out)
    shard_bytes = round(given.shard_mb * 2**20)
    if given.dry_run:
        print(f"{len(folder)} chips: {len(plan_shards(folder, out, shard_bytes))} shards in {out}")
        return 0
    folder.build_index(lambda text: print(text, file=sys.stderr, flush=True))
    with Progress("pack", total=len(folder), unit="chip") as progress:
        written = pack(folder, out, shard_bytes, overwrite=given.overwrite, on_chip=progress.advance)
    print(f"{len(folder)} chips in {out}: {len(written)} shards written")
    return 0


def _options() -> argparse.ArgumentParser:
    options = parser(__file__, __doc__)
    options.add_argument("--data", required=True, metavar="CHIPS", help="folder of chips, packed or not")
    options.add_argument("--out", required=True, metavar="PACKED", help="folder for the shards; whole ones are kept")
    options.add_argument(
        "--shard-mb", type=float, default=1024, metavar="MB", help="most megabytes (2^20 B) of a shard"
    )
    options.add_argument("--overwrite", action="store_true", help="replace shards of other chips that the folder holds")
    options.add_argument("--dry-run", action="store_true", help="say what would be written, write nothing")
    return options


if __name__ == "__main__":
    raise SystemExit(run(main))
