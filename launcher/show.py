"""One picture of a chip: every source over time, masks, weights, labels, texts, and the numbers that tell whether to trust it.

Frames are drawn with one stretch per source; grey is not observed; below each frame, white counts in the loss. The
numbers are printed as well.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from aef.launcher.command import parser, require_number, run


def main(argv: list[str] | None = None) -> int:
    given = _options().parse_args(argv)

    from aef.data.shards import is_chip, split

    require_number("--dpi", given.dpi, 20, 600)
    path = Path(given.chip)
    if not is_chip(path) and path.is_dir():
        raise ValueError(f"{path}: is a folder: name one of its chips, like {path}/NAME.npz")
    packed = split(path)
    folder = packed[0].parent if packed else path.parent
    out = Path(given.out) if given.out else folder / f"{path.stem}.png"
    if out.suffix.lower() != ".png":
        raise ValueError(f"--out {out}: expected the name of a picture, ending in .png")

    import numpy as np

    from aef.data.chip_figure import draw_chip
    from aef.data.chips import read_chip
    from aef.data.source_summary import summarise
    from aef.figure_file import save_png
    from aef.settings_file import registry_of

    registry = registry_of(folder, files=given.sources_file)
    chip = read_chip(path, registry, check_values=True)
    made = ", synthetic" if chip.synthetic else ""
    middle = f"{chip.lon:.5f},{chip.lat:.5f}"  # as --at of other commands takes it
    print(f"{chip.id}: {chip.width} × {chip.height} px around {middle} (lon,lat), place {chip.place}{made}")
    for name, series in chip.sources.items():
        found = summarise(registry[name], series)
        clear = "" if found.clear is None else f", {found.clear:.0%} clear"
        suspicions = f"  ! {', '.join(found.suspicions)}" if found.suspicions else ""
        print(f"{name}: {found.frames} frames, {found.span}, {found.observed:.0%} observed{clear}{suspicions}")
    for name, label in chip.labels.items():
        codes = np.setdiff1d(label.values, label.ignore).tolist()
        print(f"label {name}: {', '.join(label.legend.get(code, str(code)) for code in codes)}")
    figure = draw_chip(chip, registry)
    save_png(out, figure, dpi=given.dpi)
    print(f"wrote {out}")
    return 0


def _options() -> argparse.ArgumentParser:
    options = parser(__file__, __doc__)
    options.add_argument(
        "chip", metavar="CHIP", help="a chip (.npz), which may lie in a shard: PACKED/00000.chips.zip/NAME.npz"
    )
    options.add_argument(
        "--out", metavar="PNG", help="the picture; otherwise CHIP with .png, beside the shard that holds it"
    )
    options.add_argument(
        "--sources-file", nargs="*", default=[], metavar="YAML", help="files with further source entries"
    )
    options.add_argument("--dpi", type=int, default=110, help="resolution of the picture, 20 to 600")
    return options


if __name__ == "__main__":
    raise SystemExit(run(main))
