"""List every source that chips may hold, your own entries included: bands, units, transforms, loss, licence.

The table is Markdown, the one of docs/data.md. A wrong entry is named in one line.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from aef.launcher.command import parser, run
from aef.settings_file import registry_of
from aef.sources_table import sources_table


def main(argv: list[str] | None = None) -> int:
    given = _options().parse_args(argv)
    if given.data and not Path(given.data).is_dir():
        raise ValueError(f"--data {given.data}: expected a folder of chips, found no folder")
    print(sources_table(registry_of(*([given.data] if given.data else []), files=given.sources_file).values()))
    return 0


def _options() -> argparse.ArgumentParser:
    options = parser(__file__, __doc__)
    options.add_argument("--data", metavar="CHIPS", help="folder of chips, for the entries that it carries")
    options.add_argument(
        "--sources-file", nargs="*", default=[], metavar="YAML", help="files with further source entries"
    )
    return options


if __name__ == "__main__":
    raise SystemExit(run(main))
