"""`aef embed` into a folder: what is there is whole and of this model, or it is said so."""

import resource
import shutil

import numpy as np
import pytest
import torch

from aef.data.chips import Chip, SourceSeries, write_chip
from aef.launcher import embed
from aef.launcher.command import run
from aef.mapping.files import read_field, read_tags
from aef.run import Run, build_model, read_weights, write_weights
from aef.sources import BUILT_IN
from aef.timecode import DAY_MS, parse_time

YEAR = "2018-01-01/2019-01-01"


def a_series(name, number, side=8):
    source = BUILT_IN[name]
    shape = (6, source.channels, side, side)
    low, high, kind = (100, 3000, np.uint16) if name == "sentinel2" else (0, 5, np.float32)
    values = np.random.default_rng(number).uniform(low, high, shape).astype(kind)
    times = parse_time("2018-01-03") + np.arange(6) * 60 * DAY_MS
    return SourceSeries(values, np.ones((6, 1, side, side), bool), times)


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


@pytest.mark.parametrize("dry", [[], ["--dry-run"]])
def test_a_period_far_longer_than_the_support_is_warned_of_once(call, dry):
    code, said = call(*dry, period="2017-08-01/2019-04-01")
    assert code == 0 and said.count("aef embed: warning: the period 2017-08-01/2019-04-01 is 608 days long") == 1
    assert "warning" not in call(*dry, "--overwrite", period="2018-01-01/2019-01-02")[1]


def test_quicklooks_are_pictures_of_the_fields(call, field):
    import matplotlib.image

    call("--format", "float")
    assert read_field(field).shape == (64, 8, 8)
    assert matplotlib.image.imread(field.with_suffix(".png")).shape == (512, 512, 4)
