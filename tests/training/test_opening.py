"""What a run remembers of its data when it opens, and what it refuses then rather than later."""

import dataclasses

import pytest

import aef
from aef.config import ConfigError
from aef.data.withheld import WithheldError
from aef.run import Run
from aef.training import Trainer

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
