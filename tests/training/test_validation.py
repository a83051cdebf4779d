"""What a validation looks at, and that it leaves the model as it was."""

import pytest
import torch

from aef.training.new_run import describe_run
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
