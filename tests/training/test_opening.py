"""What a run remembers of its data when it opens, and what it refuses then rather than later."""

import dataclasses
import json
import os
import shutil
from types import SimpleNamespace

import pytest
import torch

import aef
from aef.config import ConfigError
from aef.data.chips import ChipError, ChipFolder, read_chip, write_chip
from aef.data.dataset import read_withheld
from aef.data.statistics import Statistics, TakenOver
from aef.data.withheld import WithheldError
from aef.run import Run, RunError
from aef.sources import BUILT_IN
from aef.training import Trainer
from aef.training.checkpoint import CheckpointError, Checkpoints, fingerprint
from aef.training.log import read_validations
from aef.training.opening import create_run, describe_run, open_run
from aef.training.validation import Validation

LIST = "place,time_utc,set\nplace0,2018-03-01,tune\nplace1,2018-04-01,report\n"


@pytest.fixture
def configure(make_config):
    """`configure(data={...}, **train)` → the preset `tiny` with other `data.*` and `train.*` settings."""

    def build(data=(), **train):
        config = make_config(**{"steps": 2, "checkpoint_every": 1, "figure_every": 0, **train})
        return dataclasses.replace(config, data=dataclasses.replace(config.data, **dict(data)))

    return build


def train(config, chips, run, resume=None, steps=None):
    """Train to the end, or leave after some steps as a crash would."""
    with Trainer(config, chips, run, resume=resume) as trainer:
        for record in trainer.steps():
            if record["step"] == steps:
                break
        return trainer


@pytest.fixture
def listed(tmp_path):
    path = tmp_path / "dates.csv"
    path.write_text(LIST)
    return path


def withheld_by(trainer):
    return trainer.loader.steps.chips.sampler.withheld.dates()


# --- withheld dates --------------------------------------------------------------------------------------------------


@pytest.fixture
def validation_of(chips, tmp_path, configure, listed):
    """`validation_of(*held-out places)` → the validation of a run that withholds `listed` and judges its set `tune`."""

    def build(*places):
        config = configure({"withheld": str(listed), "held_out_places": places}, validate_set="tune")
        return Validation(describe_run(config, chips, tmp_path / "run", lambda words: None), chips)

    return build


def test_a_validation_hides_every_withheld_date_and_judges_those_of_its_set(validation_of):
    validation = validation_of("place3")
    hidden, judged = validation._dates
    assert hidden.places == {"place0", "place1"} and judged.places == {"place0"}
    assert [chip.place for chip in validation._dated] == ["place0"]


def test_a_validation_probes_held_out_places_only_and_judges_no_dates_there(validation_of):
    validation = validation_of("place0", "place3")
    assert [chip.place for chip in validation._looked_at] == ["place0", "place3"]
    assert validation._dated == []  # a place that is not trained on says nothing about dates


def test_a_validation_looks_at_the_model_as_it_decodes_a_mean_and_gives_it_back_as_it_trains(
    validation_of, monkeypatch
):
    seen = []
    monkeypatch.setattr(Validation, "_measure", lambda self, model: seen.append(model.model.training) or {})
    model = torch.nn.Linear(1, 1)
    validation_of().measure(model, 3)
    assert seen == [False] and model.training


def test_a_run_keeps_the_dates_that_it_withholds_whatever_becomes_of_the_list(
    chips, tmp_path, configure, listed, monkeypatch, capsys
):
    config, run = configure({"withheld": "dates.csv"}, validate_set="tune"), tmp_path / "run"
    monkeypatch.chdir(tmp_path)
    first = withheld_by(train(config, chips, run, steps=1))
    assert (run / "withheld.csv").read_text() == LIST
    listed.write_text(LIST.replace("place1,2018-04-01", "place2,2019-01-01"))
    again = train(config, chips, run, resume="auto", steps=2)
    assert withheld_by(again) == first
    assert f"dates.csv is not what it was when the run began: the run keeps its copy, {run / 'withheld.csv'}" in (
        capsys.readouterr().err
    )
    assert again.validation._dates[0].dates() == first and len(again.validation._dates[1]) == 1
    listed.unlink()
    monkeypatch.chdir("/")
    assert withheld_by(train(config, chips, run, resume="auto")) == first
    # Who judges the run asks its settings, which name the copy; the file keeps what the user typed.
    assert aef.load(run).config.data.withheld == str(run / "withheld.csv")
    assert "withheld: dates.csv" in (run / "config.yaml").read_text()


def test_a_run_may_be_resumed_with_its_list_under_another_name_but_not_with_another_list(
    chips, tmp_path, configure, listed
):
    run, other = tmp_path / "run", tmp_path / "other.csv"
    train(configure({"withheld": str(listed)}), chips, run, steps=1)
    other.write_text(LIST + "place3,2018-05-01,report\n")
    for given in (str(other), None):
        with pytest.raises(ConfigError, match=r"a resumed run keeps its settings, but data\.withheld"):
            train(configure({"withheld": given}), chips, run, resume="auto")
    listed.rename(other)
    train(configure({"withheld": str(other)}), chips, run, resume="auto")


def test_a_run_from_before_lists_were_kept_takes_its_copy_when_it_is_resumed(chips, tmp_path, configure, listed):
    config, run = configure({"withheld": str(listed)}), tmp_path / "run"
    train(config, chips, run, steps=1)
    (run / "withheld.csv").unlink()
    assert Run.read(run).config.data == config.data
    train(config, chips, run, resume="auto")
    assert (run / "withheld.csv").read_text() == LIST


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


def test_a_set_that_the_list_lacks_is_refused_when_a_run_is_resumed(chips, tmp_path, configure, listed):
    run, data = tmp_path / "run", {"withheld": str(listed)}
    train(configure(data, validate_set="tune"), chips, run, steps=1)
    with pytest.raises(WithheldError, match="no row has 'tuna'"):
        Trainer(configure(data, validate_set="tuna"), chips, run, resume="auto", quiet=True)


# --- statistics ------------------------------------------------------------------------------------------------------


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


def test_statistics_that_should_be_given_and_are_absent_are_one_line(chips, tmp_path, configure):
    (chips / "stats.json").unlink()
    with pytest.raises(FileNotFoundError, match="make it with `aef stats --data"):
        Trainer(configure({"statistics": "given"}), chips, tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()


# --- chips that change, checkpoints that go --------------------------------------------------------------------------


def test_a_run_is_not_resumed_on_other_chips(chips, tmp_path, configure):
    run = tmp_path / "run"
    train(configure(), chips, run, steps=1)
    log = (run / "log.jsonl").read_text()
    shutil.copy(chips / "place0.npz", chips / "place5.npz")
    with pytest.raises(
        CheckpointError, match=r"the run trains on 5 chips, .*/chips holds 6 of other names: give it its"
    ):
        train(configure(), chips, run, resume="auto")
    (chips / "place1.npz").unlink()
    with pytest.raises(CheckpointError, match=r"the run trains on 5 chips, .*/chips holds 5 of other names"):
        train(configure(), chips, run, resume="auto")
    assert (run / "log.jsonl").read_text() == log
    (chips / "place5.npz").rename(chips / "place1.npz")
    train(configure(), chips.rename(tmp_path / "moved"), run, resume="auto")


def test_a_run_is_not_resumed_where_filler_would_be_too_much_of_the_smaller_micro_batches(chips, tmp_path, configure):
    config, run = configure({"frame_bucket": 5}, global_batch=8, micro_batch=8), tmp_path / "run"
    fewer = dataclasses.replace(config, train=dataclasses.replace(config.train, micro_batch=4))
    create_run(config, chips, run, print)
    before = (run / "config.yaml").read_bytes()

    def resume(config, ranks):
        world = SimpleNamespace(size=ranks, device=torch.device("cpu"), on_first=lambda action, what, say: action())
        return open_run(config, chips, run, "auto", None, world, print)

    words = r"data\.frame_bucket: 4 filler frames beside .* a larger train\.micro_batch"
    for refused, ranks in ((config, 2), (fewer, 1)):
        with pytest.raises(ConfigError, match=words):
            resume(refused, ranks)
    assert (run / "config.yaml").read_bytes() == before
    opened = resume(config, 1)
    assert opened.position.step == 0
    opened.release()


def test_a_run_whose_checkpoints_are_from_an_earlier_version_goes_on(chips, tmp_path, configure):
    run = tmp_path / "run"
    train(configure(), chips, run, steps=1)
    (checkpoint,) = Checkpoints(run, keep=2).all()
    entries = json.loads((checkpoint / "state.json").read_text())
    assert entries.pop("chips")["count"] == 5
    (checkpoint / "state.json").write_text(json.dumps(entries))
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    manifest["files"]["state.json"] = fingerprint(checkpoint / "state.json")
    (checkpoint / "manifest.json").write_text(json.dumps(manifest))
    assert train(configure(), chips, run, resume="auto").position.step == 2


def test_a_trained_run_without_checkpoints_is_not_started_again(chips, tmp_path, configure):
    run = tmp_path / "run"
    train(configure(), chips, run)
    shutil.rmtree(run / "checkpoints")
    before = {name: (run / name).read_bytes() for name in ("log.jsonl", "model.safetensors")}
    words = rf"checkpoints/ is empty, .* up to step 2: it cannot go on; .* --init-from {run / 'model.safetensors'}"
    with pytest.raises(RunError, match=words):
        train(configure(), chips, run, resume="auto")
    assert {name: (run / name).read_bytes() for name in before} == before
    (run / "model.safetensors").unlink()
    with pytest.raises(RunError, match=r"start a new one with another --out$"):
        train(configure(), chips, run, resume="auto")


def test_a_run_that_was_killed_before_its_first_checkpoint_starts_again(chips, tmp_path, configure):
    run, config = tmp_path / "run", configure(checkpoint_every=100)
    train(config, chips, run, steps=1)
    assert train(config, chips, run, resume="auto").position.step == 2


def test_a_damaged_chip_can_be_skipped_from_the_first_look_to_validation(chips, tmp_path, configure):
    damaged = chips / "place1.npz"
    damaged.write_bytes(damaged.read_bytes()[:3000])
    with pytest.raises(ChipError, match=r"place1\.npz: is damaged or not a chip"):
        Trainer(configure(), chips, tmp_path / "stops", quiet=True)
    trainer = train(configure({"skip_bad": True}, validate_every=1), chips, tmp_path / "run")
    assert trainer.position.step == 2
    found = statistics_of(tmp_path / "run")
    assert found.skipped == 1 and found.places == ("place0", "place2", "place3", "place4")
    assert len(read_validations(tmp_path / "run")) == 2


# --- many chips ------------------------------------------------------------------------------------------------------


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
    monkeypatch.setattr("aef.training.opening.SAMPLE", 3)
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


def test_a_sample_is_expected_to_encode_the_frames_that_the_index_knows(chips, configure):
    from aef.data.dataset import ChipDataset
    from aef.training.costs import ExpectedFrames

    config = configure({"support_days": 240.0})
    folder = ChipFolder(chips, BUILT_IN)
    costs = ExpectedFrames(ChipDataset(folder, config.data), config)
    for number, chip in enumerate(folder):
        frames = 0.0
        for name in ("sentinel2", "sentinel1", "landsat"):
            times = chip.sources[name].time_ms
            years = max(1.0, (times[-1] - times[0]) / (240 * 86_400_000))
            frames += min(len(times) / years, config.data.frame_budget * BUILT_IN[name].frame_budget)
        assert costs[number] == pytest.approx(frames, rel=1e-6)
    assert len(costs) == 5
    first = costs.fingerprint()
    costs.require_same(first)
    (chips / "place4.npz").unlink()
    fewer = ExpectedFrames(ChipDataset(ChipFolder(chips, BUILT_IN), config.data), config)
    with pytest.raises(ChipError, match="this rank finds other chips than rank 0"):
        fewer.require_same(first)
