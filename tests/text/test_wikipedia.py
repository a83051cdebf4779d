"""Wikipedia and Wikidata: true formats in small, every filter with a text that just passes and one that just fails."""

import bz2
import json
import time
import tracemalloc
import xml.sax.saxutils
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest

from aef.text.points import TextError, write_points
from aef.text.wikidata import read_wikidata
from aef.text.wikipedia import TaxonArticles, WikipediaDump, read_article
from aef.text.wikitext import plain_text
from aef.timecode import parse_period

VALID = parse_period("2017-01-01/2024-04-21")
SITEINFO = """<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.10/" version="0.10" xml:lang="{language}">
  <siteinfo><sitename>Wikipedia</sitename><dbname>{language}wiki</dbname></siteinfo>
"""


def page(number, title, text, *, ns=0, redirect="", model="wikitext"):
    return f"""  <page>
    <title>{xml.sax.saxutils.escape(title)}</title>
    <ns>{ns}</ns>
    <id>{number}</id>{f'<redirect title="{redirect}" />' if redirect else ""}
    <revision>
      <id>{number * 10}</id>
      <timestamp>2024-04-01T00:00:00Z</timestamp>
      <model>{model}</model>
      <format>text/x-wiki</format>
      <text bytes="{len(text)}" xml:space="preserve">{xml.sax.saxutils.escape(text)}</text>
    </revision>
  </page>
"""


def dump(path, *pages, language="en", end="</mediawiki>\n"):
    path.write_bytes(bz2.compress((SITEINFO.format(language=language) + "".join(pages) + end).encode()))
    return path


def entity(number, title, lon=None, lat=None, *, globe="Q2", taxon=None, wiki="enwiki", rank="normal", precision=0.001):
    claims = {}
    if lon is not None:
        value = {
            "latitude": lat,
            "longitude": lon,
            "precision": precision,
            "globe": f"http://www.wikidata.org/entity/{globe}",
        }
        claims["P625"] = [
            {
                "mainsnak": {
                    "snaktype": "value",
                    "property": "P625",
                    "datavalue": {"value": value, "type": "globecoordinate"},
                },
                "rank": rank,
            }
        ]
    if taxon is not None:
        claims["P846"] = [
            {
                "mainsnak": {
                    "snaktype": "value",
                    "property": "P846",
                    "datavalue": {"value": str(taxon), "type": "string"},
                },
                "rank": "normal",
            }
        ]
    return {"type": "item", "id": f"Q{number}", "claims": claims, "sitelinks": {wiki: {"site": wiki, "title": title}}}


def wikidata(path, *entities):
    path.write_text("[\n" + ",\n".join(json.dumps(e) for e in entities) + "\n]\n")
    return path


def words(count, word="field"):
    return " ".join([word] * count)


def read(path, articles, taxa=None, start=0):
    counts = Counter()
    found = list(WikipediaDump(path, articles, VALID, taxa).read(start, counts, iter(())))
    return [text for _, text in found if text is not None], counts, found


# --- filters of the paper --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "fault"), [(100, None), (99, "too_short")])
def test_an_article_needs_100_words(count, fault):
    assert plain_text(words(count)).fault() == fault


@pytest.mark.parametrize(("listed", "fault"), [(50, None), (51, "mostly_lists")])
def test_at_most_a_quarter_of_the_words_stand_in_lists(listed, fault):
    text = words(200 - listed) + "\n" + "\n".join(f"* {words(1, 'item')}" for _ in range(listed))
    found = plain_text(text)
    assert (found.words, found.list_words, found.fault()) == (200, listed, fault)


@pytest.mark.parametrize("marker", ["*", "#", ":", ";", "**", "*#"])
def test_every_list_marker_counts(marker):
    found = plain_text(f"{words(3)}\n{marker} one two\nthree")
    assert (found.words, found.list_words) == (6, 2)


def test_lists_in_html_count_too():
    found = plain_text("one two <ul><li>three four</li><li>[[five]]</li></ul> six")
    assert (found.words, found.list_words) == (6, 3)


def test_references_further_reading_links_and_what_is_not_text_are_removed():
    text = """{{Infobox lake|name=X|area=12}}
'''Lake X''' is a [[lake|deep lake]] in [[Norway]].<ref name="a">A book, p. 3</ref> It covers {{convert|12|km2|mi2}} &amp; more.
[[File:Lake.jpg|thumb|The lake in [[winter]]]]
{| class="wikitable"
| cell || other
|}
== Nature ==
Its shores have {{lang|la|Betula}} [https://example.org birch]. <!-- hidden --> <math>x^2</math> <gallery>a.jpg|b</gallery>
=== Birds ===
Gulls nest.
== References ==
{{reflist}}
* A long reference list
=== Notes ===
Below the references.
== Further reading ==
* Some book
== Today ==
It is protected.
== External links ==
* [https://example.org Official site]
[[Category:Lakes]]
"""
    assert plain_text(text).text.split("\n") == [
        "Lake X is a deep lake in Norway. It covers 12 km2 & more.",
        "Its shores have Betula birch.",
        "Gulls nest.",
        "It is protected.",
    ]


@pytest.mark.parametrize("title", ["Notes and references", "References & notes", "Footnotes, citations and sources"])
def test_sections_of_two_names_are_removed_too(title):
    assert plain_text(f"One.\n== {title} ==\nA book.\n== Sources of the river ==\nTwo.").text == "One.\nTwo."


@pytest.mark.parametrize(
    ("wikitext", "text"),
    [
        ("{{convert|10|to|20|km|mi}} long", "10 to 20 km long"),
        ("{{convert|10|km|mi|abbr=on}} long", "10 km long"),
        ("{{cvt|6|ft|2|in|m}} tall", "6 ft 2 in tall"),
        ("{{convert|6|ft|m|1|abbr=on}} tall", "6 ft tall"),
        ("10{{ndash}}20 of 1914{{snd}}1918, 5{{nbsp}}km", "10–20 of 1914 – 1918, 5 km"),
        ("at {{small|high}} {{nobr|5 m}}", "at high 5 m"),
        ('here <maplink zoom=3>{"type": "Feature"}</maplink> and <ce>H2O</ce> there', "here and there"),
        ("of [[:Category:Lakes]]", "of Category:Lakes"),
        ("__NOTOC__ A lake __FORCETOC__", "A lake"),
        ("half a letter &#xD800;here", "half a letter here"),
    ],
)
def test_what_stands_in_a_sentence(wikitext, text):
    assert plain_text(wikitext).text == text


def test_an_article_with_half_a_character_is_written(tmp_path):
    """A reference that names no character, which no file can hold, would have ended every run at this page."""
    extract = read_wikidata(wikidata(tmp_path / "x.json", entity(1, "T1", 1.0, 2.0)))
    path = dump(tmp_path / "enwiki.xml.bz2", page(1, "T1", words(100) + " &#xDC00;"))
    counts = write_points(tmp_path / "out.parquet", [WikipediaDump(path, extract, VALID)])
    assert counts["wikipedia"]["kept"] == 1


def test_only_english_articles_with_a_place_on_earth_are_kept(tmp_path):
    extract = wikidata(
        tmp_path / "extract.json",
        entity(1, "Here", 4.5, 50.25),
        entity(2, "Moon crater", 4.5, 50.25, globe="Q405"),
        entity(3, "Ici", 4.5, 50.25, wiki="frwiki"),
        entity(4, "No place", taxon=77),
        entity(5, "Swapped", 45.0, 120.0),
        entity(6, "Nowhere", 200.0, 10.0),
        entity(7, "Withdrawn", 4.5, 50.25, rank="deprecated"),
    )
    counts = Counter()
    articles = read_wikidata(extract, counts)
    assert counts == {
        "items": 6,
        "kept": 2,
        "not_on_earth": 1,
        "no_english_article": 1,
        "coordinates_swapped": 1,
        "coordinates_out_of_range": 1,
    }
    titles = ("Here", "Moon crater", "Ici", "No place", "Swapped", "Nowhere", "Withdrawn")
    path = dump(tmp_path / "enwiki.xml.bz2", *(page(i, title, words(120)) for i, title in enumerate(titles, 1)))
    texts, counts, _ = read(path, articles)
    assert [text.title for text in texts] == ["Here"]
    assert (counts["pages"], counts["kept"], counts["parsed"], counts["not_in_wikidata"]) == (7, 1, 2, 5)
    (here,) = texts
    assert (here.lon, here.lat, here.source, here.licence) == (4.5, 50.25, "wikipedia:1@10", "CC BY-SA 4.0")
    assert here.uncertainty_m == pytest.approx(111.32) and (here.time_ms, here.time_end_ms) == tuple(VALID)


def test_redirects_other_namespaces_and_other_contents_are_counted(tmp_path):
    extract = wikidata(tmp_path / "x.json", *(entity(i, f"T{i}", 1.0, 2.0) for i in range(6)))
    path = dump(
        tmp_path / "enwiki.xml.bz2",
        page(1, "T1", words(100)),
        page(2, "T2", "#REDIRECT [[T1]]", redirect="T1"),
        page(3, "Talk:T3", words(100), ns=1),
        page(4, "T4", "{}", model="json"),
        page(5, "T5", words(40)),
    )
    _, counts, _ = read(path, read_wikidata(extract))
    assert counts == {
        "pages": 5,
        "kept": 1,
        "parsed": 2,
        "redirect": 1,
        "other_namespace": 1,
        "not_wikitext": 1,
        "too_short": 1,
    }


@pytest.mark.parametrize("inside", ["", "<title>T2</title><ns>0</ns>", "<ns>0</ns><id>2</id>", "<title>T2</title><id>"])
def test_a_page_without_a_title_or_an_id_is_counted(tmp_path, inside):
    extract = wikidata(tmp_path / "x.json", *(entity(i, f"T{i}", 1.0, 2.0) for i in (1, 3)))
    pages = (page(1, "T1", words(100)), f"<page>{inside}</page>\n", page(3, "T3", words(100)))
    texts, counts, _ = read(dump(tmp_path / "enwiki.xml.bz2", *pages), read_wikidata(extract))
    assert [text.title for text in texts] == ["T1", "T3"] and counts["damaged_page"] == 1


def test_titles_are_matched_as_mediawiki_does_and_page_ids_come_first(tmp_path):
    table = tmp_path / "extract.csv"
    table.write_text(
        "article,page_id,coord,globe,taxon\n"
        "https://en.wikipedia.org/wiki/Ch%C3%A2teau_d%27If,,Point(5.32 43.28),http://www.wikidata.org/entity/Q2,\n"
        ",7,Point(-70.5 -33.4),,\n"
    )
    articles = read_wikidata(table)
    path = dump(tmp_path / "enwiki.xml.bz2", page(3, "Château d'If", words(100)), page(7, "Other & more", words(100)))
    texts, _, _ = read(path, articles)
    assert [(t.title, t.lon, t.lat) for t in texts] == [("Château d'If", 5.32, 43.28), ("Other & more", -70.5, -33.4)]


def test_place_and_taxon_of_an_article_may_stand_on_two_rows(tmp_path):
    """As the query of docs/text.md returns them: a union has one row of each."""
    where, which = "Reef,Point(4.5 50.25),0.01,", "Reef,,,77"
    for rows in ((where, which), (which, where)):
        (tmp_path / "x.csv").write_text("\n".join(("title,coord,precision,taxon", *rows)) + "\n")
        found = read_wikidata(tmp_path / "x.csv").find(1, "Reef")
        assert (found.lon, found.lat, found.taxon) == (4.5, 50.25, 77)
        assert found.uncertainty_m == pytest.approx(1113.2)


@pytest.mark.parametrize("column", ["http://www.wikidata.org/entity/Q405", ""])
def test_coordinates_that_name_another_globe_are_not_on_earth(tmp_path, column):
    """So the query service writes what does not lie on Earth."""
    (tmp_path / "x.csv").write_text(
        "title,coord,globe\n"
        f"Tycho,<http://www.wikidata.org/entity/Q405> Point(-11.36 -43.31),{column}\n"
        "Mill,Point(4.35 50.85),\n"
    )
    counts = Counter()
    articles = read_wikidata(tmp_path / "x.csv", counts)
    assert counts == {"items": 2, "not_on_earth": 1, "kept": 1} and articles.find(1, "Tycho") is None


@pytest.mark.parametrize(
    ("precision", "metres"), [("0.01", 1113.2), ("", 0), ("0", 0), ("-0.01", 0), ("NaN", 0), ("inf", 0)]
)
def test_a_precision_that_can_be_none_is_none(tmp_path, precision, metres):
    (tmp_path / "x.csv").write_text(f"title,coord,precision\nMill,Point(4.35 50.85),{precision}\n")
    stated = float(precision) if precision else None
    entities = wikidata(tmp_path / "x.json", entity(1, "Mill", 4.35, 50.85, precision=stated))
    for path in (tmp_path / "x.csv", entities):
        assert read_wikidata(path).find(1, "Mill").uncertainty_m == pytest.approx(metres)


def test_a_table_that_a_spreadsheet_saved_is_read(tmp_path):
    (tmp_path / "x.csv").write_text("title,coord\r\nMill,Point(4.35 50.85)\r\n", encoding="utf-8-sig")
    assert read_wikidata(tmp_path / "x.csv").find(1, "Mill").lon == 4.35


def test_a_table_in_another_encoding_is_named(tmp_path):
    (tmp_path / "x.csv").write_text("title,coord\nMill,Point(4.35 50.85)\n", encoding="utf-16")
    with pytest.raises(TextError, match=r"x\.csv: line 0: 'utf-8' codec can't decode"):
        read_wikidata(tmp_path / "x.csv")


def test_another_extract_is_another_setting(tmp_path):
    """A run goes on only with the same places of the articles."""
    settings = [
        WikipediaDump(tmp_path / "x.xml", read_wikidata(wikidata(tmp_path / "x.json", one)), VALID).settings()
        for one in (entity(1, "Mill", 4.0, 50.0), entity(1, "Mill", 4.0, 50.0), entity(1, "Mill", 5.0, 50.0))
    ]
    assert settings[0] == settings[1] != settings[2]


def test_articles_about_taxa_are_kept_for_gbif(tmp_path):
    extract = wikidata(tmp_path / "x.json", entity(1, "Rook", taxon=42))
    taxa = TaxonArticles(tmp_path / "taxa.sqlite")
    texts, counts, _ = read(
        dump(tmp_path / "enwiki.xml.bz2", page(1, "Rook", words(110, "rook"))), read_wikidata(extract), taxa
    )
    assert not texts and counts["taxon_articles"] == 1
    assert taxa.get(42) == words(110, "rook") and taxa.get(43) is None


def test_a_full_disk_is_one_line_that_names_no_dump(tmp_path):
    extract = wikidata(tmp_path / "x.json", entity(1, "Rook", taxon=42))
    path = dump(tmp_path / "enwiki.xml.bz2", page(1, "Rook", words(110, "rook") + "x" * 100_000))
    taxa = TaxonArticles(tmp_path / "taxa.sqlite")
    taxa._database.execute("pragma max_page_count = 3")
    with pytest.raises(TextError, match=r"taxa\.sqlite: cannot be written \(database or disk is full\)"):
        read(path, read_wikidata(extract), taxa)


def test_reading_goes_on_at_any_reported_position(tmp_path, monkeypatch):
    monkeypatch.setattr("aef.text.wikipedia.BLOCK", 700)  # pages straddle blocks
    monkeypatch.setattr("aef.text.wikipedia.POSITION_EVERY", 1500)
    extract = wikidata(tmp_path / "x.json", *(entity(i, f"T{i}", 1.0, i / 2) for i in range(0, 20, 3)))
    path = dump(tmp_path / "enwiki.xml.bz2", *(page(i, f"T{i}", words(100 + i)) for i in range(1, 20)))
    articles = read_wikidata(extract)
    texts, counts, found = read(path, articles)
    assert counts["pages"] == 19 and [t.title for t in texts] == [f"T{i}" for i in range(3, 20, 3)]
    for position, _ in found:
        before = [t for at, t in found if t is not None and at <= position]
        rest, _, _ = read(path, articles, start=position)
        assert before + rest == texts


def test_pages_parsed_elsewhere_come_back_in_order_and_as_counted(tmp_path, monkeypatch):
    """Threads stand in for the processes; they finish out of order."""

    def slow(xml):
        time.sleep(0.02 if b"<id>3</id>" in xml else 0)
        return read_article(xml)

    monkeypatch.setattr("aef.text.wikipedia.ProcessPoolExecutor", lambda n, mp_context: ThreadPoolExecutor(n))
    monkeypatch.setattr("aef.text.wikipedia.read_article", slow)
    extract = wikidata(tmp_path / "x.json", *(entity(i, f"T{i}", 1.0, i / 2) for i in range(0, 40, 2)))
    path = dump(tmp_path / "enwiki.xml.bz2", *(page(i, f"T{i}", words(90 + i)) for i in range(1, 40)))
    counts, again = Counter(), Counter()
    alone = list(WikipediaDump(path, read_wikidata(extract), VALID).read(0, counts, iter(())))
    many = list(WikipediaDump(path, read_wikidata(extract), VALID, workers=2).read(0, again, iter(())))
    assert many == alone and again == counts and counts["too_short"] == 4


# --- bad input -------------------------------------------------------------------------------------------------------


def articles_of(tmp_path):
    return read_wikidata(wikidata(tmp_path / "w.json", entity(1, "T1", 1.0, 2.0)))


def test_a_dump_of_another_language_is_refused(tmp_path):
    path = dump(tmp_path / "dewiki.xml.bz2", page(1, "T1", words(100)), language="de")
    with pytest.raises(TextError, match=r"dewiki.xml.bz2: expected the English Wikipedia, found language 'de'"):
        read(path, articles_of(tmp_path))


def test_truncated_dumps_say_so_and_give_what_they_hold(tmp_path):
    whole = dump(tmp_path / "a.xml.bz2", page(1, "T1", words(100)), page(2, "T2", words(9000)))
    cut = tmp_path / "cut.xml.bz2"
    cut.write_bytes(whole.read_bytes()[:-40])
    with pytest.raises(TextError, match=r"cut.xml.bz2: (truncated or damaged|breaks off)"):
        read(cut, articles_of(tmp_path))
    stream = WikipediaDump(
        dump(tmp_path / "b.xml.bz2", page(1, "T1", words(100)), end=""), articles_of(tmp_path), VALID
    )
    reader = stream.read(0, Counter(), iter(()))
    assert next(reader)[1].title == "T1"
    with pytest.raises(TextError, match=r"b.xml.bz2: breaks off in the middle"):
        list(reader)


@pytest.mark.parametrize(
    ("content", "message"), [(b"", "is empty"), (b"hello", "not a MediaWiki XML dump"), (b"<html/>", "not a MediaWiki")]
)
def test_other_files_are_no_dump(tmp_path, content, message):
    path = tmp_path / "file.xml"
    path.write_bytes(content)
    with pytest.raises(TextError, match=message):
        read(path, articles_of(tmp_path))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", '{"P625": 1}\n"P625" broken\n', "line 1 is not a Wikidata entity"),
        ("b.json", "[\n]\n", "holds no item with P625 or P846"),
        ("c.csv", "a,b\n1,2\n", "expected a column title, article or page_id, found a, b"),
        ("d.csv", "title,x\nA,2\n", "expected a column coord, or lon and lat"),
        ("e.csv", "title,coord\nA,here\n", r"line 2: expected coordinates like Point\(4.35 50.85\), found 'here'"),
    ],
)
def test_other_files_are_no_extract_of_wikidata(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(TextError, match=message):
        read_wikidata(tmp_path / name)


def test_memory_does_not_grow_with_the_dump(tmp_path, monkeypatch):
    monkeypatch.setattr("aef.text.wikipedia.BLOCK", 1 << 15)
    articles, path = articles_of(tmp_path), tmp_path / "enwiki.xml"
    one = page(9, "Elsewhere", words(300))
    with path.open("w") as file:
        file.write(SITEINFO.format(language="en") + one * 2000 + "</mediawiki>")
    tracemalloc.start()
    _, counts, _ = read(path, articles)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert path.stat().st_size > 3e6 and peak < 1e6
    assert counts == {"pages": 2000, "not_in_wikidata": 2000}
