"""English Wikipedia from a local XML dump: articles with coordinates, as plain text (paper section 1.3).

Kept are articles of at least 100 words of which at most a quarter stand in lists; references, further reading, external
links and everything that is not text are removed. The dump is searched for the pages wanted as bytes; only they are
parsed.
"""

from __future__ import annotations

import html
import io
import sqlite3
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import mwparserfromhell as mw
import pyarrow as pa
from mwparserfromhell.nodes import ExternalLink, Heading, HTMLEntity, Tag, Template, Text, Wikilink

from aef.text.files import open_stream
from aef.text.points import Counts, GeoText, TextError
from aef.text.wikidata import Articles
from aef.timecode import Period

LICENCE = "CC BY-SA 4.0"
MIN_WORDS = 100
MAX_LIST_SHARE = 0.25
BLOCK = 1 << 22
POSITION_EVERY = 1 << 24
"""Bytes after which the position is reported even where no page was wanted."""

REMOVED_SECTIONS = {
    "references",
    "further reading",
    "external links",
    "notes",
    "footnotes",
    "citations",
    "sources",
    "bibliography",
}
REMOVED_NAMESPACES = ("file", "image", "category", "media")
REMOVED_TAGS = {
    "ref",
    "references",
    "table",
    "gallery",
    "math",
    "chem",
    "timeline",
    "score",
    "syntaxhighlight",
    "source",
    "code",
    "pre",
    "imagemap",
    "mapframe",
    "graph",
    "style",
    "script",
}
LIST_TAGS = {"li", "dt", "dd"}
PROSE_TEMPLATES = {"lang": 2, "nowrap": 1, "transl": 2, "abbr": 1}
"""Templates whose named argument is part of the sentence."""


class WikipediaDump:
    """A corpus: the articles of a dump that `Articles` locates.

    Args:
        path: ``enwiki-…-pages-articles.xml``, plain, .bz2, .gz or .xz; a multistream dump is one too.
        articles: what to keep, and where it is.
        valid: the period in which a text is taken to hold; articles state none.
        taxa: where to keep the texts of articles about taxa, for GBIF.
    """

    name = "wikipedia"

    def __init__(self, path: Path, articles: Articles, valid: Period, taxa: TaxonArticles | None = None) -> None:
        self.path, self.articles, self.valid, self.taxa = path, articles, valid, taxa

    def files(self) -> list[Path]:
        return [self.path]

    def settings(self) -> dict[str, str]:
        return {"valid": str(self.valid)}

    def read(self, start: int, counts: Counts, earlier: Iterator[pa.Table]) -> Iterator[tuple[int, GeoText | None]]:
        """Positions are bytes of the uncompressed dump. Raises TextError: not an English dump, truncated or damaged."""
        with open_stream(self.path) as stream:
            reported = start
            for page in scan_pages(self.path, stream, start):
                counts["pages"] += 1
                if page.namespace != b"0":
                    counts["other_namespace"] += 1
                else:
                    yield from self._read_page(page, counts)
                if page.end - reported >= POSITION_EVERY:
                    reported = page.end
                    yield page.end, None

    def _read_page(self, page: Page, counts: Counts) -> Iterator[tuple[int, GeoText | None]]:
        title = html.unescape(page.title.decode())
        entry = self.articles.find(int(page.id), title)
        if entry is None:
            counts["not_in_wikidata"] += 1
            return
        revision, text, fault = parse_page(page.xml)
        if fault is None:
            counts["parsed"] += 1
            plain = plain_text(text)
            fault = plain.fault()
        if fault is not None:
            counts[fault] += 1
            return
        if entry.taxon and self.taxa is not None:
            self.taxa.put(entry.taxon, plain.text)
            counts["taxon_articles"] += 1
        if entry.located:
            counts["kept"] += 1
            source = f"wikipedia:{int(page.id)}@{revision}"
            where = (entry.lon, entry.lat, entry.uncertainty_m, *self.valid)
            yield page.end, GeoText(*where, plain.text, source, LICENCE, title)


# --- the dump as bytes -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Page:
    """One <page> of a dump: its bytes, what its first lines say, and where it ends in the dump."""

    xml: bytes
    title: bytes
    namespace: bytes
    id: bytes
    end: int


def scan_pages(path: Path, stream: IO[bytes], start: int = 0) -> Iterator[Page]:
    """Pages of a dump from a byte position on.

    The text of a page is escaped, so the tags cannot occur in it: searching bytes is exact, and fast.

    Raises:
        TextError: not a dump of the English Wikipedia, or one that breaks off.
    """
    buffer = stream.read(BLOCK)
    _check_language(path, buffer)
    offset = 0
    if start:
        stream.seek(start)
        buffer, offset = stream.read(BLOCK), start
    at = 0
    while True:
        begin = buffer.find(b"<page>", at)
        end = buffer.find(b"</page>", begin) if begin >= 0 else -1
        if end < 0:
            keep = begin if begin >= 0 else max(at, len(buffer) - 16)
            block = stream.read(BLOCK)
            if not block:
                if b"</mediawiki>" not in buffer[at:]:
                    raise TextError(
                        f"{path}: breaks off in the middle: download it again, what was read so far is kept"
                    )
                return
            buffer, offset, at = buffer[keep:] + block, offset + keep, 0
            continue
        at = end + len(b"</page>")
        yield _page(buffer, begin, at, offset + at)


def _page(buffer: bytes, begin: int, stop: int, end: int) -> Page:
    def field(name: bytes, start: int) -> tuple[bytes, int]:
        opened = buffer.find(b"<" + name + b">", start, stop) + len(name) + 2
        closed = buffer.find(b"</" + name + b">", opened, stop)
        return buffer[opened:closed], closed

    title, after = field(b"title", begin)
    namespace, after = field(b"ns", after)
    number, _ = field(b"id", after)
    return Page(buffer[begin:stop], title, namespace, number, end)


def _check_language(path: Path, head: bytes) -> None:
    try:
        root = next((element for _, element in ET.iterparse(io.BytesIO(head), ["start"])), None)
    except ET.ParseError:
        root = None
    if root is None or root.tag.rpartition("}")[2] != "mediawiki":
        raise TextError(
            f"{path}: not a MediaWiki XML dump: expected a file such as enwiki-latest-pages-articles.xml.bz2"
        )
    language = root.get("{http://www.w3.org/XML/1998/namespace}lang")
    if language != "en":
        raise TextError(f"{path}: expected the English Wikipedia, found language {language!r}")


def parse_page(xml: bytes) -> tuple[str, str, str | None]:
    """Revision id, wikitext, and why the page is no article: ``redirect``, ``not_wikitext``, ``damaged_page``."""
    try:
        page = ET.fromstring(xml)
    except ET.ParseError:
        return "", "", "damaged_page"
    if page.find("redirect") is not None:
        return "", "", "redirect"
    revision = page.find("revision")
    if revision is None or revision.findtext("model", "wikitext") != "wikitext":
        return "", "", "not_wikitext"
    return revision.findtext("id", ""), revision.findtext("text") or "", None


# --- wikitext --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PlainText:
    text: str
    words: int
    list_words: int

    def fault(self) -> str | None:
        """Why the article is dropped: ``too_short`` or ``mostly_lists``."""
        if self.words < MIN_WORDS:
            return "too_short"
        return "mostly_lists" if self.list_words > MAX_LIST_SHARE * self.words else None


def plain_text(wikitext: str) -> PlainText:
    """The sentences of an article, without what is not text, and how many of its words stand in lists."""
    lines = _Lines()
    removed_level = 0
    for node in mw.parse(wikitext).nodes:
        if isinstance(node, Heading):
            if not removed_level or node.level <= removed_level:
                title = node.title.strip_code().strip().lower()
                removed_level = node.level if title in REMOVED_SECTIONS else 0
            lines.end()
        elif not removed_level:
            _add(lines, node)
    lines.end()
    return PlainText("\n".join(lines.done), lines.words, lines.list_words)


class _Lines:
    """Text gathered line by line; a line that a list marker opened counts as list."""

    def __init__(self) -> None:
        self.done: list[str] = []
        self.words = self.list_words = 0
        self._open: list[str] = []
        self.in_list = False

    def add(self, text: str) -> None:
        first, *rest = text.split("\n")
        self._open.append(first)
        for line in rest:
            self.end()
            self._open.append(line)

    def end(self) -> None:
        line = " ".join("".join(self._open).split())
        count = len(line.split())
        self.words += count
        self.list_words += count if self.in_list else 0
        if line:
            self.done.append(line)
        self._open, self.in_list = [], False


def _add(lines: _Lines, node) -> None:
    if isinstance(node, Text):
        lines.add(str(node.value))
    elif isinstance(node, HTMLEntity):
        lines.add(node.normalize())
    elif isinstance(node, Wikilink):
        _add_link(lines, node)
    elif isinstance(node, ExternalLink):
        if node.title is not None and node.brackets:
            _add_all(lines, node.title)
    elif isinstance(node, Tag):
        _add_tag(lines, node)
    elif isinstance(node, Template):
        _add_template(lines, node)


def _add_all(lines: _Lines, code) -> None:
    for node in code.nodes:
        _add(lines, node)


def _add_link(lines: _Lines, link: Wikilink) -> None:
    space, colon, _ = str(link.title).strip().partition(":")
    if colon and space.strip().lower() in REMOVED_NAMESPACES:
        return
    _add_all(lines, link.text if link.text is not None else link.title)


def _add_tag(lines: _Lines, tag: Tag) -> None:
    name = str(tag.tag).strip().lower()
    if name in REMOVED_TAGS:
        return
    if name in LIST_TAGS:
        if tag.wiki_markup:
            lines.in_list = True
        else:
            lines.end()
            lines.in_list = True
            _add_all(lines, tag.contents)
            lines.end()
    elif name in ("br", "hr"):
        lines.add(" ")
    elif tag.contents is not None:
        _add_all(lines, tag.contents)


def _add_template(lines: _Lines, template: Template) -> None:
    name = str(template.name).strip().lower()
    if name in ("convert", "cvt") and template.has(1) and template.has(2):
        lines.add(f"{template.get(1).value.strip_code().strip()} {template.get(2).value.strip_code().strip()}")
    elif name in PROSE_TEMPLATES and template.has(PROSE_TEMPLATES[name]):
        _add_all(lines, template.get(PROSE_TEMPLATES[name]).value)


# --- articles about taxa ---------------------------------------------------------------------------------------------


class TaxonArticles:
    """Texts of articles about taxa by GBIF taxon id, on disk."""

    def __init__(self, path: Path) -> None:
        self._database = sqlite3.connect(path)
        self._database.execute("pragma journal_mode = wal")
        self._database.execute("create table if not exists article (taxon integer primary key, text text not null)")

    def put(self, taxon: int, text: str) -> None:
        with self._database:
            self._database.execute("insert or replace into article values (?, ?)", (taxon, text))

    def get(self, taxon: int) -> str | None:
        row = self._database.execute("select text from article where taxon = ?", (taxon,)).fetchone()
        return row[0] if row else None

    def close(self) -> None:
        self._database.close()
