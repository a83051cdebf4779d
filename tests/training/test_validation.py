"""What a validation looks at, and that it leaves the model as it was."""

import re

import pytest
import torch

from aef.data.chips import ChipError
from aef.training.checkpoint import Checkpoints
from aef.training.log import read_log, read_validations
from aef.training.new_run import describe_run
from aef.training.trainer import TrainingError
from aef.training.validation import Validation


@pytest.fixture
def validation_of(chips, tmp_path, configure, listed):
    """`validation_of(*held-out places)` → the validation of a run that withholds `listed` and judges its set `tune`."""

    def build(*places):
        config = configure({"withheld": str(listed), "held_out_places": places}, validate_set="tune")
        return Validation(describe_run(config, chips, tmp_path / "run", lambda words: None), chips)

    return build


def test_a_validation_hides_every_withheld_date_and_judges_those_of_its_set(validation_of):
    validation = validation_of("place3")
    hidden, judged = validation.dates
    assert hidden.places == {"place0", "place1"} and judged.places == {"place0"}
    assert [chip.place for chip in validation.dated] == ["place0"]


def test_a_validation_probes_held_out_places_only_and_judges_no_dates_there(validation_of):
    validation = validation_of("place0", "place3")
    assert [chip.place for chip in validation.looked_at] == ["place0", "place3"]
    assert validation.dated == []  # a place that is not trained on says nothing about dates


def test_a_validation_looks_at_the_model_as_it_decodes_a_mean_and_gives_it_back_as_it_trains(
    validation_of, monkeypatch
):
    seen = []
    monkeypatch.setattr(Validation, "_measure", lambda self, model: seen.append(model.network.training) or {})
    model = torch.nn.Linear(1, 1)
    validation_of().measure(model, 3)
    assert seen == [False] and model.training


def test_a_validation_that_fails_leaves_a_checkpoint_from_which_the_run_goes_on(
    chips, tmp_path, configure, train, monkeypatch
):
    config, run = configure(steps=4, checkpoint_every=100, validate_every=3), tmp_path / "run"
    whole = train(configure(steps=4), chips, tmp_path / "whole")
    with monkeypatch.context() as broken:
        gone = ChipError("is damaged", file="place1.npz")
        broken.setattr(Validation, "_read", lambda self, places: (_ for _ in ()).throw(gone))
        words = (
            r"the validation of step 3 failed: place1\.npz: is damaged; .*validate_every=0.*; a checkpoint is written"
        )
        with pytest.raises(TrainingError, match=words) as caught:
            train(config, chips, run)
        assert caught.value.__cause__ is gone
    assert [path.name for path in Checkpoints(run, keep=2).all()] == ["step-00000003"]
    assert read_validations(run) == []
    train(config, chips, run, resume="auto")
    assert [one["loss"] for one in read_log(run)] == [one["loss"] for one in read_log(whole.run.path)]


@pytest.mark.parametrize("drawn", ["aef.training.observer.write_figure", "aef.training.curves.write_validation_figure"])
def test_a_figure_that_cannot_be_drawn_costs_no_run(drawn, chips, tmp_path, configure, train, monkeypatch, capsys):
    def fail(*given):
        raise OverflowError("date value out of range")

    monkeypatch.setattr(drawn, fail)
    train(configure(validate_every=2), chips, tmp_path / "run")
    assert re.search(r"^no figure of \w+.*: OverflowError: date value out of range$", capsys.readouterr().err, re.M)


def test_a_figure_that_is_no_number_is_left_out(validation_of, monkeypatch):
    from aef.training import validation as room

    monkeypatch.setattr(room, "withheld_tasks", lambda *given: ([None], []))
    monkeypatch.setattr(Validation, "_withheld", lambda self, model, task: {"withheld a": float("nan"), "b": 1.0})
    monkeypatch.setattr(room, "judge_health", lambda model, chips: {"norm": 1.0})
    assert validation_of()._measure(None) == {"b": 1.0, "norm": 1.0}
