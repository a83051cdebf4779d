"""From a GPU run to what dispatch chooses on that GPU: python -m benchmarks.adopt CSV [CSV …]

Reads results of `python -m benchmarks.gpu` under benchmarks/results and writes kernels/configs/GPU.json: for each operator and
size of which at least two back ends were measured, forward and backward together, an entry for the fastest, "measured", whose
`why` begins with the results file and gives the ratio. Of several cases that decide the same, the one that was measured first
decides: the most valuable. An entry reaches from the next smaller number of frames of a case to its own, measured or not, and
of packed frames the largest to all above, which only make more tiles of the same kind: what a run that was cut off did not
measure stays predicted. Tile settings are those that were measured, of the GPU's table. Nothing else of the tables changes.
Needs no GPU.
"""

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aef.kernels import tuning
from benchmarks.cases import cases
from benchmarks.cases.case import Decision
from benchmarks.sheet import Row, read_rows

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
FRAMES = ("max_frames", "frames")
"""Sizes by which entries are intervals, a segment's frames and all of a batch's; of others they hold for the one that
was measured."""
MOST_FRAMES = 1_000_000
"""Where an interval without an end ends."""


@dataclass(frozen=True)
class Measured:
    """What a case of a run decides: the fastest row, the next one, and the file of both."""

    decision: Decision
    winner: Row
    other: Row
    source: str

    @property
    def key(self) -> tuple:
        """What one entry speaks of."""
        return (*family_of(self.decision), self.winner.dtype, frames_of(self.decision))

    @property
    def ratio(self) -> float:
        return time_of(self.other, self.winner) / time_of(self.winner, self.other)


def frames_of(decision: Decision) -> int:
    """The number of frames that a case stands for, 0 where that decides nothing."""
    return next((decision.sizes[one] for one in FRAMES if one in decision.sizes), 0)


def family_of(decision: Decision) -> tuple:
    """What must be equal for one entry to end where the next begins."""
    return (decision.operator, *sorted((name, size) for name, size in decision.sizes.items() if name not in FRAMES))


def time_of(row: Row, beside: Row) -> float:
    """µs by which two rows can be compared: of graphs where both have one."""
    return row.us if row.graph_us and beside.graph_us else row.median_us


def decisions(path: Path) -> Iterator[Measured | str]:
    """What a results file decides, and in words what it does not."""
    known = {case.name: case.decision for case in cases("large")}
    found: dict[str, list[Row]] = {}
    for row in read_rows(path):
        if row.mode == "both" and row.backend:
            found.setdefault(f"{row.operator} {row.shape}", []).append(row)
    for name, rows in found.items():
        best = rows[0]
        for row in rows[1:]:
            best = row if time_of(row, best) < time_of(best, row) else best
        others = [row for row in rows if row.backend != best.backend]
        if name not in known:
            yield f"{name}: no such case any more"
        elif not others:
            yield f"{name}: no other back end than {best.backend} was measured"
        else:
            other = min(others, key=lambda row: time_of(row, best))
            yield Measured(known[name], best, other, path.resolve().relative_to(ROOT).as_posix())


def entries(measured: list[Measured], gpu: str) -> Iterator[dict[str, Any]]:
    """Entries of the GPU's table, as JSON holds them."""
    stands: dict[tuple, set[int]] = {}
    for case in cases("large"):
        stands.setdefault(family_of(case.decision), set()).add(frames_of(case.decision))
    first = {one.key: one for one in reversed(measured)}
    for one in (first[key] for key in sorted(first, key=lambda key: (str(key[:-1]), key[-1]))):
        frames, others = frames_of(one.decision), stands[family_of(one.decision)]
        begin = max((other for other in others if other < frames), default=0) + 1
        sizes = {name: [size, size] for name, size in one.decision.sizes.items()}
        if "max_frames" in sizes:
            sizes["max_frames"] = [begin, frames]
        if "frames" in sizes:
            sizes["frames"] = [begin, MOST_FRAMES if frames == max(others) else frames]
        entry = {
            "operator": one.decision.operator,
            "backend": one.winner.backend,
            "basis": "measured",
            "why": f"{one.source}: {one.ratio:.2f} times as fast as {one.other.backend} at {one.winner.shape}",
            "dtypes": [one.winner.dtype],
            "sizes": sizes,
        }
        config = _config(one, gpu)
        yield entry | ({"config": config} if config else {})


def _config(one: Measured, gpu: str) -> dict[str, Any]:
    """The tile settings by which the winner ran."""
    operator, dtype = one.decision.operator, one.winner.dtype
    matching = (e for e in tuning.table(gpu) if e.matches(operator, dtype, one.decision.sizes))
    return dict(next((entry.config for entry in matching if entry.backend == one.winner.backend), {}))


def write(found: list[dict[str, Any]], gpu: str) -> Path:
    """Put entries first in the GPU's own table; those that they replace go."""
    path, kept = tuning.FOLDER / f"{tuning.slug(gpu)}.json", []
    if path.exists():
        key = ("operator", "dtypes", "sizes")
        replaced = [[one.get(name) for name in key] for one in found]
        before = json.loads(path.read_text(encoding="utf-8"))["entries"]
        kept = [one for one in before if [one.get(name) for name in key] not in replaced]
    lines = ",\n".join(f"    {json.dumps(one, ensure_ascii=False)}" for one in [*found, *kept])
    path.write_text(f'{{\n  "entries": [\n{lines}\n  ]\n}}\n', encoding="utf-8")
    tuning.table.cache_clear()
    return path


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "csv", type=Path, nargs="+", help="results of benchmarks.gpu, of one GPU, under benchmarks/results"
    )
    options = parser.parse_args(argv)
    measured: list[Measured] = []
    for path in options.csv:
        if not path.resolve().is_relative_to(RESULTS):
            parser.error(f"{path}: expected a file under {RESULTS}, which the table can name as its source")
        try:
            for one in decisions(path):
                if isinstance(one, str):
                    print(one)
                else:
                    measured.append(one)
        except (OSError, ValueError) as error:
            parser.error(str(error))
    gpus = {one.winner.gpu for one in measured}
    if len(gpus) != 1:
        parser.error(f"expected measurements of two back ends on one GPU, found {', '.join(sorted(gpus)) or 'none'}")
    (gpu,) = gpus
    found = list(entries(measured, gpu))
    path = write(found, gpu)
    for entry in found:
        print(f"{entry['operator']} {entry['sizes']}: {entry['backend']}, {entry['why']}")
    print(f"{len(found)} entries in {path}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
