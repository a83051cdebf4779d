"""Rates of the text corpora per core, on files that are written here in the true formats.

    python -m benchmarks.corpora

Seconds are those of the processor, so that a busy machine does not change them. The dump is read against an index as
large as the real one (1.6 million articles), in a process of its own, whose peak memory is reported with it.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from aef.timecode import parse_period

Rate = tuple[str, float, str]

DUMP_MB = 256
ARTICLES = 1_600_000
LOCATED_EVERY = 20
"""One page in so many is located, as in the English Wikipedia (about 1.2 of 24 million pages, redirects included)."""

OCCURRENCES = 100_000
TEXTS = 64
VALID = parse_period("2015-01-01/2030-01-01")

_WORDS = [
    "the",
    "river",
    "valley",
    "of",
    "a",
    "town",
    "in",
    "region",
    "with",
    "church",
    "built",
    "near",
    "station",
    "which",
    "was",
    "lake",
    "and",
    "forest",
    "hills",
]


def corpora() -> list[Rate]:
    """Measure everything once, on one core."""
    with tempfile.TemporaryDirectory() as folder:
        return [*_wikipedia(Path(folder)), *_gbif(Path(folder)), *_tower()]


def _paragraph(rng: random.Random, words: int) -> str:
    linked = (f"[[{w}]]" if rng.random() < 0.1 else w for w in rng.choices(_WORDS, k=words))
    return " ".join(linked) + ".<ref name=x>{{cite web|url=https://example.org|title=A title}}</ref>"


def _article(rng: random.Random) -> str:
    sections = "\n".join(f"== Part {n} ==\n{_paragraph(rng, 120)}\n* {_paragraph(rng, 8)}" for n in range(4))
    return f"{{{{Infobox settlement|name=Town|population=1000}}}}\n{_paragraph(rng, 150)}\n{sections}\n== References ==\n{{{{reflist}}}}"


def _write_dump(path: Path, megabytes: int) -> None:
    from xml.sax.saxutils import escape

    rng = random.Random(0)
    texts = [escape(_article(rng)) for _ in range(200)]
    with path.open("w") as file:
        file.write('<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.11/" xml:lang="en">\n<siteinfo/>\n')
        number = 0
        while file.tell() < megabytes * 1e6:
            number += 1
            file.write(
                f"  <page>\n    <title>Article {number}</title>\n    <ns>0</ns>\n    <id>{number}</id>\n    <revision>\n"
                f'      <id>{number}</id>\n      <model>wikitext</model>\n      <text xml:space="preserve">'
                f"{texts[number % len(texts)]}</text>\n    </revision>\n  </page>\n"
            )
        file.write("</mediawiki>\n")


def _wikipedia(folder: Path) -> Iterator[Rate]:
    from aef.text.wikitext import plain_text

    path = folder / "enwiki.xml"
    _write_dump(path, DUMP_MB)
    child = subprocess.run(
        [sys.executable, "-m", "benchmarks.corpora", "--child", str(path)], check=True, capture_output=True, text=True
    )
    found = json.loads(child.stdout)
    yield "wikipedia: dump searched and selected by page id", found["mb_per_s"], "MB/s"
    yield "wikipedia: peak memory, index of 1.6 million articles", found["memory_mb"], "MB"
    texts = [_article(random.Random(seed)) for seed in range(40)]
    started = time.process_time()
    for text in texts:
        plain_text(text)
    yield "wikipedia: located pages parsed", sum(map(len, texts)) / 1e6 / (time.process_time() - started), "MB/s"


def _search_dump(path: Path) -> dict[str, float]:
    """The rate of finding the located pages of a dump, without parsing them, and this process's peak memory."""
    from aef.text.wikidata import Articles, Entry
    from aef.text.wikipedia import scan_pages

    articles = Articles()
    for number in range(ARTICLES):
        articles.add(number * LOCATED_EVERY, Entry(1.0, 2.0, 0.0, 0))
    articles.find(0, "")
    started, selected = time.process_time(), 0
    with path.open("rb") as stream:
        for page in scan_pages(path, stream):
            selected += articles.find(int(page.id), page.title.decode()) is not None
    took = time.process_time() - started
    assert selected
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"mb_per_s": path.stat().st_size / 1e6 / took, "memory_mb": memory}


def _gbif(folder: Path) -> Iterator[Rate]:
    from aef.text.gbif import OPTIONAL, REQUIRED, Occurrences

    names = [*REQUIRED, *OPTIONAL, *(f"other{i}" for i in range(30))]  # GBIF's simple table has about 50 columns
    row = {
        "kingdom": "Animalia",
        "class": "Aves",
        "family": "Corvidae",
        "genus": "Corvus",
        "decimalLatitude": "50.25",
        "decimalLongitude": "4.5",
        "coordinateUncertaintyInMeters": "30",
        "eventDate": "2019-05-03",
        "basisOfRecord": "HUMAN_OBSERVATION",
        "license": "CC_BY_4_0",
    }
    path = folder / "occurrences.csv"
    with path.open("w") as file:
        file.write("\t".join(names) + "\n")
        for number in range(OCCURRENCES):
            values = {**row, "species": f"species {number % 500}", "gbifID": str(number)}
            file.write("\t".join(values.get(name, "") for name in names) + "\n")
    counts: Counter[str] = Counter()
    started = time.process_time()
    for _ in Occurrences(path, VALID).read(0, counts, iter(())):
        pass
    assert counts["kept"] == OCCURRENCES
    yield "gbif: occurrences read and kept", OCCURRENCES / (time.process_time() - started), "rows/s"


def _tower() -> Iterator[Rate]:
    import torch

    from aef.text.tower import TextTower, _architecture, _build, import_open_clip

    texts = [f"a place with {word} and {other}" for word in _WORDS for other in _WORDS][:TEXTS]
    tiny = TextTower("tiny")
    started = time.process_time()
    tiny.encode(texts)
    yield "tower tiny: texts encoded", len(texts) / (time.process_time() - started), "texts/s"
    clip = import_open_clip()
    model = _build(clip, *_architecture(clip, "ViT-B-32")).eval()
    tokens = torch.randint(1, 40_000, (8, 77))
    with torch.inference_mode():
        model(tokens[:1])
        started = time.process_time()
        model(tokens)
    yield "tower ViT-B-32: texts encoded", len(tokens) / (time.process_time() - started), "texts/s"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)  # the process of `_wikipedia`
    dump = parser.parse_args().child
    if dump:
        print(json.dumps(_search_dump(dump)))
    else:
        for name, value, unit in corpora():
            print(f"{name:<60} {value:>10.3g} {unit}")
