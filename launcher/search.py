"""Search places by words, or by the example of a pixel, with a trained model.

    aef search --checkpoint RUN --data CHIPS --text "a forest on a steep slope" --out DIR
    aef search --fields FIELDS --at 4.35,50.85 --period 2019-01-01/2020-01-01 --out DIR

Writes DIR/search.png (the best places and their similarity), DIR/places.csv, and a GeoTIFF of the similarity of every
field, whose tags name query, period and model. Words need a run that learnt from texts (`aef text`), and the text tower
that it learnt with. Fields must be of one model, which need not be there to search them by a pixel.
"""

from __future__ import annotations

import argparse
import sys
from contextlib import contextmanager
from pathlib import Path

from aef.launcher.command import add_device, load_model, parser, run, with_western_longitudes
from aef.progress import Progress


def main(argv: list[str] | None = None) -> int:
    given = _options().parse_args(with_western_longitudes(argv, "--at"))
    if (given.text is None) == (given.at is None):
        raise ValueError("give either --text WORDS or --at LON,LAT")
    if (given.data is None) == (given.fields is None):
        raise ValueError("give either --data CHIPS or --fields DIR")
    if given.text is not None and not given.text.strip():
        raise ValueError("--text: expected words, found none")
    if given.top < 1:
        raise ValueError(f"--top: expected at least 1, found {given.top}")

    if given.checkpoint is None and (given.fields is None or given.text is not None):
        raise ValueError("--checkpoint: words and chips need the run of a trained model")

    from aef import search
    from aef.figure_file import NO_MATPLOTLIB

    model = load_model(__file__, given.checkpoint, given.device) if given.checkpoint else None
    fields, total, what = _fields(given, model)
    if given.dry_run:
        print(f"would search {what}")
        return 0
    if given.text is not None:
        assert model is not None
        vector = search.run_tower(given.checkpoint, given.weights, device=str(model.device)).encode([given.text])[0]
        query = f"“{given.text}”"
    else:
        lon, lat = _position(given.at)
        vector = search.pixel_direction(fields(), lon, lat)
        query = f"like {search.at(lon, lat)}"

    def direction(field):
        return vector if given.text is None else search.text_direction(model, vector, field)

    out = Path(given.out)
    out.mkdir(parents=True, exist_ok=True)
    with Progress("search", total, "field") as progress:

        @contextmanager
        def open_map(field):
            path = out / search.map_name(field)
            with search.writing_similarity(path, field, query) as write:

                def write_and_tell(*window) -> None:
                    write(*window)
                    progress.advance(0, note=field.attrs["chip"])

                yield write_and_tell
            progress.advance(note=field.attrs["chip"])

        matches = search.search(fields(), direction, top=given.top, open_map=open_map)
    search.write_matches(out / "places.csv", matches)
    picture = out / "search.png"
    try:
        search.write_picture(picture, matches, query)
        result = str(picture)
    except ImportError:
        result = f"{out}, no picture: {NO_MATPLOTLIB}"
    for rank, match in enumerate(matches, 1):
        where = search.at(match.lon, match.lat)
        over = f" over {match.period}" if match.period else ""
        print(f"{rank}. {match.place}{over} at {where}: cosine {match.similarity:.3f}")
    print(f"{query} in {what}: {result}")
    return 0


def _options() -> argparse.ArgumentParser:
    options = parser(__file__, __doc__)
    options.add_argument(
        "--checkpoint", metavar="RUN", help="run folder of a trained model; not needed for --fields with --at"
    )
    options.add_argument("--data", metavar="CHIPS", help="folder of chips to embed and search")
    options.add_argument("--fields", metavar="DIR", help="folder of embedding fields to search instead")
    options.add_argument("--text", metavar="WORDS", help="what to look for")
    options.add_argument("--at", metavar="LON,LAT", help="or: look for what is like this pixel, degrees")
    options.add_argument(
        "--period",
        metavar="START/END",
        help="valid period, ISO dates; otherwise the calendar year that the chips observed most of, or every period of the fields",
    )
    options.add_argument("--weights", metavar="FILE", help="weights of the run's text tower, where they are not found")
    options.add_argument("--top", type=int, default=5, metavar="N", help="places to list")
    options.add_argument("--out", required=True, metavar="DIR", help="folder for the results")
    options.add_argument("--dry-run", action="store_true", help="say what would be searched")
    add_device(options)
    return options


def _fields(given, model):
    """A function that goes through the fields, how many they are, and what to call them."""
    from aef import search
    from aef.data.chips import ChipFolder
    from aef.mapping.field_choice import choose_fields, field_files, open_fields

    if given.fields:
        made_by = model.made_by() if model else None
        files = choose_fields(field_files(given.fields), period=given.period, made_by=made_by)
        return lambda: open_fields(files), len(files), given.fields
    searched = search.chips_to_search(model, ChipFolder(given.data, model.registry), given.period)
    if searched.left_out:
        names = ", ".join(path.name for path in searched.left_out[:3]) + " …" * (len(searched.left_out) > 3)
        print(
            f"aef search: {len(searched.left_out)} chips have no frame in {searched.period} and are left out ({names}); "
            "choose another by --period",
            file=sys.stderr,
        )
    return (
        lambda: (model.embed(path, searched.period) for path in searched.paths),
        len(searched.paths),
        f"{given.data} over {searched.period}",
    )


def _position(text: str) -> tuple[float, float]:
    try:
        lon, lat = (float(part) for part in text.split(","))
    except ValueError:
        raise ValueError(f"--at: expected LON,LAT like 4.35,50.85, found {text!r}") from None
    if not (-180 <= lon <= 180 and -90 <= lat <= 90):
        raise ValueError(f"--at: expected degrees, longitude first, found {text!r}")
    return lon, lat


if __name__ == "__main__":
    raise SystemExit(run(main))
