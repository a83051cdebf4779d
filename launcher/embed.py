"""Embed chips with a trained model: one field per chip and valid period, as files and quicklooks.

    python launcher/embed.py --checkpoint RUN --data CHIPS --period 2018-01-01/2019-01-01 --out FIELDS

Several --period options are served by one pass of the encoder where they fit into one support of a year. Every frame of
the support is encoded. Files are named CHIP_START_END; int8 is the published 64-byte code, read back with
aef.mapping.dequantize. Quicklooks share their colours.
"""

from __future__ import annotations

from pathlib import Path

from aef.launcher.command import Progress, parser, run


def main(argv: list[str] | None = None) -> int:
    options = parser(__file__, __doc__)
    options.add_argument("--checkpoint", required=True, metavar="RUN", help="run folder of a trained model")
    options.add_argument("--data", required=True, metavar="CHIPS", help="folder of chips, or one chip")
    options.add_argument(
        "--period", required=True, action="append", metavar="START/END", help="valid period, ISO dates; may be repeated"
    )
    options.add_argument("--out", required=True, metavar="DIR", help="folder for the fields")
    options.add_argument("--format", choices=("int8", "float", "netcdf"), default="int8", help="type of the files")
    options.add_argument("--leave-out", action="append", default=[], metavar="SOURCE", help="input source to ignore")
    options.add_argument("--no-quicklooks", action="store_true", help="write no PNG pictures")
    options.add_argument("--overwrite", action="store_true", help="replace fields that exist already")
    options.add_argument("--dry-run", action="store_true", help="say what would be written")
    arguments = options.parse_args(argv)

    import aef
    from aef.data.chips import ChipFolder
    from aef.mapping.files import SUFFIX, write_field
    from aef.timecode import parse_period

    periods = [parse_period(text) for text in arguments.period]
    model = aef.load(arguments.checkpoint)
    data = Path(arguments.data)
    chips = [data] if data.is_file() else ChipFolder(data, model.registry).files
    out = Path(arguments.out)
    suffix = SUFFIX[arguments.format]
    names = {
        (chip, period): out / f"{chip.stem}_{str(period).replace('/', '_').replace(':', '')}{suffix}"
        for chip in chips
        for period in periods
    }
    if arguments.dry_run:
        for path in names.values():
            print(f"would write {path}")
        return 0
    out.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    with Progress("embed", len(chips), "chip") as progress:
        for chip in chips:
            wanted = [p for p in periods if arguments.overwrite or not names[chip, p].exists()]
            if wanted:
                fields = model.embed(chip, wanted, leave_out=arguments.leave_out)
                for period in wanted:
                    field = fields.sel(period=str(period), drop=True)
                    field.attrs["period"] = str(period)
                    written.append(write_field(names[chip, period], field, arguments.format))
            progress.advance(note=chip.stem)
    if not arguments.no_quicklooks:
        _quicklooks(list(names.values()))
    print(f"{len(written)} fields written to {out}, {len(names) - len(written)} were there already")
    return 0


def _quicklooks(paths: list[Path]) -> None:
    """One PNG beside each field, with colours shared by all of them."""
    import matplotlib.image

    from aef.mapping.files import read_field
    from aef.mapping.picture import pca_rgb

    for path, picture in zip(paths, pca_rgb([read_field(path).values for path in paths])):
        scale = max(1, 512 // max(picture.shape[:2]))
        matplotlib.image.imsave(path.with_suffix(".png"), picture.repeat(scale, 0).repeat(scale, 1))


if __name__ == "__main__":
    raise SystemExit(run(main))
