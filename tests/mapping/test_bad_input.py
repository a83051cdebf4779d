"""What a user can get wrong with a trained model is one line that says what to do, and nothing else happens."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
import rasterio
from safetensors.torch import load_file, save_file

import aef
from aef.data.chips import Chip, ChipError, Label, SourceSeries
from aef.mapping import dequantize, quantize
from aef.mapping.errors import EmbeddingError
from aef.mapping.files import read_field
from aef.sources import BUILT_IN
from aef.timecode import DAY_MS, Period, parse_time

START = parse_time("2018-01-01")
RUN_FILES = ("config.json", "config.yaml", "sources.yaml", "stats.json", "model.safetensors")


@pytest.fixture(scope="module")
def model(tiny_run):
    return aef.load(tiny_run)


@pytest.fixture
def run(tiny_run, tmp_path):
    """A copy of a run, for damage."""
    folder = tmp_path / "run"
    folder.mkdir()
    for name in RUN_FILES:
        shutil.copy(tiny_run / name, folder / name)
    return folder


def series(name: str, times_ms: np.ndarray, side: int = 16) -> SourceSeries:
    source = BUILT_IN[name]
    return SourceSeries(
        values=np.full((len(times_ms), source.channels, side, side), 0.2, np.float32),
        valid=np.ones((len(times_ms), 1, side, side), bool),
        time_ms=times_ms,
    )


def a_chip(**sources: SourceSeries) -> Chip:
    return Chip("c", "EPSG:32631", (10.0, 0, 500_000, 0, -10.0, 5_700_000), 16, 16, 3.0, 51.0, sources)


def a_year(name: str = "sentinel1") -> SourceSeries:
    return series(name, START + np.arange(0, 365, 28, dtype=np.int64) * DAY_MS)


def one_line(reason: str, call, kind=ValueError) -> None:
    with pytest.raises(kind, match=reason) as error:
        call()
    assert "\n" not in str(error.value).strip()


def replaced(folder, name, old, new):
    text = (folder / name).read_text()
    assert old in text
    (folder / name).write_text(text.replace(old, new, 1))


def a_newer_description(run):
    entries = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps({**entries, "format_version": 2}))


def newer_weights(run):
    save_file(load_file(run / "model.safetensors"), run / "model.safetensors", {"format_version": "2", "step": "7"})


def a_flipped_bit(run):
    content = bytearray((run / "model.safetensors").read_bytes())
    content[-1001] ^= 1
    (run / "model.safetensors").write_bytes(content)


DAMAGE = {
    "another program's folder": (lambda run: (run / "config.json").write_text('["layers"]'), "not the description"),
    "a description without inputs": (
        lambda run: (run / "config.json").write_text('{"format_version": 1}'),
        "not the description",
    ),
    "a newer description": (a_newer_description, "expected format_version up to 1, found 2: update the software"),
    "newer weights": (newer_weights, "of a newer format: update the software"),
    "settings cut short": (lambda run: (run / "config.yaml").write_text("model: {blocks: 2"), "not valid YAML"),
    "a newer setting": (lambda run: replaced(run, "config.yaml", "  blocks:", "  planes: 3\n  blocks:"), "planes"),
    "statistics cut short": (lambda run: (run / "stats.json").write_text('{"sources": {'), r"stats\.json"),
    "sources cut short": (lambda run: (run / "sources.yaml").write_text("- {name: "), r"sources\.yaml"),
    "weights not copied": (lambda run: (run / "model.safetensors").unlink(), "has not written its weights"),
    "weights cut short": (
        lambda run: (run / "model.safetensors").write_bytes((run / "model.safetensors").read_bytes()[:2000]),
        "is damaged",
    ),
    "a flipped bit in the weights": (a_flipped_bit, "is damaged .its weights have another SHA-256"),
    "settings not copied": (lambda run: (run / "config.yaml").unlink(), "the run is partial"),
    "sources not copied": (lambda run: (run / "sources.yaml").unlink(), "the run is partial"),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_a_foreign_partial_or_newer_run_does_not_load(run, what):
    damage, reason = DAMAGE[what]
    damage(run)
    one_line(reason, lambda: aef.load(run))


@pytest.mark.parametrize(
    "period",
    [("2018-05-01", "2018-04-01"), "2018-05-01/2018-05-01", Period(START + 5, START)],
    ids=["reversed", "empty", "reversed numbers"],
)
def test_a_period_must_end_after_it_starts(model, period):
    one_line("must end after it starts", lambda: model.embed(a_chip(sentinel1=a_year()), period))


@pytest.mark.parametrize("period", [(1, 2), None, 2018, [3], ("2018-01-01", 5), {"start": "2018-01-01"}])
def test_what_is_no_period_is_said_to_be_none(model, period):
    one_line(
        r'expected a period like \("2018-01-01", "2019-01-01"\), found ',
        lambda: model.embed(a_chip(sentinel1=a_year()), period),
    )


def test_a_period_may_reach_six_months_beyond_the_observations_and_no_more(model):
    chip = a_chip(sentinel1=a_year())
    first, last = (int(t) for t in chip.sources["sentinel1"].time_ms[[0, -1]])
    inside = [
        Period(first - 183 * DAY_MS, first - 150 * DAY_MS),
        Period(last + 150 * DAY_MS, last + 183 * DAY_MS),
        Period(first + 5 * DAY_MS, first + 9 * DAY_MS),  # between two frames
    ]
    fields = model.embed_array(chip, inside)
    assert np.allclose(np.linalg.norm(fields, axis=1), 1, atol=1e-5)
    outside = [Period(first - 184 * DAY_MS, first), Period(last + 1, last + 185 * DAY_MS)]
    for period in outside:
        one_line("more than six months beyond", lambda period=period: model.embed(chip, period), EmbeddingError)


def test_a_chip_without_any_input_says_what_it_holds(model):
    holds_landsat = a_chip(landsat=a_year("landsat"))
    one_line(r"no frame of any input .*it holds landsat", lambda: model.embed(holds_landsat, "2018-01-01/2019-01-01"))
    one_line("it holds nothing", lambda: model.embed(a_chip(), "2018-01-01/2019-01-01"))
    no_frame = series("sentinel1", np.zeros(0, np.int64))
    one_line("no frame of any input", lambda: model.embed(a_chip(sentinel1=no_frame), "2018-01-01/2019-01-01"))
    static = dataclasses.replace(series("glo30", np.zeros(1, np.int64)), time_ms=None)
    one_line("it holds glo30", lambda: model.embed(a_chip(glo30=static), "2018-01-01/2019-01-01"))


def test_no_data_mixed_with_values_is_refused_in_arrays_and_in_files(tmp_path):
    codes = np.full((64, 3, 4), 10, np.int8)
    codes[5, 1, 2] = -128
    one_line(r"1 vectors mix no data \(-128\) with values \(first at \(1, 2\)\)", lambda: dequantize(codes))
    vectors = np.full((64, 2), 0.125)
    vectors[3, 1] = np.nan
    one_line(r"1 vectors mix NaN with values \(first at \(1,\)\)", lambda: quantize(vectors))
    path = tmp_path / "mixed.tif"
    with rasterio.open(
        path, "w", driver="GTiff", width=4, height=3, count=64, dtype="int8", crs="EPSG:32631",
        transform=rasterio.Affine(10, 0, 0, 0, -10, 0),
    ) as file:  # fmt: skip
        file.write(codes)
    one_line("mix no data", lambda: read_field(path))


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"bands": ("VH", "VV", "HH", "HV", "angle")}, r"field bands: expected VV, VH, HH, HV, angle in this order"),
        ({"time_ms": START + np.arange(14)[::-1] * DAY_MS}, "field time_ms: expected strictly increasing times"),
        ({"time_ms": (START + np.arange(14) * DAY_MS).astype("datetime64[ms]")}, "field time_ms: expected int64"),
        ({"valid": np.ones((14, 16, 16), bool)}, r"field valid: expected shape \(14, 5, 16, 16\) or \(14, 1, 16, 16\)"),
    ],
)
def test_a_chip_made_by_hand_is_checked_as_one_from_a_file_is(model, changed, reason):
    good = a_year()
    whole = a_chip(sentinel1=good)
    whole.labels["crop"] = Label(np.zeros((8, 8), np.uint8))  # no business of an embedding
    assert model.embed(whole, ("2018-01-01", "2019-01-01")).shape == (64, 16, 16)
    bad = a_chip(sentinel1=dataclasses.replace(good, **changed))
    one_line(f"chip c: source sentinel1: {reason}", lambda: model.embed(bad, ("2018-01-01", "2019-01-01")), ChipError)
