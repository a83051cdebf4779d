"""Embed chips with a trained model: one field per chip and valid period, as files and quicklooks.

    python launcher/embed.py --checkpoint RUN --data CHIPS --period 2018-01-01/2019-01-01 --out FIELDS

Several --period options are served by one pass of the encoder where they fit into one support of a year. Every frame of
the support is encoded. Files are named CHIP_START_END; int8 is the published 64-byte code, read back with
aef.mapping.dequantize. Quicklooks share their colours.

Whole fields of this model that are there already are left as they are; a damaged one is made again. A field of another
model, with other sources left out or in another format stops the command before anything is written.
"""

from __future__ import annotations

import sys
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
    options.add_argument(
        "--overwrite", action="store_true", help="make fields again that exist already, whatever made them"
    )
    options.add_argument(
        "--skip-bad", action="store_true", help="name chips that cannot be embedded instead of stopping at the first"
    )
    options.add_argument("--dry-run", action="store_true", help="check chips and periods, say what would be written")
    arguments = options.parse_args(argv)

    import aef
    from aef.data.chips import ChipError, ChipFolder
    from aef.mapping.field import EmbeddingError
    from aef.timecode import parse_period

    periods = [parse_period(text) for text in arguments.period]
    model = aef.load(arguments.checkpoint)
    data = Path(arguments.data)
    chips = [data] if data.is_file() else ChipFolder(data, model.registry).files
    out = Path(arguments.out)
    names = {chip: _names(chip, periods, out, arguments.format) for chip in chips}
    there = _there(names, model.made_by(arguments.leave_out), arguments)
    written: list[Path] = []
    skipped: list[str] = []
    with Progress("embed", len(chips), "chip") as progress:
        for chip in chips:
            missing = {period: path for period, path in names[chip].items() if path not in there}
            try:
                if missing:
                    _embed(model, chip, missing, arguments)
                    written += missing.values()
            except (ChipError, EmbeddingError) as error:
                if not arguments.skip_bad:
                    raise
                skipped.append(chip.name)
                print(f"aef embed: skipped {chip.name}: {error}", file=sys.stderr)
            progress.advance(note=chip.stem)
    if not written and not there:
        raise EmbeddingError(f"{data}: no chip can be embedded: all {len(skipped)} were skipped")
    if not arguments.no_quicklooks and not arguments.dry_run:
        _quicklooks(sorted([*there, *written]))
    done = "would be written" if arguments.dry_run else "written"
    left = f", {len(skipped)} chips skipped: {', '.join(skipped)}" if skipped else ""
    print(f"{len(written)} fields {done} to {out}, {len(there)} were there already{left}")
    return 0


def _names(chip: Path, periods, out: Path, form: str) -> dict:
    """The file of each valid period's field."""
    from aef.mapping.files import SUFFIX

    return {
        period: out / f"{chip.stem}_{str(period).replace('/', '_').replace(':', '')}{SUFFIX[form]}"
        for period in periods
    }


def _there(names: dict, made_by, arguments) -> set[Path]:
    """The fields that need not be made. Raises OtherFieldError for one of another maker, unless it may be overwritten."""
    from aef.mapping.files import OtherFieldError, is_there

    if arguments.overwrite:
        return set()
    paths = (path for of_chip in names.values() for path in of_chip.values())
    try:
        return {path for path in paths if is_there(path, arguments.format, made_by)}
    except OtherFieldError as error:
        raise OtherFieldError(f"{error}: choose another --out, or make it again with --overwrite") from None


def _embed(model, chip: Path, missing: dict, arguments) -> None:
    """Write the missing fields of one chip; in a dry run only check that they could be made, and say so."""
    from aef.mapping.field import warn_of_long
    from aef.mapping.files import write_field

    periods = list(missing)
    if arguments.dry_run:
        for period in periods:
            warn_of_long(period, model.support_ms)
        model.supports(model.read(chip), periods, arguments.leave_out)
        for path in missing.values():
            print(f"would write {path}")
        return
    fields = model.embed(chip, periods, leave_out=arguments.leave_out)
    for period, path in missing.items():
        field = fields.sel(period=str(period), drop=True)
        field.attrs["period"] = str(period)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_field(path, field, arguments.format)


def _quicklooks(paths: list[Path]) -> None:
    """One PNG beside each field, with colours shared by all of them."""
    import matplotlib.image

    from aef.atomic import writing
    from aef.mapping.files import read_field
    from aef.mapping.picture import pca_rgb

    for path, picture in zip(paths, pca_rgb([read_field(path).values for path in paths])):
        scale = max(1, 512 // max(picture.shape[:2]))
        with writing(path.with_suffix(".png")) as stream:
            matplotlib.image.imsave(stream, picture.repeat(scale, 0).repeat(scale, 1), format="png")  # type: ignore[arg-type]


if __name__ == "__main__":
    raise SystemExit(run(main))
