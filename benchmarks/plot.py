"""Plots of a GPU run, drawn without a GPU: python -m benchmarks.plot CSV

One panel for each operator and shape: microseconds of forward and backward together (of forward, where that is all),
each contender a bar, ours marked, and the floor of the roofline. Writes a PNG file beside the CSV.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from aef.figure_file import new_figure, save_png
from benchmarks.sheet import Row, read_rows

COLUMNS, PANEL_INCHES = 4, (4.6, 2.6)
OURS, STOCK = "#1f6f8b", "#b8b8b8"


def panels(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Rows by operator and shape, the fastest first."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(f"{row.operator} {row.shape}", []).append(row)
    for title, group in found.items():
        mode = "both" if any(row.mode == "both" for row in group) else "forward"
        found[title] = sorted((row for row in group if row.mode == mode), key=lambda row: row.us)
    return found


def draw(rows: Sequence[Row], path: Path) -> None:
    """All panels in one figure."""
    shown = panels(rows)
    lines = -(-len(shown) // COLUMNS)
    width, height = PANEL_INCHES
    figure = new_figure(width * COLUMNS, height * lines, layout=None)
    axes = figure.subplots(lines, COLUMNS, squeeze=False)
    for axis in axes.flat[len(shown) :]:
        axis.set_axis_off()
    for axis, (title, group) in zip(axes.flat, shown.items()):
        colours = [OURS if row.contender.startswith("ours") else STOCK for row in group]
        axis.barh([row.contender for row in group], [row.us for row in group], color=colours)
        axis.invert_yaxis()
        if group[0].floor_share:
            axis.axvline(group[0].floor_share * group[0].us, color="black", linestyle=":", linewidth=1)
        axis.set_title(title, fontsize=7)
        axis.set_xlabel(f"µs, {group[0].mode}", fontsize=7)
        axis.tick_params(labelsize=6)
    first = rows[0]
    figure.suptitle(f"{first.gpu}, torch {first.torch}, Triton {first.triton}, commit {first.commit}, {first.date}")
    figure.tight_layout(rect=(0, 0, 1, 0.99))
    save_png(path, figure)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("csv", type=Path, help="results of benchmarks.gpu")
    options = parser.parse_args(argv)
    try:
        rows = read_rows(options.csv)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    path = options.csv.with_suffix(".png")
    draw(rows, path)
    print(f"{len(panels(rows))} panels in {path}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
