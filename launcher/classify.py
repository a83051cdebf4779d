"""Map your own classes: a classifier on the embeddings beneath labels, its accuracy, and a class map per field.

    aef classify --fields FIELDS --labels labels.csv --column crop --out MAPS

Labels are points (CSV with lon and lat) or points and areas (GeoJSON; GeoPackage and Shapefile with the extra `vector`),
or a folder of chips that carry the label NAME: their fields of the fields' period.
Accuracy is by cross-validation: squares of ground are left out, as neighbouring pixels would give a label away. With
--shots so many labels of a class are learnt from, and all judge: are more labels worth the way? Writes
MAPS/accuracy.md and .json, MAPS/legend.csv (code, colour and mapped area of every class), MAPS/classes.png, and per field
FIELD_classes.tif (0: no data) and FIELD_confidence.tif (per cent; 255: no data).
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

from aef.launcher.command import as_typed, parser, require_number, run
from aef.progress import Progress


def main(argv: list[str] | None = None) -> int:
    given = _options().parse_args(argv)
    require_number("--most", given.most, 1)
    require_number("--block-m", given.block_m, 10)

    from aef import classify
    from aef.evaluation.tables import require_results, write_results
    from aef.mapping.field_choice import field_files
    from aef.mapping.files import open_field
    from aef.mapping.labels import LabelError, read_labels, sample

    out = Path(given.out)
    require_results(out / "accuracy", "--out")
    if given.shots is not None:
        require_number("--shots", given.shots, 1)
    files = classify.of_one_period(field_files(given.fields), given.period)
    if Path(given.labels).is_dir():
        areas = _areas_of_chips(given.labels, given.column, files)
    else:
        areas = read_labels(given.labels, given.column)
    with Progress("labels", len(files), "field") as progress:

        def fields():
            for path in files:
                yield open_field(path)
                progress.advance(note=path.stem)

        samples = sample(fields(), areas, most=given.most, block_m=given.block_m, seed=given.seed)
    rows = None if given.shots is None else classify.draw(samples, given.shots, given.seed)
    learnt = len(samples.codes) if rows is None else len(rows)
    text = f"{len(areas)} labels, {samples.missed} of them on no field; {learnt} pixels learnt from"
    if given.shots is not None:
        text += f", of at most {given.shots} labels of each class; all labels judge"
    text += "."
    print(text)
    command = as_typed(__file__, argv)
    figures = {"command": command, "labels": len(areas), "missed": samples.missed, "pixels": learnt}
    try:
        accuracy = classify.cross_validate(given.method, samples, given.shots, given.seed)
        judgement, figures["accuracy"] = accuracy.markdown(), accuracy.figures()
    except LabelError as error:
        judgement, figures["accuracy"] = str(error), None
    print(judgement)
    write_results(out / "accuracy", f"```\n{command}\n```\n\n{text}\n\n{judgement}", figures)

    classifier = classify.fit(given.method, samples, rows)
    pixels, hectares = _write_maps(out, files, classifier, samples.classes)
    classify.write_legend(out / "legend.csv", samples.classes, pixels, hectares)
    print(f"{len(files)} maps of {len(samples.classes)} classes: {out}")
    return 0


def _areas_of_chips(folder: str, label: str, files: list[Path]):
    """The labelled fields of chips in the period of some embedding fields, without the chips' observations."""
    from aef.classify import labelled_areas
    from aef.data.chips import ChipFolder
    from aef.mapping.files import read_tags
    from aef.settings_file import registry_of
    from aef.timecode import parse_period

    chips = ChipFolder(folder, registry_of(folder))
    period = read_tags(files[0])[1].get("period")
    each = (chips.read(index, sources=()) for index in range(len(chips)))
    return labelled_areas(each, label, parse_period(period) if period else None)


def _write_maps(out: Path, files: list[Path], classifier, classes):
    """The class map of every field and a picture of the first few; gives pixels and hectares by class."""
    import numpy as np

    from aef import classify
    from aef.figure_file import NO_MATPLOTLIB
    from aef.mapping.files import open_field
    from aef.mapping.picture import PANELS

    pixels, hectares = np.zeros(len(classes), np.int64), np.zeros(len(classes))
    panels: list[classify.Panel] = []
    with Progress("classify", len(files), "field") as progress:
        for path in files:
            field = open_field(path)
            counts, panel = classify.write_maps(
                out / path.stem, field, classifier, classes, on_window=partial(progress.advance, 0, path.stem)
            )
            pixels += counts
            hectares += counts * abs(field.rio.transform().determinant) / 10_000
            if len(panels) < PANELS and np.isfinite(panel.vectors).all(axis=0).any():
                panels.append(panel)
            progress.advance(note=path.stem)
    try:
        if panels:
            classify.write_picture(out / "classes.png", panels, classes)
        else:
            print("no picture: none of the pixels that it would show has a vector")
    except ImportError:
        print(f"no picture: {NO_MATPLOTLIB}")
    return pixels, hectares


def _options() -> argparse.ArgumentParser:
    options = parser(__file__, __doc__)
    options.add_argument("--fields", required=True, metavar="DIR", help="folder of embedding fields (`aef embed`)")
    options.add_argument(
        "--labels", required=True, metavar="FILE", help="labels: .csv, .geojson, .gpkg, .shp, or a folder of chips"
    )
    options.add_argument(
        "--column", required=True, metavar="NAME", help="column or property that holds the class, or label of the chips"
    )
    options.add_argument("--period", metavar="START/END", help="fields of this valid period only")
    options.add_argument("--method", choices=("logistic", "knn"), default="logistic", help="the classifier")
    options.add_argument("--most", type=int, default=50, metavar="N", help="pixels of one area that are learnt from")
    options.add_argument(
        "--shots",
        type=int,
        metavar="N",
        help="labels of each class that are learnt from, drawn at random; otherwise all",
    )
    options.add_argument(
        "--block-m",
        type=float,
        default=500.0,
        metavar="M",
        help="side of the squares of ground that are left out together, metres",
    )
    options.add_argument(
        "--seed", type=int, default=0, metavar="N", help="of the pixels drawn from areas, and of --shots"
    )
    options.add_argument("--out", required=True, metavar="MAPS", help="folder for the results")
    return options


if __name__ == "__main__":
    raise SystemExit(run(main))
