"""`aef.load`, then fields and reconstructions: what a user does with a trained model."""

import dataclasses
import json
import re
import shutil
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import aef
from aef.data.chips import Chip, Label, SourceSeries, write_chip
from aef.mapping import trained_model
from aef.mapping.errors import EmbeddingError
from aef.mapping.support import LongPeriodWarning, group_requests
from aef.run import RunError, read_weights
from aef.sources import BUILT_IN
from aef.timecode import DAY_MS, Period, format_time, parse_period, parse_time

START = parse_time("2018-01-01")
YEAR = ("2018-01-01", "2019-01-01")
SPRING = Period(START, START + 90 * DAY_MS)


def optical(count: int, side: int, seed: int = 0) -> SourceSeries:
    generator = np.random.default_rng(seed)
    values = generator.integers(100, 4000, (count, 5, side, side)).astype(np.uint16)
    times = START + np.arange(count, dtype=np.int64) * (360 // count) * DAY_MS
    return SourceSeries(values=values, valid=np.ones((count, 1, side, side), bool), time_ms=times)


def a_chip(side: int = 24, frames: int = 9, name: str = "c") -> Chip:
    return Chip(
        name, "EPSG:32631", (10.0, 0, 500_000, 0, -10.0, 5_700_000), side, side, 3.0, 51.0,
        {"sentinel2": optical(frames, side)},
    )  # fmt: skip


@pytest.fixture
def run(tiny_run):
    return tiny_run


@pytest.fixture(scope="module")
def model(tiny_run):
    return aef.load(tiny_run)


def test_a_field_has_unit_vectors_coordinates_and_provenance(model, tmp_path):
    chip = a_chip()
    field = model.embed(write_chip(tmp_path / "c.npz", chip, BUILT_IN), YEAR)
    assert field.dims == ("band", "y", "x") and field.shape == (64, 24, 24)
    assert np.allclose(np.linalg.norm(field.values, axis=0), 1, atol=1e-5)
    assert field.attrs["sources"] == "sentinel2" and field.attrs["model_version"] == "tiny@7"
    assert np.array_equal(field.values, model.embed(chip, "2018-01-01/2019-01-01").values)


def test_a_field_of_arrays_in_memory_is_that_of_the_chip(model):
    """The block of Python on docs/mapping.md."""
    chip = a_chip()
    series = chip.sources["sentinel2"]
    values, lower_left = series.values, (500_000, 5_700_000 - 240)
    names = {
        "model": model,
        "values": values[:, :, ::-1],
        "days": series.time_ms.astype("datetime64[ms]"),
        "x": lower_left[0] + 5 + 10 * np.arange(24),
        "y": lower_left[1] + 5 + 10 * np.arange(24),
    }
    page = (Path(__file__).parents[2] / "docs" / "mapping.md").read_text()
    (block,) = (one for one in re.findall(r"```python\n(.*?)```", page, re.S) if "chip_from_xarray" in one)
    exec(compile(block, "docs/mapping.md", "exec"), names)
    assert np.array_equal(names["field"].values, model.embed(chip, YEAR).values)


def test_a_field_tells_what_it_was_made_by(model, run):
    field = model.embed(a_chip(), YEAR, leave_out=["sentinel1", "sentinel1"])
    weights = read_weights(run / "model.safetensors").sha256
    assert (field.attrs["model_weights"], field.attrs["left_out"]) == (weights, "sentinel1")
    assert model.made_by(["sentinel1"]).difference(field.attrs) is None
    assert model.made_by().difference(field.attrs) == "expected no source left out, found sentinel1"
    assert "left_out" not in model.embed(a_chip(), YEAR).attrs


def test_a_period_far_longer_than_the_support_is_warned_of(model):
    with pytest.warns(LongPeriodWarning, match="is 608 days long, but the model was trained on periods of up to 365"):
        model.embed(a_chip(), ("2017-08-01", "2019-04-01"))
    with warnings.catch_warnings():
        warnings.simplefilter("error", LongPeriodWarning)
        model.embed(a_chip(), ("2018-01-01", "2019-01-02"))


@pytest.mark.parametrize("side", [12, 24, 41])
def test_windows_are_those_of_the_field_and_gradients_pass_through_them(tiny_run, side):
    model, chip = aef.load(tiny_run), a_chip(side)
    field = model.embed(chip, YEAR).values
    found, loss = np.full((64, side, side), np.nan, np.float32), 0.0
    for windows, vectors in model.embed_windows(chip, YEAR):
        for (y, x), own in zip(windows, vectors, strict=True):
            found[:, y.chip, x.chip] = np.moveaxis(own[y.inner, x.inner].detach().numpy(), -1, 0)
        loss = loss + vectors[..., 0].mean()
    assert np.allclose(found, field, atol=1e-6)
    loss.backward()
    without = {name for name, weight in model.network.named_parameters() if weight.grad is None}
    assert {name.split(".")[0] for name in without} <= {"decoders", "projectors"}  # of sources that the chip lacks
    assert model.network.projectors.sources["sentinel2"].down.weight.grad.abs().sum() > 0


def test_the_pages_loop_trains_the_network_and_leaves_a_run(tiny_run, tmp_path, monkeypatch):
    page = (Path(__file__).parents[2] / "docs" / "training.md").read_text()
    (loop,) = (block for block in re.findall(r"```python\n(.*?)```", page, re.S) if "embed_windows" in block)
    shutil.copytree(tiny_run, tmp_path / "run")
    (tmp_path / "labelled").mkdir()
    for number in range(2):
        chip = a_chip()
        chip.sources["sentinel2"].time_ms[:] += 365 * DAY_MS
        chip.labels["crop"] = Label(np.full((24, 24), number, np.uint8))  # of the first one nothing is known
        write_chip(tmp_path / "labelled" / f"{number}.npz", chip, BUILT_IN)
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(compile(loop, "docs/training.md", "exec"), names)
    assert torch.isfinite(names["loss"])
    before, after = (read_weights(tmp_path / run / "model.safetensors") for run in ("run", "tuned"))
    assert before.sha256 != after.sha256 and before.state.keys() == after.state.keys()
    assert aef.load("tuned").weights == after.sha256


def test_several_periods_come_from_one_pass_and_equal_single_ones(model, monkeypatch):
    chip, months = (
        a_chip(16),
        [("2018-02-01", "2018-03-01"), ("2018-06-01", "2018-09-01"), ("2018-02-01", "2018-03-01")],
    )
    calls = []
    embed = model.network.embed
    monkeypatch.setattr(model.network, "embed", lambda batch: calls.append(1) or embed(batch))
    together = model.embed(chip, months)
    assert len(calls) == 1 and together.dims == ("period", "band", "y", "x")
    for index, month in enumerate(months):
        assert np.allclose(together.values[index], model.embed(chip, month).values, atol=1e-5)


class Mirror:
    """A network that shows what it was given: the one frame of each window; decoding adds the days since `START`."""

    def embed(self, batch):
        fields = np.zeros((len(batch.periods), batch.side_px, batch.side_px, 64), np.float32)
        fields[..., :5] = batch.frames["sentinel2"].values[batch.period_segment.long()]
        return torch.from_numpy(fields)

    def __call__(self, batch):
        self.batch = batch
        days = {name: (block.time_ms - START) / DAY_MS for name, block in batch.targets.items()}
        shown = {
            name: batch.frames["sentinel2"].values[block.sample].float() + days[name][:, None, None, None]
            for name, block in batch.targets.items()
        }
        return SimpleNamespace(reconstructions=shown)


@pytest.mark.parametrize("side", [8, 16, 23, 40])
def test_every_pixel_gets_its_own_vector_whatever_the_window_that_gives_it(model, side):
    chip = a_chip(side, frames=1)
    vectors = dataclasses.replace(model, network=Mirror()).embed_array(chip, [SPRING])
    assert np.array_equal(vectors[0, :5], chip.sources["sentinel2"].values[0])


@pytest.mark.parametrize("side", [8, 23, 40])
def test_every_request_gets_its_own_picture_from_every_window(model, side):
    chip = a_chip(side, frames=1)
    requests = [(START + day * DAY_MS, SPRING) for day in (7, 50, 20)]
    decoded = dataclasses.replace(model, network=Mirror()).reconstruct(chip, "sentinel2", requests, standardized=True)
    expected = chip.sources["sentinel2"].values[0].astype(np.float32)
    assert np.array_equal(decoded, np.stack([expected + day for day in (7, 50, 20)]))


def test_supports_of_requests_stay_inside_the_observations():
    span = Period(0, 400 * DAY_MS)
    days = [Period(day * DAY_MS, (day + 1) * DAY_MS) for day in range(0, 400, 9)]
    groups = group_requests(days, span, 365 * DAY_MS, "c")
    assert sorted(index for indices in groups.values() for index in indices) == list(range(len(days)))
    assert all(span.start_ms <= support.start_ms and support.end_ms <= span.end_ms for support in groups)


def test_a_known_frame_is_decoded_with_its_own_metadata_and_an_unknown_one_with_none(model):
    chip = a_chip(16, frames=1)
    times = START + np.array([5, 30], np.int64) * DAY_MS
    chip.sources["sentinel1"] = SourceSeries(
        values=np.full((2, 5, 16, 16), -12, np.float32),
        valid=np.ones((2, 1, 16, 16), bool),
        time_ms=times,
        metadata=np.array([[-167.0, 98.0], [-13.0, 98.0]], np.float32),
    )
    mirror, requests = Mirror(), [(int(times[1]), SPRING), (int(times[1]) + 1, SPRING)]
    dataclasses.replace(model, network=mirror).reconstruct(chip, "sentinel1", requests, standardized=True)
    known, unknown = mirror.batch.targets["sentinel1"].metadata.numpy()
    assert known.tolist() == [-13, 98] and np.isnan(unknown).all()


def test_a_loaded_model_decodes_the_mean_direction_itself(model):
    assert not model.network.training  # in training it decodes a sample around it


def test_where_a_place_lies_is_no_input(model):
    here = a_chip()
    moved = dataclasses.replace(
        here, lon=here.lon + 90, lat=-here.lat, crs="EPSG:32719", transform=(10.0, 0, 9e5, 0, -10.0, 2e6)
    )
    vectors = [model.embed_array(chip, [parse_period(YEAR)]) for chip in (here, moved)]
    assert np.array_equal(*vectors)


def test_hidden_and_invalid_frames_change_nothing(model):
    chip = a_chip(16)
    hidden = {"sentinel2": [int(chip.sources["sentinel2"].time_ms[3])]}
    one = model.embed_array(chip, [parse_period(YEAR)], without_ms=hidden)
    chip.sources["sentinel2"].values[3] += 1000
    other = model.embed_array(chip, [parse_period(YEAR)], without_ms=hidden)
    seen = model.embed_array(chip, [parse_period(YEAR)])
    assert np.array_equal(one, other) and not np.allclose(one, seen, atol=1e-4)


def test_reconstructions_come_in_stored_units_one_per_request(model):
    chip = a_chip(24)
    day = START + 100 * DAY_MS
    requests = [(day, Period(day - 10 * DAY_MS, day + 10 * DAY_MS)), (day, Period(day - DAY_MS, day + 90 * DAY_MS))]
    decoded = model.reconstruct(chip, "sentinel2", requests)
    z = model.reconstruct(chip, "sentinel2", requests, standardized=True)
    assert decoded.shape == (2, 5, 24, 24) and not np.allclose(decoded[0], decoded[1])
    assert np.allclose(np.log1p(np.maximum(decoded, 0)) / 10, np.maximum(z, 0), atol=1e-4)
    with pytest.raises(EmbeddingError, match="decodes sentinel2"):
        model.reconstruct(chip, "landsat", requests)
    with pytest.raises(EmbeddingError, match="outside its period"):
        model.reconstruct(chip, "sentinel2", [(day, Period(day + 1, day + DAY_MS))])


def test_a_request_comes_in_every_form_in_which_a_period_does(model, tmp_path):
    chip = a_chip(24)
    day, period = START + 100 * DAY_MS, Period(START, START + 200 * DAY_MS)
    expected = model.reconstruct(chip, "sentinel2", [(day, period)])
    start, end = (format_time(time_ms) for time_ms in period)
    moment = np.datetime64(day, "ms")
    path = write_chip(tmp_path / "c.npz", chip, BUILT_IN)
    for request in (
        (format_time(day), (start, end)),
        (moment, f"{start}/{end}"),
        (moment.item(), (np.datetime64(start), end)),
        (np.int64(day), period),
    ):
        assert np.array_equal(model.reconstruct(path, "sentinel2", [request]), expected)
        assert np.array_equal(model.reconstruct(chip, "sentinel2", request), expected[0])
    assert len(model.reconstruct(chip, "sentinel2", [])) == 0


@pytest.mark.parametrize(
    ("requests", "words"),
    [
        (["2018-04-01", YEAR], "expected requests .*found '2018-04-01'"),
        ([(1.5, YEAR)], "whole epoch milliseconds, found 1.5"),
        ([(True, YEAR)], "found True"),
        ([(np.timedelta64(3, "D"), YEAR)], "expected a time"),
        ([("April", YEAR)], "expected an ISO date"),
        ([(START, 2018)], "expected a period"),
        ([(10**18, YEAR)], "beyond the year 9999"),
        (3, "expected requests .*found 3"),
    ],
)
def test_requests_that_are_none_are_one_line(model, requests, words):
    with pytest.raises(ValueError, match=words):
        model.reconstruct(a_chip(16), "sentinel2", requests)


def test_what_is_no_chip_no_period_and_no_source_is_said(model):
    chip = a_chip(16)
    for wrong in (None, 3, [chip]):
        with pytest.raises(TypeError, match="chip: expected a Chip or the file of one, found"):
            model.embed(wrong, YEAR)
    with pytest.raises(EmbeddingError, match="beyond the year 9999"):
        model.embed(chip, Period(0, 10**18))
    with pytest.raises(EmbeddingError, match="leave_out: expected names of sources, found None"):
        model.embed(chip, YEAR, leave_out=None)


def test_a_support_that_is_named_is_what_reconstructions_are_made_from(model):
    chip = a_chip(8, frames=36)
    series = chip.sources["sentinel2"]
    chip.sources["sentinel2"] = dataclasses.replace(series, time_ms=START + np.arange(36) * 30 * DAY_MS)
    year = Period(START + 360 * DAY_MS, START + 720 * DAY_MS)
    requests = [(time, Period(time - DAY_MS, time + DAY_MS)) for time in (year.start_ms + d * DAY_MS for d in (5, 350))]
    cut = dataclasses.replace(
        chip,
        sources={
            "sentinel2": SourceSeries(
                series.values[12:24], series.valid[12:24], START + np.arange(12, 24) * 30 * DAY_MS
            )
        },
    )
    found, around = (model.reconstruct(chip, "sentinel2", requests, **named) for named in ({"support": year}, {}))
    np.testing.assert_array_equal(found, model.reconstruct(cut, "sentinel2", requests, support=year))
    assert not np.array_equal(found, around)
    before = Period(START - 90 * DAY_MS, START - DAY_MS)
    with pytest.raises(EmbeddingError, match="no frame of sentinel2, sentinel1 within the support"):
        model.reconstruct(chip, "sentinel2", [(before.start_ms, before)], support=before)


def test_a_band_that_training_did_not_score_is_not_reconstructed(model):
    objective = dataclasses.replace(model.config.objective, unscored_bands=("sentinel2.B8",))
    partial = dataclasses.replace(model, config=dataclasses.replace(model.config, objective=objective))
    day = START + 100 * DAY_MS
    request = (day, Period(day - 10 * DAY_MS, day + 10 * DAY_MS))
    for standardized in (False, True):
        (decoded,) = partial.reconstruct(a_chip(24), "sentinel2", [request], standardized=standardized)
        assert np.isnan(decoded).any(axis=(1, 2)).tolist() == [False, False, False, True, False]


def test_every_class_of_a_map_is_scored(model):
    assert dataclasses.replace(model, registry=BUILT_IN).scored("nlcd").tolist() == [True] * len(
        BUILT_IN["nlcd"].classes
    )


def test_a_period_inside_a_gap_or_up_to_six_months_beyond_embeds_and_further_does_not(model):
    chip = a_chip(16)
    assert np.isfinite(model.embed(chip, ("2019-03-01", "2019-05-01")).values).all()
    assert np.isfinite(model.embed(chip, ("2018-01-02", "2018-01-03")).values).all()
    with pytest.raises(EmbeddingError, match="six months"):
        model.embed(chip, ("2020-01-01", "2020-02-01"))
    with pytest.raises(ValueError, match="must end after it starts"):
        model.embed(chip, ("2018-05-01", "2018-04-01"))
    with pytest.raises(EmbeddingError, match="empty list"):
        model.embed(chip, [])


def test_sources_that_the_model_does_not_know_are_left_alone(model, tmp_path):
    chip = a_chip(16)
    path = write_chip(tmp_path / "c.npz", chip, BUILT_IN)
    chip.sources["landsat"] = SourceSeries(
        values=np.array([0.2] * 6 + [280], np.float32)[None, :, None, None].repeat(16, 2).repeat(16, 3),
        valid=np.ones((1, 1, 16, 16), bool),
        time_ms=np.array([START], np.int64),
    )
    more = write_chip(tmp_path / "more.npz", chip, BUILT_IN)
    assert np.array_equal(model.embed(path, YEAR).values, model.embed(more, YEAR).values)


def test_sources_can_be_left_out_but_not_all_of_them(model):
    with pytest.raises(EmbeddingError, match="no frame of any input"):
        model.embed(a_chip(16), YEAR, leave_out=["sentinel2"])
    with pytest.raises(EmbeddingError, match="cannot leave out"):
        model.embed(a_chip(16), YEAR, leave_out=["glo30"])


def test_a_foreign_partial_newer_or_damaged_run_is_refused_in_one_line(run, tmp_path):
    def refused(path, reason):
        with pytest.raises(RunError, match=reason) as error:
            aef.load(path)
        assert "\n" not in str(error.value)

    refused(tmp_path / "nowhere", "no such run")
    refused(tmp_path, "not a run folder")
    copy = tmp_path / "copy"
    copy.mkdir()
    names = ("config.json", "config.yaml", "sources.yaml", "stats.json", "model.safetensors")
    for name in names:
        (copy / name).write_bytes((run / name).read_bytes())
    assert aef.load(copy).version == "tiny@7"
    (copy / "model.safetensors").write_bytes((run / "model.safetensors").read_bytes()[:-100])
    refused(copy, "damaged")
    (copy / "model.safetensors").unlink()
    refused(copy, "not written its weights")
    (copy / "stats.json").unlink()
    refused(copy, "partial")
    entries = json.loads((run / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**entries, "format_version": 99}))
    refused(copy, "update the software")
    (copy / "config.json").write_text("{")
    refused(copy, "not the description")


def test_weights_of_another_model_are_refused_by_name(run, tmp_path):
    for name in ("config.json", "sources.yaml", "stats.json", "config.yaml", "model.safetensors"):
        (tmp_path / name).write_bytes((run / name).read_bytes())
    text = (tmp_path / "config.yaml").read_text()
    (tmp_path / "config.yaml").write_text(text.replace("precision_width: 16", "precision_width: 32"))
    with pytest.raises(RunError, match="other shapes"):
        aef.load(tmp_path)


def test_every_chip_gives_back_what_its_encoding_took(model, monkeypatch):
    """Without it a process that judged chips of 64 px grew by 100 MB a chip."""
    calls = []
    monkeypatch.setattr(trained_model, "return_free_memory", lambda: calls.append(1))
    model.embed(a_chip(), YEAR)
    model.reconstruct(a_chip(), "sentinel2", (parse_time("2018-06-01"), YEAR))
    assert len(calls) == 2
