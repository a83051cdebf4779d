"""One picture of a chip: every source over time, masks, weights, labels, texts, and the numbers that tell whether to trust it.

Frames are drawn with one stretch per source; grey is not observed; below each frame, white counts in the loss. The
numbers are printed as well.
"""

from __future__ import annotations

from pathlib import Path

from aef.launcher.command import parser, run


def main(argv: list[str] | None = None) -> int:
    p = parser(__file__, __doc__)
    p.add_argument("chip", metavar="CHIP", help="a chip (.npz)")
    p.add_argument("--out", metavar="PNG", help="where to write the picture; otherwise CHIP with .png")
    p.add_argument("--sources-file", nargs="*", default=[], metavar="YAML", help="files with further source entries")
    p.add_argument("--dpi", type=int, default=110, help="resolution of the picture")
    options = p.parse_args(argv)

    out = Path(options.out) if options.out else Path(options.chip).with_suffix(".png")
    if out.suffix.lower() != ".png":
        raise ValueError(f"--out {out}: expected the name of a picture, ending in .png")

    from aef.data.chip_figure import draw_chip
    from aef.data.chips import read_chip
    from aef.data.source_summary import summarise
    from aef.figure_file import save_png
    from aef.settings_file import registry_of

    path = Path(options.chip)
    registry = registry_of(path.parent, files=options.sources_file)
    chip = read_chip(path, registry, check_values=True)
    for name, series in chip.sources.items():
        found = summarise(registry[name], series)
        clear = "" if found.clear is None else f", {found.clear:.0%} clear"
        suspicions = f"  ! {', '.join(found.suspicions)}" if found.suspicions else ""
        print(f"{name}: {found.frames} frames, {found.span}, {found.observed:.0%} observed{clear}{suspicions}")
    figure = draw_chip(chip, registry)
    save_png(out, figure, dpi=options.dpi)
    print(f"wrote {out}")
    return 0


if __name__ == "__main__":
    raise SystemExit(run(main))
