"""What embeddings give away of their inputs, and how they spread."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest

from aef.evaluation.diagnostics import presence_split, source_presence, spread
from aef.evaluation.few_shot import year_of
from aef.evaluation.judgement import judge_health
from tests.evaluation.four_fields import SIDE, a_chip


def presence_of(model, chips, period_of=lambda chip: None, trials=5):
    fields = [model.embed_array(chip, [period_of(chip)])[0] for chip in chips]
    return source_presence(model, chips, fields, period_of, trials=trials)


def test_a_probe_for_the_inputs_finds_a_source_that_shines_through(model, chips):
    """An untrained model gives its inputs away; the diagnostic must see it."""
    presence = presence_of(model, chips, lambda chip: year_of(model, chip), trials=3)
    assert set(presence) == {"sentinel2 within places", "sentinel1 within places"}
    assert all(0 <= accuracy <= 1 for accuracy in presence.values())
    assert presence["sentinel2 within places"] > 0.9


class Marked:
    """A model whose embedding has a place's own direction, and moves by `shift(chip)` where Sentinel-1 is missing."""

    inputs = ("sentinel2", "sentinel1")

    def __init__(self, shift):
        self.shift = shift

    def passes(self, chip, periods):
        return [SimpleNamespace(sources=self.inputs)]

    def embed_array(self, chip, periods, leave_out=()):
        rng = np.random.default_rng(int(chip.id[1:]))
        field = rng.normal(size=(64, 1, 1)) + 0.1 * rng.normal(size=(64, SIDE, SIDE))
        return np.stack([field + self.shift(chip) * ("sentinel1" in leave_out)])


def test_only_a_trace_that_places_share_is_a_trace_of_the_sensor():
    places = [a_chip(number) for number in range(8)]
    direction = np.random.default_rng(1).normal(size=(64, 1, 1))

    def presence(shift):
        return presence_of(Marked(shift), places, trials=5)["sentinel1"]

    assert presence(lambda chip: direction) > 0.9
    assert presence(lambda chip: 0.0) == pytest.approx(0.5, abs=0.06)
    # Each place moves in a direction of its own: within a place that is plain to see, elsewhere it is worth nothing.
    own = {chip.id: np.random.default_rng(100 + n).normal(size=(64, 1, 1)) for n, chip in enumerate(places)}
    assert presence(lambda chip: own[chip.id]) < 0.7


def test_a_chip_that_nothing_else_saw_in_the_period_is_left_out_of_the_presence_probe():
    class Strict(Marked):
        def passes(self, chip, periods):
            return (
                [SimpleNamespace(sources=("sentinel1",))] if chip.id == places[0].id else super().passes(chip, periods)
            )

        def embed_array(self, chip, periods, leave_out=()):
            assert not leave_out or chip.id != places[0].id, "nothing to embed"
            return super().embed_array(chip, periods, leave_out)

    places = [a_chip(number) for number in range(12)]
    direction = np.random.default_rng(1).normal(size=(64, 1, 1))
    found = presence_of(Strict(lambda chip: direction), places, trials=5)
    assert found["sentinel1"] > 0.9


def test_a_chip_that_the_source_did_not_see_in_the_period_is_left_out_of_the_presence_probe():
    """With and without the source it has one and the same embedding, which would teach the probe that nothing shows."""

    def embeds(chip):
        return int(chip.id[1:]) % 2 == 0

    class Half(Marked):
        def passes(self, chip, periods):
            return super().passes(chip, periods) if embeds(chip) else [SimpleNamespace(sources=("sentinel2",))]

    places = [a_chip(number) for number in range(16)]
    direction = np.random.default_rng(1).normal(size=(64, 1, 1))
    found = presence_of(Half(lambda chip: direction * embeds(chip)), places, trials=5)
    assert found["sentinel1"] > 0.9


def test_of_few_places_the_probe_says_only_what_each_of_them_shows():
    """On two or three places a split by place finds nothing even where they share a trace: it would flatter."""
    places = [a_chip(number) for number in range(3)]
    own = {chip.id: np.random.default_rng(100 + n).normal(size=(64, 1, 1)) for n, chip in enumerate(places)}
    assert presence_split(chip.place for chip in places) == "block"
    found = presence_of(Marked(lambda chip: own[chip.id]), places, trials=5)
    assert found["sentinel1 within places"] > 0.9


def test_a_source_that_few_of_many_places_hold_is_judged_within_them():
    """A probe that learns on one place of two would say 0.5 whatever the source leaves behind."""

    class Rare(Marked):
        def passes(self, chip, periods):
            return [SimpleNamespace(sources=("sentinel2", "era", *["sentinel1"] * (chip.id in ("c0", "c1"))))]

    places = [a_chip(number) for number in range(8)]
    own = {chip.id: np.random.default_rng(100 + n).normal(size=(64, 1, 1)) for n, chip in enumerate(places)}
    found = presence_of(Rare(lambda chip: own[chip.id]), places, trials=3)
    assert list(found) == ["sentinel2", "sentinel1 within places"] and found["sentinel1 within places"] > 0.9


def test_health_takes_one_chip_of_each_place(model):
    """The same ground in another year would look like a collapse, and would count for a place of its own."""
    first = [a_chip(0), a_chip(1)]
    again = [dataclasses.replace(chip, id=f"{chip.id}_again", place=chip.place) for chip in first]
    mixed = [first[0], again[0], first[1], again[1]]
    assert judge_health(model, mixed) == judge_health(model, first) == judge_health(model, mixed, most_places=2)


def test_spread_of_equal_fields_is_a_collapse():
    one = np.zeros((64, 4, 4), np.float32)
    one[3] = 1
    assert spread([one, one])["uniformity"] == pytest.approx(1) and spread([one, one])["norm"] == pytest.approx(1)


def test_variance_is_divided_into_between_and_within_places():
    rng = np.random.default_rng(0)
    one, other = rng.normal(size=(2, 8, 50, 50))
    shifted = other + 2 * np.eye(8)[0][:, None, None]  # means 2 apart: variance 1 between places, 8 within
    assert spread([one, shifted])["between_places"] == pytest.approx(1 / 9, abs=0.01)
    assert spread([one, one])["between_places"] == pytest.approx(0, abs=1e-12)
    assert np.isnan(spread([one])["between_places"])
