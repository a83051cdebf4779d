"""Transforms, statistics over clear pixels, z-scores, and the way back to physical units."""

from __future__ import annotations

import dataclasses
import json
import math
import os

import numpy as np
import pytest
import torch

from aef.data.chips import ChipError, ChipFolder, read_chip, write_chip
from aef.data.standardizer import Standardizer
from aef.data.statistics import SourceStatistics, Statistics, StatisticsError
from aef.data.transform import inverse_transform, transform
from aef.data.withheld import WithheldDates
from aef.launcher import stats, withhold
from aef.sources import BUILT_IN, Band, Registry, Source, Transform

S2, S1 = BUILT_IN["sentinel2"], BUILT_IN["sentinel1"]
CONTINUOUS = [source for source in BUILT_IN.values() if not source.classes]
ALWAYS = torch.ones(1, dtype=torch.bool)


def channels_last(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(array, 1, -1)))


# --- transforms ------------------------------------------------------------------------------------------------------


def test_optical_values_take_the_papers_logarithm():
    values = torch.tensor([[0, 1, 999, 10000, 28000]], dtype=torch.int32)
    expected = [math.log(x + 1) / 10 for x in (0, 1, 999, 10000, 28000)]
    assert transform(S2, values)[0].tolist() == pytest.approx(expected, rel=1e-6)


def test_landsat_reflectance_is_scaled_to_sentinel_2s_range_and_kelvin_is_not():
    values = torch.tensor([[0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 290.0]])
    y = transform(BUILT_IN["landsat"], values)[0]
    assert y[0].item() == pytest.approx(math.log(1001) / 10, rel=1e-6)
    assert y[6].item() == pytest.approx(math.log(291) / 10, rel=1e-6)


def test_palsar_amplitudes_become_gamma_nought_in_db_and_angles_radians():
    y = transform(BUILT_IN["palsar2"], torch.tensor([[1000, 2000, 3500]], dtype=torch.int32))[0]
    assert y[0].item() == pytest.approx(10 * math.log10(1000**2) - 83, rel=1e-6)
    assert y[2].item() == pytest.approx(math.radians(35), rel=1e-6)
    assert transform(S1, torch.tensor([[-10.0, -15, 0, 0, 39]]))[0, 4].item() == pytest.approx(
        math.radians(39), rel=1e-6
    )


def test_every_transform_has_its_inverse():
    kinds = (Transform("linear", -2.0, 3.0), Transform("log", 1e4), Transform("db", 10.0, 5.0))
    bands = tuple(Band(f"b{i}", "1", 0, 9, kind) for i, kind in enumerate(kinds))
    source = Source("three", "three kinds", (), bands, "target", 10)
    values = torch.rand(7, 5, 3) * 2 + 0.01
    assert torch.allclose(inverse_transform(source, transform(source, values)), values, rtol=1e-4)


def test_a_logarithm_of_nothing_stays_finite():
    for source in BUILT_IN.values():
        assert torch.isfinite(transform(source, torch.zeros(2, source.channels))).all()
        assert torch.isfinite(transform(source, torch.full((2, source.channels), -5.0))).all()


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "int32", "uint32", "float16", "float64"])
def test_stored_types_all_reach_float32(dtype):
    values = torch.from_numpy(np.full((2, 5), 100).astype(dtype))
    assert transform(S2, values).dtype == torch.float32
    assert torch.allclose(transform(S2, values), torch.tensor(math.log(101) / 10))


# --- statistics ------------------------------------------------------------------------------------------------------


def naive(chips, source: Source, weighted: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean, deviation and count per band from all values at once."""
    means, deviations, counts = [], [], []
    for band in range(source.channels):
        xs, ws = [], []
        for chip in chips:
            series = chip.sources[source.name]
            y = np.moveaxis(transform(source, channels_last(series.values)).numpy(), -1, 1)[:, band].astype(np.float64)
            valid = np.broadcast_to(series.valid, series.values.shape)[:, band]
            weight = np.ones_like(y)
            if weighted and series.weight is not None:
                weight = np.broadcast_to(series.weight, (len(y), 1, *y.shape[1:]))[:, 0] / 255.0
            xs.append(y[valid]), ws.append(weight[valid])
        x, w = np.concatenate(xs), np.concatenate(ws)
        mean = np.average(x, weights=w) if w.sum() else 0.0
        means.append(mean)
        deviations.append(math.sqrt(np.average((x - mean) ** 2, weights=w)) if w.sum() else 1.0)
        counts.append((w > 0).sum())
    return np.array(means), np.array(deviations), np.array(counts)


@pytest.mark.parametrize("source", CONTINUOUS, ids=lambda source: source.name)
@pytest.mark.parametrize("weighting", ["clear", "valid"])
def test_streamed_statistics_equal_those_of_all_values_at_once(make_chip, source, weighting):
    chips = [make_chip(name, sources=(source.name,)) for name in ("a", "b", "c")]
    for series in (chip.sources[source.name] for chip in chips):
        if series.weight is not None:
            series.weight[::2] //= 3  # neither clear nor cloudy
    found = Statistics.of_chips(chips, BUILT_IN, weighting=weighting)[source.name]
    mean, deviation, count = naive(chips, source, weighting == "clear")
    assert np.allclose(found.mean, mean, rtol=1e-6) and np.array_equal(found.count, count)
    assert np.allclose(found.std, deviation, rtol=1e-4)


def test_clouds_do_not_move_clear_statistics(make_chip):
    clear, cloudy = make_chip("a", sources=("sentinel2",)), make_chip("a", sources=("sentinel2",))
    series = cloudy.sources["sentinel2"]
    series.values[np.broadcast_to(series.weight == 0, series.values.shape)] = 27000
    before, after = (Statistics.of_chips([chip], BUILT_IN)["sentinel2"] for chip in (clear, cloudy))
    assert before == after
    assert Statistics.of_chips([cloudy], BUILT_IN, weighting="valid")["sentinel2"].std[0] > 2 * before.std[0]


def test_a_band_that_was_never_observed_stays_unscaled_and_says_so(make_chip):
    statistics = Statistics.of_chips([make_chip("a", sources=("sentinel1",))], BUILT_IN)
    found = statistics["sentinel1"]
    assert [band for band, count in zip(found.bands, found.count) if count == 0] == ["HH", "HV"]
    assert (found.mean[2], found.std[2], found.count[2]) == (0.0, 1.0, 0)
    assert "HH: never observed" in stats.describe(statistics)


def test_a_constant_band_has_z_score_zero(make_chip):
    chip = make_chip("a", sources=("grace",))
    chip.sources["grace"].values[:] = 12.5
    standardize = Standardizer(BUILT_IN["grace"], Statistics.of_chips([chip], BUILT_IN))
    assert (standardize(torch.full((3, 1), 12.5), ALWAYS) == 0).all()


def test_statistics_know_where_they_come_from(tmp_path, make_chip):
    for name in ("a", "b@2019", "b@2020", "c"):
        write_chip(tmp_path / f"{name}.npz", make_chip(name, sources=("sentinel2", "nlcd")), BUILT_IN)
    found = Statistics.of_chips(ChipFolder(tmp_path, BUILT_IN), BUILT_IN, places={"a", "b"})
    assert found.places == ("a", "b") and found.weighting == "clear" and found.skipped == 0
    assert found["sentinel2"].units == ("reflectance x 10000",) * 5
    assert found["sentinel2"].collections == ("COPERNICUS/S2_HARMONIZED",)
    assert "nlcd" not in found


def test_withheld_dates_are_absent_from_the_statistics(make_chip):
    chip = make_chip("a", sources=("sentinel2",))
    series = chip.sources["sentinel2"]
    withheld = WithheldDates({("a", ""): [int(series.time_ms[4])]})
    found = Statistics.of_chips([chip], BUILT_IN, withheld=withheld)
    series.weight[4] = 0
    assert found["sentinel2"] == Statistics.of_chips([chip], BUILT_IN)["sentinel2"]


def test_a_wrong_value_stops_the_statistics_by_file_unless_it_is_skipped_and_counted(tmp_path, make_chip):
    for name in ("a", "b"):
        write_chip(tmp_path / f"{name}.npz", make_chip(name, sources=("sentinel2",)), BUILT_IN)
    os.truncate(tmp_path / "b.npz", 5000)
    folder = ChipFolder(tmp_path, BUILT_IN)
    with pytest.raises(ChipError, match=r"b\.npz"):
        Statistics.of_chips(folder, BUILT_IN)
    found = Statistics.of_chips(folder, BUILT_IN, skip_bad=True)
    assert found.skipped == 1 and found.places == ("a",)


def test_statistics_remember_the_values_and_dates_behind_them_and_nothing_else(tmp_path, make_chip):
    def over(folder, places=None, withheld=None):
        return Statistics.of_chips(
            ChipFolder(folder, BUILT_IN), BUILT_IN, places=places, withheld=withheld, skip_bad=True
        ).taken_over

    chips = {name: make_chip(name, sources=("sentinel2",)) for name in ("a", "b")}
    for folder, compress in (("first", True), ("copy", False)):
        (tmp_path / folder).mkdir()
        for name, chip in chips.items():
            write_chip(tmp_path / folder / f"{name}.npz", chip, BUILT_IN, compress=compress)
    first = over(tmp_path / "first")
    chips["a"].attributes["note"] = "texts and labels may be attached"
    write_chip(tmp_path / "copy" / "a.npz", chips["a"], BUILT_IN)
    assert over(tmp_path / "copy") == first and first.chips == 2
    dates = WithheldDates({("a", ""): [int(chips["a"].sources["sentinel2"].time_ms[4])]})
    others = [over(tmp_path / "first", places={"a"}), over(tmp_path / "first", withheld=dates)]
    chips["b"].sources["sentinel2"].values[0, 0, 0, 0] += 1
    write_chip(tmp_path / "copy" / "b.npz", chips["b"], BUILT_IN)
    others.append(over(tmp_path / "copy"))
    os.truncate(tmp_path / "copy" / "b.npz", 5000)
    others.append(over(tmp_path / "copy"))
    write_chip(tmp_path / "first" / "c.npz", make_chip("c", sources=("sentinel2",)), BUILT_IN)
    others.append(over(tmp_path / "first"))
    assert len({first, *others}) == 6
    assert Statistics.of_chips(chips.values(), BUILT_IN).taken_over is None


def test_statistics_of_no_chip_are_refused(make_chip):
    with pytest.raises(StatisticsError, match="none is of the places elsewhere"):
        Statistics.of_chips([make_chip("a")], BUILT_IN, places={"elsewhere"})


# --- files -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def statistics(make_chip) -> Statistics:
    return Statistics.of_chips([make_chip("a"), make_chip("b")], BUILT_IN)


def test_statistics_are_read_back_unchanged(tmp_path, statistics):
    back = Statistics.read(statistics.write(tmp_path / "stats.json"))
    assert dict(back) == dict(statistics)
    assert (back.weighting, back.date, back.places, back.skipped) == (
        statistics.weighting,
        statistics.date,
        statistics.places,
        statistics.skipped,
    )


@pytest.mark.parametrize(
    "change",
    [
        lambda c: c.update(format_version=3),
        lambda c: c.pop("sources"),
        lambda c: c.update(sources=3),
        lambda c: c["sources"]["sentinel2"].update(std=[0.0] * 5),
        lambda c: c["sources"]["sentinel2"].update(mean=[float("nan")] * 5),
        lambda c: c["sources"]["sentinel2"].update(mean=[0.0] * 4),
        lambda c: c["sources"]["sentinel2"].update(mean=["a"] * 5),
        lambda c: c["sources"]["sentinel2"].pop("units"),
    ],
)
def test_a_damaged_statistics_file_is_one_named_line(tmp_path, statistics, change):
    path = statistics.write(tmp_path / "stats.json")
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    with pytest.raises(StatisticsError) as caught:
        Statistics.read(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_missing_or_cut_statistics_file_says_how_to_make_one(tmp_path, statistics):
    with pytest.raises(FileNotFoundError, match="aef stats"):
        Statistics.read(tmp_path / "stats.json")
    path = statistics.write(tmp_path / "stats.json")
    path.write_text(path.read_text()[:-100])
    with pytest.raises(StatisticsError, match="aef stats"):
        Statistics.read(path)


def test_a_failing_disk_leaves_the_old_statistics(tmp_path, statistics, monkeypatch):
    path = statistics.write(tmp_path / "stats.json")
    before = path.read_bytes()
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match=r"stats\.json"):
        statistics.write(path)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_statistics_of_another_source_are_refused(statistics):
    other = dataclasses.replace(S2, bands=(*S2.bands[:4], dataclasses.replace(S2.bands[4], name="B12")))
    with pytest.raises(StatisticsError, match=r"source sentinel2: statistics of another source.*B12.*found.*B11"):
        Standardizer(other, statistics)
    other = dataclasses.replace(S2, bands=tuple(dataclasses.replace(band, unit="reflectance") for band in S2.bands))
    with pytest.raises(StatisticsError, match="units"):
        Standardizer(other, statistics)


def test_a_source_without_statistics_is_refused(make_chip):
    statistics = Statistics.of_chips([make_chip("a", sources=("sentinel2",))], BUILT_IN)
    with pytest.raises(StatisticsError, match="source landsat: no statistics, only of sentinel2"):
        Standardizer(BUILT_IN["landsat"], statistics)


def test_class_codes_have_no_statistics(statistics):
    with pytest.raises(StatisticsError, match="nlcd: class codes"):
        Standardizer(BUILT_IN["nlcd"], statistics)


# --- z-scores --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", CONTINUOUS, ids=lambda source: source.name)
def test_every_source_survives_writer_reader_transform_z_score_and_the_way_back(tmp_path, make_chip, source):
    """Raw values → file → transform → z-score → physical units."""
    chip = make_chip("a")
    read = read_chip(write_chip(tmp_path / "c.npz", chip, BUILT_IN), BUILT_IN)
    standardize = Standardizer(source, Statistics.of_chips([read], BUILT_IN))
    series = read.sources[source.name]
    values, valid = channels_last(series.values), channels_last(series.valid)
    z = standardize(values, valid)
    assert z.dtype == torch.float32 and z.abs().max() <= 6
    observed = valid.expand(values.shape)
    back = standardize.invert(z)[observed].numpy()
    original = np.moveaxis(chip.sources[source.name].values, 1, -1)[observed.numpy()].astype(np.float32)
    assert np.allclose(back, original, rtol=2e-4, atol=1e-3)


def test_z_scores_of_clear_pixels_have_mean_zero_and_deviation_one(make_chip):
    chips = [make_chip(name, sources=("sentinel2",)) for name in ("a", "b")]
    standardize = Standardizer(S2, Statistics.of_chips(chips, BUILT_IN))
    z = torch.cat([standardize(channels_last(c.sources["sentinel2"].values), ALWAYS).flatten(0, 2) for c in chips])
    clear = np.concatenate([((s.weight > 0) & s.valid).ravel() for s in (c.sources["sentinel2"] for c in chips)])
    assert torch.allclose(z[clear].mean(0), torch.zeros(5), atol=1e-5)
    assert torch.allclose(z[clear].std(0, correction=0), torch.ones(5), atol=1e-4)


def test_values_are_clipped_at_six_deviations_and_zero_where_not_observed():
    statistics = Statistics.identity(Registry([S1]), ["sentinel1"])
    standardize = Standardizer(S1, statistics)
    values = torch.tensor([[-30.0, 9, float("nan"), 1, 2], [float("nan"), 1, 1, 1, 1]])
    z = standardize(values, torch.tensor([[True, True, False, False, True], [False] * 5]))
    assert z[0].tolist() == pytest.approx([-6, 6, 0, 0, math.radians(2)])
    assert (z[1] == 0).all()
    assert Standardizer(S1, statistics, clip_sigma=2.0)(values, ALWAYS)[0, 0] == -2


def test_statistics_applied_twice_are_an_error(statistics):
    standardize = Standardizer(S2, statistics)
    with pytest.raises(StatisticsError, match="sentinel2: these values were standardised already"):
        standardize(standardize(torch.full((3, 5), 500.0), ALWAYS), ALWAYS)
    with pytest.raises(StatisticsError, match="landsat"):
        Standardizer(BUILT_IN["landsat"], statistics)(
            Standardizer(BUILT_IN["landsat"], statistics)(torch.ones(1, 7), ALWAYS), ALWAYS
        )


def test_chips_that_hold_standardised_values_are_refused(make_chip, statistics):
    chip = make_chip("a", sources=("landsat",))
    series = chip.sources["landsat"]
    z = Standardizer(BUILT_IN["landsat"], statistics)(channels_last(series.values), channels_last(series.valid))
    series.values = np.moveaxis(z.numpy(), -1, 1)
    with pytest.raises(ChipError, match=r"landsat: field values: band B2: expected 0 to 2\.8"):
        Statistics.of_chips([chip], BUILT_IN)


@pytest.mark.parametrize("wrong", [4, 6, 1])
def test_another_number_of_bands_is_refused(statistics, wrong):
    with pytest.raises(ValueError, match=r"source sentinel2: expected values \(\.\.\., 5\)"):
        Standardizer(S2, statistics)(torch.zeros(2, wrong), ALWAYS)


def test_a_standardizer_holds_no_parameter_that_an_engine_could_cast(statistics):
    assert not isinstance(Standardizer(S2, statistics), torch.nn.Module)


def test_identity_statistics_leave_the_transformed_values(make_chip):
    statistics = Statistics.identity(BUILT_IN, BUILT_IN)
    assert statistics["sentinel2"] == SourceStatistics(S2.band_names, S2.units, (0.0,) * 5, (1.0,) * 5, (0,) * 5)
    values = torch.full((2, 5), 300.0)
    assert torch.equal(Standardizer(S2, statistics)(values, ALWAYS), transform(S2, values))


# --- the command -----------------------------------------------------------------------------------------------------


def test_the_stats_command_writes_beside_the_chips_without_held_out_places(tmp_path, make_chip, capsys):
    for name in ("a", "b", "c"):
        write_chip(tmp_path / f"{name}.npz", make_chip(name, sources=("sentinel2",)), BUILT_IN)
    assert stats.main(["--data", str(tmp_path), "--held-out", "b"]) == 0
    assert Statistics.read(tmp_path / "stats.json").places == ("a", "c")
    assert "B8: mean" in capsys.readouterr().out


def test_the_stats_command_only_prints_in_a_dry_run(tmp_path, make_chip, capsys):
    write_chip(tmp_path / "a.npz", make_chip("a", sources=("sentinel2",)), BUILT_IN)
    assert stats.main(["--data", str(tmp_path), "--dry-run"]) == 0
    assert not (tmp_path / "stats.json").exists()


def test_the_stats_command_refuses_a_place_that_is_not_there(tmp_path, make_chip):
    write_chip(tmp_path / "a.npz", make_chip("a", sources=("sentinel2",)), BUILT_IN)
    with pytest.raises(ValueError, match="nowhere"):
        stats.main(["--data", str(tmp_path), "--held-out", "nowhere"])


@pytest.mark.parametrize("command", [stats, withhold])
def test_a_file_that_could_not_be_written_is_refused_before_a_chip_is_read(tmp_path, make_chip, command, monkeypatch):
    write_chip(tmp_path / "a.npz", make_chip("a", sources=("sentinel2",)), BUILT_IN)
    monkeypatch.setattr(ChipFolder, "read", None)
    out = tmp_path / "nowhere" / "out"
    with pytest.raises(ValueError, match=r"--out .*out: expected a folder that is there"):
        command.main(["--data", str(tmp_path), "--out", str(out)])


def test_the_stats_command_refuses_twins_of_less_than_no_time(tmp_path, make_chip):
    write_chip(tmp_path / "a.npz", make_chip("a", sources=("sentinel2",)), BUILT_IN)
    with pytest.raises(ValueError, match="--twin-minutes: expected 0 or more, found -60"):
        stats.main(["--data", str(tmp_path), "--twin-minutes", "-60"])
