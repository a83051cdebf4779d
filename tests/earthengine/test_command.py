"""`aef download`: options, synonyms, what it prints, what it refuses, exit codes."""

import json
import os
import sys

import pytest
from conftest import IOWA
from standin.server import Faults

from aef.data.chips import ChipFolder
from aef.launcher import download as command
from aef.launcher.command import run
from aef.settings_file import registry_of

YEAR = ["--periods", "2019-03-01/2020-02-29"]
PLACE = ["--place", f"{IOWA[0]},{IOWA[1]}"]
BOX = ["--bbox", "8.50,47.00,8.53,47.025"]


def words(server, out, *more):
    return [
        "--project",
        "demo-project",
        "--key-file",
        str(server.key),
        "--endpoint",
        server.url,
        "--out",
        str(out),
        "--chip-px",
        "16",
        "--patience",
        "0.05",
        "--workers",
        "8",
        *YEAR,
        *more,
    ]


def call(*arguments):
    return run(command.main, [str(a) for a in arguments])


def test_one_place_from_the_command_line(standin, tmp_path, capsys):
    server, out = standin(faults=Faults(rate=0.2)), tmp_path / "chips"
    assert call(*words(server, out, *PLACE)) == 0
    printed = capsys.readouterr()
    assert "chips: 1 written" in printed.out and "sentinel2" in printed.out and "reflectance x 10000, ok" in printed.out
    assert "GLO30 is marked as deprecated" in printed.err and "1 chips planned" in printed.err
    assert "requests" in printed.err and "download: 9/9 items" in printed.err
    before = server.counters.requests
    assert call(*words(server, out, *PLACE)) == 0  # nothing is left to do, nobody is asked
    assert server.counters.requests == before
    assert call("--out", out, "--verify") == 0 and "1 chips as written, 0 not" in capsys.readouterr().out
    assert call("--out", out, "--export", tmp_path / "m.parquet") == 0 and "wrote 9 rows" in capsys.readouterr().out
    next(out.glob("*.npz")).write_bytes(b"x")
    assert call("--out", out, "--verify") == 1


def test_earlier_names_of_options_work(standin, tmp_path):
    server = standin()
    arguments = ["--project_id", "demo-project", "--output_dir", tmp_path / "c", "--samples", "2", "--workers", "4"]
    arguments += [
        "--key-file",
        server.key,
        "--endpoint",
        server.url,
        "--chip-px",
        "16",
        *YEAR,
        "--sources",
        "sentinel2",
        "glo30",
    ]
    assert call(*arguments) == 0
    assert len(ChipFolder(tmp_path / "c", registry_of())) == 2


def test_version_2_1_sources_travel_with_their_entry(standin, tmp_path):
    out = tmp_path / "chips"
    assert call(*words(standin(), out, *PLACE, "--sources", "sentinel2", "cdl")) == 0
    (chip,) = ChipFolder(out, registry_of(out))
    assert set(chip.sources) == {"sentinel2", "cdl"} and "cdl" in (out / "sources.yaml").read_text()


def test_a_source_of_one_s_own(standin, tmp_path):
    (tmp_path / "own.yaml").write_text(
        "sources:\n  - {name: landuse, title: own, collections: [USDA/NASS/CDL], bands: [{name: cropland, unit: class, valid_min: 0, valid_max: 255}], "
        "role: target, native_resolution_m: 30, time: interval, resampling: nearest, classes: [1, 5, 24, 36, 111, 176], loss: cross_entropy, regrid_m: 30}\n"
    )
    out = tmp_path / "chips"
    assert call(*words(standin(), out, *PLACE, "--sources", "landuse", "--sources-file", tmp_path / "own.yaml")) == 0
    (chip,) = ChipFolder(out, registry_of(out))
    assert chip.sources["landuse"].frames >= 1 and chip.sources["landuse"].collection == "USDA/NASS/CDL"


def test_estimate_and_dry_run_ask_nobody(tmp_path, capsys):
    arguments = [
        "--out",
        tmp_path / "c",
        "--random-land",
        "20",
        "--periods",
        "2017-01-01/2023-01-01",
        "--draw-periods",
        "2",
    ]
    assert call(*arguments, "--estimate") == 0
    text = capsys.readouterr().out
    assert "chips       40" in text and "EECU-hours" in text and "sentinel2" in text
    assert call(*arguments, "--dry-run") == 0
    text = capsys.readouterr().out
    assert "40 chips of 128 px" in text and "COPERNICUS/S2_HARMONIZED" in text and "EPSG:" in text
    assert not (tmp_path / "c").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--periods", "2019-01-01/2020-01-01"], "no sites: give one of --sites, --place"),
        ([*PLACE], "states no period of its own: add --periods"),
        ([*PLACE, "--periods", "2019"], "expected START/END"),
        (
            [*PLACE, "--periods", "2017-01-01/2019-01-01,2020-01-01/2022-01-01", "--draw-periods", "2"],
            "--draw-periods: expected one range in --periods, found 2 periods",
        ),
        ([*PLACE, *YEAR, "--draw-periods", "-1"], "--draw-periods: expected 0 or more, found -1"),
        (["--random-land", "2", *YEAR, "--seed", "-1"], "--seed: expected 0 or more, found -1"),
        (["--place", "8.5", *YEAR], "expected --place LON,LAT, found '8.5'"),
        (["--bbox", "1,2,0,3", *YEAR], "must be WEST,SOUTH,EAST,NORTH"),
        (
            [*BOX, *YEAR, "--overlap-px", "7"],
            "--overlap-px: expected an even number, half of it for each side, found 7",
        ),
        ([*BOX, *YEAR, "--overlap-px", "130"], "--overlap-px: expected 0 to 128, found 130"),
        ([*BOX, *YEAR, "--overlap-px", "8", "--chip-px", "64"], "--overlap-px: chips of --chip-px 64 lie apart"),
        ([*PLACE, *YEAR, "--overlap-px", "16"], "--overlap-px: only the cells of --bbox have neighbours"),
        ([*PLACE, *YEAR, "--sources", "sentinel9"], "unknown source 'sentinel9'"),
        ([*PLACE, *YEAR, "--part", "5/4"], "--part: expected K/N"),
        ([*PLACE, *YEAR, "--sources", "glo30", "--require", "nlcd"], "--require nlcd: is not among the sources"),
        (["--sites", "absent.csv", *YEAR], "--sites absent.csv: no such file or folder"),
        ([*PLACE, *YEAR, "--from", "stac"], "--from stac needs --catalog"),
    ],
)
def test_wrong_words_are_one_line(tmp_path, capsys, arguments, message):
    assert call("--project", "p", "--out", tmp_path / "c", "--key-file", "none.json", *arguments) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("aef download: error: ") and message in error


@pytest.mark.parametrize("words", [["--place", "8.5", *YEAR], [*PLACE, "--periods", "2019"]], ids=["site", "period"])
def test_a_slip_in_a_site_or_a_period_is_said_before_anything_about_collections(tmp_path, capsys, words):
    assert call("--project", "p", "--out", tmp_path / "c", *words) == 1
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("words", [["--chip-px", "0"], ["--workers", "0"], ["--random-land", "-1"]])
def test_nothing_of_anything_is_no_download(tmp_path, capsys, words):
    place = [] if words[0] == "--random-land" else PLACE
    assert call("--project", "p", "--out", tmp_path / "c", *place, *YEAR, *words, "--dry-run") == 1
    assert f"{words[0]}: expected 1 or more, found {words[1]}" in capsys.readouterr().err


def test_a_dry_run_says_how_many_of_its_chips_it_lists(tmp_path, capsys):
    sites = tmp_path / "sites.csv"
    sites.write_text("id,lon,lat\n" + "".join(f"s{i},8.{i},47\n" for i in range(7)))
    assert call("--project", "p", "--out", tmp_path / "c", "--sites", sites, *YEAR, "--dry-run") == 0
    printed = capsys.readouterr().out
    assert "7 chips of 128 px, 5 of them above, would go to" in printed and printed.count("EPSG") == 5


def bounds(printed):
    """Of the chips that a dry run lists, by the row and column of their cell."""
    lines = [line.replace(",", "") for line in printed.splitlines() if "EPSG:32632" in line]
    return {tuple(map(int, line.split("_")[1:3])): tuple(map(int, line.split()[2:6])) for line in lines}


@pytest.mark.parametrize(
    "provider", [["--project", "p"], ["--from", "stac", "--catalog", "c.json"]], ids=["ee", "stac"]
)
@pytest.mark.parametrize("cell_px", [128, 129])
def test_chips_that_overlap_share_so_many_pixels_and_keep_their_cells(tmp_path, capsys, cell_px, provider):
    arguments = [
        *provider,
        "--sources",
        "glo30",
        "--out",
        tmp_path / "c",
        *BOX,
        *YEAR,
        "--chip-px",
        cell_px,
        "--dry-run",
    ]
    assert call(*arguments) == 0
    abutting = bounds(capsys.readouterr().out)
    assert call(*arguments, "--overlap-px", "16") == 0
    printed = capsys.readouterr().out
    assert f"4 chips of {cell_px + 16} px would go to" in printed
    overlapping = bounds(printed)
    assert len(abutting) == 4 and overlapping == {
        cell: (left - 80, bottom - 80, right + 80, top + 80) for cell, (left, bottom, right, top) in abutting.items()
    }
    (row, col), *_ = sorted(abutting)
    assert overlapping[row, col][2] - overlapping[row, col + 1][0] == 160  # to the east
    assert overlapping[row, col][3] - overlapping[row + 1, col][1] == 160  # to the north


def test_chips_that_overlap_are_planned_once_and_those_of_other_cells_anew(standin, tmp_path, capsys):
    server, out = standin(), tmp_path / "chips"
    given = [*words(server, out, *BOX), "--sources", "glo30", "--chip-px", "128", "--overlap-px", "16"]
    assert call(*given) == 0 and "4 chips planned" in capsys.readouterr().err
    chips = list(ChipFolder(out, registry_of(out)))
    assert [(chip.height, chip.width) for chip in chips] == [(144, 144)] * 4
    assert call(*given) == 0 and "planned" not in capsys.readouterr().err
    assert call(*given[:-2]) == 1 and "chip_px = 144, now 128" in capsys.readouterr().err
    assert call(*given[:-2], "--chip-px", "144") == 0  # of the same side, and on other cells
    assert "2 chips planned" in capsys.readouterr().err


@pytest.mark.parametrize("more", [["--dry-run"], ["--key-file", "none.json"]])
def test_two_places_of_one_id_are_refused_with_both(tmp_path, capsys, more):
    sites = tmp_path / "fields.csv"
    sites.write_text("id,lon,lat\nFeld 1/2,8.54,47.37\nb,8.7,47.4\nFeld 1_2,8.6,47.4\n")
    assert call("--project", "p", "--out", tmp_path / "c", "--sites", sites, *YEAR, *more) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert "chip Feld_1_2_" in error and "8.54000,47.37000" in error and "8.60000,47.40000" in error
    sites.write_text("id,lon,lat\na,8.54,47.37\na,8.54,47.37\nb,8.7,47.4\n")
    assert call("--project", "p", "--out", tmp_path / "d", "--sites", sites, *YEAR, "--dry-run") == 0
    assert "2 chips of 128 px would go to" in capsys.readouterr().out


def test_a_period_in_the_future_is_said(tmp_path, capsys):
    later = ["--periods", "2019-01-01/2020-01-01,2999-01-01/3000-01-01"]
    assert call("--project", "p", "--out", tmp_path / "c", *PLACE, *later, "--dry-run") == 0
    error = capsys.readouterr().err
    assert (
        "warning: the period 2999-01-01/3000-01-01 lies in the future" in error and error.count("warning: the p") == 1
    )


def test_export_and_verify_of_an_empty_folder(tmp_path, capsys):
    assert call("--out", tmp_path, "--verify") == 1
    assert "nothing was downloaded into this folder yet" in capsys.readouterr().err


def test_incomplete_chips_give_exit_code_1_and_say_how_to_go_on(standin, tmp_path, capsys):
    server, out = standin(faults=Faults(denied="ERA5_LAND")), tmp_path / "chips"
    assert call(*words(server, out, *PLACE)) == 1
    printed = capsys.readouterr()
    assert "permission denied" in printed.out and "era5_land" in printed.out and "--retry-failed" in printed.err
    server.faults = Faults()
    assert call(*words(server, out, *PLACE)) == 1  # refused ones are not asked for again by themselves
    assert call(*words(server, out, *PLACE, "--retry-failed")) == 0


def test_hosts_share_the_work(standin, tmp_path):
    server, out = standin(), tmp_path / "chips"
    file = tmp_path / "sites.csv"
    file.write_text("lon,lat\n" + "".join(f"{8.5 + k / 20},47.1\n" for k in range(6)))
    arguments = ["--sites", file, "--sources", "sentinel2"]
    for share in ("1/2", "2/2"):
        assert call(*words(server, out, *arguments, "--part", share)) == 0
    assert len(list(out.glob("*.npz"))) == 6 and len(list(out.glob("manifest-*-of-2.sqlite"))) == 2


def test_help_shows_units_and_defaults(capsys):
    with pytest.raises(SystemExit):
        command.main(["--help"])
    text = capsys.readouterr().out
    assert all(word in text for word in ("--project", "--periods", "--part", "(default: 40)", "10 m pixels", "seconds"))


def test_no_room_of_the_program_needs_earth_engine(tmp_path):
    """What is imported for everything else does not bring the client library along."""
    import subprocess

    code = "import sys; import aef, aef.sources, aef.data.chips, aef.launcher.download, aef.earthengine.sites, aef.stac.fetch; sys.exit('ee' in sys.modules)"
    assert (
        subprocess.run([sys.executable, "-c", code], env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False).returncode
        == 0
    )


def test_manifest_holds_no_credential(standin, tmp_path):
    server, out = standin(), tmp_path / "chips"
    assert call(*words(server, out, *PLACE, "--sources", "glo30")) == 0
    key = json.loads(server.key.read_text())
    for path in out.rglob("*"):
        if path.is_file():
            held = path.read_bytes()
            assert b"ya29" not in held and key["client_email"].encode() not in held and b"PRIVATE KEY" not in held
