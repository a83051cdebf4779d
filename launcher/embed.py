"""Embed chips with a trained model: one field per chip and valid period, as files and quicklooks.

    aef embed --checkpoint RUN --data CHIPS --period 2018-01-01/2019-01-01 --out FIELDS

A field is made from all frames of the support of its period: the calendar year that holds it, else a year around its
middle, or what --support names. Periods of one support are served by one pass of the encoder. Where several chips show
one place in different years, each period is embedded from the chip that observed most of it. Pixels that no frame of
the support observed are no data.

Files are named CHIP_START_END and are cloud-optimised GeoTIFFs, or NetCDF; int8 is the published 64-byte code, read
back with aef.mapping.dequantize. Quicklooks share their colours.

Whole fields of this model that are there already are left as they are; a damaged one is made again. A field of another
model, with other sources left out, from another support or in another format stops the command before anything is
written.

A large folder is shared by N processes, on one machine or on many, that write into one --out: each says --part K/N, or
--part auto under torchrun. They draw no quicklooks; the same command without --part does, and makes what is missing.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from aef.launcher.command import add_device, device_of_rank, load_model, parser, run
from aef.progress import Progress

if TYPE_CHECKING:
    from aef.data.chips import ChipFolder
    from aef.part import Part


def main(argv: list[str] | None = None) -> int:
    given = _options().parse_args(argv)

    from aef.data.chips import ChipFolder
    from aef.data.shards import is_chip
    from aef.figure_file import NO_MATPLOTLIB
    from aef.mapping.chip_choice import periods_by_chip, times_of
    from aef.mapping.errors import EmbeddingError
    from aef.mapping.quicklooks import write_quicklooks
    from aef.part import WHOLE
    from aef.timecode import parse_period

    periods = [parse_period(text) for text in given.period]
    given.support = parse_period(given.support) if given.support else None
    if given.only and is_chip(Path(given.data)):
        raise ValueError(f"--only: chooses places of a folder, but --data {given.data} is one chip")
    part = _part(given)
    model = load_model(__file__, given.checkpoint, given.device)
    inputs = model.inputs_without(given.leave_out)
    data, out = Path(given.data), Path(given.out)
    files = [data] if is_chip(data) else _files(ChipFolder(data, model.registry), given.only)
    own = files[part.number - 1 :: part.total]
    chips = times_of(own, files, inputs)
    wanted = periods_by_chip(chips, periods)
    names = {path: _names(path, wanted[path], out, given.format) for path in own}
    there = _there(model, [chip for chip in chips if chip.path in names], names, given)
    title = "embed" if part == WHOLE else f"embed {part}"
    with Progress(title, len(own), "chip", alone=part == WHOLE) as progress:
        written, skipped = _embed_all(model, names, there, given, progress)
    if part == WHOLE and not written and not there:
        raise EmbeddingError(f"{data}: no chip can be embedded: all {len(skipped['chip'])} were skipped")
    if part == WHOLE and not given.no_quicklooks and not given.dry_run:
        try:
            write_quicklooks(sorted([*there, *written]))
        except ImportError:
            print(f"no quicklooks: {NO_MATPLOTLIB}")
    done = "would be written" if given.dry_run else "written"
    left = "".join(f", {len(found)} {what}s skipped: {', '.join(found)}" for what, found in skipped.items() if found)
    whose = "" if part == WHOLE else f"part {part}, {len(own)} of {len(files)} chips: "
    print(f"{whose}{len(written)} fields {done} to {out}, {len(there)} were there already{left}")
    return 0


def _options() -> argparse.ArgumentParser:
    options = parser(__file__, __doc__)
    options.add_argument("--checkpoint", required=True, metavar="RUN", help="run folder of a trained model")
    options.add_argument("--data", required=True, metavar="CHIPS", help="folder of chips, or one chip, packed or not")
    options.add_argument(
        "--period", required=True, action="append", metavar="START/END", help="valid period, ISO dates; may be repeated"
    )
    options.add_argument(
        "--support", metavar="START/END", help="embed every period from these frames; default: the year of each period"
    )
    options.add_argument("--out", required=True, metavar="DIR", help="folder for the fields")
    options.add_argument("--format", choices=("int8", "float", "netcdf"), default="int8", help="type of the files")
    options.add_argument(
        "--only",
        nargs="+",
        default=[],
        metavar="PLACE",
        help="only these places of the folder; @FILE: one a line of a file",
    )
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
    options.add_argument(
        "--part",
        metavar="K/N|auto",
        help="only chips K, K+N, K+2N, …; auto: by the rank that torchrun gave this process",
    )
    options.add_argument("--dry-run", action="store_true", help="check chips and periods, say what would be written")
    add_device(options)
    return options


def _files(folder: ChipFolder, only: list[str]) -> list[Path]:
    """The chips of a folder, or of some of its places. Raises ChipError for a place that it does not hold."""
    from aef.settings_file import names_of

    places = folder.require(names_of(only, "--only"), "--only: holds no")
    return [folder.files[index] for index in folder.where(places)] if places else list(folder.files)


def _part(given: argparse.Namespace) -> Part:
    """The part of the chips that this process embeds; as a rank of torchrun also its GPU, unless --device names one.

    Raises ValueError for a part that is none, and where every rank would embed everything.
    """
    from aef.part import WHOLE, is_a_rank_of_several, parse_part, part_of_rank

    if given.part is None:
        if is_a_rank_of_several():
            raise ValueError(
                "RANK and WORLD_SIZE are set: each of several processes would embed every chip: add --part auto, or "
                "--part 1/1 where this is the only one"
            )
        return WHOLE
    if given.part != "auto":
        return parse_part(given.part)
    if given.device == "auto":
        given.device = device_of_rank()
    return part_of_rank()


def _embed_all(
    model, names: dict, there: set[Path], given: argparse.Namespace, progress: Progress
) -> tuple[list[Path], dict[str, list[str]]]:
    """Write the fields that are not there. Gives their files, and the names of chips and fields that were skipped.

    Raises ChipError, EmbeddingError for those that cannot be made, unless they may be skipped.
    """
    from aef.data.chips import ChipError
    from aef.mapping.errors import EmbeddingError

    written: list[Path] = []
    skipped: dict[str, list[str]] = {"chip": [], "field": []}
    for chip in names:
        missing = {period: path for period, path in names[chip].items() if path not in there}
        try:
            if missing:
                made = _embed(model, chip, missing, given, progress)
                written += made
                skipped["field"] += [path.stem for path in missing.values() if path not in made]
        except (ChipError, EmbeddingError) as error:
            if not given.skip_bad:
                raise
            skipped["chip"].append(chip.name)
            print(f"aef embed: skipped {chip.name}: {error}", file=sys.stderr)
        progress.advance(note=chip.stem)
    return written, skipped


def _names(chip: Path, periods, out: Path, form: str) -> dict:
    """The file of each valid period's field."""
    from aef.mapping.files import SUFFIX

    return {
        period: out / f"{chip.stem}_{str(period).replace('/', '_').replace(':', '')}{SUFFIX[form]}"
        for period in periods
    }


def _there(model, chips, names: dict, given) -> set[Path]:
    """The fields that need not be made. Raises OtherFieldError for one of another maker, unless it may be overwritten."""
    from aef.mapping.files import OtherFieldError, is_there

    made_by = model.made_by(given.leave_out, given.inpaint)
    if given.overwrite:
        return set()
    try:
        return {
            path
            for chip in chips
            for period, path in names[chip.path].items()
            if path.exists() and is_there(path, given.format, made_by, given.support or _support(model, chip, period))
        }
    except OtherFieldError as error:
        raise OtherFieldError(f"{error}: choose another --out, or make it again with --overwrite") from None


def _support(model, chip, period):
    """The support of a period, from the times of a chip; None where it has none, which embedding it will say."""
    from aef.mapping.errors import EmbeddingError
    from aef.mapping.support import support_at

    try:
        return support_at(period, chip.span, model.support_ms, chip.path.stem) if chip.span else None
    except EmbeddingError:
        return None


def _embed(model, path: Path, missing: dict, given, progress: Progress) -> list[Path]:
    """Write the missing fields of one chip, or in a dry run say so; gives those that could be made."""
    from aef.mapping.embed_files import embed_to_files
    from aef.mapping.errors import EmbeddingError

    chip = model.read(path)
    frames = {"leave_out": given.leave_out, "support": given.support}
    if given.skip_bad:
        reasons = {}
        for period in missing:
            try:
                model.passes(chip, [period], **frames)
            except EmbeddingError as error:
                reasons[period] = error
        if len(reasons) == len(missing):
            raise next(iter(reasons.values()))
        for reason in reasons.values():
            print(f"aef embed: skipped a field: {reason}", file=sys.stderr)
        missing = {period: file for period, file in missing.items() if period not in reasons}
    if given.dry_run:
        model.warn(chip, model.passes(chip, list(missing), **frames), given.leave_out, named=given.support)
        for file in missing.values():
            print(f"would write {file}")
        return list(missing.values())

    def tell(done: int, total: int) -> None:
        if done < total:
            progress.advance(0, note=f"{path.stem}: {done} of {total} windows")

    embed_to_files(
        model, chip, missing, given.format, inpaint=given.inpaint, on_windows=tell, **frames
    )  # fmt: skip
    return list(missing.values())


if __name__ == "__main__":
    raise SystemExit(run(main))
