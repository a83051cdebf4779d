"""From wikitext to sentences: what the paper keeps of an article, and how much of it stands in lists (section 1.3)."""

from __future__ import annotations

import re
from dataclasses import dataclass

import mwparserfromhell as mw
from mwparserfromhell.nodes import ExternalLink, Heading, HTMLEntity, Tag, Template, Text, Wikilink

MIN_WORDS = 100
MAX_LIST_SHARE = 0.25

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
    "ce",
    "timeline",
    "score",
    "syntaxhighlight",
    "source",
    "code",
    "pre",
    "imagemap",
    "mapframe",
    "maplink",
    "inputbox",
    "hiero",
    "phonos",
    "graph",
    "style",
    "script",
}
BETWEEN_NAMES = re.compile(r"\s*(?:,|&|/|\band\b)\s*")
"""Between the names of a section of two: "Notes and references"."""

NOT_TEXT = re.compile(r"__[A-Z]+__|[\ud800-\udfff]")
"""Switches (``__NOTOC__``), and halves of characters, which no file can hold (``&#xD800;``)."""

LIST_TAGS = {"li", "dt", "dd"}
PROSE_TEMPLATES = {
    "lang": 2,
    "langx": 2,
    "transl": 2,
    "transliteration": 2,
    "nowrap": 1,
    "nobr": 1,
    "nobold": 1,
    "small": 1,
    "abbr": 1,
}
"""Templates whose named argument is part of the sentence."""

MARKS = {
    "nbsp": " ",
    "spaces": " ",
    "ndash": "–",
    "en dash": "–",
    "mdash": "—",
    "em dash": "—",
    "snd": " – ",
    "spnd": " – ",
    "spaced ndash": " – ",
    "spaced en dash": " – ",
}
"""Templates that stand for a mark between words or numbers, which would be one without it: ``1914{{snd}}1918``."""

RANGES = {"-", "–", "and", "by", "or", "to", "x", "×", "+/-", "±"}
"""What stands between the two numbers of ``{{convert|10|to|20|km}}``."""


@dataclass(frozen=True)
class PlainText:
    """An article's sentences, a paragraph or list entry a line; its words, and how many of them stand in lists."""

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
                names = BETWEEN_NAMES.split(node.title.strip_code().strip().lower())
                removed_level = node.level if REMOVED_SECTIONS.issuperset(names) else 0
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
        line = " ".join(NOT_TEXT.sub("", "".join(self._open)).split())
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
    # A leading colon makes a link of what would otherwise be shown or filed: [[:Category:Lakes]].
    _add_all(lines, link.text if link.text is not None else mw.parse(str(link.title).strip().removeprefix(":")))


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
        words = [template.get(at).value.strip_code().strip() for at in range(1, 5) if template.has(at)]
        # Two numbers of one range, or of two units: {{convert|6|ft|2|in|m}}.
        two = len(words) == 4 and (words[1] in RANGES or words[2].replace(".", "", 1).isdecimal())
        lines.add(" ".join(words if two else words[:2]))
    elif name in MARKS:
        lines.add(MARKS[name])
    elif name in PROSE_TEMPLATES and template.has(PROSE_TEMPLATES[name]):
        _add_all(lines, template.get(PROSE_TEMPLATES[name]).value)
