"""Embed chips with a trained model: one field per chip and valid period, as files and quicklooks.

    python launcher/embed.py --checkpoint RUN --data CHIPS --period 2018-01-01/2019-01-01 --out FIELDS

A field is made from all frames of the support of its period: the calendar year that holds it, else a year around its
middle, or what --support names. Periods of one support are served by one pass of the encoder. Where several chips show one
place in different years, each period is embedded from the chip that observed most of it. Pixels that no frame of the
support observed are no data.

Files are named CHIP_START_END and are cloud-optimised GeoTIFFs, or NetCDF; int8 is the published 64-byte code, read back
with aef.mapping.dequantize. Quicklooks share their colours.

Whole fields of this model that are there already are left as they are; a damaged one is made again. A field of another
model, with other sources left out, from another support or in another format stops the command before anything is written.
"""

from __future__ import annotations

import sys
from pathlib import Path

from aef.launcher.command import add_device, load_model, parser, run
from aef.progress import Progress


def main(argv: list[str] | None = None) -> int:
    options = parser(__file__, __doc__)
    options.add_argument("--checkpoint", required=True, metavar="RUN", help="run folder of a trained model")
    options.add_argument("--data", required=True, metavar="CHIPS", help="folder of chips, or one chip")
    options.add_argument(
        "--period", required=True, action="append", metavar="START/END", help="valid period, ISO dates; may be repeated"
    )
    options.add_argument(
        "--support", metavar="START/END", help="embed every period from these frames; default: the year of each period"
    )
    options.add_argument("--out", required=True, metavar="DIR", help="folder for the fields")
    options.add_argument("--format", choices=("int8", "float", "netcdf"), default="int8", help="type of the files")
    options.add_argument("--leave-out", action="append", default=[], metavar="SOURCE", help="input source to ignore")
    options.add_argument(
        "--inpaint", action="store_true", help="infer vectors of unobserved pixels from their surroundings"
    )
    options.add_argument("--no-quicklooks", action="store_true", help="write no PNG pictures")
    options.add_argument(
        "--overwrite", action="store_true", help="make fields again that exist already, whatever made them"
    )
    options.add_argument(
        "--skip-bad", action="store_true", help="name chips and periods that cannot be embedded instead of stopping"
    )
    options.add_argument("--dry-run", action="store_true", help="check chips and periods, say what would be written")
    add_device(options)
    arguments = options.parse_args(argv)

    from aef.data.chips import ChipError, ChipFolder
    from aef.mapping.choice import periods_by_chip, read_times
    from aef.mapping.field import EmbeddingError
    from aef.timecode import parse_period

    periods = [parse_period(text) for text in arguments.period]
    arguments.support = parse_period(arguments.support) if arguments.support else None
    model = load_model(__file__, arguments.checkpoint, arguments.device)
    inputs = model.inputs_without(arguments.leave_out)
    data = Path(arguments.data)
    chips = [
        read_times(path, inputs) for path in ([data] if data.is_file() else ChipFolder(data, model.registry).files)
    ]
    out = Path(arguments.out)
    wanted = periods_by_chip(chips, periods)
    names = {chip.path: _names(chip.path, wanted[chip.path], out, arguments.format) for chip in chips}
    there = _there(model, chips, names, arguments)
    written: list[Path] = []
    skipped: dict[str, list[str]] = {"chip": [], "field": []}
    with Progress("embed", len(chips), "chip") as progress:
        for chip in names:
            missing = {period: path for period, path in names[chip].items() if path not in there}
            try:
                if missing:
                    made = _embed(model, chip, missing, arguments, progress)
                    written += made
                    skipped["field"] += [path.stem for path in missing.values() if path not in made]
            except (ChipError, EmbeddingError) as error:
                if not arguments.skip_bad:
                    raise
                skipped["chip"].append(chip.name)
                print(f"aef embed: skipped {chip.name}: {error}", file=sys.stderr)
            progress.advance(note=chip.stem)
    if not written and not there:
        raise EmbeddingError(f"{data}: no chip can be embedded: all {len(skipped['chip'])} were skipped")
    if not arguments.no_quicklooks and not arguments.dry_run:
        _quicklooks(sorted([*there, *written]))
    done = "would be written" if arguments.dry_run else "written"
    left = "".join(f", {len(found)} {what}s skipped: {', '.join(found)}" for what, found in skipped.items() if found)
    print(f"{len(written)} fields {done} to {out}, {len(there)} were there already{left}")
    return 0


def _names(chip: Path, periods, out: Path, form: str) -> dict:
    """The file of each valid period's field."""
    from aef.mapping.files import SUFFIX

    return {
        period: out / f"{chip.stem}_{str(period).replace('/', '_').replace(':', '')}{SUFFIX[form]}"
        for period in periods
    }


def _there(model, chips, names: dict, arguments) -> set[Path]:
    """The fields that need not be made. Raises OtherFieldError for one of another maker, unless it may be overwritten."""
    from aef.mapping.files import OtherFieldError, is_there

    made_by = model.made_by(arguments.leave_out, arguments.inpaint)
    if arguments.overwrite:
        return set()
    try:
        return {
            path
            for chip in chips
            for period, path in names[chip.path].items()
            if path.exists()
            and is_there(path, arguments.format, made_by, arguments.support or _support(model, chip, period))
        }
    except OtherFieldError as error:
        raise OtherFieldError(f"{error}: choose another --out, or make it again with --overwrite") from None


def _support(model, chip, period):
    """The support of a period, from the times of a chip; None where it has none, which embedding it will say."""
    from aef.mapping.field import EmbeddingError
    from aef.mapping.support import support_at

    try:
        return support_at(period, chip.span, model.support_ms, chip.path.stem) if chip.span else None
    except EmbeddingError:
        return None


def _embed(model, path: Path, missing: dict, arguments, progress: Progress) -> list[Path]:
    """Write the missing fields of one chip, or in a dry run say so; gives those that could be made."""
    from aef.mapping.field import EmbeddingError
    from aef.mapping.write import embed_to_files

    chip = model.read(path)
    options = {"leave_out": arguments.leave_out, "support": arguments.support}
    if arguments.skip_bad:
        reasons = {}
        for period in missing:
            try:
                model.passes(chip, [period], **options)
            except EmbeddingError as error:
                reasons[period] = error
        if len(reasons) == len(missing):
            raise next(iter(reasons.values()))
        for reason in reasons.values():
            print(f"aef embed: skipped a field: {reason}", file=sys.stderr)
        missing = {period: file for period, file in missing.items() if period not in reasons}
    if arguments.dry_run:
        model.warn(chip, model.passes(chip, list(missing), **options), arguments.leave_out, named=arguments.support)
        for file in missing.values():
            print(f"would write {file}")
        return list(missing.values())

    def tell(done: int, total: int) -> None:
        if done < total:
            progress.advance(0, note=f"{path.stem}: {done} of {total} windows")

    embed_to_files(
        model, chip, missing, arguments.format, inpaint=arguments.inpaint, on_windows=tell, **options
    )  # fmt: skip
    return list(missing.values())


def _quicklooks(paths: list[Path]) -> None:
    """One PNG beside each field, with colours shared by all of them."""
    import matplotlib.image

    from aef.atomic import writing
    from aef.mapping.files import preview
    from aef.mapping.picture import pca_rgb

    for path, picture in zip(paths, pca_rgb([preview(path) for path in paths])):
        scale = max(1, 512 // max(picture.shape[:2]))
        with writing(path.with_suffix(".png")) as stream:
            matplotlib.image.imsave(stream, picture.repeat(scale, 0).repeat(scale, 1), format="png")  # type: ignore[arg-type]


if __name__ == "__main__":
    raise SystemExit(run(main))
