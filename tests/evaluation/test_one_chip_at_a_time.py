"""However many places are judged, one chip and what is kept of the others are in memory."""

import weakref

import numpy as np
import pytest

from aef.data.on_demand import OnDemand
from aef.data.withheld import WithheldDates
from aef.evaluation import baselines, diagnostics, few_shot, reconstruction
from aef.evaluation.few_shot import UnitVariance, judge_labels
from aef.evaluation.judgement import judge
from aef.evaluation.labels import labelled_pixels
from aef.evaluation.leave_place_out import Task, judge_place
from aef.evaluation.proof import prove
from aef.sources import BUILT_IN
from aef.timecode import DAY_MS, Period
from tests.evaluation.four_fields import START, a_chip

PLACES = 3


class Alive:
    """Weak references to what was made, and how many of it were alive at once."""

    def __init__(self):
        self.references, self.most, self.made = [], 0, 0

    def noted(self, thing):
        self.references = [r for r in self.references if r() is not None] + [weakref.ref(thing)]
        self.most, self.made = max(self.most, len(self.references)), self.made + 1
        return thing


@pytest.fixture
def watched(monkeypatch):
    """Chips on demand, and how many arrays that are as large as a chip were alive at once: of chips, of series, of
    hand-made features."""
    alive = {"chips": Alive(), "series": Alive(), "features": Alive()}

    def read(number):
        chip = a_chip(number)
        alive["chips"].noted(chip.sources["sentinel2"].values)
        return chip

    def series(*given, **more):
        found = series_of(*given, **more)
        alive["series"].noted(found.values)
        return found

    series_of, window_mean = baselines.clear_series, baselines.window_mean
    for room in (baselines, reconstruction):
        monkeypatch.setattr(room, "clear_series", series)
    monkeypatch.setattr(baselines, "window_mean", lambda field: alive["features"].noted(window_mean(field)))
    return OnDemand(range(PLACES + 1), read), alive


def test_a_judgement_holds_one_chip_and_says_the_same(model, watched):
    chips, alive = watched
    dates = WithheldDates({("c0", "sentinel2"): [START + 24 * DAY_MS]})
    given = {"withheld": dates, "period_days": [120], "trials": 1}
    found = judge(model, chips[:1], held_out=chips[1:], **given)
    assert found.withheld and found.probes and not found.not_judged
    made = {name: one.made for name, one in alive.items()}
    assert made["chips"] > PLACES and made["series"] >= PLACES and made["features"] == PLACES * 4
    most = {name: one.most for name, one in alive.items()}
    # The last chip goes once the next one is there, and a chip has two sources and four windows.
    assert most["chips"] <= 2 and most["series"] <= 4 and most["features"] <= 8
    held = [a_chip(number) for number in range(PLACES + 1)]
    assert judge(model, held[:1], held_out=held[1:], **given).figures() == found.figures()


def test_a_proof_holds_one_chip(model, watched):
    chips, alive = watched
    proofs = prove(model, chips[:PLACES], shots=(3,), trials=1)
    assert [proof.places for proof in proofs] == [PLACES]
    assert alive["features"].made == 3 * PLACES * 4
    assert alive["chips"].most <= 2 and alive["series"].most <= 4 and alive["features"].most <= 8


def test_places_left_out_are_judged_one_chip_at_a_time(model, watched):
    chips, alive = watched
    judge_place(model, chips[:PLACES], Task("crop"), shots=(3,), trials=1)
    assert alive["chips"].most <= 2 and alive["series"].most <= 4 and alive["features"].most <= 8


def test_health_keeps_the_drawn_pixels_of_a_chip(model, watched):
    chips, alive = watched
    whole = Alive()

    class Watched:
        inputs, passes = model.inputs, model.passes

        def embed_array(self, *given, **more):
            return whole.noted(model.embed_array(*given, **more))

    def year(chip):
        return few_shot.year_of(model, chip)

    fields = [model.embed_array(chip, [year(chip)])[0] for chip in chips[:PLACES]]
    diagnostics.source_presence(Watched(), chips[:PLACES], fields, year, trials=1)
    assert whole.made == PLACES * len(model.inputs) and whole.most <= 2 and alive["chips"].most <= 2


def test_of_many_labelled_pixels_some_are_probed(model, chips):
    found = judge_labels(model, chips, "crop", shots=2, trials=1, most_pixels=60)
    tested = {name: sum(scores.tests.values()) for name, (_, scores) in found.scores.items()}
    assert len(set(tested.values())) == 1 and 0 < tested["embedding"] < 60


def test_features_take_the_memory_of_their_fields(chips):
    pixels = labelled_pixels(chips, "crop")
    fields = baselines.baseline_fields(chips, BUILT_IN, lambda chip: Period(*chip.span_ms))
    types = {name: table.dtype for name, table in pixels.gather(fields).items()}
    assert types.pop("coordinates") == np.float64 and set(types.values()) == {np.dtype(np.float32)}


@pytest.mark.parametrize("columns", [1, 2, 40])
def test_a_table_of_unit_variance_is_that_of_all_its_rows(columns):
    table = np.random.default_rng(0).normal(5, 3, (1000, columns)).astype(np.float32)
    table[:, 0] = 7  # what does not vary is left at 0
    wide, rows = table.astype(np.float64), np.array([3, 999, 3])
    deviation = wide.std(axis=0)
    expected = (wide - wide.mean(axis=0)) / np.where(deviation > 0, deviation, 1)
    scaled = UnitVariance(table)
    assert len(scaled) == 1000 and np.array_equal(scaled[rows], expected[rows])
