"""The proof on unseen places: paired shuffles, what a gain is, and what is refused."""

import dataclasses
import itertools
import json

import numpy as np
import pytest

import aef
from aef.data.chips import Chip, Label, SourceSeries
from aef.data.statistics import Statistics
from aef.evaluation.embedding_features import EMBEDDING, OURS, decoded_source, feature_sets, quarters
from aef.evaluation.few_shot import compare
from aef.evaluation.labels import labelled_pixels
from aef.evaluation.proof import INTACT, PIXELS, TIME, Proof, ProofError, prove, require_unseen
from aef.evaluation.shuffles import pixel_order, put_back, shuffle_pixels, shuffle_time
from aef.sources import BUILT_IN
from aef.timecode import DAY_MS, Period, parse_time

START = parse_time("2019-01-01")
SIDE, FRAMES = 24, 16


def a_chip(number: int) -> Chip:
    """Nine fields of two crops that differ in their season only, behind strong noise of the pixel."""
    rng = np.random.default_rng(number)
    rows, columns = np.indices((SIDE, SIDE)) // 8
    fields = 1 + rows * 3 + columns
    classes = ((rows + columns) % 2).astype(np.int32)
    days = np.arange(FRAMES) * (360 // FRAMES)
    season = np.cos(2 * np.pi * (days[:, None, None] / 365 - 0.25 * classes))
    base = 15_000 + 1000 * season + 4000 * rng.normal(size=(FRAMES, SIDE, SIDE))
    optical = np.stack([base * (1 + 0.05 * band) for band in range(5)], 1).clip(1, 60_000).astype(np.uint16)
    series = SourceSeries(
        values=optical,
        valid=np.ones((FRAMES, 1, SIDE, SIDE), bool),
        weight=np.full((FRAMES, 1, SIDE, SIDE), 255, np.uint8),
        time_ms=START + days.astype(np.int64) * DAY_MS,
    )
    label = Label(classes, legend={0: "early", 1: "late"}, fields=fields.astype(np.int32))
    return Chip(
        f"c{number}", "EPSG:32631", (10.0, 0, 1000 * number, 0, -10.0, 0), SIDE, SIDE, 3, 51,
        {"sentinel2": series}, labels={"crop": label},
    )  # fmt: skip


class Phenologist:
    """A model that knows its trade: the season of each pixel's neighbourhood, as a direction in 64 dimensions."""

    inputs = targets = ("sentinel2",)
    registry = BUILT_IN
    statistics = Statistics.identity(BUILT_IN, ["sentinel2"])

    def embed_array(self, chip, periods, *, support=None):
        series = chip.sources["sentinel2"]
        phase = 2 * np.pi * (series.time_ms - START) / (365 * DAY_MS)
        blue = series.values[:, 0].astype(float) - series.values[:, 0].mean()
        waves = np.stack([np.tensordot(wave(phase), blue, 1) for wave in (np.cos, np.sin)])
        padded = np.pad(waves, ((0, 0), (2, 2), (2, 2)), mode="edge")
        views = [padded[:, i : i + SIDE, j : j + SIDE] for i in range(5) for j in range(5)]
        smooth = np.mean(views, axis=0)
        field = np.zeros((64, SIDE, SIDE), np.float32)
        field[:2] = smooth / np.linalg.norm(smooth, axis=0)
        return np.stack([field] * len(periods))

    def reconstruct(self, chip, source, requests, *, standardized, support):
        (field,) = self.embed_array(chip, [requests[0][1]])
        return np.stack([field[:2]] * len(requests))

    def scored(self, source):
        return np.ones(2, bool)


@pytest.fixture(scope="module")
def chips():
    return [a_chip(number) for number in range(5)]


@pytest.fixture(scope="module")
def proof(chips):
    (found,) = prove(Phenologist(), chips, ["crop"], shots=(5,), trials=6, most_pixels=1500)
    return found


def test_a_field_of_shuffled_pixels_is_put_back_onto_the_chip(chips):
    chip, order = chips[0], pixel_order(SIDE, SIDE, 3)
    moved = shuffle_pixels(chip, 3)
    values = put_back(moved.sources["sentinel2"].values[0].astype(float), order)
    assert np.array_equal(values, chip.sources["sentinel2"].values[0])
    back = put_back(moved.labels["crop"].fields[None], order)[0]
    assert np.array_equal(back, chip.labels["crop"].fields)
    assert not np.array_equal(moved.labels["crop"].fields, chip.labels["crop"].fields)


def test_frames_trade_dates_and_nothing_else(chips):
    moved, whole = shuffle_time(chips[0], 1).sources["sentinel2"], chips[0].sources["sentinel2"]
    assert np.array_equal(moved.time_ms, whole.time_ms) and not np.array_equal(moved.values, whole.values)
    assert np.array_equal(np.sort(moved.values, 0), np.sort(whole.values, 0))


def test_a_gain_from_season_and_neighbours_falls_under_either_shuffle(proof):
    gain = proof.gain(5)
    assert gain.difference > 0.05 and gain.interval[0] > 0
    assert proof.removed(5, TIME) > 0.5 and proof.removed(5, PIXELS) > 0.5
    intact, same = proof.shuffled(5, PIXELS)
    assert intact.baseline == gain.baseline and intact.interval[0] <= intact.difference <= intact.interval[1]
    assert same.difference >= intact.difference  # baselines over a window fall too


def test_baselines_of_single_pixels_do_not_know_their_neighbours(proof):
    scores = proof.results[5]
    assert scores[INTACT].accuracy("harmonic") == scores[PIXELS].accuracy("harmonic")
    assert scores[INTACT].accuracy("annual mean and s.d.") == pytest.approx(
        scores[TIME].accuracy("annual mean and s.d."), abs=1e-6
    )


def test_embeddings_and_baselines_are_judged_per_pixel_and_over_a_window(proof):
    names = ("annual mean and s.d.", "seasonal composites", "harmonic", "raw series")
    assert set(proof.results[5][INTACT].scores) == {
        *OURS, "coordinates", *names, *(f"{name}, 3×3" for name in names),
    }  # fmt: skip


def test_tables_and_figures_say_the_same(proof):
    figures = json.loads(json.dumps(proof.figures(), allow_nan=False))
    numbers = figures["shots"]["5-shot"]
    assert figures["units"] == 45 and figures["places"] == 5
    assert [numbers["gains"][name]["shuffles"][TIME]["removed"] for name in OURS] == [
        proof.removed(5, TIME, name) for name in OURS
    ]
    text = proof.markdown()
    assert (
        all(f"{numbers['gains'][name]['difference']:+.3f}" in text for name in OURS)
        and f"removes {proof.removed(5, TIME):.0%} of the gain" in text
    )


def test_without_a_gain_there_is_no_share_of_it(chips, proof):
    pixels = labelled_pixels(chips, "crop")
    noise = pixels.gather({EMBEDDING: np.random.default_rng(n).normal(size=(4, SIDE, SIDE))} for n in range(len(chips)))
    truth = pixels.gather({"truth": chip.labels["crop"].values[None].astype(float)} for chip in chips)
    result = compare(noise, truth, pixels.labelled, "crop", shots=5, trials=2)
    assert result.best == 1 and result.difference < -0.3
    lost = Proof("crop", 5, 2880, {5: {INTACT: result, TIME: result}})
    assert lost.removed(5, TIME) is None and "no gain to remove" in lost.markdown()
    assert lost.names(5) == [EMBEDDING]


class Counter(Phenologist):
    """Says which period it was asked about: the k-th field holds k, but for one brighter pixel of the first."""

    def embed_array(self, chip, periods, *, support=None):
        self.embedded, self.support = periods, support
        fields = np.tile(np.arange(len(periods), dtype=float)[:, None, None, None], (1, 2, SIDE, SIDE))
        fields[0, 0, 1, 1] = 9
        return fields

    def reconstruct(self, chip, source, requests, *, standardized, support):
        self.asked = source, requests, standardized
        assert support == self.support, "every feature of a year is made from the same frames"
        return np.tile(np.arange(len(requests), dtype=float)[:, None, None, None], (1, 6, SIDE, SIDE))

    def scored(self, source):
        return np.array([True, True, False, True, True, True])


def test_a_year_is_judged_as_one_vector_as_four_and_as_the_decoded_series_each_over_a_window(chips):
    year, model = Period(START, START + 365 * DAY_MS), Counter()
    (sets,) = feature_sets(model, chips[0], [year, year], "sentinel2").values()
    assert list(sets) == list(OURS) and [sets[name].shape[0] for name in OURS] == [2, 2, 8, 8, 60, 60]
    assert model.embedded == [year, *quarters(year)] and model.support == year
    assert {p.length_ms for p in quarters(year)} == {91 * DAY_MS}
    assert all(one.end_ms == other.start_ms for one, other in itertools.pairwise(quarters(year)))
    assert sets[OURS[1]][0, :3, :3].tolist() == [[2.25, 1.5, 1.5], [1.5, 1, 1], [1.5, 1, 1]]
    assert sets[OURS[2]][:, 0, 0].tolist() == [1, 1, 2, 2, 3, 3, 4, 4]
    assert sets[OURS[4]][::5, 0, 0].tolist() == list(range(12))
    source, requests, standardized = model.asked
    assert source == "sentinel2" and standardized and all(period.contains(time) for time, period in requests)
    assert [(time - START) / DAY_MS for time, _ in requests] == [15 + 30 * month for month in range(12)]


def test_a_model_that_decodes_no_input_has_no_decoded_series(chips):
    model = Counter()
    model.targets = ("glo30", "landsat")
    assert decoded_source(model, chips) is None and decoded_source(Phenologist(), chips) == "sentinel2"
    year = Period(START, START + 365 * DAY_MS)
    assert list(feature_sets(model, chips[0], [year], None)[year]) == list(OURS[:4])


def test_drawn_pixels_are_some_of_all(chips):
    pixels = labelled_pixels(chips, "crop")
    some = pixels.drawn(100)
    assert len(some.chip) == 100 == len(some.labelled.labels)
    found = np.stack([chips[c].labels["crop"].values[r, k] for c, r, k in zip(some.chip, some.row, some.column)])
    assert np.array_equal(found, some.labelled.labels)


def test_a_class_whose_second_field_was_not_drawn_is_not_judged(chips):
    """A proof that has embedded every place must not fail for a field of few pixels."""
    rare = dataclasses.replace(chips[0].labels["crop"], values=chips[0].labels["crop"].values.copy())
    rare.values[0, 0] = rare.values[-1, -1] = 2  # two fields hold a pixel of it
    pixels = labelled_pixels([dataclasses.replace(chips[0], labels={"crop": rare}), *chips[1:]], "crop")
    assert pixels.labelled.classes.tolist() == [0, 1, 2]
    assert all(pixels.drawn(200, seed).labelled.classes.tolist() == [0, 1] for seed in range(40))
    assert pixels.drawn(10_000).labelled.classes.tolist() == [0, 1, 2]


def test_places_are_counted_and_not_their_chips(chips):
    again = dataclasses.replace(chips[0], id="again", place=chips[0].place)
    unlabelled = chip_without_labels(chips[2])
    (found,) = prove(Phenologist(), [chips[0], again, unlabelled, chips[1]], shots=(3,), trials=1, shuffles=False)
    assert found.places == 2


def test_a_label_is_proven_on_the_chips_that_carry_it(chips):
    """A chip of another label alone takes no sensor from its baselines, and its place is none of this label's."""
    first, other = (dataclasses.replace(chip, sources=dict(chip.sources)) for chip in (chips[0], chips[1]))
    optical = first.sources["sentinel2"]
    values = np.random.default_rng(0).normal(-10, 1, optical.values.shape).astype(np.float32)
    first.sources["sentinel1"] = dataclasses.replace(optical, values=values, weight=None)
    other.labels = {"cover": other.labels["crop"]}
    (alone,) = prove(Phenologist(), [first], ["crop"], shots=(3,), trials=2, shuffles=False)
    found, cover = prove(Phenologist(), [other, first], ["crop", "cover"], shots=(3,), trials=2, shuffles=False)
    (cover_alone,) = prove(Phenologist(), [other], ["cover"], shots=(3,), trials=2, shuffles=False)
    assert found.figures() == alone.figures() and cover.figures() == cover_alone.figures()


def test_training_places_and_chips_without_labels_are_refused(tiny_run, chips):
    model = aef.load(tiny_run)
    seen = Statistics(model.statistics, weighting="clear", date="2026-01-01", places=["c1", "c9"])
    model.statistics = seen
    with pytest.raises(ProofError, match=r"1 places were training places of the run \(c1\)"):
        require_unseen(model, [chip.place for chip in chips])
    with pytest.raises(ProofError, match="1 places were training places"):
        prove(model, chips, ["crop"])
    with pytest.raises(ProofError, match="no chip carries a label"):
        prove(Phenologist(), [chip_without_labels(chips[0])])


def chip_without_labels(chip: Chip) -> Chip:
    return dataclasses.replace(chip, labels={})
