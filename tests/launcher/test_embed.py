"""`aef embed` into a folder: what is there is whole and of this model, or it is said so."""

import resource
import shutil
import sys

import numpy as np
import pytest
import rasterio
import torch

import aef
from aef.data.chips import Chip, read_chip, write_chip
from aef.launcher import embed
from aef.launcher.command import run
from aef.mapping import quicklooks, windows
from aef.mapping.embed_files import embed_to_files
from aef.mapping.files import read_field, read_tags
from aef.run import Run, build_model, read_weights, write_weights
from aef.sources import BUILT_IN
from aef.timecode import DAY_MS, parse_period, parse_time
from tests.launcher.series import YEAR, a_place, a_series


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


def test_without_matplotlib_only_the_quicklooks_are_missing(call, field, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.image", None)
    code, said = call()
    assert code == 0 and "no quicklooks: matplotlib is not installed" in said and "2 fields written" in said
    assert field.exists() and not list(field.parent.glob("*.png"))


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


def test_unobserved_pixels_are_no_data_and_the_field_counts_as_whole(call, two_chips, tmp_path):
    chip = read_chip(two_chips / "a.npz", BUILT_IN)
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


@pytest.mark.parametrize("dry", [[], ["--dry-run"]])
def test_a_period_far_longer_than_the_support_is_warned_of_once(call, dry):
    code, said = call(*dry, period="2017-08-01/2019-04-01")
    assert code == 0 and said.count("aef embed: warning: the period 2017-08-01/2019-04-01 is 608 days long") == 1
    assert "warning" not in call(*dry, "--overwrite", period="2018-01-01/2019-01-02")[1]


def test_quicklooks_of_many_fields_take_their_colours_from_some(call, field, monkeypatch):
    import matplotlib.image

    def pictures(coloured):
        monkeypatch.setattr(quicklooks, "COLOURED", coloured)
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
