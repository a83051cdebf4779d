"""`aef text` from corpora to vectors beside the chips, as a user runs it."""

import importlib.util
from pathlib import Path

import pytest

from aef.data.chips import read_chip, write_chip
from aef.launcher.command import run
from aef.launcher.text import main
from aef.sources import BUILT_IN
from aef.text.cache import find_vectors
from aef.text.points import open_points
from aef.timecode import format_time


def beside(name):
    """A neighbouring test module: its builders of corpora and chips."""
    spec = importlib.util.spec_from_file_location(f"text_{name}", Path(__file__).with_name(f"{name}.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


wiki, gbif, points = beside("test_wikipedia"), beside("test_gbif"), beside("test_points")


@pytest.fixture
def corpora(tmp_path):
    """A dump, an extract and occurrences, all about places on chip ``a``."""
    here, there = (points.at_pixel(0, row, 5) for row in (3, 9))
    wiki.dump(
        tmp_path / "enwiki.xml.bz2",
        wiki.page(1, "Old mill", "The mill " + wiki.words(110)),
        wiki.page(2, "Rook", "The rook " + wiki.words(120, "bird")),
    )
    wiki.wikidata(
        tmp_path / "wikidata.json", wiki.entity(1, "Old mill", here.lon, here.lat), wiki.entity(2, "Rook", taxon=42)
    )
    place = {"decimalLongitude": str(there.lon), "decimalLatitude": str(there.lat)}
    gbif.archive(tmp_path / "gbif.zip", [{**gbif.GOOD, **place}, {**gbif.GOOD, "license": "CC_BY_NC_4_0"}])
    chips = tmp_path / "chips"
    chips.mkdir()
    write_chip(chips / "a.npz", points.chip("a"), BUILT_IN)
    return tmp_path, chips


def options(folder, chips, *more):
    files = {"wikipedia": "enwiki.xml.bz2", "wikidata": "wikidata.json", "gbif": "gbif.zip"}
    return [
        *(part for name, file in files.items() for part in (f"--{name}", str(folder / file))),
        "--attach",
        str(chips),
        *more,
    ]


def test_from_corpora_to_vectors_by_one_command(corpora, capsys):
    folder, chips = corpora
    assert main(options(folder, chips, "--tower", "tiny")) == 0
    out = capsys.readouterr().out
    assert "other licence 1" in out and "taxon articles 1" in out and "on no chip 0" in out
    mill, rook = read_chip(chips / "a.npz", BUILT_IN).texts
    assert mill.text.startswith("The mill field") and mill.source == "wikipedia:1@10"
    assert (
        rook.text.startswith("Corvus frugilegus, genus Corvus, class Aves.\nThe rook bird")
        and rook.source == "gbif:100"
    )
    # An article states no date: it holds from 2015 to 2029.
    assert (format_time(mill.time_ms), format_time(mill.time_end_ms)) == ("2015-01-01", "2030-01-01")
    vectors = find_vectors(chips)
    assert vectors.identity.name == "tiny" and all(vectors(point.text) is not None for point in (mill, rook))
    assert open_points(chips / "texts.parquet").metadata.num_rows == 2
    assert main(["--encode", str(chips), "--tower", "tiny"]) == 0
    assert "0 texts encoded, 2 were there already" in capsys.readouterr().out


def test_who_attaches_without_a_tower_is_told_what_is_missing(corpora, capsys):
    folder, chips = corpora
    assert main(options(folder, chips)) == 0
    assert f"next, aef text --encode {chips} --tower NAME" in capsys.readouterr().out


def test_a_dry_run_does_nothing(corpora, capsys):
    folder, chips = corpora
    assert main(options(folder, chips, "--tower", "tiny", "--dry-run")) == 0
    out = capsys.readouterr().out
    assert out.count("would ") == 3 and "texts.parquet" in out
    assert sorted(p.name for p in chips.iterdir()) == ["a.npz"] and not read_chip(chips / "a.npz", BUILT_IN).texts


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "nothing to do"),
        (["--wikipedia", "x.xml"], "--wikipedia needs --wikidata FILE"),
        (["--gbif", "x.zip"], "name what to write"),
        (["--attach", "chips"], "--attach needs texts"),
        (["--encode", "chips"], "--encode needs --tower NAME"),
        (["--gbif", "x.zip", "--wikidata", "x.csv", "--out", "o.parquet"], "--wikidata locates articles"),
        (["--points", "p.parquet", "--out", "o.parquet", "--attach", "chips"], "--out is where the corpora's"),
        (["--points", "p.parquet", "--attach", "chips", "--weights", "w.pt"], "--weights are those of a tower"),
        (["--gbif", "absent.zip", "--out", "o.parquet"], "absent.zip"),
    ],
)
def test_what_does_not_fit_together_is_one_line(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run(main, arguments) == 1
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--gbif", "absent.zip"], "--gbif absent.zip: no such file"),
        (["--attach", "elsewhere"], "elsewhere: no such folder of chips"),
        (["--observed", "2017"], "expected START/END"),
        (["--workers", "-1"], "--workers: expected 0 or more"),
    ],
)
def test_what_cannot_be_read_is_said_before_any_corpus_is(arguments, message, corpora, monkeypatch, capsys):
    folder, chips = corpora
    monkeypatch.chdir(folder)
    monkeypatch.setattr("aef.text.wikidata.read_wikidata", lambda *_: pytest.fail("was read"))
    assert run(main, options(folder, chips, *arguments)) == 1
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not (folder / "elsewhere").exists()


def test_chips_without_texts_and_unreachable_weights_are_one_line(corpora, monkeypatch, capsys):
    _, chips = corpora
    assert run(main, ["--encode", str(chips), "--tower", "tiny"]) == 1
    assert "its chips hold no texts" in capsys.readouterr().err
