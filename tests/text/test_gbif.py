"""GBIF: an archive and a table as GBIF writes them; every filter with a row that just passes and one that just fails."""

import zipfile
from collections import Counter

import pyarrow as pa
import pytest

from aef.text.gbif import Occurrences, licence_of, observation_period
from aef.text.points import TextError
from aef.timecode import DAY_MS, Period, format_time, parse_period

OBSERVED = parse_period("2017-01-01/2024-01-01")
GOOD = {
    "gbifID": "100",
    "kingdom": "Animalia",
    "class": "Aves",
    "family": "Corvidae",
    "genus": "Corvus",
    "species": "Corvus frugilegus",
    "decimalLatitude": "50.25",
    "decimalLongitude": "4.5",
    "coordinateUncertaintyInMeters": "240",
    "eventDate": "2019-05-03T10:20:00",
    "basisOfRecord": "HUMAN_OBSERVATION",
    "license": "CC_BY_4_0",
    "speciesKey": "42",
    "occurrenceStatus": "PRESENT",
    "issue": "COORDINATE_ROUNDED;GEODETIC_DATUM_ASSUMED_WGS84",
}
TERMS = {
    "gbifID": "http://rs.gbif.org/terms/1.0/gbifID",
    "species": "http://rs.gbif.org/terms/1.0/species",
    "speciesKey": "http://rs.gbif.org/terms/1.0/speciesKey",
    "issue": "http://rs.gbif.org/terms/1.0/issue",
    "license": "http://purl.org/dc/terms/license",
}


def table_text(rows):
    return "\n".join("\t".join(row[name] for name in GOOD) for row in rows) + "\n"


def simple_table(path, rows):
    path.write_text("\t".join(GOOD) + "\n" + table_text(rows))
    return path


def archive(path, rows, *, meta=None, location="occurrence.txt"):
    """As GBIF packs it: meta.xml, the core, an extension that nobody reads."""
    fields = "".join(
        f'<field index="{i}" term="{TERMS.get(name, f"http://rs.tdwg.org/dwc/terms/{name}")}"/>'
        for i, name in enumerate(GOOD)
    )
    meta = meta or (
        '<archive xmlns="http://rs.tdwg.org/dwc/text/" metadata="metadata.xml"><core encoding="utf-8" fieldsTerminatedBy="\\t" '
        'linesTerminatedBy="\\n" fieldsEnclosedBy="" ignoreHeaderLines="1" rowType="http://rs.tdwg.org/dwc/terms/Occurrence">'
        f'<files><location>{location}</location></files><id index="0"/>{fields}</core></archive>'
    )
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("meta.xml", meta)
        file.writestr("occurrence.txt", "\t".join(GOOD) + "\n" + table_text(rows))
        file.writestr("multimedia.txt", "gbifID\ttype\n100\tStillImage\n")
    return path


def read(path, start=0, earlier=(), articles=None):
    counts = Counter()
    found = list(Occurrences(path, OBSERVED, articles).read(start, counts, iter(earlier)))
    return [text for _, text in found if text is not None], counts, found


def outcome(tmp_path, **changes):
    """Why a row with these changes is dropped, or None."""
    texts, counts, _ = read(simple_table(tmp_path / "rows.csv", [{**GOOD, **changes}]))
    (reason,) = counts.keys() - {"occurrences"}
    assert counts["occurrences"] == 1 and len(texts) == (reason == "kept")
    return None if reason == "kept" else reason


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, None),
        ({"kingdom": "Plantae"}, None),
        ({"kingdom": "Fungi"}, None),
        ({"kingdom": "Bacteria"}, "other_kingdom"),
        ({"license": "CC0_1_0"}, None),
        ({"license": "http://creativecommons.org/publicdomain/zero/1.0/legalcode"}, None),
        ({"license": "http://creativecommons.org/licenses/by/4.0/legalcode"}, None),
        ({"license": "CC_BY_NC_4_0"}, "other_licence"),
        ({"license": "http://creativecommons.org/licenses/by-nc/4.0/legalcode"}, "other_licence"),
        ({"license": ""}, "other_licence"),
        ({"basisOfRecord": "MACHINE_OBSERVATION"}, None),
        ({"basisOfRecord": "PRESERVED_SPECIMEN"}, "not_an_observation"),
        ({"occurrenceStatus": "ABSENT"}, "absence"),
        ({"coordinateUncertaintyInMeters": "240.0"}, None),
        ({"coordinateUncertaintyInMeters": "240.1"}, "too_uncertain"),
        ({"coordinateUncertaintyInMeters": ""}, "uncertainty_missing"),
        ({"coordinateUncertaintyInMeters": "0"}, "uncertainty_missing"),
        ({"coordinateUncertaintyInMeters": "NaN"}, "uncertainty_missing"),
        ({"decimalLatitude": ""}, "coordinates_missing"),
        ({"decimalLatitude": "-90"}, None),
        ({"decimalLatitude": "90.1", "decimalLongitude": "100"}, "coordinates_out_of_range"),
        ({"decimalLatitude": "120.5", "decimalLongitude": "45.25"}, "coordinates_swapped"),
        ({"decimalLongitude": "180"}, None),
        ({"decimalLongitude": "180.5"}, "coordinates_out_of_range"),
        ({"decimalLatitude": "0", "decimalLongitude": "0"}, "coordinates_zero"),
        ({"issue": "PRESUMED_SWAPPED_COORDINATE"}, "coordinates_suspicious"),
        ({"issue": "COORDINATE_ROUNDED;COUNTRY_COORDINATE_MISMATCH"}, "coordinates_suspicious"),
        ({"issue": "RECORDED_DATE_UNLIKELY"}, "date_suspicious"),
        ({"issue": "TAXON_MATCH_FUZZY"}, "taxon_suspicious"),
        ({"species": ""}, "taxon_incomplete"),
        ({"eventDate": ""}, "date_missing"),
        ({"eventDate": "99999999999"}, "date_missing"),
        ({"eventDate": "2017-01-01"}, None),
        ({"eventDate": "2016-12-31"}, "outside_the_years"),
        ({"eventDate": "2023-12-31T23:59:59"}, None),
        ({"eventDate": "2024-01-01"}, "outside_the_years"),
    ],
)
def test_each_filter_of_the_paper(tmp_path, changes, reason):
    assert outcome(tmp_path, **changes) == reason


def test_at_most_1000_per_family_genus_and_species_whatever_they_were_read_in(tmp_path):
    rows = [{**GOOD, "gbifID": str(i)} for i in range(1002)] + [{**GOOD, "species": "Corvus corax"}]
    path = simple_table(tmp_path / "rows.csv", rows)
    texts, counts, found = read(path)
    assert counts == {"occurrences": 1003, "kept": 1001, "over_the_limit_per_taxon": 2}
    # An interrupted run counts what it wrote before.
    start = found[599][0]
    table = pa.table({"taxon": [text.taxon for text in texts[:600]]})
    rest, counts, _ = read(path, start, [table])
    assert counts["kept"] == 401 and texts[:600] + rest == texts


def test_what_a_text_says_and_where_it_lies(tmp_path):
    (text,), _, _ = read(simple_table(tmp_path / "rows.csv", [GOOD]))
    assert text.text == "Corvus frugilegus, genus Corvus, class Aves."
    assert (text.lon, text.lat, text.uncertainty_m) == (4.5, 50.25, 240)
    assert (format_time(text.time_ms), format_time(text.time_end_ms)) == ("2019-05-03", "2019-05-04")
    assert (text.source, text.licence, text.taxon) == ("gbif:100", "CC BY 4.0", "Corvidae|Corvus|Corvus frugilegus")


def test_an_article_is_joined_by_taxon_id(tmp_path):
    path = simple_table(tmp_path / "rows.csv", [GOOD, {**GOOD, "speciesKey": "7"}])
    texts, _, _ = read(path, articles={42: "The rook is a bird."})
    assert [t.text.partition("\n")[2] for t in texts] == ["The rook is a bird.", ""]


def test_archives_and_tables_give_the_same(tmp_path):
    rows = [
        GOOD,
        {**GOOD, "gbifID": "101", "kingdom": "Bacteria"},
        {**GOOD, "gbifID": "102", "species": 'Quote " inside'},
    ]
    expected, counts, _ = read(simple_table(tmp_path / "rows.csv", rows))
    assert len(expected) == 2
    from_archive, again, _ = read(archive(tmp_path / "archive.zip", rows))
    assert (from_archive, again) == (expected, counts)
    with zipfile.ZipFile(tmp_path / "simple.zip", "w") as file:
        file.write(tmp_path / "rows.csv", "0001-simple.csv")
    assert read(tmp_path / "simple.zip")[0] == expected
    commas = tmp_path / "commas.csv"
    commas.write_text(",".join(GOOD) + "\n" + ",".join(f'"{v}"' for v in GOOD.values()) + "\n")
    assert read(commas)[0] == expected[:1]


def test_a_carriage_return_within_a_field_ends_no_row(tmp_path):
    rows = [{**GOOD, "occurrenceStatus": "PRE\rSENT"}, {**GOOD, "gbifID": "101"}]
    for path in (simple_table(tmp_path / "rows.csv", rows), archive(tmp_path / "archive.zip", rows)):
        texts, counts, _ = read(path)
        assert [text.source for text in texts] == ["gbif:100", "gbif:101"] and counts["occurrences"] == 2


def test_a_value_that_all_rows_of_an_archive_share_is_used(tmp_path):
    path = archive(tmp_path / "a.zip", [{**GOOD, "license": "CC_BY_NC_4_0"}])
    with zipfile.ZipFile(path) as file:
        meta = file.read("meta.xml").decode()
    index = list(GOOD).index("license")
    meta = meta.replace(f'index="{index}" term="{TERMS["license"]}"', f'default="CC0_1_0" term="{TERMS["license"]}"')
    (text,), _, _ = read(archive(path, [{**GOOD, "license": "CC_BY_NC_4_0"}], meta=meta))
    assert text.licence == "CC0 1.0"


@pytest.mark.parametrize(
    ("text", "days"),
    [
        ("2019-05-03", ("2019-05-03", "2019-05-04")),
        ("2019-05-03T08:00Z", ("2019-05-03", "2019-05-04")),
        ("2019-05-03/2019-05-06", ("2019-05-03", "2019-05-07")),
        ("2019-12", ("2019-12-01", "2020-01-01")),
        ("2020", ("2020-01-01", "2021-01-01")),
        ("2019-05-03/2021-01-01", None),
        ("2019-13-01", None),
        ("spring", None),
    ],
)
def test_dates_are_read_in_gbifs_forms(text, days):
    found = observation_period(text)
    assert (found and (format_time(found.start_ms), format_time(found.end_ms))) == days
    assert found is None or (found.length_ms % DAY_MS == 0 and isinstance(found, Period))


def test_a_licence_that_only_begins_alike_is_not_accepted():
    assert licence_of("http://creativecommons.org/licenses/by/4.0/") == "CC BY 4.0"
    assert licence_of("http://creativecommons.org/licenses/by/4.01") is None


# --- bad input -------------------------------------------------------------------------------------------------------


def test_broken_archives_are_refused_by_name(tmp_path):
    broken = tmp_path / "broken.zip"
    whole = archive(tmp_path / "good.zip", [GOOD] * 50).read_bytes()
    broken.write_bytes(whole[:-30])
    with pytest.raises(TextError, match=r"broken.zip: truncated or damaged"):
        read(broken)
    with pytest.raises(TextError, match=r"names elsewhere.txt, which the archive lacks"):
        read(archive(tmp_path / "other.zip", [GOOD], location="elsewhere.txt"))
    with pytest.raises(TextError, match=r"meta.xml does not describe a Darwin Core archive"):
        read(archive(tmp_path / "meta.zip", [GOOD], meta="<archive"))
    with zipfile.ZipFile(tmp_path / "good.zip") as file:
        meta = file.read("meta.xml").decode()
    with pytest.raises(TextError, match=r"meta.xml does not describe .* \(unknown encoding: nonsense"):
        read(archive(tmp_path / "encoding.zip", [GOOD], meta=meta.replace("utf-8", "nonsense")))
    with pytest.raises(TextError, match=r"its meta.xml ends lines in a way that cannot be read \(illegal newline"):
        read(archive(tmp_path / "lines.zip", [GOOD], meta=meta.replace("\\n", "|")))
    with zipfile.ZipFile(tmp_path / "two.zip", "w") as file:
        file.writestr("a.csv", "x")
        file.writestr("b.csv", "x")
    with pytest.raises(TextError, match="neither a Darwin Core archive"):
        read(tmp_path / "two.zip")
    (tmp_path / "noise.csv").write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(TextError, match=r"noise.csv: truncated or damaged"):
        read(tmp_path / "noise.csv")


def test_a_missing_column_is_named_and_short_rows_are_counted(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("kingdom\tclass\nAnimalia\tAves\n")
    with pytest.raises(TextError, match=r"rows.csv: lacks the column family"):
        read(path)
    simple_table(path, [GOOD])
    path.write_text(path.read_text() + "Animalia\tAves\n")
    _, counts, _ = read(path)
    assert counts == {"occurrences": 2, "kept": 1, "damaged_row": 1}
