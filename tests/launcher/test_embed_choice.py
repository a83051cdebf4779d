"""Which chips `aef embed` takes: its part of a folder, the chip of each year, those that are whole."""

import shutil

import pytest
import torch

from aef.data.chips import ChipFolder
from aef.data.shard_writer import pack
from aef.launcher.command import device_of_rank
from aef.mapping import chip_choice
from aef.mapping.chip_choice import periods_by_chip, read_times, times_of
from aef.mapping.files import read_tags
from aef.sources import BUILT_IN
from aef.timecode import parse_period
from tests.launcher.series import YEAR, a_place


@pytest.fixture
def five_chips(tmp_path):
    folder = tmp_path / "five"
    folder.mkdir()
    for number in range(5):
        a_place(folder, number, ["2018-01-03"])
    return folder


def test_parts_make_every_field_once_and_the_whole_command_adds_the_quicklooks(call, five_chips, tmp_path):
    made, fields = [], tmp_path / "fields"
    for number in (1, 2, 3):
        before = set(fields.iterdir()) if fields.exists() else set()
        code, said = call("--part", f"{number}/3", data=five_chips)
        made.append(sorted(path.name[:2] for path in set(fields.iterdir()) - before))
        assert code == 0 and f"part {number}/3, {len(made[-1])} of 5 chips: {len(made[-1])} fields written" in said
    assert made == [["p0", "p3"], ["p1", "p4"], ["p2"]]
    whole = {path.name: path.read_bytes() for path in fields.iterdir()}
    assert "0 fields written" in call("--part", "2/3", data=five_chips)[1]
    assert "0 fields written" in call(data=five_chips)[1] and len(list(fields.glob("*.png"))) == 5
    shutil.rmtree(fields)
    call("--no-quicklooks", data=five_chips)
    assert {path.name: path.read_bytes() for path in fields.iterdir()} == whole


def test_a_dry_run_of_a_part_names_its_own_fields_only(call, five_chips, field):
    code, said = call("--dry-run", "--part", "2/3", data=five_chips)
    assert code == 0 and said.count("would write") == 2 and "p1_2018" in said and "p4_2018" in said
    assert "part 2/3, 2 of 5 chips: 2 fields would be written" in said and not field.parent.exists()


def test_a_part_without_a_chip_or_with_bad_ones_only_ends_well(call, five_chips):
    code, said = call("--part", "7/8", data=five_chips)
    assert code == 0 and "part 7/8, 0 of 5 chips: 0 fields written" in said
    (five_chips / "p1_2018.npz").write_bytes(b"no chip")
    code, said = call("--part", "2/5", "--skip-bad", data=five_chips)
    assert code == 0 and "0 fields written" in said and "1 chips skipped: p1_2018.npz" in said
    code, said = call("--part", "2/5", data=five_chips)
    assert code == 1 and "p1_2018.npz: is damaged or not a chip" in said
    assert call("--part", "1/5", data=five_chips)[0] == 0  # a bad chip of another part is not looked at


def test_one_chip_of_a_shard_is_embedded_like_one_of_its_own_file(call, two_chips, field, tmp_path):
    assert "1 fields written" in call("--no-quicklooks", data=two_chips / "a.npz")[1]
    alone = field.read_bytes()
    field.unlink()
    (shard,) = pack(ChipFolder(two_chips, BUILT_IN), tmp_path / "packed", 2**30)
    assert "1 fields written" in call("--no-quicklooks", data=shard / "a.npz")[1]
    assert field.read_bytes() == alone
    code, said = call(data=shard)
    assert code == 1 and f"{shard}: is a shard of many chips: give its folder, or {shard}/NAME.npz" in said
    code, said = call(data=shard / "none.npz")
    assert code == 1 and f"{shard}/none.npz: no such file or folder" in said


@pytest.mark.parametrize("share", ["0/0", "3/2", "a/b"])
def test_a_share_that_is_none_is_refused_before_the_model_is_read(call, share):
    code, said = call("--part", share, checkpoint="nowhere")
    assert code == 1 and said == f"aef embed: error: --part: expected K/N with K from 1 to N, like 2/8, found {share!r}"


def test_ranks_of_torchrun_take_their_shares_and_gpus(call, five_chips, monkeypatch):
    for name, value in {"RANK": "5", "WORLD_SIZE": "6", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    code, said = call(data=five_chips)
    assert code == 1 and "each of several processes would embed every chip: add --part auto" in said
    assert "5 fields written" in call("--part", "1/1", "--no-quicklooks", data=five_chips)[1]
    assert "part 6/6, 0 of 5 chips" in call("--part", "auto", data=five_chips)[1]
    assert device_of_rank() == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert device_of_rank() == "cuda:1"


def test_a_year_is_embedded_from_the_chip_that_observed_it_whichever_part_holds_the_others(call, tmp_path):
    folder, fields = tmp_path / "years", tmp_path / "fields"
    folder.mkdir()
    a_place(folder, 0, ["2019-01-03", "2020-01-03"])
    a_place(folder, 1, ["2019-01-03"])
    for number in (1, 2):
        options = ("--no-quicklooks", "--part", f"{number}/2", "--period", "2020-01-01/2020-05-01")
        assert call(*options, data=folder, period="2019-01-01/2020-01-01")[0] == 0
    assert sorted(path.stem for path in fields.iterdir()) == [
        "p0_2019_2019-01-01_2020-01-01",
        "p0_2020_2020-01-01_2020-05-01",
        "p1_2019_2019-01-01_2020-01-01",
        "p1_2019_2020-01-01_2020-05-01",
    ]


def test_of_chips_of_other_ground_and_other_parts_only_headers_are_read(five_chips, monkeypatch):
    read = []
    times = chip_choice.read_frame_times
    monkeypatch.setattr(
        chip_choice, "read_frame_times", lambda path, inputs: read.append(path.stem) or times(path, inputs)
    )
    files = sorted(five_chips.iterdir())
    (five_chips / "p3_2018.npz").write_bytes(b"no chip")
    assert [chip.path for chip in times_of(files[1::3], files, ["sentinel2"])] == files[1::3]
    assert read == ["p1_2018", "p4_2018"]


def test_bad_chips_are_named_and_skipped_on_request(call, two_chips, tmp_path):
    folder = shutil.copytree(two_chips, tmp_path / "chips")
    (folder / "a.npz").write_bytes(b"no chip")
    code, said = call(data=folder)
    assert code == 1 and "a.npz: is damaged or not a chip" in said and not (tmp_path / "fields").exists()
    for dry in (["--dry-run"], []):
        code, said = call("--skip-bad", *dry, data=folder)
        assert code == 0 and "aef embed: skipped a.npz: " in said and "1 chips skipped: a.npz" in said
    written = sorted(path.name for path in (tmp_path / "fields").iterdir())
    assert written == [f"b_{YEAR.replace('/', '_')}{suffix}" for suffix in (".png", ".tif")]
    (folder / "b.npz").unlink()
    code, said = call("--skip-bad", data=folder)
    assert code == 1 and "no chip can be embedded: all 1 were skipped" in said


def test_a_folder_of_one_chip_per_year_gives_one_field_per_place_and_year(call, tmp_path):
    folder = tmp_path / "years"
    folder.mkdir()
    for number in range(2):
        a_place(folder, number, ["2019-01-03", "2020-01-03"])
    code, said = call(
        "--no-quicklooks", "--period", "2020-01-01/2020-06-01", data=folder, period="2019-01-01/2020-01-01"
    )
    assert code == 0 and "4 fields written" in said
    written = sorted((tmp_path / "fields").iterdir())
    assert [path.name for path in written] == [
        f"p{number}_{year}_{period}.tif"
        for number in range(2)
        for year, period in ((2019, "2019-01-01_2020-01-01"), (2020, "2020-01-01_2020-06-01"))
    ]
    assert [read_tags(path)[1]["frames_in_period"] for path in written] == ["12", "5"] * 2
    code, said = call("--no-quicklooks", data=folder, period="2022-01-01/2023-01-01")
    assert code == 1 and "p0_2020: the period 2022-01-01/2023-01-01 reaches more than six months" in said


def test_years_of_one_ground_may_have_names_of_their_own(tmp_path):
    folder = tmp_path / "years"
    folder.mkdir()
    for year in (2019, 2020):  # as `aef ingest` names places after their folders
        a_place(folder, 0, [f"{year}-01-03"], place=f"place_{{}}_{year}")
    a_place(folder, 0, ["2019-01-05"], name="other_{}_{}", place="other")  # of the same time: not a part of the series
    periods = [parse_period(text) for text in ("2019-01-01/2020-01-01", "2020-01-01/2021-01-01")]
    chosen = periods_by_chip([read_times(path, ["sentinel2"]) for path in sorted(folder.iterdir())], periods)
    assert {path.stem: own for path, own in chosen.items()} == {
        "other_0_2019": periods[:1],
        "p0_2019": periods[:1],
        "p0_2020": periods[1:],
    }


def test_a_chip_of_other_ground_at_the_same_place_is_embedded_too(call, tmp_path):
    folder = tmp_path / "parts"
    folder.mkdir()
    for number in range(2):
        a_place(folder, number, ["2018-01-03"], place="same")
    assert "2 fields written" in call("--no-quicklooks", data=folder)[1]


def test_a_period_that_a_chip_cannot_serve_costs_no_other_period(call, two_chips, tmp_path):
    code, said = call("--skip-bad", "--no-quicklooks", "--period", "2025-01-01/2026-01-01")
    assert code == 0 and "2 fields written" in said and "skipped a field: chip a: the period 2025" in said
    assert "2 fields skipped: a_2025-01-01_2026-01-01, b_2025-01-01_2026-01-01" in said
    code, said = call("--no-quicklooks", "--period", "2025-01-01/2026-01-01")
    assert code == 1 and "more than six months beyond" in said


def test_only_some_places_of_a_folder_are_embedded(call, five_chips, tmp_path):
    listed = tmp_path / "places.txt"
    listed.write_text("p3\np4\n")
    code, said = call("--only", "p1", f"@{listed}", "--no-quicklooks", data=five_chips)
    assert code == 0 and "3 fields written" in said
    assert sorted(path.name[:2] for path in (tmp_path / "fields").iterdir()) == ["p1", "p3", "p4"]
    code, said = call("--only", "p1", "p9", data=five_chips)
    assert code == 1 and f"{five_chips}: --only: holds no p9: known are p0, p1, p2, p3, p4" in said
    code, said = call("--only", "p1", data=five_chips / "p1_2018.npz")
    assert code == 1 and "--only: chooses places of a folder, but --data" in said
