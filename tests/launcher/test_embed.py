"""`aef embed` into a folder: what is there is whole and of this model, or it is said so."""

import resource
import shutil
import sys

import numpy as np
import pytest
import rasterio
import torch

import aef
from aef.data.chips import Chip, ChipFolder, SourceSeries, read_chip, write_chip
from aef.data.shard_writer import pack
from aef.launcher import embed, evaluate, gaps, leave_out, prove, report, search
from aef.launcher.command import device_of_rank, load_model, run
from aef.mapping import chip_choice, windows
from aef.mapping.chip_choice import periods_by_chip, read_times, times_of
from aef.mapping.device import find_device
from aef.mapping.embed_files import embed_to_files
from aef.mapping.files import read_field, read_tags
from aef.run import Run, build_model, read_weights, write_weights
from aef.sources import BUILT_IN
from aef.timecode import DAY_MS, parse_period, parse_time

YEAR = "2018-01-01/2019-01-01"


def a_series(name, number, side=8, count=6, start="2018-01-03", days=60):
    source = BUILT_IN[name]
    shape = (count, source.channels, side, side)
    low, high, kind = (100, 3000, np.uint16) if name == "sentinel2" else (0, 5, np.float32)
    values = np.random.default_rng(number).uniform(low, high, shape).astype(kind)
    times = parse_time(start) + np.arange(count) * days * DAY_MS
    return SourceSeries(values, np.ones((count, 1, side, side), bool), times)


@pytest.fixture(scope="module")
def chips(tmp_path_factory):
    folder = tmp_path_factory.mktemp("chips")
    for number, name in enumerate("ab"):
        sources = {source: a_series(source, number) for source in ("sentinel2", "sentinel1")}
        chip = Chip(name, "EPSG:32631", (10.0, 0, 500_000, 0, -10.0, 5_700_000), 8, 8, 3.0, 51.0, sources)
        write_chip(folder / f"{name}.npz", chip, BUILT_IN)
    return folder


@pytest.fixture(scope="module")
def another_seed(tiny_run, tmp_path_factory):
    """A run with the settings and the step of `tiny_run`, and weights of its own."""
    folder = shutil.copytree(tiny_run, tmp_path_factory.mktemp("run") / "seed1")
    torch.manual_seed(1)
    write_weights(folder / "model.safetensors", build_model(Run.read(folder)).state_dict(), step=7)
    return folder


@pytest.fixture(scope="module")
def model(tiny_run):
    return aef.load(tiny_run)


@pytest.fixture
def call(tiny_run, chips, tmp_path, capsys):
    """Runs `aef embed` and gives its exit code and what it said."""

    def call(*options, checkpoint=tiny_run, data=chips, period=YEAR):
        given = ["--checkpoint", checkpoint, "--data", data, "--out", tmp_path / "fields", "--period", period, *options]
        code = run(embed.main, [str(word) for word in given])
        said = capsys.readouterr()
        errors = [line for line in said.err.splitlines() if not line.startswith("embed: ")]
        return code, said.out + "\n".join(errors)

    return call


@pytest.fixture
def field(tmp_path):
    return tmp_path / "fields" / f"a_{YEAR.replace('/', '_')}.tif"


def test_whole_fields_of_this_model_are_left_as_they_are(call, field, tiny_run):
    code, said = call()
    assert code == 0 and "2 fields written" in said
    assert read_tags(field)[1]["model_weights"] == read_weights(tiny_run / "model.safetensors").sha256
    before = field.stat().st_mtime_ns
    code, said = call()
    assert code == 0 and "0 fields written" in said and "2 were there already" in said
    assert field.stat().st_mtime_ns == before and len(list(field.parent.glob("*.png"))) == 2


def test_fields_of_another_model_sources_or_format_are_refused_until_overwritten(call, field, another_seed):
    call("--no-quicklooks")
    others = {
        r"expected model tiny@7 (weights": {"checkpoint": another_seed},
        r"expected sentinel2 left out, found none": {"options": ("--leave-out", "sentinel2")},
        r"expected format float, found int8": {"options": ("--format", "float")},
    }
    for reason, given in others.items():
        before = field.read_bytes()
        options = given.pop("options", ())
        for extra in ((), ("--dry-run",)):
            code, said = call(*options, *extra, **given)
            assert code == 1 and said.count("\n") == 0
            assert f"{field}: holds another field: {reason}" in said and "make it again with --overwrite" in said
        assert field.read_bytes() == before
        code, said = call(*options, "--overwrite", "--no-quicklooks", **given)
        assert code == 0 and "2 fields written" in said and field.read_bytes() != before
        call("--overwrite", "--no-quicklooks")


def test_a_field_that_left_a_source_out_is_not_taken_for_a_whole_one(call, field):
    call("--leave-out", "sentinel2", "--no-quicklooks")
    assert read_tags(field)[1]["sources"] == "sentinel1"
    code, said = call()
    assert code == 1 and "expected no source left out, found sentinel2" in said


@pytest.mark.parametrize("rest", [0, 4000], ids=["empty", "cut short"])
def test_a_damaged_field_is_made_again(call, field, rest):
    call("--no-quicklooks")
    whole = field.read_bytes()
    field.write_bytes(whole[:rest])
    code, said = call()
    assert code == 0 and "1 fields written" in said and field.read_bytes() == whole


@pytest.mark.parametrize("form", ["int8", "netcdf"])
def test_a_full_disk_is_one_line_and_leaves_nothing(call, tmp_path, form):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        code, said = call("--format", form)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert code == 1 and said.count("\n") == 0 and "File too large" in said and str(tmp_path / "fields") in said
    assert not list((tmp_path / "fields").iterdir())


def test_a_dry_run_writes_nothing_and_refuses_what_the_real_one_does(call, field):
    code, said = call("--dry-run")
    assert code == 0 and f"would write {field}" in said and not field.parent.exists()
    code, said = call("--dry-run", period="2025-01-01/2026-01-01")
    assert code == 1 and "more than six months beyond" in said
    code, said = call("--dry-run", "--leave-out", "glo30")
    assert code == 1 and "cannot leave out 'glo30'" in said
    call("--no-quicklooks")
    code, said = call("--dry-run")
    assert code == 0 and "would write" not in said and "0 fields would be written" in said


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


def test_without_matplotlib_only_the_quicklooks_are_missing(call, field, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.image", None)
    code, said = call()
    assert code == 0 and "no quicklooks: matplotlib is not installed" in said and "2 fields written" in said
    assert field.exists() and not list(field.parent.glob("*.png"))


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


def test_one_chip_of_a_shard_is_embedded_like_one_of_its_own_file(call, chips, field, tmp_path):
    assert "1 fields written" in call("--no-quicklooks", data=chips / "a.npz")[1]
    alone = field.read_bytes()
    field.unlink()
    (shard,) = pack(ChipFolder(chips, BUILT_IN), tmp_path / "packed", 2**30)
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


def test_bad_chips_are_named_and_skipped_on_request(call, chips, tmp_path):
    folder = shutil.copytree(chips, tmp_path / "chips")
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


def a_place(folder, number, starts, name="p{}_{}", count=12, place="p{}"):
    """One chip per start date, each of a year of frames of the same ground, and the place's number in its name."""
    for start in starts:
        sources = {"sentinel2": a_series("sentinel2", number, count=count, start=start, days=360 // count)}
        chip = Chip(
            name.format(number, start[:4]), "EPSG:32631", (10.0, 0, 500_000 + 100 * number, 0, -10.0, 5_700_000), 8, 8, 3.0,
            51.0, sources, place=place.format(number),
        )  # fmt: skip
        write_chip(folder / f"{chip.id}.npz", chip, BUILT_IN)
    return folder


def test_a_resumed_run_writes_what_a_whole_one_writes(call, tmp_path):
    folder = tmp_path / "long"
    folder.mkdir()
    a_place(folder, 0, ["2019-01-03"], count=36)
    long = folder / "p0_2019.npz"
    chip = read_chip(long, BUILT_IN)
    chip.sources["sentinel2"].time_ms[:] = parse_time("2019-01-03") + np.arange(36) * 30 * DAY_MS  # three years
    write_chip(long, chip, BUILT_IN)
    first, second, third = "2021-01-01/2021-07-01", "2020-01-01/2021-01-01", "2021-07-01/2022-01-01"
    options = ("--no-quicklooks", "--period", second, "--period", third)
    call(*options, data=long, period=first)
    whole = {path.name: path.read_bytes() for path in (tmp_path / "fields").iterdir()}
    assert len(whole) == 3
    shutil.rmtree(tmp_path / "fields")
    call("--no-quicklooks", data=long, period=first)
    code, said = call(*options, data=long, period=first)
    assert code == 0 and "2 fields written" in said and "1 were there already" in said
    assert {path.name: path.read_bytes() for path in (tmp_path / "fields").iterdir()} == whole


def test_a_field_from_another_support_is_refused(call, field):
    call("--no-quicklooks", "--support", "2018-01-01/2018-12-01")
    assert read_tags(field)[1]["support"] == "2018-01-01/2018-12-01"
    for options in ((), ("--support", "2018-02-01/2018-12-01")):
        code, said = call(*options)
        assert code == 1 and "expected the support 2018-0" in said and "found 2018-01-01/2018-12-01" in said
    code, said = call("--support", "2018-01-01/2018-12-01", "--no-quicklooks")
    assert code == 0 and "2 were there already" in said


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


def test_a_period_that_a_chip_cannot_serve_costs_no_other_period(call, chips, tmp_path):
    code, said = call("--skip-bad", "--no-quicklooks", "--period", "2025-01-01/2026-01-01")
    assert code == 0 and "2 fields written" in said and "skipped a field: chip a: the period 2025" in said
    assert "2 fields skipped: a_2025-01-01_2026-01-01, b_2025-01-01_2026-01-01" in said
    code, said = call("--no-quicklooks", "--period", "2025-01-01/2026-01-01")
    assert code == 1 and "more than six months beyond" in said


def test_unobserved_pixels_are_no_data_and_the_field_counts_as_whole(call, chips, tmp_path):
    chip = read_chip(chips / "a.npz", BUILT_IN)
    for series in chip.sources.values():
        series.valid[..., :3] = False
    path = write_chip(tmp_path / "a.npz", chip, BUILT_IN)
    written = tmp_path / "fields" / "a_2018-01-01_2019-01-01.tif"
    assert "1 fields written" in call(data=path)[1]
    with rasterio.open(written) as file:
        codes = file.read()
    assert (codes[:, :, :3] == -128).all() and (codes[:, :, 3:] != -128).all()
    assert "1 were there already" in call(data=path)[1]
    code, said = call("--inpaint", data=path)
    assert code == 1 and "expected unobserved pixels to be inpainted, found no data" in said
    call("--inpaint", "--overwrite", data=path)
    assert np.isfinite(read_field(written).values).all()


def test_a_large_chip_is_written_by_rows_of_windows_and_tells_how_far_it_is(model, monkeypatch, tmp_path):
    side = 70
    sources = {"sentinel2": a_series("sentinel2", 1, side)}
    chip = Chip("big", "EPSG:32631", (10.0, 0, 500_000, 0, -10.0, 5_700_000), side, side, 3.0, 51.0, sources)
    sources["sentinel2"].valid[..., 40:, 5:9] = False
    year, half = parse_period(YEAR), parse_period("2018-01-01/2018-07-01")
    fields = model.embed(chip, [year, half])
    monkeypatch.setattr(windows, "FRAME_PIXELS", 6 * 3 * model.config.data.chip_px**2)
    heights, told = [], []
    strips = model.strips
    monkeypatch.setattr(
        model,
        "strips",
        lambda *a, **k: ((heights.append(rows.stop - rows.start), (rows, x))[1] for rows, x in strips(*a, **k)),
    )
    paths = {period: tmp_path / f"{number}.tif" for number, period in enumerate((year, half))}
    embed_to_files(model, chip, paths, "float", on_windows=lambda done, total: told.append((done, total)))
    for field, path in zip(fields, paths.values()):
        back = read_field(path)
        assert np.allclose(back.values, field.values, atol=1e-5, equal_nan=True)
        assert np.isnan(back.values[:, 40:, 5:9]).all() and back.attrs["period"] == str(field.period.values)
    assert len(heights) > 2 and sum(heights) == side and max(heights) < side
    assert told[-1][0] == told[-1][1] and len(told) > 2


def test_a_large_chip_tells_how_far_it_is(tiny_run, model, monkeypatch, tmp_path, capsys):
    chip = Chip(
        "big", "EPSG:32631", (10.0, 0, 500_000, 0, -10.0, 5_700_000), 40, 40, 3.0, 51.0,
        {"sentinel2": a_series("sentinel2", 1, 40)},
    )  # fmt: skip
    path = write_chip(tmp_path / "big.npz", chip, BUILT_IN)
    monkeypatch.setattr(windows, "FRAME_PIXELS", 1)
    monkeypatch.setattr("aef.progress.PLAIN_EVERY_S", 0.0)
    given = ["--checkpoint", tiny_run, "--data", path, "--out", tmp_path / "out", "--period", YEAR, "--no-quicklooks"]
    assert run(embed.main, [str(word) for word in given]) == 0
    count = len(windows.windows_along(40, model.config.data.chip_px)) ** 2
    said = capsys.readouterr().err
    assert count > 1 and f"embed: 0/1 chips, 0/s big: {count - 1} of {count} windows" in said


def test_a_device_that_is_not_there_is_one_line(call, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    for device, reason in (
        ("cuda", "this machine cannot use it"),
        ("cuda:3", "this machine"),
        ("tpu", "expected auto, cpu"),
        ("mps", "expected auto, cpu"),
    ):
        code, said = call("--device", device)
        assert code == 1 and said.startswith("aef embed: error: device ") and reason in said and said.count("\n") == 0


def test_where_there_is_a_gpu_the_device_is_said(tiny_run, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    load_model("launcher/embed.py", str(tiny_run), "auto")
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    load_model("launcher/embed.py", str(tiny_run), "cpu")
    assert capsys.readouterr().err == "embed: tiny@7 on cpu\n"
    assert find_device("auto") == torch.device("cuda")


@pytest.mark.parametrize("command", [embed, evaluate, gaps, leave_out, prove, report, search])
def test_every_command_that_runs_a_model_takes_a_device(command, capsys):
    with pytest.raises(SystemExit):
        command.main(["--help"])
    assert "--device DEVICE" in capsys.readouterr().out


@pytest.mark.parametrize("dry", [[], ["--dry-run"]])
def test_a_period_far_longer_than_the_support_is_warned_of_once(call, dry):
    code, said = call(*dry, period="2017-08-01/2019-04-01")
    assert code == 0 and said.count("aef embed: warning: the period 2017-08-01/2019-04-01 is 608 days long") == 1
    assert "warning" not in call(*dry, "--overwrite", period="2018-01-01/2019-01-02")[1]


def test_quicklooks_of_many_fields_take_their_colours_from_some(call, field, monkeypatch):
    import matplotlib.image

    def pictures(coloured):
        monkeypatch.setattr(embed, "COLOURED", coloured)
        call()
        return [matplotlib.image.imread(path) for path in sorted(field.parent.glob("*.png"))]

    (one, other), (alone, beside) = pictures(2**18), pictures(64)
    assert alone.shape == one.shape and not np.array_equal(alone, one)  # stretched for its own vectors only
    assert beside.shape == other.shape and not np.array_equal(beside, other)


def test_quicklooks_are_pictures_of_the_fields(call, field):
    import matplotlib.image

    call("--format", "float")
    assert read_field(field).shape == (64, 8, 8)
    assert matplotlib.image.imread(field.with_suffix(".png")).shape == (512, 512, 4)
