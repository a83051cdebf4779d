"""Read geolocated texts (Wikipedia, GBIF), put them into chips and encode them for training.

    aef text --wikipedia enwiki-pages-articles.xml.bz2 --wikidata extract.csv --gbif download.zip \\
        --attach CHIPS --tower ViT-B-32 --weights open_clip_model.safetensors
    aef text --encode CHIPS --tower tiny

The corpora become one Parquet file of text points (--out; CHIPS/texts.parquet by default); an interrupted run goes on
where it stopped. --attach writes the texts that lie on each chip into it; an earlier file is attached with --points.
With --tower their vectors are computed, once, and kept in CHIPS/text_vectors, where training finds them. docs/text.md
says where to get the corpora and what their licences ask for.
"""

from __future__ import annotations

import argparse
import errno
from collections.abc import Iterator
from pathlib import Path

from aef.launcher.command import add_device, parser, require_number, run
from aef.progress import PLAIN_EVERY_S, Every, Progress

ARTICLES_VALID = "2015-01-01/2030-01-01"
OBSERVED = "2017-01-01/2024-01-01"


def main(argv: list[str] | None = None) -> int:
    given = _options().parse_args(argv)
    steps = _steps(given)
    if given.dry_run:
        print("\n".join(f"would {what}" for what, _ in steps))
        return 0
    for _, step in steps:
        step(given)
    return 0


def _options() -> argparse.ArgumentParser:
    options = parser(__file__, __doc__)
    options.add_argument("--wikipedia", metavar="FILE", type=Path, help="XML dump of the English Wikipedia")
    options.add_argument("--wikidata", metavar="FILE", type=Path, help="its articles' coordinates and taxon ids")
    options.add_argument("--gbif", metavar="FILE", type=Path, help="occurrences: Darwin Core archive or table")
    options.add_argument("--out", metavar="FILE", type=Path, help="Parquet file of text points to write")
    options.add_argument("--points", metavar="FILE", type=Path, help="text points that an earlier call wrote")
    options.add_argument("--attach", metavar="CHIPS", type=Path, help="folder of chips that get their texts")
    options.add_argument("--encode", metavar="CHIPS", type=Path, help="folder of chips whose texts are encoded")
    options.add_argument("--tower", metavar="NAME", help="frozen text tower: ViT-B-32, ViT-L-14, … or tiny")
    options.add_argument("--weights", metavar="FILE|TAG", help="its weights: a local file or a tag of open_clip")
    add_device(options, "where the tower runs")
    options.add_argument(
        "--articles-valid", default=ARTICLES_VALID, metavar="START/END", help="when an article's text is taken to hold"
    )
    options.add_argument(
        "--observed", default=OBSERVED, metavar="START/END", help="occurrences outside this period are dropped"
    )
    options.add_argument(
        "--workers", type=int, default=0, metavar="N", help="processes that parse articles; 0: this one"
    )
    options.add_argument(
        "--sources-file", nargs="*", default=[], metavar="YAML", help="files with further source entries"
    )
    options.add_argument("--dry-run", action="store_true", help="say what would be done")
    return options


def _steps(given: argparse.Namespace) -> list:
    """What the options ask for, in order, as (description, function). Raises ValueError if they do not fit together."""
    corpora = given.wikipedia or given.gbif
    if given.wikipedia and not given.wikidata:
        raise ValueError("--wikipedia needs --wikidata FILE: articles get their coordinates from it")
    if given.wikidata and not given.wikipedia:
        raise ValueError("--wikidata locates articles: it needs --wikipedia FILE")
    if given.out and not corpora:
        raise ValueError("--out is where the corpora's text points go: it needs --wikipedia or --gbif")
    if given.weights and not given.tower:
        raise ValueError("--weights are those of a tower: it needs --tower NAME")
    if corpora and given.points:
        raise ValueError("--points is an earlier result: give either it or the corpora")
    if corpora and not (given.out or given.attach):
        raise ValueError("name what to write: --out FILE, or --attach CHIPS")
    if given.attach and not (corpora or given.points):
        raise ValueError("--attach needs texts: --points FILE, or --wikipedia or --gbif")
    if given.out is None and given.attach:
        given.out = given.points or given.attach / "texts.parquet"
    given.encode = given.encode or (given.attach if given.tower else None)
    if given.encode and not given.tower:
        raise ValueError("--encode needs --tower NAME: ViT-B-32 with --weights, or tiny for a trial")
    steps: list = []
    if corpora:
        steps.append((f"write {given.out}", _read_corpora))
    if given.attach:
        steps.append((f"attach {given.out} to the chips in {given.attach}", _attach))
    if given.encode:
        steps.append((f"encode the texts of the chips in {given.encode} with {given.tower}", _encode))
    if not steps:
        raise ValueError("nothing to do: give --wikipedia, --gbif, --attach or --encode (--help explains them)")
    _require_what_is_read(given)
    return steps


def _require_what_is_read(given: argparse.Namespace) -> None:
    """What a step could not read is said before the hours that the steps before it take. Raises ValueError, OSError."""
    from aef.clock import parse_period
    from aef.data.chips import ChipFolder
    from aef.settings_file import registry_of
    from aef.text.attach import require_unpacked

    require_number("--workers", given.workers, 0)
    for text in (given.articles_valid, given.observed):
        parse_period(text)
    for path in (given.wikipedia, given.wikidata, given.gbif, given.points):
        if path is not None and not path.is_file():
            raise FileNotFoundError(errno.ENOENT, "no such file", str(path))
    for path in (given.attach, given.encode):
        if path is not None:
            folder = ChipFolder(path, registry_of(path, files=given.sources_file))
            if path == given.attach:
                require_unpacked(folder)


def _read_corpora(given: argparse.Namespace) -> None:
    from collections import Counter

    from aef.clock import parse_period
    from aef.text.gbif import Occurrences
    from aef.text.points import write_points
    from aef.text.wikidata import read_wikidata
    from aef.text.wikipedia import TaxonArticles, WikipediaDump

    given.out.parent.mkdir(parents=True, exist_ok=True)
    corpora: list = []
    taxa = None
    if given.wikipedia:
        counts: Counter[str] = Counter()
        articles = read_wikidata(given.wikidata, counts)
        _print_counts("wikidata", counts)
        if given.gbif:
            work = given.out.with_name(f"{given.out.name}.partial")
            work.mkdir(exist_ok=True)
            taxa = TaxonArticles(work / "taxa.sqlite")
        corpora.append(
            WikipediaDump(given.wikipedia, articles, parse_period(given.articles_valid), taxa, workers=given.workers)
        )
    if given.gbif:
        corpora.append(Occurrences(given.gbif, parse_period(given.observed), taxa))
    due = Every(PLAIN_EVERY_S)  # how much they hold is not known before they are read

    def show(name: str, counts: Counter[str]) -> None:
        if due():
            _print_counts(name, counts)

    counts_of = write_points(given.out, corpora, on_progress=show)
    for name, found in counts_of.items():
        _print_counts(name, found)
    print(f"text points written to {given.out}")


def _attach(given: argparse.Namespace) -> None:
    from aef.data.chips import ChipFolder
    from aef.settings_file import registry_of
    from aef.text.attach import attach_points

    registry = registry_of(given.attach, files=given.sources_file)
    with Progress("attach", len(ChipFolder(given.attach, registry)), "chip") as progress:
        counts = attach_points(given.out, given.attach, registry, on_chip=lambda path: progress.advance(note=path.stem))
    _print_counts("chips", counts)
    if counts["texts"] and not given.encode:
        print(f"training passes over texts without a vector: next, aef text --encode {given.attach} --tower NAME")


def _encode(given: argparse.Namespace) -> None:
    from aef.data.chips import ChipFolder
    from aef.mapping.device import find_device
    from aef.settings_file import registry_of
    from aef.text.cache import FOLDER, VectorCache, encode_missing, text_key
    from aef.text.tower import TextTower

    folder = ChipFolder(given.encode, registry_of(given.encode, files=given.sources_file))

    def texts() -> Iterator[str]:
        """Read anew each time: together they may not fit into memory."""
        return (point["text"] for index in range(len(folder)) for point in folder.header(index)["texts"])

    keys = {text_key(text) for text in texts()}
    if not keys:
        raise ValueError(f"{given.encode}: its chips hold no texts: attach some, or synthesise chips, first")
    tower = TextTower(given.tower, given.weights, device=str(find_device(given.device)))
    cache = VectorCache.of(given.encode / FOLDER, tower.identity)
    missing = sum(not cache.holds(key) for key in keys)
    with Progress("encode", missing, "text") as progress:
        encode_missing(cache, tower, texts(), on_texts=progress.advance)
    print(f"{missing} texts encoded, {len(keys) - missing} were there already: {cache.folder}")


def _print_counts(name: str, counts) -> None:
    print(f"{name}: " + ", ".join(f"{what.replace('_', ' ')} {count}" for what, count in counts.items()))


if __name__ == "__main__":
    raise SystemExit(run(main))
