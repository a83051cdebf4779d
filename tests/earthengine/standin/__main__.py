"""python tests/earthengine/standin [--port N] [--gap-days N] [--latency S] [--canned] [--faults JSON] [--key FOLDER]

Prints its URL on the first line, then serves until its standard input is closed.
"""

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from standin.server import Faults, Standin, key_file
from standin.world import World


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--gap-days", type=int, default=61)
    parser.add_argument("--latency", type=float, default=0.0)
    parser.add_argument("--canned", action="store_true")
    parser.add_argument("--faults", default="{}")
    parser.add_argument("--key", type=Path, help="write a service account key into this folder")
    options = parser.parse_args()
    faults = Faults(**json.loads(options.faults))
    faults.latency_s = options.latency
    with Standin(World(gap_days=options.gap_days), faults, canned=options.canned, port=options.port) as server:
        if options.key:
            key_file(options.key, server.url)
        print(server.url, flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main()
