"""English Wikipedia from a local XML dump: articles with coordinates, as plain text (paper section 1.3).

Kept are articles of at least 100 words of which at most a quarter stand in lists; references, further reading, external
links and everything that is not text are removed. The dump is searched for the pages wanted as bytes; only they are
parsed.
"""

from __future__ import annotations

import html
import io
import multiprocessing
import sqlite3
import xml.etree.ElementTree as ET
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import pyarrow as pa

from aef.clock import Period
from aef.text.files import DAMAGE, open_stream
from aef.text.points import Counts, GeoText, TextError
from aef.text.wikidata import Articles, Entry
from aef.text.wikitext import PlainText, plain_text

LICENCE = "CC BY-SA 4.0"
BLOCK = 1 << 22
POSITION_EVERY = 1 << 24
"""Bytes after which the position is reported even where no page was wanted."""


class WikipediaDump:
    """A corpus: the articles of a dump that `Articles` locates.

    Args:
        path: ``enwiki-…-pages-articles.xml``, plain, .bz2, .gz or .xz; a multistream dump is one too.
        articles: what to keep, and where it is.
        valid: the period in which a text is taken to hold; articles state none.
        taxa: where to keep the texts of articles about taxa, for GBIF.
        workers: processes that parse pages; 0: this one. The result is the same.
    """

    name = "wikipedia"

    def __init__(
        self, path: Path, articles: Articles, valid: Period, taxa: TaxonArticles | None = None, *, workers: int = 0
    ) -> None:
        self.path, self.articles, self.valid, self.taxa, self.workers = path, articles, valid, taxa, workers

    def files(self) -> list[Path]:
        """As `Corpus.files`."""
        return [self.path]

    def settings(self) -> dict[str, str]:
        """As `Corpus.settings`."""
        return {"valid": str(self.valid), "articles": self.articles.digest()}

    def read(self, start: int, counts: Counts, earlier: Iterator[pa.Table]) -> Iterator[tuple[int, GeoText | None]]:
        """Positions are bytes of the uncompressed dump. Raises TextError: not an English dump, truncated or damaged."""
        with open_stream(self.path) as stream, _parsers(self.workers) as parse:
            reported = start
            for page in self._parsed_in_order(scan_pages(self.path, stream, start), parse):
                text = self._finish(page, counts)
                if text is not None or page.end - reported >= POSITION_EVERY:
                    reported = page.end
                    yield page.end, text

    def _parsed_in_order(self, pages: Iterator[Page], parse: Parse) -> Iterator[_Waiting]:
        """Pages as they stand in the dump, while `AHEAD` later ones a worker are being parsed."""
        waiting: deque[_Waiting] = deque()
        ahead, parsing = AHEAD * self.workers, 0
        failure: Exception | None = None
        while True:
            try:
                page = next(pages, None)
            except (TextError, *DAMAGE) as error:
                # What came before the damage is whole.
                page, failure = None, error
            if page is not None:
                waiting.append(self._begin(page, parse))
                parsing += waiting[-1].article is not None
            while waiting and (page is None or waiting[0].article is None or parsing > ahead):
                parsing -= waiting[0].article is not None
                yield waiting.popleft()
            if page is None:
                break
        if failure is not None:
            raise failure

    def _begin(self, page: Page, parse: Parse) -> _Waiting:
        """Drop a page that nobody asked for at once, have the others parsed."""
        if not page.id.isdigit() or not page.title:
            return _Waiting(page.end, fault="damaged_page")
        if page.namespace != b"0":
            return _Waiting(page.end, fault="other_namespace")
        title = html.unescape(page.title.decode())
        entry = self.articles.find(int(page.id), title)
        if entry is None:
            return _Waiting(page.end, fault="not_in_wikidata")
        return _Waiting(page.end, int(page.id), title, entry, parse(page.xml))

    def _finish(self, page: _Waiting, counts: Counts) -> GeoText | None:
        """The text of a page; None where it is dropped (counted by its reason) or has no position."""
        counts["pages"] += 1
        entry, fault, plain = page.entry, page.fault, None
        if page.article is not None:
            revision, plain, fault = page.article.result()
            counts["parsed"] += plain is not None
        if fault is not None or entry is None or plain is None:
            counts[str(fault)] += 1
            return None
        if entry.taxon and self.taxa is not None:
            self.taxa.put(entry.taxon, plain.text)
            counts["taxon_articles"] += 1
        if not entry.located:
            return None
        counts["kept"] += 1
        where = (entry.lon, entry.lat, entry.uncertainty_m, *self.valid)
        return GeoText(*where, plain.text, f"wikipedia:{page.id}@{revision}", LICENCE, page.title)


# --- parsing in other processes --------------------------------------------------------------------------------------

Parsed = tuple[str, PlainText | None, str | None]
"""Revision id, text, and why the page is dropped."""

Parse = Callable[[bytes], "Future[Parsed]"]

AHEAD = 8
"""Pages that each worker may be ahead by."""


@dataclass(frozen=True)
class _Waiting:
    """A page on its way: dropped at once, or being parsed."""

    end: int
    id: int = 0
    title: str = ""
    entry: Entry | None = None
    article: Future[Parsed] | None = None
    fault: str | None = None


def read_article(xml: bytes) -> Parsed:
    """`Parsed` of a page; the text is None where there is no article."""
    revision, text, fault = parse_page(xml)
    if fault is not None:
        return revision, None, fault
    plain = plain_text(text)
    return revision, plain, plain.fault()


@contextmanager
def _parsers(workers: int) -> Iterator[Parse]:
    if workers == 0:

        def parse_here(xml: bytes) -> Future[Parsed]:
            done: Future[Parsed] = Future()
            done.set_result(read_article(xml))
            return done

        yield parse_here
        return
    # Started afresh: a forked child would inherit the threads of libraries that are loaded here.
    pool = ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"))
    try:
        yield lambda xml: pool.submit(read_article, xml)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


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
        opened = buffer.find(b"<" + name + b">", start, stop)
        closed = buffer.find(b"</" + name + b">", opened, stop) if opened >= 0 else -1
        return (buffer[opened + len(name) + 2 : closed], closed) if closed >= 0 else (b"", start)

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


# --- articles about taxa ---------------------------------------------------------------------------------------------


class TaxonArticles:
    """Texts of articles about taxa by GBIF taxon id, on disk."""

    def __init__(self, path: Path) -> None:
        self._path, self._database = path, sqlite3.connect(path)
        self._database.execute("pragma journal_mode = wal")
        self._database.execute("create table if not exists article (taxon integer primary key, text text not null)")

    def put(self, taxon: int, text: str) -> None:
        """Keep an article, in place of an earlier one about the taxon. Raises TextError where the disk is full."""
        try:
            with self._database:
                self._database.execute("insert or replace into article values (?, ?)", (taxon, text))
        except sqlite3.OperationalError as error:
            raise TextError(
                f"{self._path}: cannot be written ({error}): is the disk full? What was read so far is kept; the same command goes on"
            ) from error

    def get(self, taxon: int) -> str | None:
        """The article about a taxon; None where there is none."""
        row = self._database.execute("select text from article where taxon = ?", (taxon,)).fetchone()
        return row[0] if row else None
