"""What a new run takes from its chips, and what it refuses then rather than later."""

import dataclasses
import json
import os
import shutil

import pytest

from aef.config import ConfigError
from aef.data.chips import ChipError, ChipFolder, read_chip, write_chip
from aef.data.dataset import read_withheld
from aef.data.statistics import Statistics, TakenOver
from aef.data.withheld import WithheldError
from aef.run import Run
from aef.sources import BUILT_IN
from aef.timecode import format_time
from aef.training import Trainer
from aef.training.log import read_validations
from aef.training.new_run import describe_run


@pytest.mark.parametrize(
    ("data", "settings", "error", "words"),
    [
        ({}, {"validate_set": "tuna", "validate_every": 1}, WithheldError, "no row has 'tuna' in its column `set`"),
        ({"withheld": "absent.csv"}, {}, FileNotFoundError, "absent.csv"),
        ({"withheld": None}, {"validate_set": "tune"}, ConfigError, "expected none without data.withheld"),
        ({"held_out_places": ("atlantis",)}, {}, ValueError, "cannot hold out atlantis"),
    ],
)
def test_lists_that_a_run_cannot_use_are_refused_before_it_is_written(
    chips, tmp_path, configure, listed, data, settings, error, words
):
    config = configure({"withheld": str(listed), **data}, **settings)
    with pytest.raises(error, match=words):
        Trainer(config, chips, tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("sentinel1.angel", "found 'sentinel1.angel'; of sentinel1 there are sentinel1.HH, .*sentinel1.angle"),
        ("sentinel7.angle", "found 'sentinel7.angle'; known sources are sentinel2, sentinel1"),
        ("angle", "expected SOURCE.BAND, found 'angle'"),
    ],
)
def test_bands_that_no_source_has_are_refused(name, words, chips, tmp_path, configure):
    config = configure({})
    config = dataclasses.replace(config, objective=dataclasses.replace(config.objective, unscored_bands=(name,)))
    with pytest.raises(ConfigError, match=words):
        describe_run(config, chips, tmp_path / "run", lambda words: None)


def test_a_weight_of_an_unknown_source_is_refused(chips, tmp_path, configure):
    config = configure({})
    config = dataclasses.replace(config, objective=dataclasses.replace(config.objective, source_weights=("nlc=0.25",)))
    with pytest.raises(ConfigError, match=r"objective\.source_weights: found 'nlc'; known sources are sentinel2"):
        describe_run(config, chips, tmp_path / "run", lambda words: None)


def scaled(chip, factor):
    """The same place as if its files had been read with another scale."""
    chip.sources["sentinel2"].values[:] *= factor
    return chip


def statistics_of(run):
    return Run.read(run).statistics


def test_statistics_leave_out_the_twins_that_training_leaves_out(chips, tmp_path, configure, listed):
    config = configure({"withheld": str(listed), "twin_minutes": 180.0})
    run = describe_run(config, chips, tmp_path / "run", lambda words: None)
    folder = ChipFolder(chips, run.registry)
    assert run.statistics.taken_over == TakenOver.of(folder, None, read_withheld(folder, config.data))


def test_dates_that_withhold_nothing_are_said_when_a_run_begins(chips, tmp_path, configure):
    chip = next(iter(ChipFolder(chips, BUILT_IN)))
    frame_ms = int(chip.sources["sentinel2"].time_ms[2])
    listed = tmp_path / "dates.csv"
    good = f"{chip.place},sentinel2,{format_time(frame_ms)}"
    listed.write_text(
        f"place,source,time_utc\n{good}\n{chip.place},sentinel2,2031-06-05\natlantis,,2018-06-05T10:00:00Z\n"
    )
    said = []
    describe_run(configure({"withheld": str(listed)}), chips, tmp_path / "run", said.append)
    (line,) = [line for line in said if line.startswith(str(listed))]
    assert (
        "2 of 3 dates have no frame" in line and f"the first is {chip.place} sentinel2 2031-06-05 (a day alone" in line
    )
    listed.write_text(f"place,source,time_utc\n{good}\n")
    said.clear()
    describe_run(configure({"withheld": str(listed)}), chips, tmp_path / "run", said.append)
    assert not any(line.startswith(str(listed)) for line in said)


@pytest.mark.parametrize("change", ["values", "more chips", "withheld dates"])
def test_statistics_of_another_training_set_are_not_used_and_it_is_said(
    change, chips, tmp_path, configure, listed, capsys
):
    before, file = Statistics.read(chips / "stats.json"), (chips / "stats.json").read_bytes()
    folder = ChipFolder(chips, BUILT_IN)
    if change == "values":
        for path in folder.files:
            write_chip(path, scaled(read_chip(path, BUILT_IN), 0.1), BUILT_IN)
    elif change == "more chips":
        shutil.copy(folder.files[0], chips / "another.npz")
    data = {"withheld": str(listed)} if change == "withheld dates" else {}
    with Trainer(configure(data), chips, tmp_path / "run"):
        pass
    said, found = capsys.readouterr().err, statistics_of(tmp_path / "run")
    count = 6 if change == "more chips" else 5
    assert f"of other chips, values or withheld dates (5 chips, here {count}; `aef stats`" in said
    assert found.taken_over.chips == count and found.taken_over != before.taken_over
    assert change == "withheld dates" or found["sentinel2"] != before["sentinel2"]
    assert (chips / "stats.json").read_bytes() == file  # another run may share it on purpose


def test_statistics_of_the_same_chips_serve_wherever_they_lie(chips, tmp_path, configure, capsys):
    for path in chips.glob("*.npz"):
        os.utime(path, (0, 0))
    moved = chips.rename(tmp_path / "moved")
    with Trainer(configure(), moved, tmp_path / "run"):
        pass
    assert "takes its own" not in capsys.readouterr().err
    assert (tmp_path / "run" / "stats.json").read_bytes() == (moved / "stats.json").read_bytes()


@pytest.mark.parametrize("origin", ["given", "unknown"])
def test_statistics_that_are_given_or_of_unknown_origin_are_used_as_they_are(origin, chips, tmp_path, configure):
    file = chips / "stats.json"
    if origin == "unknown":  # written by an earlier version
        entries = json.loads(file.read_text())
        del entries["taken_over"]
        file.write_text(json.dumps(entries))
    before = Statistics.read(file)
    path = chips / "place0.npz"
    write_chip(path, scaled(read_chip(path, BUILT_IN), 0.1), BUILT_IN)
    with Trainer(configure({"statistics": "given"} if origin == "given" else {}), chips, tmp_path / "run"):
        pass
    assert dict(statistics_of(tmp_path / "run")) == dict(before)


@pytest.mark.parametrize("origin", ["given", "unknown"])
def test_a_run_that_was_given_statistics_of_other_places_knows_its_own(origin, chips, tmp_path, configure):
    """Else places that it learnt from would be judged as places that it never saw."""
    file = chips / "stats.json"
    entries = json.loads(file.read_text())
    entries["places"] = ["elsewhere"]
    if origin == "unknown":
        del entries["taken_over"]
    file.write_text(json.dumps(entries))
    held_out, *trained = ChipFolder(chips, BUILT_IN).known_places()
    settings = {"statistics": "given"} if origin == "given" else {}
    run = describe_run(configure({**settings, "held_out_places": (held_out,)}), chips, tmp_path, lambda words: None)
    assert run.statistics.places == ("elsewhere", *trained)
    assert json.loads(file.read_text()) == entries


def test_statistics_that_should_be_given_and_are_absent_are_one_line(chips, tmp_path, configure):
    (chips / "stats.json").unlink()
    with pytest.raises(FileNotFoundError, match="make it with `aef stats --data"):
        Trainer(configure({"statistics": "given"}), chips, tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()


def test_a_damaged_chip_can_be_skipped_from_the_first_look_to_validation(chips, tmp_path, configure, train):
    damaged = chips / "place1.npz"
    damaged.write_bytes(damaged.read_bytes()[:3000])
    with pytest.raises(ChipError, match=r"place1\.npz: is damaged or not a chip"):
        Trainer(configure(), chips, tmp_path / "stops", quiet=True)
    trainer = train(configure({"skip_bad": True}, validate_every=1), chips, tmp_path / "run")
    assert trainer.position.step == 2
    found = statistics_of(tmp_path / "run")
    assert found.skipped == 1 and found.places == ("place0", "place2", "place3", "place4")
    assert len(read_validations(tmp_path / "run")) == 2


def test_a_source_that_is_nowhere_clear_is_said(chips, tmp_path, configure):
    (chips / "stats.json").unlink()
    for path in chips.glob("*.npz"):
        chip = read_chip(path, BUILT_IN)
        chip.sources["landsat"].weight[:] = 0  # a cloud mask the wrong way round
        write_chip(path, chip, BUILT_IN)
    said = []
    describe_run(configure(), chips, tmp_path / "run", said.append)
    (line,) = [line for line in said if line.startswith("landsat: ")]
    assert "no pixel of it is clear in any chip" in line and "nothing of it is scored" in line
    assert not any(line.startswith("sentinel2: ") for line in said)


def test_statistics_of_a_sample_serve_the_training_set_that_they_were_drawn_from(chips, tmp_path, configure, capsys):
    folder = ChipFolder(chips, BUILT_IN)
    sample = Statistics.of_chips(folder, BUILT_IN, sample=2, seed=4)
    sample.write(chips / "stats.json")
    with Trainer(configure(), chips, tmp_path / "run"):
        pass
    found = statistics_of(tmp_path / "run")
    assert "takes its own" not in capsys.readouterr().err
    assert dict(found) == dict(sample) and found.taken_over == sample.taken_over and len(found.places) == 5
    with Trainer(configure({"held_out_places": ("place0",)}), chips, tmp_path / "other"):
        pass
    assert "of place0 too, held out here: this run takes its own" in capsys.readouterr().err


def test_a_run_over_very_many_chips_draws_those_of_its_statistics_and_says_so(
    chips, tmp_path, configure, capsys, monkeypatch
):
    monkeypatch.setattr("aef.training.new_run.SAMPLE", 3)
    (chips / "stats.json").unlink()
    with Trainer(configure(), chips, tmp_path / "run"):
        pass
    assert "they are taken over 3 of 5 chips, drawn at random" in capsys.readouterr().err
    assert Statistics.read(chips / "stats.json").taken_over.sampled == 3


def test_statistics_of_an_earlier_version_are_taken_again(chips, tmp_path, configure, capsys):
    entries = json.loads((chips / "stats.json").read_text())
    entries["taken_over"] = {"chips": 5, "digest": "0" * 64}
    (chips / "stats.json").write_text(json.dumps(entries))
    with Trainer(configure(), chips, tmp_path / "run"):
        pass
    assert "of an earlier version, which remembered its chips in another way" in capsys.readouterr().err
    assert statistics_of(tmp_path / "run").taken_over.is_of_this_form
