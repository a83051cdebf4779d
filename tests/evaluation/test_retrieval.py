"""Ranks, chance, and a model that was told the answer."""

import dataclasses

import numpy as np
import pytest
import torch

from aef.config import TINY
from aef.data.normalize import Statistics
from aef.data.synthetic import generate
from aef.evaluation.retrieval import RetrievalError, rank_places, summarise, text_retrieval
from aef.mapping.trained import TrainedModel
from aef.run import Run, build_model
from aef.sources import BUILT_IN
from aef.timecode import parse_period

YEAR, LATER = parse_period("2019-01-01/2020-01-01"), parse_period("2020-01-01/2021-01-01")


def unit(*shape, seed=0):
    vectors = np.random.default_rng(seed).normal(size=shape)
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def test_a_perfect_alignment_ranks_every_place_first_and_an_opposite_one_last():
    vectors = unit(20, 8)
    names = [str(i) for i in range(20)]
    assert rank_places(vectors, vectors, names, [YEAR] * 20)[0].tolist() == [0] * 20
    assert rank_places(-vectors, vectors, names, [YEAR] * 20)[0].tolist() == [19] * 20


def test_random_vectors_are_at_chance():
    found = summarise(*rank_places(unit(400, 16), unit(400, 16, seed=1), [str(i) for i in range(400)], [YEAR] * 400), 1)
    assert found.chance1 == pytest.approx(1 / 400) and found.chance5 == pytest.approx(5 / 400)
    assert abs(found.percentile - 0.5) < 0.05 and found.top5 < 0.04


def test_places_of_the_same_text_are_no_mistakes():
    vectors = unit(3, 8)
    places = vectors[[1, 1, 2]]  # text 0's own place looks like text 1's
    before, others = rank_places(vectors[[1, 1, 2]], places, ["a", "a", "b"], [YEAR] * 3)
    assert before.tolist() == [0, 0, 0] and others.tolist() == [1, 1, 2]
    with pytest.raises(RetrievalError, match="two different texts"):
        summarise(*rank_places(vectors, vectors, ["a", "a", "a"], [YEAR] * 3), 1)


def test_places_of_other_dates_are_not_asked():
    vectors = unit(4, 8)
    dates = [YEAR, YEAR, LATER, LATER]
    before, others = rank_places(-vectors, vectors, ["a", "b", "c", "d"], dates)
    assert before.tolist() == [1] * 4 and others.tolist() == [1] * 4
    alone = summarise(*rank_places(vectors[:3], vectors[:3], ["a", "b", "c"], dates[:3]), 3)
    assert alone.texts == 2


def test_text_points_of_chips_are_embedded_at_their_place_and_dates():
    torch.manual_seed(0)
    names = ("sentinel2",)
    config = dataclasses.replace(TINY, model=dataclasses.replace(TINY.model, text_dim=4))
    run = Run(None, config, BUILT_IN, Statistics.identity(BUILT_IN, names), names, names)
    parts = {f.name: getattr(run, f.name) for f in dataclasses.fields(run) if f.name != "path"}
    model = TrainedModel(model=build_model(run).eval(), version="v", **parts)
    chips = [generate(place, chip_px=16, sources=names) for place in range(2)]
    for chip in chips:
        chip.texts = [
            dataclasses.replace(point, time_ms=YEAR.start_ms, time_end_ms=YEAR.end_ms) for point in chip.texts
        ]
    rng = np.random.default_rng(0)
    vectors = {point.text: rng.normal(size=4).astype(np.float32) for chip in chips for point in chip.texts}
    found = text_retrieval(model, chips, vectors.get)
    assert found.places == 2 and found.texts == sum(len(chip.texts) for chip in chips)
    land = text_retrieval(model, chips, vectors.get, keep=lambda chip, point: point.uncertainty_m >= 80)
    assert land.texts == 2
    with pytest.raises(RetrievalError, match="no text with a vector"):
        text_retrieval(model, chips, lambda text: None)
